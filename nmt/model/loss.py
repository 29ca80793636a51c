"""The training criterion: label-smoothed cross entropy (Szegedy et al. 2016, section 7)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Sums over the real target tokens of a batch, in nats."""

    total: Tensor
    """Smoothed cross entropy: what training minimises."""
    negative_log_likelihood: Tensor
    """Cross entropy without smoothing: its mean is the log of the perplexity."""


def cross_entropy(
    logits: Tensor, tgt_output: Tensor, tgt_mask: Tensor, label_smoothing: float
) -> Loss:
    """Compare predictions with the tokens that should have been predicted.

    With smoothing e the target distribution is (1 - e) on the right token plus e / V on every
    token of the vocabulary.

    Args:
        logits: (B, T, V).
        tgt_output: (B, T) right tokens, ending in </s>.
        tgt_mask: (B, T), True at real tokens; the others do not count.
        label_smoothing: e, in [0, 1).
    """
    log_probs = logits.float().log_softmax(-1)  # (B, T, V)
    right = log_probs.gather(-1, tgt_output.unsqueeze(-1)).squeeze(-1)  # (B, T)
    nll = -right.masked_fill(~tgt_mask, 0.0).sum()
    if not label_smoothing:
        return Loss(nll, nll.detach())
    uniform = -log_probs.mean(-1).masked_fill(~tgt_mask, 0.0).sum()
    return Loss((1 - label_smoothing) * nll + label_smoothing * uniform, nll.detach())
