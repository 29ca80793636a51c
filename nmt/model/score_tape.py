"""The score functions step by step, forward and backward, for the scan.

Scores of a step are computed from its query again when their gradient is needed: (B, S, A) numbers
per step are cheaper to compute twice than to keep.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nmt.model.compiled import suits


class ScoreTape(ABC):
    """Scores of one query per sentence and step.

    Args:
        queries: (T, B, A) the queries, filled step by step.
        keys: (B, S, A).
    """

    d_scores: Tensor
    """(T, B, S) gradients of the scores, filled step by step."""
    d_queries: Tensor
    """(T, B, A) where `backward` puts the gradients of the queries."""

    def __init__(self, queries: Tensor, keys: Tensor) -> None:
        self.queries, self.keys = queries, keys

    @abstractmethod
    def forward(self, t: int) -> Tensor:
        """Scores of step t: (B, S), at least fp32; good until the next step."""

    def forward_all(self) -> Tensor:
        """Scores of all steps, whose queries are there: (T, B, S)."""
        return torch.stack([self.forward(t).clone() for t in range(len(self.queries))])

    def prepare(self, d_scores: Tensor, d_queries: Tensor) -> None:
        """Before the backward pass."""
        self.d_scores, self.d_queries = d_scores, d_queries

    @abstractmethod
    def backward(self, t: int) -> None:
        """From the gradients of the scores of step t to that of its query."""

    def backward_all(self) -> None:
        """`backward` of all steps."""
        for t in range(len(self.queries)):
            self.backward(t)

    @abstractmethod
    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """After all steps: gradients of the (B, S, A) keys and of the (A,) energy vector."""


class AdditiveTape(ScoreTape):
    """v . sigmoid(q + k): the additive score, where softmax follows.

    With q, k and v doubled it is v . tanh(q + k) + sum(v).

    Args:
        energy: (A,) v.
    """

    def __init__(self, queries: Tensor, keys: Tensor, energy: Tensor) -> None:
        super().__init__(queries, at_least_fp32(keys))
        self.energy = energy
        self.hidden = torch.empty_like(self.keys)  # (B, S, A), of one step at a time
        self.d_keys = torch.zeros_like(self.keys)
        self.d_energy = torch.zeros_like(energy)

    def forward(self, t: int) -> Tensor:
        return self._hidden(t) @ self.energy

    def _hidden(self, t: int) -> Tensor:
        return torch.add(self.keys, self.queries[t].unsqueeze(1), out=self.hidden).sigmoid_()

    def backward(self, t: int) -> None:
        hidden, d_scores = self._hidden(t), self.d_scores[t]
        self.d_energy += (d_scores.reshape(1, -1) @ hidden.view(-1, hidden.size(2))).squeeze(0)
        slope = hidden.addcmul_(hidden, hidden, value=-1)  # s (1 - s)
        self.d_keys.addcmul_(slope, d_scores.unsqueeze(2))
        self.d_queries[t] = torch.bmm(d_scores.unsqueeze(1), slope).squeeze(1) * self.energy

    def gradients(self) -> tuple[Tensor, Tensor]:
        return self.d_keys * self.energy, self.d_energy


class DotTape(ScoreTape):
    """q . k."""

    def __init__(self, queries: Tensor, keys: Tensor) -> None:
        super().__init__(queries, at_least_fp32(keys))

    def forward(self, t: int) -> Tensor:
        return torch.bmm(self.queries[t].unsqueeze(1), self.keys.mT).squeeze(1)

    def backward(self, t: int) -> None:
        self.d_queries[t] = torch.bmm(self.d_scores[t].unsqueeze(1), self.keys).squeeze(1)

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        return torch.bmm(self.d_scores.permute(1, 2, 0), self.queries.transpose(0, 1)), None


class AutogradTape(ScoreTape):
    """Any score function; autograd goes through each step by itself.

    Args:
        score: (B, 1, H) queries and (B, S, A) keys to (B, 1, S) scores.
        parameters: what of it is trained.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        score: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[Tensor],
    ) -> None:
        super().__init__(queries, at_least_fp32(keys))
        self.score, self.parameters = score, list(parameters)
        self.d_keys = torch.zeros_like(self.keys)
        self.d_parameters = [torch.zeros_like(parameter) for parameter in parameters]

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        dtype = self.parameters[0].dtype if self.parameters else keys.dtype
        return self.score(query.unsqueeze(1).to(dtype), keys.to(dtype)).squeeze(1)

    def forward(self, t: int) -> Tensor:
        with torch.no_grad():
            return self._scores(self.queries[t], self.keys).to(self.keys.dtype)

    def backward(self, t: int) -> None:
        with torch.enable_grad():
            query = self.queries[t].detach().requires_grad_()
            keys = self.keys.detach().requires_grad_()
            scores = self._scores(query, keys)
        sought = [parameter for parameter in self.parameters if parameter.requires_grad]
        found = torch.autograd.grad(
            scores, [query, keys, *sought], self.d_scores[t].to(scores.dtype), allow_unused=True
        )
        self.d_queries[t] = found[0]
        self.d_keys += found[1]
        rest = iter(found[2:])
        for parameter, total in zip(self.parameters, self.d_parameters, strict=True):
            gradient = next(rest) if parameter.requires_grad else None
            if gradient is not None:
                total += gradient

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        return self.d_keys, None


def additive_tape(queries: Tensor, keys: Tensor, energy: Tensor) -> ScoreTape:
    """The fastest tape of additive scores."""
    if suits(energy, keys, queries):
        from nmt.model import compiled_tapes

        return compiled_tapes.CompiledAdditiveTape(queries, keys, energy)
    return AdditiveTape(queries, keys, energy)


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
            tape = additive_tape(queries, keys, at_least_fp32(energy))
            return tape.forward_all()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_scores: Tensor) -> tuple[Tensor, ...]:
        queries, keys, energy = ctx.saved_tensors
        with torch.autocast(d_scores.device.type, enabled=False):
            tape = additive_tape(queries, keys, at_least_fp32(energy))
            tape.prepare(d_scores.contiguous(), torch.empty_like(queries))
            tape.backward_all()
            d_keys, d_energy = tape.gradients()
        assert d_energy is not None
        return tape.d_queries, d_keys.to(keys.dtype), d_energy.to(energy.dtype)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in fp32 if its precision is lower."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
