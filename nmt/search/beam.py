"""Beam search over any left-to-right model; with `beam_size=1` it is greedy search.

The one loop runs all sentences of a batch side by side. A sentence leaves the batch as soon as
nothing that it could still find would enter its n best, so what is found for a sentence does not
depend on the others.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from nmt.search.extend import Extend, Rules, best_extensions
from nmt.search.topk import largest


class SearchState(Protocol):
    """What a step function carries from one step to the next: K rows for each sentence."""

    def select(self, rows: Tensor) -> Self:
        """Keep, repeat or permute rows; a row only ever moves inside its sentence."""

    def keep(self, sentences: Tensor) -> Self:
        """Keep all rows of the given sentences, and drop the other sentences."""


State = TypeVar("State", bound=SearchState)
Step = Callable[[Tensor, State], tuple[Any, State]]
"""(N,) last token ids, state -> logits of the next token, as `extend` takes them, next state."""


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
    extend: Extend = best_extensions,
) -> list[list[Hypothesis]]:
    """Find the `n_best` best hypotheses of each sentence, best first.

    At each step every live hypothesis is extended by every token. Of the 2K best extensions, those
    among the first K that end in </s> are finished; the best K of the others live on.
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
        extend: finds the best extensions of a step, given what `step` gives for logits.
    """
    num_sentences, device = len(max_lengths), max_lengths.device
    num_candidates = 2 * beam_size if beam_size > 1 else 1  # a beam of one is done when it ends
    alive = torch.arange(num_sentences, device=device)  # (B,) the sentences still searched
    live = torch.zeros(num_sentences, 1, device=device)  # (B, K) log-probs of live hypotheses
    last = torch.full((num_sentences,), bos_id, device=device)  # (N,)
    finished, done = Finished.none(alive, n_best), list[Finished]()
    trace: list[Extensions] = []
    forbidden = torch.tensor(list(forbidden_ids), dtype=torch.long, device=device)
    forbidden_at_first = torch.tensor([*forbidden_ids, eos_id], dtype=torch.long, device=device)
    shortest_limit, longest_limit = int(max_lengths.min()), int(max_lengths.max())

    for length in range(1, longest_limit + 2):
        # 1. Score every extension of every live hypothesis by one token, and take the best 2K: at
        # most K of them end in </s>, so that K can go on.
        logits, state = step(last, state)
        rules = Rules(
            banned_ids=forbidden_at_first if length <= min_length else forbidden,
            must_end=max_lengths[alive] < length if length > shortest_limit else None,
            eos_id=eos_id,
        )
        top, parents, token_ids = extend(logits, live, rules, num_candidates)  # (B, 2K)
        ended = token_ids == eos_id

        # 2. Those that ended within the best K are finished.
        finished = finished.add(
            log_probs=top[:, :beam_size].masked_fill(~ended[:, :beam_size], -torch.inf),
            parents=parents[:, :beam_size],
            length=length,
            alpha=alpha,
        )

        # 3. The best K of the others live on.
        candidates = top.masked_fill(ended, -torch.inf)
        live, survivors = largest(candidates, min(beam_size, candidates.size(1)))  # (B, K)
        parents, token_ids = parents.gather(1, survivors), token_ids.gather(1, survivors)
        trace.append(Extensions(alive, parents, token_ids, live))
        old_beam_size = len(last) // len(alive)
        first_rows = torch.arange(len(alive), device=device).unsqueeze(1) * old_beam_size
        last, state = token_ids.flatten(), state.select((first_rows + parents).flatten())

        # 4. A sentence is done when its best live hypothesis can no longer enter its n best.
        bound = live[:, 0] / length_penalty(max_lengths[alive] + 1, alpha)
        worst = finished.scores[:, -1]  # -inf while there are fewer than n
        going_on = bound > worst
        if beam_size == 1:
            going_on &= worst.isneginf()  # greedy: the first end is the end
        if bool(going_on.all()):
            continue
        done.append(finished.keep(~going_on))
        going_on = going_on.nonzero().squeeze(1)
        if len(going_on) == 0:
            break
        last = last.view(len(alive), -1)[going_on].flatten()
        alive, live, state = alive[going_on], live[going_on], state.keep(going_on)
        finished = finished.keep(going_on)

    steps = [extensions.to_lists() for extensions in trace]
    found: dict[int, list[Hypothesis]] = {}
    for some in done:
        found |= some.hypotheses(steps, eos_id)
    return [found[sentence] for sentence in range(num_sentences)]


Appended = tuple[list[int], list[int], list[float]]
"""Of the K live hypotheses of a sentence: parents, token ids, log-probabilities."""


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

    def to_lists(self) -> dict[int, Appended]:
        """Of each sentence the K parents, token ids and log-probabilities."""
        values = zip(
            self.parents.tolist(), self.token_ids.tolist(), self.log_probs.tolist(), strict=True
        )
        return dict(zip(self.alive.tolist(), values, strict=True))


@dataclass(frozen=True)
class Finished:
    """The n best finished hypotheses of each of some sentences, (B, n) each, best first."""

    sentences: Tensor
    """(B,)."""
    scores: Tensor
    """Log-probability over length penalty; -inf where there is no hypothesis yet."""
    log_probs: Tensor
    lengths: Tensor
    """Tokens, </s> included."""
    parents: Tensor
    """Which live hypothesis of the step before was ended."""

    @classmethod
    def none(cls, sentences: Tensor, n_best: int) -> Self:
        """Nothing is finished yet."""
        zeros = sentences.new_zeros(len(sentences), n_best)
        scores = torch.full_like(zeros, -torch.inf, dtype=torch.float32)
        return cls(sentences, scores, scores, zeros, zeros)

    def keep(self, rows: Tensor) -> "Finished":
        """Those of some of the sentences."""
        return Finished(
            self.sentences[rows],
            self.scores[rows],
            self.log_probs[rows],
            self.lengths[rows],
            self.parents[rows],
        )

    def add(self, *, log_probs: Tensor, parents: Tensor, length: int, alpha: float) -> "Finished":
        """Take in the candidates of one step, -inf where a candidate has not ended."""
        scores = torch.cat([self.scores, log_probs / length_penalty(length, alpha)], 1)
        scores, best = largest(scores, self.scores.size(1))  # (B, n)

        def merge(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new], 1).gather(1, best)

        return Finished(
            self.sentences,
            scores,
            merge(self.log_probs, log_probs),
            merge(self.lengths, torch.full_like(parents, length)),
            merge(self.parents, parents),
        )

    def hypotheses(
        self, trace: list[dict[int, Appended]], eos_id: int
    ) -> dict[int, list[Hypothesis]]:
        """Follow the parents back to <s>.

        Args:
            trace: of each step, of each sentence, what was appended.
        """
        found = zip(
            self.sentences.tolist(),
            self.scores.tolist(),
            self.log_probs.tolist(),
            self.lengths.tolist(),
            self.parents.tolist(),
            strict=True,
        )
        result: dict[int, list[Hypothesis]] = {}
        for sentence, *best in found:
            result[sentence] = []
            for score, log_prob, length, k in zip(*best, strict=True):
                if score == -math.inf:
                    continue
                token_ids, sums = [eos_id], [log_prob]
                for step in reversed(trace[: length - 1]):
                    parents, ids, log_probs = step[sentence]
                    token_ids.append(ids[k])
                    sums.append(log_probs[k])
                    k = parents[k]
                sums.append(0.0)
                token_log_probs = [a - b for a, b in itertools.pairwise(sums)]
                result[sentence].append(
                    Hypothesis(token_ids[::-1], score, log_prob, token_log_probs[::-1])
                )
        return result
