"""A matrix product at every step, whose weight gradient is one product over all steps."""

import torch
from torch import Tensor


class ProductTape:
    """y = W x + b at every step.

    Args:
        inputs: (T, B, X) buffer of the inputs, filled step by step.
        matrix: (Y, X) W.
        bias: (Y,) b, or None.
        low: precision to which W, b, x, y and the gradient of y are rounded, if it is not that of
            the inputs. Sums are not rounded.
    """

    output: Tensor
    """(B, Y) y of the last step that was multiplied, in the precision of the inputs."""
    d_outputs: Tensor
    """(T, B, Y) gradients of the outputs, in the lower precision if there is one."""

    def __init__(
        self, inputs: Tensor, matrix: Tensor, bias: Tensor | None, low: torch.dtype | None
    ) -> None:
        self.inputs, self.low = inputs, low
        self.matrix = matrix if low is None else matrix.to(low)
        self.bias = bias if bias is None or low is None else bias.to(low)
        self.output = inputs.new_empty(inputs.size(1), len(matrix))
        if low is not None:
            self.low_inputs = torch.empty_like(inputs, dtype=low)
            self.low_output = torch.empty_like(self.output, dtype=low)

    def forward(self, t: int) -> Tensor:
        """Multiply the input of step t: (B, Y), until the next step is multiplied."""
        x, y = self.inputs[t], self.output
        if self.low is not None:
            x, y = self.low_inputs[t].copy_(x), self.low_output
        if self.bias is None:
            torch.mm(x, self.matrix.t(), out=y)
        else:
            torch.addmm(self.bias, x, self.matrix.t(), out=y)
        return y if self.low is None else self.output.copy_(y)

    def prepare(self, d_outputs: Tensor | None = None) -> None:
        """Before the backward pass: take the buffer for the gradients of the outputs, or make it.

        It is to be filled step by step.
        """
        if d_outputs is None:
            shape = (*self.inputs.shape[:2], len(self.matrix))
            d_outputs = self.matrix.new_empty(shape)
        self.d_outputs = d_outputs

    def backward(self, t: int, d_input: Tensor) -> None:
        """Add the gradient of the input of step t to (B, X) `d_input`."""
        if self.low is None:
            d_input.addmm_(self.d_outputs[t], self.matrix)
        else:
            d_input += torch.mm(self.d_outputs[t], self.matrix)

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Gradients of W and b: sums over all steps, each of which has gone backward."""
        inputs = self.inputs if self.low is None else self.low_inputs
        d_outputs = self.d_outputs.flatten(0, 1)
        d_matrix = d_outputs.t() @ inputs.flatten(0, 1)
        if self.bias is None:
            return d_matrix, None
        return d_matrix, (d_outputs.new_ones(1, len(d_outputs)) @ d_outputs).squeeze(0)
