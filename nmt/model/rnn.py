"""What GRU and LSTM share: layers, the state that they carry, and how they run.

Weights are kept in modules of one layer and one direction, whose whole-sequence kernels are the
fastest that torch has; the same weights also move by one position at a time.
"""

import warnings
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.model.dropout import Dropout
from nmt.model.gru_sequence import gru_sequence

Cell = Literal["gru", "lstm"]

CellState = tuple[Tensor, ...]
"""State of one layer, each tensor (N, H): (hidden,) of a GRU, (hidden, cell) of an LSTM."""

RecurrentLayer = nn.GRU | nn.LSTM


class Weights(NamedTuple):
    """Parameters of one layer in one direction; G is 3 H of a GRU, 4 H of an LSTM."""

    of_input: Tensor
    """(G, input)."""
    of_state: Tensor
    """(G, H)."""
    input_bias: Tensor
    """(G,)."""
    state_bias: Tensor
    """(G,)."""


def weights_of(layer: nn.Module) -> Weights:
    """The parameters of one layer."""
    return Weights(*cast(RecurrentLayer, layer).all_weights[0])


def recurrent_layer(cell: Cell, input_dim: int, hidden_dim: int) -> RecurrentLayer:
    """One layer in one direction."""
    return (nn.GRU if cell == "gru" else nn.LSTM)(input_dim, hidden_dim)


def advance(layer: nn.Module, inputs: Tensor, state: CellState) -> CellState:
    """Read (N, input) at one position."""
    weights = weights_of(layer)
    if isinstance(layer, nn.LSTM):
        hidden, cell = torch.lstm_cell(inputs, state, *weights)
        return hidden, cell
    return (torch.gru_cell(inputs, state[0], *weights),)


def run(layer: nn.Module, inputs: Tensor, state: CellState) -> Tensor:
    """Read (T, N, input) from the first position to the last: the hidden states, (T, N, H)."""
    outputs, *_ = _kernel(layer, weights_of(layer), inputs, state)
    return outputs


def run_padded(layer: nn.Module, inputs: Tensor, mask: Tensor) -> tuple[Tensor, CellState]:
    """Read sequences of several lengths, from zero states.

    A recurrence does not look ahead, so padding at the end changes no state before it, and there
    is no need to pack sequences, which is slow and waits for the device. The hidden state after
    the last token is picked from the outputs. Of memory cells torch gives those of the last
    position only: so the input of an LSTM also says where padding is, and there shuts the input
    gate and opens the forget gate; the cell is carried on unchanged.

    Args:
        inputs: (S, B, input).
        mask: (S, B), True at real tokens, which come first.

    Returns:
        outputs: (S, B, H); without meaning at padding.
        final: state after the last real token, each tensor (B, H).
    """
    weights = weights_of(layer)
    start = inputs.new_zeros(inputs.size(1), weights.of_state.size(1))
    if not isinstance(layer, nn.LSTM):
        outputs, _ = _kernel(layer, weights, inputs, (start,))
        return outputs, (last_real(outputs, mask),)
    marks = weights.of_input.new_zeros(4, start.size(1), MARKS)  # gates are i, f, g, o
    marks[0, :, 0], marks[1, :, 0] = -SHUT, SHUT
    marking = weights._replace(of_input=torch.cat([weights.of_input, marks.flatten(0, 1)], 1))
    padding = (~mask).unsqueeze(2).to(inputs.dtype).expand(-1, -1, MARKS)
    marked = torch.cat([inputs, padding], 2)
    outputs, _, cell = _kernel(layer, marking, marked, (start, start))
    return outputs, (last_real(outputs, mask), cell)


MARKS = 8  # one column marks padding; eight keep the rows of the matrix aligned
SHUT = 1e4  # sigmoid of it is exactly 1, and of its negative exactly 0, in every precision


def last_real(outputs: Tensor, mask: Tensor) -> Tensor:
    """The (B, H) outputs at the last real tokens."""
    positions = (mask.sum(0) - 1).view(1, -1, 1).expand(1, -1, outputs.size(2))
    return outputs.gather(0, positions).squeeze(0)


def _kernel(
    layer: nn.Module, weights: Weights, inputs: Tensor, state: CellState
) -> tuple[Tensor, ...]:
    """The fastest way over a sequence: (T, N, H) outputs, then (N, H) tensors of the last state.

    It is torch's kernel, but in training a GRU on a CPU (`nmt.model.gru_sequence`).
    On CUDA, torch's autocast would run recurrent layers in fp16 even where bf16 was asked for, and
    small gradients would vanish. So all is cast here.
    """
    if isinstance(layer, nn.GRU) and inputs.device.type == "cpu" and torch.is_grad_enabled():
        gates = F.linear(inputs, weights.of_input, weights.input_bias)
        outputs = gru_sequence(gates, state[0], weights.of_state, weights.state_bias)
        return outputs, outputs[-1]
    kernel: Any = torch.lstm if isinstance(layer, nn.LSTM) else torch.gru
    operands = [inputs, *weights, *(tensor.unsqueeze(0).to(inputs.dtype) for tensor in state)]
    cast = inputs.is_cuda and torch.is_autocast_enabled("cuda")
    if cast:
        operands = [tensor.to(torch.get_autocast_dtype("cuda")) for tensor in operands]
    sequence, parameters, start = operands[0], operands[1:5], operands[5:]
    with (
        torch.autocast("cuda", enabled=False) if cast else nullcontext(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        outputs, *final = kernel(
            sequence,
            start if len(start) > 1 else start[0],
            parameters,
            True,  # with biases
            1,  # layer
            0.0,  # dropout
            layer.training,
            False,  # bidirectional
            False,  # batch first
        )
    return outputs, *(tensor.squeeze(0) for tensor in final)


class RecurrentStack(nn.Module):
    """Recurrent layers on top of each other.

    Args:
        dropout: applied between layers, in training.
    """

    def __init__(
        self, cell: Cell, input_dim: int, hidden_dim: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.cell: Cell = cell
        self.hidden_dim = hidden_dim
        self.layers = nn.ModuleList(
            recurrent_layer(cell, hidden_dim if i else input_dim, hidden_dim)
            for i in range(num_layers)
        )
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor, state: tuple[CellState, ...]) -> tuple[CellState, ...]:
        """Read (N, input) once and give the next state of each layer; the top one is the output."""
        new_state: list[CellState] = []
        for layer, layer_state in zip(self.layers, state, strict=True):
            if new_state:
                inputs = self.dropout(new_state[-1][0])
            new_state.append(advance(layer, inputs, layer_state))
        return tuple(new_state)

    def run(self, inputs: Tensor, state: tuple[CellState, ...]) -> Tensor:
        """Read (T, N, input) without feedback: the states of the top layer, (T, N, H)."""
        for i, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            inputs = run(layer, self.dropout(inputs) if i else inputs, layer_state)
        return inputs

    def dropout_masks(self, like: Tensor) -> list[Tensor]:
        """What dropout multiplies (T, N, H) inputs of the layers above the first with.

        Nothing where dropout does nothing.
        """
        if not (self.training and self.dropout.p):
            return []
        ones = like.new_ones(*like.shape[:2], self.hidden_dim)
        return [self.dropout(ones) for _ in self.layers[1:]]
