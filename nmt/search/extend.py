"""The best extensions of live hypotheses by one token: one step's choice of a search."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.search.topk import largest


@dataclass(frozen=True)
class Rules:
    """Which tokens may come next."""

    banned_ids: Tensor
    """(X,) long; tokens that may not, wherever others may."""
    must_end: Tensor | None
    """(B,) bool; sentences in which nothing but </s> may. None is no sentence."""
    eos_id: int


class Best(NamedTuple):
    """The n best extensions of each sentence, (B, n) each, best first."""

    log_probs: Tensor
    """Of the whole hypothesis; -inf where there is no extension left."""
    parents: Tensor
    """Which live hypothesis is extended."""
    token_ids: Tensor


Extend = Callable[[Any, Tensor, Rules, int], Best]
"""Logits of its own kind, live, rules, n -> what `best_extensions` gives."""


def best_extensions(logits: Tensor, live: Tensor, rules: Rules, n: int) -> Best:
    """Extend every live hypothesis by every token, and take the n most probable extensions.

    Of equally probable ones that of the better hypothesis comes first, and then that with the
    lower token id.

    Args:
        logits: (B * K, V) of the next token.
        live: (B, K) log-probabilities of the hypotheses so far, in nats.
        n: if it is more than K * V, only so many come back.
    """
    log_probs = logits.float().log_softmax(-1)
    log_probs.nan_to_num_(-torch.inf, neginf=-torch.inf)  # nan where no token is possible at all
    log_probs.index_fill_(1, rules.banned_ids, -torch.inf)
    if rules.must_end is not None:
        ending = rules.must_end.repeat_interleave(live.size(1))  # (B * K,)
        log_probs[ending] = _only(rules.eos_id, log_probs[ending])
    vocab_size = log_probs.size(1)
    extended = log_probs.add_(live.reshape(-1, 1)).view(len(live), -1)  # (B, K * V)
    top, indices = largest(extended, min(n, extended.size(1)))
    parents = indices // vocab_size
    return Best(top, parents, indices - parents * vocab_size)


def _only(token_id: int, log_probs: Tensor) -> Tensor:
    """Forbid every token but one."""
    allowed = torch.full_like(log_probs, -torch.inf)
    allowed[:, token_id] = log_probs[:, token_id]
    return allowed
