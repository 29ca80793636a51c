"""How many floating-point operations a translation model takes, as its paper writes it.

A multiply-add is two operations. Only matrix products and attention are counted, without any
saving by algebra (nothing folded, nothing looked up in a table), and only for real tokens: what a
model must do, not what an implementation does. A limit is the speed at which a machine would do
just that at its peak.
"""

from dataclasses import dataclass
from typing import Literal

Order = Literal["bahdanau", "luong-feeding", "luong"]
"""The order of Bahdanau et al. (2015); that of Luong et al. (2015) with input feeding; without."""

TRAINING_PASSES = 3  # forward, gradient of the inputs, gradient of the weights


@dataclass(frozen=True)
class Shape:
    """The sizes of a model with additive attention; the encoder reads in both directions."""

    cell: Literal["gru", "lstm"]
    embed_dim: int
    encoder_hidden_dim: int
    """Of each direction."""
    encoder_layers: int
    hidden_dim: int
    """Of the decoder; also the size of the readout."""
    num_layers: int
    key_dim: int
    vocab_size: int

    @property
    def memory_dim(self) -> int:
        """The size of an encoder state."""
        return 2 * self.encoder_hidden_dim

    @property
    def num_gates(self) -> int:
        """Matrices of a recurrent cell."""
        return 3 if self.cell == "gru" else 4


@dataclass(frozen=True)
class Lengths:
    """The lengths that a cost depends on, in tokens with `</s>`."""

    attended: float
    """Source positions that a target token attends to, on average."""
    src_per_tgt: float
    """Source tokens for each target token."""


@dataclass(frozen=True)
class Forward:
    """Operations per target token, forward."""

    encoder: float
    """Recurrent layers and keys."""
    gates: float
    """The decoder's recurrent layers."""
    attention: float
    """Query, scores, context."""
    readout: float
    vocabulary: float

    @property
    def decoder(self) -> float:
        """All but the encoder."""
        return self.gates + self.attention + self.readout + self.vocabulary


def forward_flops(shape: Shape, order: Order, lengths: Lengths) -> Forward:
    """The operations of one pass over a sentence pair, for each of its target tokens."""
    embed, hidden, memory, key = (
        shape.embed_dim,
        shape.hidden_dim,
        shape.memory_dim,
        shape.key_dim,
    )

    def recurrent(input_dim: int, state_dim: int) -> int:
        return 2 * shape.num_gates * state_dim * (input_dim + state_dim)

    per_src_token = 2 * memory * key + sum(
        2 * recurrent(memory if layer else embed, shape.encoder_hidden_dim)
        for layer in range(shape.encoder_layers)
    )
    joined = {"bahdanau": memory, "luong-feeding": hidden, "luong": 0}[order]
    seen = hidden + memory + (embed if order == "bahdanau" else 0)
    return Forward(
        encoder=per_src_token * lengths.src_per_tgt,
        gates=recurrent(embed + joined, hidden)
        + (shape.num_layers - 1) * recurrent(hidden, hidden),
        attention=2 * hidden * key + lengths.attended * (4 * key + 2 * memory),
        readout=2 * seen * hidden,
        vocabulary=2 * hidden * shape.vocab_size,
    )


def training_flops(shape: Shape, order: Order, lengths: Lengths) -> float:
    """Operations of one update, per target token."""
    forward = forward_flops(shape, order, lengths)
    return TRAINING_PASSES * (forward.encoder + forward.decoder)


def decoding_flops(shape: Shape, order: Order, lengths: Lengths, beam_size: int) -> float:
    """Operations of a search, per token of its result: the source is encoded once."""
    forward = forward_flops(shape, order, lengths)
    return forward.encoder + beam_size * forward.decoder
