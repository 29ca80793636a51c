"""The recurrent cells step by step, forward and backward, with as little in the loop as possible.

Gates come in two parts: what the input gives (its biases included) and what the state gives (its
biases included). Names and order of the gates are torch's:

    GRU:  r, z = sigmoid(x + h)    n = tanh(x_n + r h_n)         h' = (1 - z) n + z h
    LSTM: i, f, o = sigmoid(x + h) g = tanh(x_g + h_g)           c' = f c + i g   h' = o tanh(c')
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class CellTape(ABC):
    """One layer over all steps; it keeps what its backward pass needs."""

    d_memory: Tensor | None = None
    """After the backward pass: (B, H), gradient of the memory cell before the first step."""

    @abstractmethod
    def forward(
        self, t: int, inputs: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor
    ) -> None:
        """Step t: write the next (B, H) state to `out`.

        Args:
            inputs: (B, G) gates of the input.
            recurrent: (B, G or more) gates of the state.
            hidden: (B, H) the state.
        """

    @abstractmethod
    def prepare(self, states: Tensor) -> None:
        """Before the backward pass: compute for all steps what does not depend on gradients.

        Args:
            states: (T + 1, B, H) all states, the first one included.
        """

    @abstractmethod
    def backward(self, t: int, d_next: Tensor, d_inputs: Tensor, d_recurrent: Tensor) -> Tensor:
        """Step t backward: write the gradients of both (B, G) parts of the gates.

        Args:
            d_next: (B, H) gradient of the state after the step.

        Returns:
            (B, H) gradient of the state before it, but for what goes through `d_recurrent`.
        """


class GRUTape(CellTape):
    """Gated recurrent unit (Cho et al. 2014, in cuDNN's form)."""

    def __init__(self, num_steps: int, like: Tensor) -> None:
        batch_size, size = like.shape
        self.size = size
        self.gates = like.new_empty(num_steps, batch_size, 2 * size)  # r, z
        self.new = like.new_empty(num_steps, batch_size, size)  # n
        self.offered = like.new_empty(num_steps, batch_size, size)  # h_n

    def forward(
        self, t: int, inputs: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor
    ) -> None:
        two, three = 2 * self.size, 3 * self.size
        torch.add(inputs[:, :two], recurrent[:, :two], out=self.gates[t]).sigmoid_()
        reset, update = self.gates[t, :, : self.size], self.gates[t, :, self.size :]
        offered = self.offered[t].copy_(recurrent[:, two:three])
        torch.addcmul(inputs[:, two:], reset, offered, out=self.new[t]).tanh_()
        torch.lerp(self.new[t], hidden, update, out=out)

    def prepare(self, states: Tensor) -> None:
        reset, self.update = self.gates[..., : self.size], self.gates[..., self.size :]
        self.reset = reset
        self.to_new = (1 - self.update) * (1 - self.new**2)
        self.to_update = (states[:-1] - self.new) * self.update * (1 - self.update)
        self.to_reset = self.offered.mul_(reset).mul_(1 - reset)

    def backward(self, t: int, d_next: Tensor, d_inputs: Tensor, d_recurrent: Tensor) -> Tensor:
        one, two = self.size, 2 * self.size
        d_new = torch.mul(d_next, self.to_new[t], out=d_inputs[:, two:])
        torch.mul(d_next, self.to_update[t], out=d_inputs[:, one:two])
        torch.mul(d_new, self.to_reset[t], out=d_inputs[:, :one])
        d_recurrent[:, :two] = d_inputs[:, :two]
        torch.mul(d_new, self.reset[t], out=d_recurrent[:, two:])
        return d_next * self.update[t]


class LSTMTape(CellTape):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        memory: (B, H) memory cell before the first step.
    """

    def __init__(self, num_steps: int, memory: Tensor) -> None:
        batch_size, size = memory.shape
        self.gates = memory.new_empty(num_steps, batch_size, 4, size)  # i, f, g, o
        self.memory = memory.new_empty(num_steps + 1, batch_size, size)  # c
        self.memory[0] = memory
        self.shown = memory.new_empty(num_steps, batch_size, size)  # tanh(c')

    def forward(
        self, t: int, inputs: Tensor, recurrent: Tensor, hidden: Tensor, out: Tensor
    ) -> None:
        gates = self.gates[t]  # (B, 4, H)
        flat = gates.view(len(gates), -1)
        torch.add(inputs, recurrent[:, : flat.size(1)], out=flat)
        gates[:, :2].sigmoid_()
        gates[:, 2].tanh_()
        gates[:, 3].sigmoid_()
        enter, forget, new, leave = gates.unbind(1)
        memory = torch.mul(forget, self.memory[t], out=self.memory[t + 1]).addcmul_(enter, new)
        torch.mul(leave, torch.tanh(memory, out=self.shown[t]), out=out)

    def prepare(self, states: Tensor) -> None:
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

    def backward(self, t: int, d_next: Tensor, d_inputs: Tensor, d_recurrent: Tensor) -> Tensor:
        assert self.d_memory is not None
        factors = self.gates[t]  # (B, 4, H)
        d_gates = d_inputs.view(factors.shape)
        self.d_memory.addcmul_(d_next, self.to_memory[t])
        torch.mul(self.d_memory.unsqueeze(1), factors[:, :3], out=d_gates[:, :3])
        torch.mul(d_next, factors[:, 3], out=d_gates[:, 3])
        d_recurrent.copy_(d_inputs)
        self.d_memory *= self.forget[t]
        return torch.zeros_like(d_next)
