"""What GRU and LSTM share: layers, the state that they carry, and how they run.

Weights are kept in modules of one layer and one direction, whose whole-sequence kernels are the
fastest that torch has; the same weights also move by one position at a time.
"""

import warnings
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from nmt.model.dropout import Dropout

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
    start = tuple(tensor.unsqueeze(0).to(inputs.dtype) for tensor in state)
    outputs, _ = layer(inputs, start if isinstance(layer, nn.LSTM) else start[0])
    return outputs


def run_padded(layer: nn.Module, inputs: Tensor, mask: Tensor) -> tuple[Tensor, CellState]:
    """Read sequences of several lengths, from zero states.

    A recurrence does not look ahead, so padding at the end changes no state before it, and there
    is no need to pack sequences, which is slow and waits for the device. The hidden state after
    the last token is picked from the outputs.

    Args:
        inputs: (S, B, input).
        mask: (S, B), True at real tokens, which come first.

    Returns:
        outputs: (S, B, H); without meaning at padding.
        final: state after the last real token, each tensor (B, H).
    """
    if isinstance(layer, nn.LSTM):
        outputs, *cell = _run_lstm_until_padding(layer, inputs, mask)
    else:
        (outputs, _), cell = layer(inputs), []
    last = (mask.sum(0) - 1).view(1, -1, 1).expand(1, -1, outputs.size(2))
    return outputs, (outputs.gather(0, last).squeeze(0), *cell)


MARKS = 8  # one column marks padding; eight keep the rows of the matrix aligned
SHUT = 1e4  # sigmoid of it is exactly 1, and of its negative exactly 0, in every precision


def _run_lstm_until_padding(layer: nn.LSTM, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the (B, H) memory cell after the last real token.

    Torch gives the cells of the last position only. So the input says where padding is, and at
    padding shuts the input gate and opens the forget gate: the cell is carried on unchanged.
    """
    padding = (~mask).unsqueeze(2).to(inputs.dtype).expand(-1, -1, MARKS)
    weights, size = weights_of(layer), layer.hidden_size
    marks = weights.of_input.new_zeros(4, size, MARKS)  # gates are i, f, g, o
    marks[0, :, 0], marks[1, :, 0] = -SHUT, SHUT
    marked = torch.cat([weights.of_input, marks.view(4 * size, MARKS)], 1)
    zeros = inputs.new_zeros(1, inputs.size(1), size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        outputs, _, cells = torch.lstm(
            torch.cat([inputs, padding], 2),
            (zeros, zeros),
            weights._replace(of_input=marked),
            True,  # with biases
            1,  # layer
            0.0,  # dropout
            layer.training,
            False,  # bidirectional
            False,  # batch first
        )
    return outputs, cells.squeeze(0)


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
