"""Beam search over any left-to-right model; with `beam_size=1` it is greedy search.

The one loop runs all sentences of a batch side by side. A sentence leaves the batch as soon as
nothing that it could still find would enter its n best, so what is found for a sentence does not
depend on the others.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from nmt.search.topk import largest


class SearchState(Protocol):
    """What a step function carries from one step to the next: K rows for each sentence."""

    def select(self, rows: Tensor) -> Self:
        """Keep, repeat or permute rows; a row only ever moves inside its sentence."""

    def keep(self, sentences: Tensor) -> Self:
        """Keep all rows of the given sentences, and drop the other sentences."""


State = TypeVar("State", bound=SearchState)
Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""(N,) last token ids, state -> (N, V) logits of the next token, next state."""


@dataclass(frozen=True)
class Hypothesis:
    """One finished output sequence."""

    token_ids: list[int]
    """Without <s>; the last one is </s>."""
    score: float
    """Log-probability in nats, divided by the length penalty."""
    log_prob: float
    """Sum of the token log-probabilities, in nats."""
    token_log_probs: list[float]
    """Log-probability of each token, </s> included."""


def length_penalty(length: int | Tensor, alpha: float) -> float | Tensor:
    """Divisor that keeps search from preferring short output (Wu et al. 2016, eq. 14).

    Args:
        length: tokens of the hypothesis, </s> included.
    """
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def beam_search(
    step: Step[State],
    state: State,
    *,
    beam_size: int,
    max_lengths: Tensor,
    bos_id: int,
    eos_id: int,
    n_best: int = 1,
    min_length: int = 0,
    alpha: float = 0.0,
    forbidden_ids: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """Find the `n_best` best hypotheses of each sentence, best first.

    At each step every live hypothesis is extended by every token; of equally probable extensions
    that of the better hypothesis comes first, and then that with the lower token id. Of the 2K
    best extensions, those among the first K that end in </s> are finished; the best K of the
    others live on.
    A sentence is done when no live hypothesis, at its best possible final score
    `log_prob / length_penalty(max_length)`, can still enter its n best; a beam of one (greedy
    search) is done when its hypothesis has ended. Fewer than `n_best` come back only if the
    beam ran out of sequences.

    Args:
        step: advances all rows by one token.
        state: state before the first token, one row per sentence.
        max_lengths: (B,) most tokens of a hypothesis of each sentence, without </s>.
        min_length: fewest tokens of a hypothesis, without </s>.
        alpha: exponent of the length penalty, at least 0.
        forbidden_ids: tokens that are never produced.
    """
    num_sentences, device = len(max_lengths), max_lengths.device
    num_candidates = 2 * beam_size if beam_size > 1 else 1  # a beam of one is done when it ends
    alive = torch.arange(num_sentences, device=device)  # (B,) the sentences still searched
    live = torch.zeros(num_sentences, 1, device=device)  # (B, K) log-probs of live hypotheses
    last = torch.full((num_sentences,), bos_id, device=device)  # (N,)
    finished = Finished.none(num_sentences, n_best, device)
    trace: list[Extensions] = []
    forbidden = torch.tensor(list(forbidden_ids), dtype=torch.long, device=device)
    shortest_limit, longest_limit = int(max_lengths.min()), int(max_lengths.max())

    for length in range(1, longest_limit + 2):
        # 1. Score every extension of every live hypothesis by one token.
        logits, state = step(last, state)
        log_probs = logits.float().log_softmax(-1).index_fill_(1, forbidden, -torch.inf)  # (N, V)
        if length <= min_length:
            log_probs[:, eos_id] = -torch.inf
        if length > shortest_limit:
            at_limit = (max_lengths[alive] < length).repeat_interleave(live.size(1))  # (N,)
            log_probs[at_limit] = only(eos_id, log_probs[at_limit])
        vocab_size = log_probs.size(1)
        extended = log_probs.add_(live.view(-1, 1)).view(len(alive), -1)  # (B, K * V)

        # 2. Take the best 2K: at most K of them end in </s>, so that K can go on.
        top, indices = largest(extended, min(num_candidates, extended.size(1)))  # (B, 2K)
        parents = indices // vocab_size
        token_ids = indices - parents * vocab_size
        ended = token_ids == eos_id

        # 3. Those that ended within the best K are finished.
        finished = finished.add(
            alive,
            log_probs=top[:, :beam_size].masked_fill(~ended[:, :beam_size], -torch.inf),
            parents=parents[:, :beam_size],
            length=length,
            alpha=alpha,
        )

        # 4. The best K of the others live on.
        candidates = top.masked_fill(ended, -torch.inf)
        live, survivors = largest(candidates, min(beam_size, candidates.size(1)))  # (B, K)
        parents, token_ids = parents.gather(1, survivors), token_ids.gather(1, survivors)
        trace.append(Extensions(alive, parents, token_ids, live))
        old_beam_size = len(last) // len(alive)
        first_rows = torch.arange(len(alive), device=device).unsqueeze(1) * old_beam_size
        last, state = token_ids.flatten(), state.select((first_rows + parents).flatten())

        # 5. A sentence is done when its best live hypothesis can no longer enter its n best.
        bound = live[:, 0] / length_penalty(max_lengths[alive] + 1, alpha)
        worst = finished.scores[alive, -1]  # -inf while there are fewer than n
        going_on = bound > worst
        if beam_size == 1:
            going_on &= worst.isneginf()  # greedy: the first end is the end
        going_on = going_on.nonzero().squeeze(1)
        if len(going_on) == 0:
            break
        if len(going_on) < len(alive):
            last = last.view(len(alive), -1)[going_on].flatten()
            alive, live, state = alive[going_on], live[going_on], state.keep(going_on)

    return finished.hypotheses(trace, eos_id)


def only(token_id: int, log_probs: Tensor) -> Tensor:
    """Forbid every token but one."""
    allowed = torch.full_like(log_probs, -torch.inf)
    allowed[:, token_id] = log_probs[:, token_id]
    return allowed


@dataclass(frozen=True)
class Extensions:
    """What one step appended to each live hypothesis, (B, K) each."""

    alive: Tensor
    """(B,) the sentences still searched."""
    parents: Tensor
    """Which hypothesis of the step before is extended."""
    token_ids: Tensor
    log_probs: Tensor
    """Of the whole hypothesis so far."""

    def to_lists(self) -> dict[int, tuple[list[int], list[int], list[float]]]:
        """Of each sentence the K parents, token ids and log-probabilities."""
        values = zip(
            self.parents.tolist(), self.token_ids.tolist(), self.log_probs.tolist(), strict=True
        )
        return dict(zip(self.alive.tolist(), values, strict=True))


@dataclass(frozen=True)
class Finished:
    """The n best finished hypotheses of each sentence so far, (B, n) each, best first."""

    scores: Tensor
    """Log-probability over length penalty; -inf where there is no hypothesis yet."""
    log_probs: Tensor
    lengths: Tensor
    """Tokens, </s> included."""
    parents: Tensor
    """Which live hypothesis of the step before was ended."""

    @classmethod
    def none(cls, num_sentences: int, n_best: int, device: torch.device) -> Self:
        """Nothing is finished yet."""
        scores = torch.full((num_sentences, n_best), -torch.inf, device=device)
        zeros = torch.zeros(num_sentences, n_best, dtype=torch.long, device=device)
        return cls(scores, scores, zeros, zeros)

    def add(
        self, alive: Tensor, *, log_probs: Tensor, parents: Tensor, length: int, alpha: float
    ) -> "Finished":
        """Take in the candidates of one step, -inf where a candidate has not ended."""
        scores = torch.cat([self.scores[alive], log_probs / length_penalty(length, alpha)], 1)
        best_scores, best = largest(scores, self.scores.size(1))  # (B, n)

        def merge(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, alive, torch.cat([old[alive], new], 1).gather(1, best))

        return Finished(
            self.scores.index_copy(0, alive, best_scores),
            merge(self.log_probs, log_probs),
            merge(self.lengths, torch.full_like(parents, length)),
            merge(self.parents, parents),
        )

    def hypotheses(self, trace: list[Extensions], eos_id: int) -> list[list[Hypothesis]]:
        """Follow the parents back to <s>."""
        steps = [extensions.to_lists() for extensions in trace]
        found = zip(
            self.scores.tolist(),
            self.log_probs.tolist(),
            self.lengths.tolist(),
            self.parents.tolist(),
            strict=True,
        )
        result: list[list[Hypothesis]] = []
        for sentence, best in enumerate(found):
            result.append([])
            for score, log_prob, length, k in zip(*best, strict=True):
                if score == -math.inf:
                    continue
                token_ids, sums = [eos_id], [log_prob]
                for step in reversed(steps[: length - 1]):
                    parents, ids, log_probs = step[sentence]
                    token_ids.append(ids[k])
                    sums.append(log_probs[k])
                    k = parents[k]
                sums.append(0.0)
                token_log_probs = [a - b for a, b in itertools.pairwise(sums)]
                result[-1].append(
                    Hypothesis(token_ids[::-1], score, log_prob, token_log_probs[::-1])
                )
        return result
