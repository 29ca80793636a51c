"""A step of a recurrent cell in a search, from the products that it reads.

It is a compiled loop (`nmt.model.kernels`), or what defines it, in torch's operations.
"""

import torch
from torch import Tensor

from nmt.model.compiled import suits
from nmt.model.products import Sums
from nmt.model.rnn import CellState


def cell_step(
    inputs: Tensor | None, product: Sums | None, recurrent: Sums, state: CellState
) -> CellState:
    """The next state of a GRU or an LSTM.

    Args:
        inputs: (N, gH) what the gates read of the inputs, biases included.
        product: (N, gH) what is added to it. One of the two may be None.
        recurrent: (N, gH) what they read of the state.
    """
    sums = (*(product or (None, None, None)), *recurrent)
    if state[0].dtype == torch.float32 and suits(inputs, *sums, *state):
        return _compiled(inputs, sums, state)
    dtype = state[0].dtype
    gates = recurrent.to(dtype)
    if product is not None:
        inputs = product.to(dtype) if inputs is None else inputs + product.to(dtype)
    assert inputs is not None
    return (_lstm if len(state) == 2 else _gru)(inputs, gates, state)


def _compiled(
    inputs: Tensor | None, sums: tuple[Tensor | None, ...], state: CellState
) -> CellState:
    from nmt.model import kernels

    new = tuple(torch.empty_like(x) for x in state)
    if len(state) == 2:
        kernels.lstm_step(len(new[0]), inputs, *sums, state[1], *new)
    else:
        kernels.gru_step(len(new[0]), inputs, *sums, *state, *new)
    return new


def _gru(inputs: Tensor, gates: Tensor, state: CellState) -> CellState:
    """One step of a GRU from (N, 3H) products with its input and with its state."""
    (hidden,) = state
    size = 2 * hidden.size(1)
    reset, update = (inputs[:, :size] + gates[:, :size]).sigmoid_().chunk(2, 1)
    proposal = tanh(torch.addcmul(inputs[:, size:], reset, gates[:, size:]))
    return (torch.lerp(proposal, hidden, update),)


def _lstm(inputs: Tensor, gates: Tensor, state: CellState) -> CellState:
    """One step of an LSTM from (N, 4H) products with its input and with its state."""
    _, memory_cell = state
    enter, forget, proposal, leave = (inputs + gates).chunk(4, 1)
    memory_cell = forget.sigmoid() * memory_cell + enter.sigmoid() * tanh(proposal)
    return leave.sigmoid() * tanh(memory_cell), memory_cell


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent as a sigmoid, which torch computes faster."""
    return (2 * x).sigmoid_().mul_(2).sub_(1)
