"""Attention step by step, forward and backward, for the scan: weights, and means under them."""

import torch
from torch import Tensor

from nmt.model.compiled import suits
from nmt.model.score_tape import ScoreTape, at_least_fp32


class AttentionTape:
    """At every step weights from scores, and the mean of the values under them.

    Args:
        values: (B, S, G), which may be of a lower precision.
        mask: (B, S) bool, True at real tokens.
    """

    d_attended: Tensor
    """(T, B, G) gradients of what was attended to, filled step by step."""
    d_weights: Tensor
    """(T, B, S) gradients that the weights get from outside."""

    def __init__(self, score: ScoreTape, values: Tensor, mask: Tensor, num_steps: int) -> None:
        self.score, self.values = score, self.readable(values)
        dtype = torch.promote_types(values.dtype, torch.float32)
        self.bias = values.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
        self.weights = values.new_empty(num_steps, *mask.shape, dtype=dtype)  # (T, B, S)
        self.attended = values.new_empty(len(values), values.size(2), dtype=dtype)  # of a step

    def readable(self, values: Tensor) -> Tensor:
        """The values as the steps read them."""
        return at_least_fp32(values)

    def forward(self, t: int) -> None:
        """Step t: write `weights[t]`, and `attended`."""
        torch.softmax(self.score.forward(t) + self.bias, -1, out=self.weights[t])
        torch.bmm(self.weights[t].unsqueeze(1), self.values, out=self.attended.unsqueeze(1))

    def prepare(self, d_attended: Tensor, d_weights: Tensor, d_queries: Tensor) -> None:
        """Before the backward pass."""
        self.d_attended, self.d_weights = d_attended, d_weights
        self.d_scores = torch.empty_like(self.weights)
        self.score.prepare(self.d_scores, d_queries)

    def backward(self, t: int) -> None:
        """From what step t attended to, and its weights, to its query."""
        weights, d_attended = self.weights[t], self.d_attended[t].to(self.values.dtype)
        d_weights = torch.bmm(d_attended.unsqueeze(1), self.values.mT).squeeze(1)
        d_weights += self.d_weights[t]
        d_weights -= (weights * d_weights).sum(1, keepdim=True)
        torch.mul(weights, d_weights, out=self.d_scores[t])
        self.score.backward(t)

    def d_values(self) -> Tensor:
        """After all steps: (B, S, G)."""
        attended = self.weights.permute(1, 2, 0).to(self.d_attended.dtype)  # (B, S, T)
        return torch.bmm(attended, self.d_attended.transpose(0, 1))


def attention_tape(score: ScoreTape, values: Tensor, mask: Tensor, num_steps: int) -> AttentionTape:
    """The fastest tape of attention."""
    if suits(values):
        from nmt.model import compiled_tapes

        return compiled_tapes.CompiledAttentionTape(score, values, mask, num_steps)
    return AttentionTape(score, values, mask, num_steps)
