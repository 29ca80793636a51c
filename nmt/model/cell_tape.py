"""The recurrent cells step by step, forward and backward, with as little in the loop as possible.

Gates come in two parts: what the input gives (its biases included) and what the state gives (its
biases included). Names of the gates are torch's:

    GRU:  r, z = sigmoid(x + h)    n = tanh(x_n + r h_n)         h' = (1 - z) n + z h
    LSTM: i, f, o = sigmoid(x + h) g = tanh(x_g + h_g)           c' = f c + i g   h' = o tanh(c')

What the state gives to a GRU is in the order n, r, z (`state_order`): so its last two thirds, and
the first two of what the input gives, are gates that have the same gradient. All else is in
torch's order.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nmt.model.compiled import suits


@dataclass(frozen=True)
class CellSteps:
    """What the steps of a cell read, and where they write their states."""

    inputs: Tensor
    """(T, B, G) gates of the input; or (B, G), a buffer that has those of the step at hand."""
    addend: Tensor | None
    """(T, B, G) what is added to them."""
    recurrent: Tensor
    """(T, B, G) gates of the state, in `state_order`."""
    bias: Tensor | None
    """(G,) what is added to those, if they are without their biases."""
    hidden: Tensor
    """(T + 1, B, H) states; state t is the one before step t, and the first is there."""
    rounded: Tensor | None
    """(T + 1, B, H) the same in a lower precision, if that is asked for."""


@dataclass(frozen=True)
class CellGradients:
    """What the steps of a cell read and write on the way back."""

    d_hidden: Tensor
    """(B, H) gradient of the state at hand, which each step changes."""
    d_outputs: Tensor | None
    """(T, B, H) gradient that each step's state gets from outside."""
    d_product: Tensor
    """(B, H) gradient that the state at hand gets from the product that reads it."""
    d_inputs: Tensor
    """(T, B, G) where the gradients of `CellSteps.inputs` go."""
    d_recurrent: Tensor
    """(T, B, G) where those of `CellSteps.recurrent` go."""


class CellTape(ABC):
    """One layer over all steps; it keeps what its backward pass needs.

    These are written with torch's operations. `cell_tape` gives what is fastest.
    """

    gradients: CellGradients
    """Set by `prepare`."""
    d_memory: Tensor | None = None
    """After the backward pass: (B, H), gradient of the memory cell before the first step."""

    def __init__(self, steps: CellSteps) -> None:
        self.steps = steps

    def forward(self, t: int) -> None:
        """Step t: write the next state."""
        steps, dtype = self.steps, self.steps.hidden.dtype
        inputs = (steps.inputs if steps.inputs.dim() == 2 else steps.inputs[t]).to(dtype)
        if steps.addend is not None:
            inputs = inputs + steps.addend[t]
        self.advance(t, inputs, self.recurrent(t))
        if steps.rounded is not None:
            steps.rounded[t + 1] = steps.hidden[t + 1]

    def recurrent(self, t: int) -> Tensor:
        """(B, G) gates of the state, biases included."""
        steps = self.steps
        recurrent = steps.recurrent[t].to(steps.hidden.dtype)
        return recurrent if steps.bias is None else recurrent + steps.bias

    @abstractmethod
    def advance(self, t: int, inputs: Tensor, recurrent: Tensor) -> None:
        """Step t from (B, G) gates of input and state to the next state."""

    def prepare(self, gradients: CellGradients) -> None:
        """Before the backward pass."""
        self.gradients = gradients

    def backward(self, t: int) -> None:
        """From the gradient of the state after step t to those of the gates and, but for what goes
        through these, of the state before it.
        """
        d_hidden = self.gradients.d_hidden
        d_hidden += self.gradients.d_product
        if self.gradients.d_outputs is not None:
            d_hidden += self.gradients.d_outputs[t]
        self.retreat(t, d_hidden)

    @abstractmethod
    def retreat(self, t: int, d_hidden: Tensor) -> None:
        """Step t backward, given all of the gradient, which it changes."""


