"""The attention of a folded decoder: keys, values and energy, prepared so that a step does least.

What the values are is the decoder's business (`nmt.model.folded`); here they are what is averaged.
The search of a long source spends most of its time on two things, which each have a form of their
own: additive scores, which are a compiled loop (`nmt.model.kernels`), and the mean of the values,
whose matrix oneDNN can pack, each sentence's by itself, as it would the weight of a product.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nmt.model import onednn
from nmt.model.attention import (
    AdditiveScore,
    Attention,
    ConcatScore,
    DotScore,
    FixedContext,
    GeneralScore,
    Memory,
    ScoreFunction,
)
from nmt.model.compiled import suits
from nmt.model.folded_cell import tanh
from nmt.model.products import Product, Sums

SCORE_CHUNK = 1 << 19
"""Most numbers of the hidden layer of the scores that a thread works on: what fits into a cache."""

SMALLEST_MEAN = 1_250_000
"""Multiplications of a step and sentence from which on packed values are faster. Where they just
are, packing takes the time that 10 (with one thread) to 40 steps gain."""


@dataclass(frozen=True)
class FoldedMemory(Memory):
    """A memory as `FoldedAttention` prepares it."""

    factors: Tensor | None
    """(B, S, A) e^-key, if the score is additive and its compiled loop can use them."""
    packed: tuple[Tensor, ...] | None
    """Of each sentence the packed (out, S) values; `states` is then (B, S, 0)."""

    def keep(self, sentences: Tensor) -> "FoldedMemory":
        memory = super().keep(sentences)
        assert isinstance(memory, FoldedMemory)
        factors, packed = self.factors, self.packed
        return replace(
            memory,
            factors=None if factors is None else factors[sentences],
            packed=None if packed is None else tuple(packed[i] for i in sentences.tolist()),
        )


class FoldedAttention:
    """The score functions, with keys and queries scaled so that a step has least to do.

    Args:
        product_once: makes a product that is done once for each sentence.
        dtype: of queries, keys and weights.
        value_type: of the products that the values are, which they may be rounded to.
    """

    def __init__(
        self,
        attention: Attention | FixedContext,
        product_once: Callable[[Tensor], Product],
        *,
        dtype: torch.dtype,
        value_type: torch.dtype,
    ) -> None:
        score = attention.score if isinstance(attention, Attention) else None
        self.fixed = score is None
        self.scale = 1.0  # of keys that are the states
        self.energy: Tensor | None = None  # (A,)
        self.score: ScoreFunction | None = None  # one of which nothing is known here
        query: Tensor | None = None  # (A, H)
        key: Tensor | None = None  # (A, M)
        match score:
            case AdditiveScore():
                query, key = 2 * score.query_layer.weight, 2 * score.key_layer.weight
                self.energy = 2 * score.energy_layer.weight[0].detach()
            case ConcatScore():
                query, key = (2 * score.concat_layer.weight).tensor_split([score.query_dim], 1)
                self.energy = 2 * score.energy_layer.weight[0].detach()
            case GeneralScore():
                key = score.key_layer.weight
            case DotScore():
                self.scale = score.scale
                if isinstance(score.key_layer, nn.Linear):
                    key = score.scale * score.key_layer.weight
            case ScoreFunction():
                self.score = score
        self.query_weight = query
        self.from_states = None if key is None else product_once(key)
        self.dtype, self.value_type = dtype, value_type

    def below(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Put the weights of the query, if it has any, below (out, H) weights and their bias."""
        if self.query_weight is None:
            return weight, bias
        if bias is not None:
            bias = torch.cat([bias, bias.new_zeros(len(self.query_weight))])
        return torch.cat([weight, self.query_weight]), bias

    def memory(self, values: Tensor, states: Tensor, mask: Tensor, beam_size: int) -> FoldedMemory:
        """What is attended to.

        Args:
            values: (B, S, out).
            states: (B, S, M) encoder states, which the keys are made of.
            mask: (B, S), True at real tokens.
            beam_size: K, rows that each sentence will have.
        """
        packed = None
        if beam_size * values[0].numel() >= SMALLEST_MEAN:
            packed = pack_values(values.to(self.value_type))
        if packed is not None:
            values = values[..., :0].clone()  # which lets go of the others
        keys = self._keys(states)
        factors = None
        if self.energy is not None and keys.dtype == torch.float32 and suits(keys):
            from nmt.model.compiled_tapes import make_factors

            factors = make_factors(keys)
        return FoldedMemory(values, keys, mask, factors, packed)

    def _keys(self, states: Tensor) -> Tensor:
        """Turn (B, S, M) encoder states into (B, S, A) keys."""
        if self.score is not None:
            return self.score.project(states.to(self.dtype))
        if self.from_states is not None:
            return self.from_states(states)
        return states.to(self.dtype) * self.scale

    def weights(self, queries: Tensor, memory: Memory) -> Tensor:
        """Attend with (N, A) queries: (B, K, S) weights."""
        num_sentences = len(memory.keys)
        if self.fixed:
            return queries.new_ones(num_sentences, len(queries) // num_sentences, 1)
        queries = queries.view(num_sentences, -1, queries.size(-1))  # (B, K, A)
        if self.score is not None:
            scores = self.score(queries, memory.keys)
        elif self.energy is None:
            scores = torch.bmm(queries, memory.keys.transpose(1, 2))  # (B, K, S)
        else:
            scores = additive_scores(queries, memory, self.energy)
        return scores.masked_fill_(~memory.mask.unsqueeze(1), -torch.inf).softmax(-1)


def additive_scores(queries: Tensor, memory: Memory, energy: Tensor) -> Tensor:
    """Scores v . sigmoid(q + k): (B, K, S) of (B, K, A) queries.

    The compiled loop is used if it is loaded. Else a few sentences at a time, if the sources are
    long.
    """
    keys = memory.keys
    if queries.dtype == torch.float32 and suits(queries, keys, energy):
        from nmt.model import kernels

        scores = queries.new_empty(*queries.shape[:2], keys.size(1))
        factors = memory.factors if isinstance(memory, FoldedMemory) else None
        num_rows = keys.size(0) * keys.size(1)
        kernels.additive_scores(num_rows, queries, keys, factors, energy.unsqueeze(0), scores)
        return scores
    chunk = SCORE_CHUNK * torch.get_num_threads()
    size = min(len(keys), max(1, chunk // (queries.size(1) * keys[0].numel())))
    hidden = queries.new_empty(size, queries.size(1), *keys.shape[1:])  # (b, K, S, A)
    scored = []
    for some, their_keys in zip(torch.split(queries, size), torch.split(keys, size), strict=True):
        out = hidden[: len(some)]
        torch.add(some.unsqueeze(2), their_keys.unsqueeze(1), out=out)
        scored.append(out.sigmoid_() @ energy)
    return scored[0] if len(scored) == 1 else torch.cat(scored)


def pack_values(values: Tensor) -> tuple[Tensor, ...] | None:
    """Pack the (S, out) values of each of B sentences, if oneDNN multiplies their kind."""
    if not onednn.multiplies(values):
        return None
    return tuple(onednn.pack(theirs.t()) for theirs in values)


def add_context(rows: Tensor, weights: Tensor, memory: Memory) -> Tensor:
    """Add to (N, out) rows what their contexts come to: the mean of the values under (B, K, S)."""
    contexts = _packed_contexts(weights, memory)
    if contexts is not None:
        return rows + contexts
    by_sentence = rows.view(len(weights), -1, rows.size(1))  # (B, K, out)
    if rows.dtype == torch.float32 and suits(rows, weights, memory.states):
        from nmt.model import kernels

        out = torch.empty_like(by_sentence)
        kernels.add_context(len(out), weights, memory.states, by_sentence, out)
    else:
        out = torch.baddbmm(by_sentence, weights, memory.states)
    return out.view_as(rows)


def join_context(product: Sums, weights: Tensor, memory: Memory) -> Tensor:
    """The tanh of (N, out) products and what their contexts come to."""
    contexts = _packed_contexts(weights, memory)
    if contexts is not None:
        return join(contexts, product)
    if memory.states.dtype == torch.float32 and suits(*product, weights, memory.states):
        return _joined(product, None, weights, memory.states)
    return tanh(add_context(product.to(memory.states.dtype), weights, memory))


def join(rows: Tensor, product: Sums) -> Tensor:
    """The tanh of (N, out) rows and products."""
    if rows.dtype == torch.float32 and suits(rows, *product):
        return _joined(product, rows.unsqueeze(1), None, None)
    return tanh(rows + product.to(rows.dtype))


def _joined(
    product: Sums, rows: Tensor | None, weights: Tensor | None, values: Tensor | None
) -> Tensor:
    from nmt.model import kernels

    numbers, scale, bias = product
    num_sentences = len(numbers if weights is None else weights)
    numbers = numbers.view(num_sentences, -1, numbers.size(1))  # (B, K, out)
    out = numbers.new_empty(numbers.shape, dtype=torch.float32)
    kernels.join_step(num_sentences, weights, values, numbers, scale, bias, rows, out)
    return out.flatten(0, 1)


def _packed_contexts(weights: Tensor, memory: Memory) -> Tensor | None:
    """The (N, out) means of packed values under (B, K, S) weights, if they are packed."""
    if not isinstance(memory, FoldedMemory) or memory.packed is None:
        return None
    weights = weights.to(memory.packed[0].dtype)
    means = [
        onednn.linear(some, values) for some, values in zip(weights, memory.packed, strict=True)
    ]
    return torch.cat(means)
