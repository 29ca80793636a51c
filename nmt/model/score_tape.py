"""The score functions step by step, forward and backward, for the scan.

Scores of a step are computed from its query again when their gradient is needed: (B, S, A) numbers
per step are cheaper to compute twice than to keep.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nmt.model.sigmoid import Energy, factors


class ScoreTape(ABC):
    """Scores of one query per sentence and step."""

    @abstractmethod
    def forward(self, query: Tensor) -> Tensor:
        """Score (B, A) queries: (B, S)."""

    @abstractmethod
    def backward(self, t: int, query: Tensor, d_scores: Tensor) -> Tensor:
        """From (B, S) gradients of the scores of step t to the (B, A) gradient of its query."""

    @abstractmethod
    def gradients(self, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """After all steps: gradients of the (B, S, A) keys and of the (A,) energy vector.

        Args:
            queries: (T, B, A) the queries of all steps.
        """


class AdditiveTape(ScoreTape):
    """v . sigmoid(q + k): the additive score, where softmax follows.

    With q, k and v doubled it is v . tanh(q + k) + sum(v). On a CPU it is computed without an
    exponential for every pair (`nmt.model.sigmoid`).
    """

    def __init__(self, keys: Tensor, energy: Tensor) -> None:
        self.keys, self.energy = keys, Energy(energy)
        self.key_factors = factors(keys)  # (B, S, A)
        self.one = keys.new_ones(())
        self.hidden = torch.empty_like(keys)  # (B, S, A), of one step at a time
        self.d_keys = torch.zeros_like(keys)
        self.d_energy = torch.zeros_like(energy)

    def forward(self, query: Tensor) -> Tensor:
        if (found := self._factors(query)) is None:
            return self.energy.scores(query.unsqueeze(1), self.keys, self.hidden)
        query_factors, key_factors = found
        query_factors = query_factors * self.energy.reciprocal
        return self.energy.scores_of_factors(query_factors, key_factors, self.hidden)

    def _factors(self, query: Tensor) -> tuple[Tensor, Tensor] | None:
        """(B, 1, A) of a (B, A) query and (B, S, A) of the keys, if both are in range."""
        if self.key_factors is None or (query_factors := factors(query)) is None:
            return None
        return query_factors.unsqueeze(1), self.key_factors

    def _sigmoid(self, query: Tensor) -> Tensor:
        """The (B, S, A) hidden layer for a (B, A) query."""
        if (found := self._factors(query)) is None:
            return torch.add(self.keys, query.unsqueeze(1), out=self.hidden).sigmoid_()
        return torch.addcmul(self.one, *found, out=self.hidden).reciprocal_()

    def backward(self, t: int, query: Tensor, d_scores: Tensor) -> Tensor:
        hidden = self._sigmoid(query)
        self.d_energy += (d_scores.view(1, -1) @ hidden.view(-1, hidden.size(2))).squeeze(0)
        slope = hidden.addcmul_(hidden, hidden, value=-1)  # s (1 - s)
        self.d_keys.addcmul_(slope, d_scores.unsqueeze(2))
        return torch.bmm(d_scores.unsqueeze(1), slope).squeeze(1) * self.energy.plain

    def gradients(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return self.d_keys * self.energy.plain, self.d_energy


class DotTape(ScoreTape):
    """q . k."""

    def __init__(self, keys: Tensor, num_steps: int) -> None:
        self.keys = keys
        self.d_scores = keys.new_empty(num_steps, *keys.shape[:2])

    def forward(self, query: Tensor) -> Tensor:
        return torch.bmm(query.unsqueeze(1), self.keys.mT).squeeze(1)

    def backward(self, t: int, query: Tensor, d_scores: Tensor) -> Tensor:
        self.d_scores[t] = d_scores
        return torch.bmm(d_scores.unsqueeze(1), self.keys).squeeze(1)

    def gradients(self, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.bmm(self.d_scores.permute(1, 2, 0), queries.transpose(0, 1)), None


class AutogradTape(ScoreTape):
    """Any score function; autograd goes through each step by itself.

    Args:
        score: (B, 1, H) queries and (B, S, A) keys to (B, 1, S) scores.
        parameters: what of it is trained.
    """

    def __init__(
        self, score: Callable[[Tensor, Tensor], Tensor], keys: Tensor, parameters: Sequence[Tensor]
    ) -> None:
        self.score, self.keys, self.parameters = score, keys, list(parameters)
        self.d_keys = torch.zeros_like(keys)
        self.d_parameters = [torch.zeros_like(parameter) for parameter in parameters]

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        dtype = self.parameters[0].dtype if self.parameters else keys.dtype
        return self.score(query.unsqueeze(1).to(dtype), keys.to(dtype)).squeeze(1)

    def forward(self, query: Tensor) -> Tensor:
        with torch.no_grad():
            return self._scores(query, self.keys).to(query.dtype)

    def backward(self, t: int, query: Tensor, d_scores: Tensor) -> Tensor:
        with torch.enable_grad():
            query, keys = query.detach().requires_grad_(), self.keys.detach().requires_grad_()
            scores = self._scores(query, keys)
        sought = [parameter for parameter in self.parameters if parameter.requires_grad]
        found = torch.autograd.grad(
            scores, [query, keys, *sought], d_scores.to(scores.dtype), allow_unused=True
        )
        self.d_keys += found[1]
        rest = iter(found[2:])
        for parameter, total in zip(self.parameters, self.d_parameters, strict=True):
            gradient = next(rest) if parameter.requires_grad else None
            if gradient is not None:
                total += gradient
        return found[0]

    def gradients(self, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.d_keys, None


def additive_scores(queries: Tensor, keys: Tensor, energy: Tensor) -> Tensor:
    """Scores v . sigmoid(q + k) of many queries per sentence, never holding (T, B, S, A).

    Args:
        queries: (T, B, A).
        keys: (B, S, A).
        energy: (A,).

    Returns:
        (T, B, S), at least fp32.
    """
    scores: Tensor = _AdditiveScores.apply(queries, keys, energy)  # type: ignore[no-untyped-call]
    return scores


class _AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, energy: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys, energy)
        with torch.autocast(queries.device.type, enabled=False):
            queries, keys, energy = map(at_least_fp32, (queries, keys, energy))
            tape = AdditiveTape(keys, energy)
            return torch.stack([tape.forward(query) for query in queries])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        with torch.autocast(d_scores.device.type, enabled=False):
            queries, keys, energy = map(at_least_fp32, saved)
            tape = AdditiveTape(keys, energy)
            d_queries = torch.stack(
                [tape.backward(t, query, d_scores[t]) for t, query in enumerate(queries)]
            )
            found = (d_queries, *tape.gradients(queries))
        return tuple(d.to(x.dtype) for d, x in zip(found, saved, strict=True))


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in fp32 if its precision is lower."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
