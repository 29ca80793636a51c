"""A GRU over a whole sequence, whose weight gradient is one product over all steps.

On a CPU torch runs a GRU as a loop that autograd follows, so that every step makes a gradient of
the whole recurrent matrix and adds it to the others, in 16 bits where the products have 16. Here
it is made once, after the loop, from what all steps have left (`nmt.model.scan` does the same
where there is attention in the loop). Of an LSTM torch has a kernel that does so, and on CUDA of
both.
"""

from typing import Any

import torch
from torch import Tensor

from nmt.model.cell_tape import GRUTape, state_order
from nmt.model.product_tape import ProductTape


def gru_sequence(inputs: Tensor, start: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """Run all steps. Products have the precision of the inputs; states and sums at least fp32.

    Args:
        inputs: (T, B, 3 H) what the inputs give to the gates, biases included.
        start: (B, H) state before the first step.
        matrix: (3 H, H) recurrent matrix, in torch's order.
        bias: (3 H,) what is added to its products.

    Returns:
        (T, B, H) states, in the precision of the inputs. They have no second derivatives.
    """
    hidden_dim = matrix.size(1)
    states: Tensor = _GRUSequence.apply(  # type: ignore[no-untyped-call]
        inputs, start, state_order(matrix, hidden_dim), state_order(bias, hidden_dim)
    )
    return states.to(inputs.dtype)


class _GRUSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, start: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        """Take operands as `gru_sequence` does, the last two in `state_order`; give all states."""
        low = inputs.dtype if inputs.dtype in (torch.bfloat16, torch.float16) else None
        with torch.autocast(inputs.device.type, enabled=False):
            exact = matrix.dtype if low is None else torch.float32
            hidden = start.new_empty(len(inputs) + 1, *start.shape, dtype=exact)
            hidden[0] = start
            cell = GRUTape(len(inputs), hidden[0])
            project = ProductTape(hidden[:-1], matrix.to(exact), bias.to(exact), low)
            for t, step_inputs in enumerate(inputs):
                recurrent = project.forward(t)
                cell.forward(t, step_inputs, recurrent, hidden[t], out=hidden[t + 1])
        ctx.save_for_backward(hidden)
        ctx.tape = cell, project
        ctx.dtypes = start.dtype, matrix.dtype, bias.dtype
        return hidden[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, ...]:
        """Go back through the steps, then make the products over all of them."""
        (hidden,) = ctx.saved_tensors  # raises if the states have been changed since
        cell, project = ctx.tape
        num_gates = cell.num_gates
        with torch.autocast(d_states.device.type, enabled=False):
            project.prepare()
            d_inputs = torch.empty_like(project.d_outputs)
            d_hidden = torch.zeros_like(hidden[0])
            d_gates = cell.new_gradient(d_hidden)
            for t in reversed(range(len(d_states))):
                d_hidden += d_states[t]
                d_hidden = cell.backward(t, d_hidden, hidden[t], d_gates)
                project.d_outputs[t] = d_gates[:, :num_gates]
                d_inputs[t] = d_gates[:, -num_gates:]
                project.backward(t, d_hidden)
            d_matrix, d_bias = project.gradients()
        start, matrix, bias = ctx.dtypes
        return d_inputs, d_hidden.to(start), d_matrix.to(matrix), d_bias.to(bias)
