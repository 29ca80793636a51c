"""A matrix product at every step, whose weight gradient is one product over all steps."""

import torch
import torch.nn.functional as F
from torch import Tensor


class ProductTape:
    """y = W x + b at every step, in the precision of the inputs.

    Args:
        inputs: (T, B, X) buffer of the inputs, filled step by step.
        matrix: (Y, X) W.
        bias: (up to Y,) b, if there is one; of the last outputs, if it is shorter.
        adds_bias: whether it is added here. Who reads the outputs may do so for less, since torch
            copies the bias to all rows first.
    """

    d_outputs: Tensor
    """(T, B, Y) gradients of the outputs, to be filled step by step."""
    d_input: Tensor
    """(B, X) gradient of the input of the step that went backward last; 0 before there is one."""

    def __init__(
        self, inputs: Tensor, matrix: Tensor, bias: Tensor | None, *, adds_bias: bool = True
    ) -> None:
        self.inputs = inputs
        self.matrix = matrix.to(inputs.dtype)
        self.bias_size = 0 if bias is None else len(bias)
        self.added = None
        if bias is not None and adds_bias:
            self.added = F.pad(bias, (len(matrix) - len(bias), 0)).to(inputs.dtype)
        self.outputs = inputs.new_empty(*inputs.shape[:2], len(matrix))  # (T, B, Y)

    def forward(self, t: int) -> None:
        """Multiply the input of step t: `outputs[t]`."""
        x, y = self.inputs[t], self.outputs[t]
        if self.added is None:
            torch.mm(x, self.matrix.t(), out=y)
        else:
            torch.addmm(self.added, x, self.matrix.t(), out=y)

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
        if not self.bias_size:
            return d_matrix, None
        ones = d_outputs.new_ones(1, len(d_outputs))
        return d_matrix, (ones @ d_outputs[:, -self.bias_size :]).squeeze(0)