class GRUTape(CellTape):
    """Gated recurrent unit (Cho et al. 2014, in cuDNN's form)."""

    def __init__(self, steps: CellSteps) -> None:
        super().__init__(steps)
        num_states, batch_size, size = steps.hidden.shape
        self.size = size
        self.gates = steps.hidden.new_empty(num_states - 1, batch_size, 3 * size)  # r, z, n

    def advance(self, t: int, inputs: Tensor, recurrent: Tensor) -> None:
        size, gates, hidden = self.size, self.gates[t], self.steps.hidden
        torch.add(inputs[:, : 2 * size], recurrent[:, size:], out=gates[:, : 2 * size]).sigmoid_()
        reset, update, new = gates.chunk(3, 1)
        tanh_(torch.addcmul(inputs[:, 2 * size :], reset, recurrent[:, :size], out=new))
        torch.lerp(new, hidden[t], update, out=hidden[t + 1])

    def retreat(self, t: int, d_hidden: Tensor) -> None:
        size = self.size
        reset, update, new = self.gates[t].chunk(3, 1)
        d_gates = d_hidden.new_empty(len(d_hidden), 4 * size)  # n of the state, r, z, n
        d_new_state, d_reset, d_update, d_new = d_gates.chunk(4, 1)
        passed = torch.addcmul(d_hidden, d_hidden, update, value=-1)  # d_hidden (1 - z)
        torch.addcmul(passed, passed * new, new, value=-1, out=d_new)
        torch.mul(passed, update, out=d_update).mul_(self.steps.hidden[t] - new)
        torch.mul(d_new, reset, out=d_new_state)
        torch.addcmul(d_new_state, d_new_state, reset, value=-1, out=d_reset)
        d_reset *= self.recurrent(t)[:, :size]
        d_hidden *= update
        self.gradients.d_recurrent[t] = d_gates[:, : 3 * size]
        self.gradients.d_inputs[t] = d_gates[:, size:]


class LSTMTape(CellTape):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        memory: (B, H) memory cell before the first step.
    """

    def __init__(self, steps: CellSteps, memory: Tensor) -> None:
        super().__init__(steps)
        num_states, batch_size, size = steps.hidden.shape
        self.gates = memory.new_empty(num_states - 1, batch_size, 4, size)  # i, f, g, o
        self.memory = memory.new_empty(num_states, batch_size, size)  # c
        self.memory[0] = memory
        self.shown = memory.new_empty(num_states - 1, batch_size, size)  # tanh(c')

    def advance(self, t: int, inputs: Tensor, recurrent: Tensor) -> None:
        gates = self.gates[t]  # (B, 4, H)
        torch.add(inputs, recurrent, out=gates.flatten(1))
        gates[:, :2].sigmoid_()
        tanh_(gates[:, 2])
        gates[:, 3].sigmoid_()
        enter, forget, new, leave = gates.unbind(1)
        memory = torch.mul(forget, self.memory[t], out=self.memory[t + 1]).addcmul_(enter, new)
        shown = torch.tanh(memory, out=self.shown[t])
        torch.mul(leave, shown, out=self.steps.hidden[t + 1])

    def prepare(self, gradients: CellGradients) -> None:
        """Compute for all steps what does not depend on gradients."""
        super().prepare(gradients)
        enter, forget, new, leave = self.gates.unbind(2)  # (T, B, H) each
        self.forget = forget.clone()
        self.to_memory = leave * (1 - self.shown**2)
        factors = (
            new * enter * (1 - enter),
            self.memory[:-1] * forget * (1 - forget),
            enter * (1 - new**2),
            self.shown * leave * (1 - leave),
        )
        for i, factor in enumerate(factors):
            self.gates[:, :, i] = factor
        self.d_memory = torch.zeros_like(self.memory[0])

    def retreat(self, t: int, d_hidden: Tensor) -> None:
        assert self.d_memory is not None
        factors = self.gates[t]  # (B, 4, H)
        d_gates = torch.empty_like(factors)
        self.d_memory.addcmul_(d_hidden, self.to_memory[t])
        torch.mul(self.d_memory.unsqueeze(1), factors[:, :3], out=d_gates[:, :3])
        torch.mul(d_hidden, factors[:, 3], out=d_gates[:, 3])
        self.d_memory *= self.forget[t]
        d_hidden.zero_()
        self.gradients.d_recurrent[t] = d_gates.flatten(1)
        self.gradients.d_inputs[t] = d_gates.flatten(1)


def cell_tape(steps: CellSteps, memory: Tensor | None = None) -> CellTape:
    """The fastest tape: of an LSTM if there is a (B, H) memory cell, else of a GRU."""
    if suits(steps.hidden, steps.recurrent, steps.inputs):
        from nmt.model import compiled_tapes

        if memory is None:
            return compiled_tapes.CompiledGRUTape(steps)
        return compiled_tapes.CompiledLSTMTape(steps, memory)
    return GRUTape(steps) if memory is None else LSTMTape(steps, memory)


def state_order(rows: Tensor, hidden_dim: int) -> Tensor:
    """Put what belongs to the gates of a state, in torch's order along axis 0, into the tape's."""
    is_gru = len(rows) == 3 * hidden_dim
    return rows.roll(hidden_dim, 0) if is_gru else rows  # r, z, n to n, r, z


def tanh_(x: Tensor) -> Tensor:
    """The hyperbolic tangent in place, as the sigmoid that it is: torch computes that faster."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)
