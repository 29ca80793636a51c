"""Luong's attentional vector at every step: tanh of what is attended to and of the state's part."""

import torch
from torch import Tensor

from nmt.model.compiled import suits


class JoinTape:
    """a = tanh(W_c c + W_h h), Luong et al. 2015, eq. 5, the products being given.

    Args:
        attended: (B, R) W_c c of the step at hand.
        parts: (T, B, R) W_h h of all steps, filled step by step.
        outputs: (T + 1, B, R) where the vectors go, from the second entry on.
        rounded: (T + 1, B, R) where they go in a lower precision, if that is asked for.
    """

    d_sums: Tensor
    """(T, B, R) gradients of the sums, filled step by step."""

    def __init__(
        self, attended: Tensor, parts: Tensor, outputs: Tensor, rounded: Tensor | None
    ) -> None:
        self.attended, self.parts = attended, parts
        self.outputs, self.rounded = outputs, rounded

    def forward(self, t: int) -> None:
        """Step t."""
        torch.tanh(self.attended + self.parts[t], out=self.outputs[t + 1])
        if self.rounded is not None:
            self.rounded[t + 1] = self.outputs[t + 1]

    def prepare(self, d_outputs: Tensor, d_product: Tensor, d_parts: Tensor) -> None:
        """Before the backward pass.

        Args:
            d_outputs: (T, B, R) gradients that the vectors get from outside.
            d_product: (B, R) gradient that the vector at hand gets from the next step.
            d_parts: (T, B, R) where the gradients of the parts go.
        """
        self.d_outputs, self.d_product, self.d_parts = d_outputs, d_product, d_parts
        self.d_sums = torch.empty_like(self.outputs[1:])

    def backward(self, t: int) -> None:
        """Step t backward."""
        d_output = self.d_outputs[t] + self.d_product
        torch.mul(d_output, 1 - self.outputs[t + 1] ** 2, out=self.d_sums[t])
        self.d_parts[t] = self.d_sums[t]


def join_tape(attended: Tensor, parts: Tensor, outputs: Tensor, rounded: Tensor | None) -> JoinTape:
    """The fastest tape."""
    if suits(attended, parts, outputs):
        from nmt.model import compiled_tapes

        return compiled_tapes.CompiledJoinTape(attended, parts, outputs, rounded)
    return JoinTape(attended, parts, outputs, rounded)
