"""Attention: a fresh weighted sum of all encoder states at every target position.

Translating with a fixed context vector is a closed-book exam: all of the source must fit into one
vector. Attention is an open-book exam: at each step the decoder asks a *query*, every source
position answers through its *key* with a *score*, softmax turns scores into *weights*, and the
*context* is the mean of the encoder states under these weights.

The score functions are one mechanism; they differ in one formula, score(q, k):

    additive    v . tanh(W q + U h)        Bahdanau et al. 2015, section A.1.2
    concat      v . tanh(W [q; h])         Luong et al. 2015, eq. 8
    general     q . W h                    Luong et al. 2015, eq. 8
    dot         q . h                      Luong et al. 2015, eq. 8
    scaled dot  q . h / sqrt(A)            Vaswani et al. 2017, eq. 1
    none        the one vector of Sutskever et al. 2014 and Cho et al. 2014

Papers: https://arxiv.org/abs/1409.0473, https://aclanthology.org/D15-1166,
https://arxiv.org/abs/1706.03762, https://arxiv.org/abs/1409.3215, https://arxiv.org/abs/1406.1078.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """What the decoder attends to, prepared once per sentence and shared by its hypotheses."""

    states: Tensor
    """(B, S, M) encoder states (Bahdanau's annotations): the values."""
    keys: Tensor
    """(B, S, A) the states as the score function wants them."""
    mask: Tensor
    """(B, S) bool, True at real source tokens."""

    def keep(self, sentences: Tensor) -> "Memory":
        """The memory of the given sentences only, in the given order."""
        return replace(
            self,
            states=self.states[sentences],
            keys=self.keys[sentences],
            mask=self.mask[sentences],
        )


class HiddenLayer(NamedTuple):
    """The parts of a score v . tanh(W q + key)."""

    query_matrix: Tensor
    """(A, H) W."""
    energy: Tensor
    """(A,) v."""


class ScoreFunction(nn.Module, ABC):
    """Compares queries with every source position of their sentence.

    `project` and `forward` are all that a score function needs. `is_product` and `hidden_layer`
    tell training and search of a shape that they can compute faster.
    """

    is_product = False
    """Whether `forward` is the product of query and key and nothing else."""

    @abstractmethod
    def project(self, states: Tensor) -> Tensor:
        """Turn (B, S, M) encoder states into (B, S, A) keys: the part that no query changes."""

    @abstractmethod
    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Score (B, Q, H) queries against (B, S, A) keys: (B, Q, S), unnormalised."""

    def hidden_layer(self) -> HiddenLayer | None:
        """The hidden layer between query and key, if the score has one."""
        return None


class AdditiveScore(ScoreFunction):
    """One hidden layer: score(q, h) = v . tanh(W q + U h)."""

    def __init__(self, query_dim: int, memory_dim: int, key_dim: int) -> None:
        super().__init__()
        self.query_layer = nn.Linear(query_dim, key_dim, bias=False)
        self.key_layer = nn.Linear(memory_dim, key_dim, bias=False)
        self.energy_layer = nn.Linear(key_dim, 1, bias=False)

    def project(self, states: Tensor) -> Tensor:
        return self.key_layer(states)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        hidden = torch.tanh(self.query_layer(queries).unsqueeze(2) + keys.unsqueeze(1))
        return self.energy_layer(hidden).squeeze(-1)  # (B, Q, S, A) -> (B, Q, S)

    def hidden_layer(self) -> HiddenLayer:
        return HiddenLayer(self.query_layer.weight, self.energy_layer.weight.squeeze(0))


class ConcatScore(ScoreFunction):
    """Luong's writing of the additive score: score(q, h) = v . tanh(W [q; h]).

    W [q; h] = W_q q + W_h h, so the columns of W that read h are applied once per sentence.
    """

    def __init__(self, query_dim: int, memory_dim: int, key_dim: int) -> None:
        super().__init__()
        self.query_dim = query_dim
        self.concat_layer = nn.Linear(query_dim + memory_dim, key_dim, bias=False)
        self.energy_layer = nn.Linear(key_dim, 1, bias=False)

    def project(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.concat_layer.weight[:, self.query_dim :])

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        projected = nn.functional.linear(queries, self.concat_layer.weight[:, : self.query_dim])
        hidden = torch.tanh(projected.unsqueeze(2) + keys.unsqueeze(1))  # (B, Q, S, A)
        return self.energy_layer(hidden).squeeze(-1)

    def hidden_layer(self) -> HiddenLayer:
        query_matrix = self.concat_layer.weight[:, : self.query_dim]
        return HiddenLayer(query_matrix, self.energy_layer.weight.squeeze(0))


class GeneralScore(ScoreFunction):
    """Bilinear: score(q, h) = q . W h."""

    is_product = True

    def __init__(self, query_dim: int, memory_dim: int) -> None:
        super().__init__()
        self.key_layer = nn.Linear(memory_dim, query_dim, bias=False)

    def project(self, states: Tensor) -> Tensor:
        return self.key_layer(states)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(queries, keys.transpose(1, 2))


class DotScore(ScoreFunction):
    """score(q, h) = q . h, which needs no parameters when query and states have one size.

    When the sizes differ, keys are the states projected to the query size.

    Args:
        scaled: divide by sqrt(A), so that the variance of a score does not grow with the size.
    """

    is_product = True

    def __init__(self, query_dim: int, memory_dim: int, *, scaled: bool = False) -> None:
        super().__init__()
        same = query_dim == memory_dim
        self.key_layer = nn.Identity() if same else nn.Linear(memory_dim, query_dim, bias=False)
        self.scale = 1 / math.sqrt(query_dim) if scaled else 1.0

    def project(self, states: Tensor) -> Tensor:
        return self.key_layer(states) * self.scale

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(queries, keys.transpose(1, 2))


class Attention(nn.Module):
    """Averages the encoder states, weighted by how well each one answers the query."""

    def __init__(self, score: ScoreFunction) -> None:
        super().__init__()
        self.score = score

    def remember(self, states: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        """Prepare a source for any number of queries.

        Args:
            states: (B, S, M) encoder states.
            mask: (B, S), True at real tokens; every row has at least one.
            summary: (B, M) final encoder state, which attention has no need of.
        """
        return Memory(states, self.score.project(states), mask)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Attend once per row.

        Args:
            query: (N, H) decoder states; the N / B rows of a sentence stand side by side.
            memory: the B sentences to attend to.

        Returns:
            context: (N, M) weighted mean of the encoder states.
            weights: (N, S) in [0, 1]; each row sums to 1 and is 0 at padding.
        """
        num_sentences, num_positions, memory_dim = memory.states.shape
        queries = query.view(num_sentences, -1, query.size(-1))  # (B, Q, H)
        scores = self.score(queries, memory.keys)  # (B, Q, S)
        weights = scores.masked_fill(~memory.mask.unsqueeze(1), -torch.inf).softmax(-1)
        context = torch.bmm(weights.to(memory.states.dtype), memory.states)  # (B, Q, M)
        return context.view(-1, memory_dim), weights.view(-1, num_positions)


class FixedContext(nn.Module):
    """No attention: the same vector, the final encoder state, at every target position.

    The memory is a book with a single page, which always gets the weight 1.
    """

    def remember(self, states: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        """Keep the (B, M) summary; states and mask are not looked at again."""
        page = summary.unsqueeze(1)  # (B, 1, M)
        return Memory(page, page, torch.ones_like(mask[:, :1]))

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The summary for every row: (N, M), and weights (N, 1) that are 1."""
        context = memory.states[:, 0].repeat_interleave(len(query) // len(memory.states), 0)
        return context, context.new_ones(len(query), 1)
