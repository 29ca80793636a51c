"""What GRU and LSTM share: a stack of recurrent cells, and the state that it carries."""

from typing import Literal

from torch import Tensor, nn

Cell = Literal["gru", "lstm"]

CellState = tuple[Tensor, ...]
"""State of one layer, each tensor (N, H): (hidden,) of a GRU, (hidden, cell) of an LSTM."""


class RecurrentStack(nn.Module):
    """Recurrent cells on top of each other, advanced by one position at a time.

    Args:
        dropout: applied between layers, in training.
    """

    def __init__(
        self, cell: Cell, input_dim: int, hidden_dim: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        cell_type = nn.GRUCell if cell == "gru" else nn.LSTMCell
        self.cells = nn.ModuleList(
            cell_type(hidden_dim if layer else input_dim, hidden_dim) for layer in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, state: tuple[CellState, ...]) -> tuple[CellState, ...]:
        """Read (N, input) once and give the next state of each layer; the top one is the output."""
        new_state: list[CellState] = []
        for cell, layer_state in zip(self.cells, state, strict=True):
            if new_state:
                inputs = self.dropout(new_state[-1][0])
            if isinstance(cell, nn.LSTMCell):
                new_state.append(cell(inputs, layer_state))
            else:
                new_state.append((cell(inputs, layer_state[0]),))
        return tuple(new_state)
