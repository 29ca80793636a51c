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

from nmt.model.cell_tape import CellGradients, CellSteps, cell_tape, state_order
from nmt.model.compiled import suits
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
    return states


class _GRUSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, start: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        """Take operands as `gru_sequence` does, the last two in `state_order`; give all states."""
        is_low = inputs.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(inputs.device.type, enabled=False):
            exact = torch.promote_types(inputs.dtype, torch.float32)
            hidden = start.new_empty(len(inputs) + 1, *start.shape, dtype=exact)
            hidden[0] = start
            rounded = torch.empty_like(hidden, dtype=inputs.dtype) if is_low else None
            states = hidden if rounded is None else rounded
            states[0] = start
            compiled = suits(hidden, inputs)
            project = ProductTape(states[:-1], matrix, bias, adds_bias=not compiled)
            rest = bias.to(exact) if compiled else None
            cell = cell_tape(CellSteps(inputs, None, project.outputs, rest, hidden, rounded))
            for t in range(len(inputs)):
                project.forward(t)
                cell.forward(t)
        ctx.save_for_backward(states)
        ctx.tape = cell, project
        ctx.dtypes = start.dtype, matrix.dtype, bias.dtype
        return states[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, ...]:
        """Go back through the steps, then make the products over all of them."""
        _ = ctx.saved_tensors  # raises if the states have been changed since
        cell, project = ctx.tape
        with torch.autocast(d_states.device.type, enabled=False):
            project.prepare()
            d_inputs = torch.empty_like(project.d_outputs)
            d_hidden = torch.zeros_like(cell.steps.hidden[0])
            cell.prepare(
                CellGradients(
                    d_hidden,
                    d_states.contiguous(),
                    project.d_input,
                    d_inputs,
                    project.d_outputs,
                )
            )
            for t in reversed(range(len(d_states))):
                cell.backward(t)
                project.backward(t)
            d_hidden += project.d_input
            d_matrix, d_bias = project.gradients()
        start, matrix, bias = ctx.dtypes
        return d_inputs, d_hidden.to(start), d_matrix.to(matrix), d_bias.to(bias)
