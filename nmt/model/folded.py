"""Decoders rewritten for search: the same function of the same weights, at less work per step.

The model is `nmt.model.decoder`; nothing here is trained. What does not change from step to step
is multiplied out beforehand, which the distributive law allows:

once per model      The last token enters through linear layers only: its products with all of them
                    are a row of a table.
once per sentence   W_c c = W_c (sum of w_s h_s) = sum of w_s (W_c h_s): the encoder states are kept
                    already multiplied with the weights that would read the context, which itself
                    is never formed (`Memory.states` holds these products).
once per step       All that reads one state is one product with stacked weights.

Since tanh(x) = 2 sigmoid(2x) - 1, an additive score v . tanh(x) is 2v . sigmoid(2x) - sum(v), where
softmax removes the constant; a sigmoid is computed several times faster than a tanh.
`nmt.model.folded_attention` is the attention of these decoders.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nmt.model.attention import FixedContext
from nmt.model.decoder import BahdanauDecoder, Decoder, DecoderState, LuongDecoder
from nmt.model.encoder import Encoded
from nmt.model.folded_attention import FoldedAttention, add_context, join, join_context
from nmt.model.folded_cell import cell_step
from nmt.model.logits import Logits
from nmt.model.products import Precision, Product, Sums, TokenProduct
from nmt.model.rnn import CellState, weights_of

BLOCK = 64  # the number of logits is a multiple of it


class FoldedDecoder(ABC):
    """What both orders share; `fold` makes one. Search needs `start` and `step`.

    Args:
        decoder: left as it is; its weights, but for the embeddings, are copied as they are now.
        is_restricted: whether only some rows of `output` are wanted, each time others.
    """

    tokens: TokenProduct
    """What the step reads of the last token."""
    values: Product
    """From encoder states to what the step reads of the context: (B, S, M) to (B, S, out)."""

    def __init__(self, decoder: Decoder, precision: Precision, is_restricted: bool = False) -> None:
        self.decoder, self.precision = decoder, precision
        self.dtype = precision.result
        self.layers = [weights_of(layer) for layer in decoder.rnn.layers]
        self.gates_dim = len(self.layers[0].of_state)
        self.attention = FoldedAttention(
            decoder.attention,
            precision.product_once,
            dtype=self.dtype,
            value_type=precision.once,
        )
        self.output = precision.product(*_padded(decoder.output_layer), is_whole=not is_restricted)
        self.from_below = [
            precision.product(layer.of_input, layer.input_bias) for layer in self.layers[1:]
        ]
        self.recurrent = [
            precision.product(layer.of_state, layer.state_bias) for layer in self.layers
        ]

    def seconds_saved(self, lengths: Sequence[int], beam_size: int) -> float:
        """What compiled loops save in searching sources of these lengths, at a rough guess.

        That is a nanosecond for each logit, and half of one for each pair of numbers of query and
        key. There are taken to be as many steps as source tokens.
        """
        if self.dtype != torch.float32 or self.decoder.output_layer.weight.device.type != "cpu":
            return 0.0
        energy = self.attention.energy
        nanoseconds = float(self.decoder.output_layer.out_features * sum(lengths))
        if energy is not None:
            nanoseconds += len(energy) * sum(length**2 for length in lengths) / 2
        return 1e-9 * beam_size * nanoseconds

    def start(self, encoded: Encoded, beam_size: int = 1) -> DecoderState:
        """The state before the first target token, one row per sentence, like `Decoder.start`.

        Args:
            beam_size: rows that each sentence will have; any number of them works.
        """
        finals = tuple(tuple(x.to(self.dtype) for x in layer) for layer in encoded.finals)
        states, mask = encoded.states.contiguous(), encoded.mask  # for values and keys
        if isinstance(self.decoder.attention, FixedContext):
            states, mask = finals[-1][0].unsqueeze(1), torch.ones_like(mask[:, :1])
        memory = self.attention.memory(self.values(states), states, mask, beam_size)
        return DecoderState(self.decoder.bridge(finals), None, memory)

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Logits, Tensor, DecoderState]:
        """Read one token per row and predict the next, like `Decoder.step`.

        Args:
            token_ids: (N,) the previous target token of each row.

        Returns:
            logits: (N, V'), V' being V rounded up to a multiple of `BLOCK`; -inf beyond V.
            weights: (N, S) attention weights of the predicted token.
            state: the state after this step.
        """
        readout, weights, state = self.advance(token_ids, state)
        return Logits(self.output.sums(readout), self.dtype), weights, state

    @abstractmethod
    def advance(
        self, token_ids: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """What `step` does before the vocabulary layer, with the (N, R) readout it reads."""

    def _run_layers(
        self,
        inputs: Tensor,
        product: Sums | None,
        layers: tuple[CellState, ...],
        top_gates: Sums | None = None,
    ) -> tuple[CellState, ...]:
        """Run the recurrent layers.

        Args:
            inputs: (N, gH) what the lowest layer reads, already multiplied with its weights.
            product: (N, gH) what is added to it.
            top_gates: (N, gH) the product of the top state with its recurrent weights, if known.
        """
        new: list[CellState] = []
        below: Tensor | None = inputs
        for i, state in enumerate(layers):
            if i:
                below, product = None, self.from_below[i - 1].sums(new[-1][0])
            gates = top_gates if i == len(layers) - 1 else None
            if gates is None:
                gates = self.recurrent[i].sums(state[0])
            new.append(cell_step(below, product, gates, state))
        return tuple(new)


class FoldedBahdanau(FoldedDecoder):
    """`BahdanauDecoder`: attend with the previous state, then move on."""

    def __init__(
        self, decoder: BahdanauDecoder, precision: Precision, is_restricted: bool = False
    ) -> None:
        super().__init__(decoder, precision, is_restricted)
        lowest, top = self.layers[0], self.layers[-1]
        embed_dim, hidden_dim = decoder.embedding.embedding_dim, top.of_state.size(1)
        gates_token, gates_context = lowest.of_input.tensor_split([embed_dim], 1)
        readout_hidden, readout_context, readout_token = decoder.readout_layer.weight.tensor_split(
            [hidden_dim, hidden_dim + gates_context.size(1)], 1
        )
        self.tokens = TokenProduct(
            decoder.embedding.weight,
            precision.product_once(
                torch.cat([gates_token, readout_token]),
                torch.cat([lowest.input_bias, decoder.readout_layer.bias]),
            ),
        )
        self.values = precision.product_once(torch.cat([gates_context, readout_context]))
        self.from_top = precision.product(*self.attention.below(top.of_state, top.state_bias))
        self.readout = precision.product(readout_hidden)

    def advance(
        self, token_ids: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        # 1. The state before this step asks the source, and is read by its own recurrent layer.
        hidden = state.layers[-1][0]
        gates, query = self.from_top.sums(hidden).split(self.gates_dim)
        weights = self.attention.weights(query.to(self.dtype) if query else hidden, state.memory)
        # 2. Last word and answer, as layers and readout see them: (N, gH + R).
        seen = add_context(self.tokens(token_ids), weights, state.memory)
        layers = self._run_layers(seen[:, : self.gates_dim], None, state.layers, gates)
        # 3. State, context and last word together predict the next word.
        readout = join(seen[:, self.gates_dim :], self.readout.sums(layers[-1][0]))
        return readout, weights.flatten(0, 1), replace(state, layers=layers)


class FoldedLuong(FoldedDecoder):
    """`LuongDecoder`: move on, then attend with the new state."""

    def __init__(
        self, decoder: LuongDecoder, precision: Precision, is_restricted: bool = False
    ) -> None:
        super().__init__(decoder, precision, is_restricted)
        lowest, hidden_dim = self.layers[0], self.layers[-1].of_state.size(1)
        token, fed = lowest.of_input.tensor_split([decoder.embedding.embedding_dim], 1)
        self.tokens = TokenProduct(
            decoder.embedding.weight, precision.product_once(token, lowest.input_bias)
        )
        self.from_attentional = precision.product(fed) if decoder.input_feeding else None
        self.readout_dim = decoder.readout_dim
        context, hidden = decoder.attentional_layer.weight.tensor_split([-hidden_dim], 1)
        self.values = precision.product_once(context)
        self.from_top = precision.product(*self.attention.below(hidden, None))

    def start(self, encoded: Encoded, beam_size: int = 1) -> DecoderState:
        state = super().start(encoded, beam_size)
        if self.from_attentional is None:
            return state
        hidden = state.layers[-1][0]
        return replace(state, attentional=hidden.new_zeros(len(hidden), self.readout_dim))

    def advance(
        self, token_ids: Tensor, state: DecoderState
    ) -> tuple[Tensor, Tensor, DecoderState]:
        # 1. The recurrent layers read the last word (and what was attended to before it).
        fed: Sums | None = None
        if self.from_attentional is not None and state.attentional is not None:
            fed = self.from_attentional.sums(state.attentional)
        layers = self._run_layers(self.tokens(token_ids), fed, state.layers)
        # 2. The new state asks the source.
        hidden = layers[-1][0]
        part, query = self.from_top.sums(hidden).split(self.readout_dim)
        weights = self.attention.weights(query.to(self.dtype) if query else hidden, state.memory)
        # 3. Context and state together.
        attentional = join_context(part, weights, state.memory)
        next_fed = None if self.from_attentional is None else attentional
        state = replace(state, layers=layers, attentional=next_fed)
        return attentional, weights.flatten(0, 1), state


def fold(
    decoder: Decoder, compute: torch.dtype | None = None, *, is_restricted: bool = False
) -> FoldedDecoder:
    """Rewrite a decoder for search.

    Args:
        compute: type of the products: a float type, int8 (on the CPU), or None for that of the
            decoder's weights, in which the result is the decoder's but for rounding.
        is_restricted: whether it is for `RestrictedDecoder` only.

    Raises:
        TypeError: for an order without a folded form.
    """
    precision = Precision.make(compute, decoder.output_layer.weight.dtype)
    with torch.no_grad():
        if isinstance(decoder, BahdanauDecoder):
            return FoldedBahdanau(decoder, precision, is_restricted)
        if isinstance(decoder, LuongDecoder):
            return FoldedLuong(decoder, precision, is_restricted)
    raise TypeError(f"{type(decoder).__name__} has no folded form")


def _padded(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias with rows added up to a multiple of `BLOCK`, which give -inf."""
    missing = -layer.out_features % BLOCK
    weight = nn.functional.pad(layer.weight, (0, 0, 0, missing))
    return weight, nn.functional.pad(layer.bias, (0, missing), value=-torch.inf)
