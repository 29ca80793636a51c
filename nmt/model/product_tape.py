"""A matrix product at every step, whose weight gradient is one product over all steps."""

import torch
from torch import Tensor


class ProductTape:
    """y = W x + b at every step.

    Inputs and gradients of outputs are read from buffers over all steps, which others fill.

    Args:
        inputs: (T, B, X) buffer of the inputs, filled step by step.
        matrix: (Y, X) W.
        bias: (Y,) b, or None.
        low: precision to which W, b, x and the gradient of y are rounded, if it is not that of
            the buffers. Results are not rounded again after the product, and sums are not at all.
    """

    def __init__(
        self, inputs: Tensor, matrix: Tensor, bias: Tensor | None, low: torch.dtype | None
    ) -> None:
        self.inputs = inputs
        self.outputs = inputs.new_empty(*inputs.shape[:2], len(matrix))  # (T, B, Y)
        self.low = low
        self.matrix = matrix if low is None else matrix.to(low)
        if bias is not None:
            self.bias = bias if low is None else bias.to(low)
        self.has_bias = bias is not None
        if low is not None:
            self.low_inputs = torch.empty_like(inputs, dtype=low)
            self.low_output = torch.empty_like(self.outputs[0], dtype=low)
            self.low_d_input = torch.empty_like(inputs[0], dtype=low)

    def forward(self, t: int) -> Tensor:
        """Multiply the input of step t: (B, Y), kept in `outputs`."""
        output = self.outputs[t]
        if self.low is None:
            x, y = self.inputs[t], output
        else:
            x, y = self.low_inputs[t].copy_(self.inputs[t]), self.low_output
        if self.has_bias:
            torch.addmm(self.bias, x, self.matrix.t(), out=y)
        else:
            torch.mm(x, self.matrix.t(), out=y)
        return output if self.low is None else output.copy_(y)

    def prepare(self, d_outputs: Tensor | None = None) -> None:
        """Before the backward pass: make a buffer for the gradients of the outputs, or take one."""
        self.d_outputs = torch.empty_like(self.outputs) if d_outputs is None else d_outputs
        if self.low is not None:
            self.low_d_outputs = torch.empty_like(self.d_outputs, dtype=self.low)

    def backward(self, t: int, d_input: Tensor) -> None:
        """Add the gradient of the input of step t to (B, X) `d_input`."""
        if self.low is None:
            d_input.addmm_(self.d_outputs[t], self.matrix)
        else:
            d_output = self.low_d_outputs[t].copy_(self.d_outputs[t])
            d_input += torch.mm(d_output, self.matrix, out=self.low_d_input)

    def gradients(self, steps: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Gradients of W and b: sums over the given steps, each of which has gone backward."""
        d_outputs, inputs = self.d_outputs[steps].flatten(0, 1), self.inputs[steps].flatten(0, 1)
        d_bias = d_outputs.sum(0) if self.has_bias else None
        if self.low is not None:
            d_outputs = self.low_d_outputs[steps].flatten(0, 1)
            inputs = self.low_inputs[steps].flatten(0, 1)
        return d_outputs.t() @ inputs, d_bias
