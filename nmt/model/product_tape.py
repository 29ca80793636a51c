"""A matrix product at every step, whose weight gradient is one product over all steps."""

import torch
from torch import Tensor


class ProductTape:
    """y = W x + b at every step, in the precision of the inputs.

    Args:
        inputs: (T, B, X) buffer of the inputs, filled step by step.
        matrix: (Y, X) W.
        bias: (Y,) b, or None.
    """

    d_outputs: Tensor
    """(T, B, Y) gradients of the outputs, to be filled step by step."""
    d_input: Tensor
    """(B, X) gradient of the input of the step that went backward last; 0 before there is one."""

    def __init__(self, inputs: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
        self.inputs = inputs
        self.matrix = matrix.to(inputs.dtype)
        self.bias = None if bias is None else bias.to(inputs.dtype)
        self.outputs = inputs.new_empty(*inputs.shape[:2], len(matrix))  # (T, B, Y)

    def forward(self, t: int) -> None:
        """Multiply the input of step t: `outputs[t]`."""
        x, y = self.inputs[t], self.outputs[t]
        if self.bias is None:
            torch.mm(x, self.matrix.t(), out=y)
        else:
            torch.addmm(self.bias, x, self.matrix.t(), out=y)

    def prepare(self, d_outputs: Tensor | None = None) -> None:
        """Before the backward pass: take or make the buffer for the gradients of the outputs."""
        self.d_outputs = torch.empty_like(self.outputs) if d_outputs is None else d_outputs
        self.d_input = torch.zeros_like(self.inputs[0])

    def backward(self, t: int) -> None:
        """From the gradient of the output of step t to `d_input`."""
        torch.mm(self.d_outputs[t], self.matrix, out=self.d_input)

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Gradients of W and b: sums over all steps, each of which has gone backward."""
        d_outputs = self.d_outputs.flatten(0, 1)
        d_matrix = d_outputs.t() @ self.inputs.flatten(0, 1)
        if self.bias is None:
            return d_matrix, None
        return d_matrix, (d_outputs.new_ones(1, len(d_outputs)) @ d_outputs).squeeze(0)
