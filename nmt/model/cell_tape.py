"""The recurrent cells step by step, forward and backward, with as little in the loop as possible.

Gates come in two parts: what the input gives (its biases included) and what the state gives (its
biases included). Names of the gates are torch's:

    GRU:  r, z = sigmoid(x + h)    n = tanh(x_n + r h_n)         h' = (1 - z) n + z h
    LSTM: i, f, o = sigmoid(x + h) g = tanh(x_g + h_g)           c' = f c + i g   h' = o tanh(c')

The gradients of both parts are the same, but for the n of a GRU. So they share a buffer, whose
columns are n of the state, r, z, n of the input: the state's gates are the first 3 H of them, the
input's the last 3 H. What the state gives is therefore in the order n, r, z (`state_order`); all
else is in torch's order.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class CellTape(ABC):
    """One layer over all steps; it keeps what its backward pass needs."""

    num_shared: int
    """Gates whose gradients both parts share."""
    num_gates: int
    """G, those of each part."""

    d_memory: Tensor | None = None
    """After the backward pass: (B, H), gradient of the memory cell before the first step."""

    @abstractmethod
    def forward(
        self, t: int, inputs: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor
    ) -> None:
        """Step t: write the next (B, H) state to `out`.

        Args:
            inputs: (B, G) gates of the input.
            recurrent: (B, G) gates of the state, in `state_order`.
            hidden: (B, H) the state.
        """

    def new_gradient(self, like: Tensor) -> Tensor:
        """Room for the gradients of the gates of one step, for (B, ·) rows like these."""
        return like.new_empty(len(like), 2 * self.num_gates - self.num_shared)

    @abstractmethod
    def prepare(self) -> None:
        """Before the backward pass: compute for all steps what does not depend on gradients."""

    @abstractmethod
    def backward(self, t: int, d_next: Tensor, hidden: Tensor, d_gates: Tensor) -> Tensor:
        """Step t backward: write the gradients of the gates.

        Args:
            d_next: (B, H) gradient of the state after the step.
            hidden: (B, H) what `forward` was given.
            d_gates: (B, 2 G - num_shared) where to write them: the state's are its first G columns,
                the input's its last G.

        Returns:
            (B, H) gradient of the state before it, but for what goes through its gates.
        """


class GRUTape(CellTape):
    """Gated recurrent unit (Cho et al. 2014, in cuDNN's form)."""

    def __init__(self, num_steps: int, like: Tensor) -> None:
        batch_size, size = like.shape
        self.size, self.num_shared, self.num_gates = size, 2 * size, 3 * size
        self.gates = like.new_empty(num_steps, batch_size, 3 * size)  # r, z, n
        self.offered = like.new_empty(num_steps, batch_size, size)  # h_n

    def forward(
        self, t: int, inputs: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor
    ) -> None:
        size, gates = self.size, self.gates[t]
        torch.add(inputs[:, : 2 * size], recurrent[:, size:], out=gates[:, : 2 * size]).sigmoid_()
        reset, update, new = gates.chunk(3, 1)
        offered = self.offered[t].copy_(recurrent[:, :size])
        tanh_(torch.addcmul(inputs[:, 2 * size :], reset, offered, out=new))
        torch.lerp(new, hidden, update, out=out)

    def prepare(self) -> None:
        """There is nothing: the factors of a step are cheaper to compute than to keep."""

    def backward(self, t: int, d_next: Tensor, hidden: Tensor, d_gates: Tensor) -> Tensor:
        reset, update, new = self.gates[t].chunk(3, 1)
        d_new_state, d_reset, d_update, d_new = d_gates.chunk(4, 1)
        d_hidden = d_next * update
        passed = d_next - d_hidden  # d_next (1 - z)
        torch.addcmul(passed, passed * new, new, value=-1, out=d_new)
        torch.mul(passed, update, out=d_update).mul_(hidden - new)
        torch.mul(d_new, reset, out=d_new_state)
        torch.addcmul(d_new_state, d_new_state, reset, value=-1, out=d_reset)
        d_reset *= self.offered[t]
        return d_hidden


class LSTMTape(CellTape):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        memory: (B, H) memory cell before the first step.
    """

    def __init__(self, num_steps: int, memory: Tensor) -> None:
        batch_size, size = memory.shape
        self.num_shared = self.num_gates = 4 * size
        self.gates = memory.new_empty(num_steps, batch_size, 4, size)  # i, f, g, o
        self.memory = memory.new_empty(num_steps + 1, batch_size, size)  # c
        self.memory[0] = memory
        self.shown = memory.new_empty(num_steps, batch_size, size)  # tanh(c')

    def forward(
        self, t: int, inputs: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor
    ) -> None:
        gates = self.gates[t]  # (B, 4, H)
        torch.add(inputs, recurrent, out=gates.flatten(1))
        gates[:, :2].sigmoid_()
        tanh_(gates[:, 2])
        gates[:, 3].sigmoid_()
        enter, forget, new, leave = gates.unbind(1)
        memory = torch.mul(forget, self.memory[t], out=self.memory[t + 1]).addcmul_(enter, new)
        torch.mul(leave, torch.tanh(memory, out=self.shown[t]), out=out)

    def prepare(self) -> None:
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

    def backward(self, t: int, d_next: Tensor, hidden: Tensor, d_gates: Tensor) -> Tensor:
        assert self.d_memory is not None
        factors = self.gates[t]  # (B, 4, H)
        d_gates = d_gates.view(factors.shape)
        self.d_memory.addcmul_(d_next, self.to_memory[t])
        torch.mul(self.d_memory.unsqueeze(1), factors[:, :3], out=d_gates[:, :3])
        torch.mul(d_next, factors[:, 3], out=d_gates[:, 3])
        self.d_memory *= self.forget[t]
        return torch.zeros_like(d_next)


def state_order(rows: Tensor, hidden_dim: int) -> Tensor:
    """Put what belongs to the gates of a state, in torch's order along axis 0, into the tape's."""
    is_gru = len(rows) == 3 * hidden_dim
    return rows.roll(hidden_dim, 0) if is_gru else rows  # r, z, n to n, r, z


def tanh_(x: Tensor) -> Tensor:
    """The hyperbolic tangent in place, as the sigmoid that it is: torch computes that faster."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)
