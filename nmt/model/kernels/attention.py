"""Attention, forward, backward and in search: the mean under weights, and additive scores.

An additive score is v . sigmoid(q + k) of the numbers of query, key and energy
(`nmt.model.unroll` says why not tanh). As e^-(q + k) = e^-q e^-k, a pair of query and key takes no
exponential where both factors are at hand: those of a query are made here, if they are in range
(`LARGEST`), and those of the keys are an operand, if they are.
"""

from typing import Any

import numpy as np
from numba import njit

from nmt.model.kernels.language import (
    ONE,
    OPTIONS,
    ZERO,
    add,
    count,
    exp,
    floats,
    halves,
    is_low,
    kernel,
    load,
    load_sums,
    share,
    sigmoid,
    size,
    store,
    tanh,
    wide,
    words_of,
)

LARGEST = np.float32(40.0)
"""Of the numbers of a query or a key whose exponential is a factor: e^80 is no overflow."""
LOWEST = np.float32(-3e38)
"""Lower than any score."""


@kernel(2)
def attend(address: Any) -> None:
    """From scores (S), mask (S), values (S, G) to weights (S), attended (G).

    One row per sentence: softmax of the scores where the mask is 1, not 0, and the mean of the
    values under it.
    """
    task = words_of(address)
    first, last = share(task)
    for b in range(first, last):
        scores, mask = floats(task, 0, b), floats(task, 1, b)
        weights, attended = floats(task, 3, b), floats(task, 4, b)
        largest = LOWEST
        for s in range(scores.size):
            if mask[s] != ZERO and not scores[s] <= largest:
                largest = scores[s]
        if not largest > LOWEST:  # no score is a finite number
            largest = np.float32(np.nan)
        total = ZERO
        for s in range(scores.size):
            weights[s] = mask[s] * exp(scores[s] - largest)
            total += weights[s]
        attended[:] = ZERO
        for s in range(scores.size):
            weights[s] /= total
            if weights[s] == ZERO:
                continue
            if is_low(task, 2):
                low = halves(task, 2, b, s)
                for g in range(attended.size):
                    attended[g] += weights[s] * wide(low[g])
            else:
                value = floats(task, 2, b, s)
                for g in range(attended.size):
                    attended[g] += weights[s] * value[g]


@njit(**OPTIONS)
def _add_means(task: Any, b: Any, to: Any) -> None:
    """Add the means of values (S, G), operand 1, under weights (K, S), operand 0, to operand `to`.

    All of one sentence. Four values at a time, which halves what is read and written again.
    """
    num_positions, num_rows, dim = size(task, 0), count(task, 0), size(task, 1)
    for begin in range(0, num_positions, 4):
        s1, s2 = min(begin + 1, num_positions - 1), min(begin + 2, num_positions - 1)
        s3 = min(begin + 3, num_positions - 1)
        first, second = floats(task, 1, b, begin), floats(task, 1, b, s1)
        third, fourth = floats(task, 1, b, s2), floats(task, 1, b, s3)
        for k in range(num_rows):
            weights, out = floats(task, 0, b, k), floats(task, to, b, k)
            w = weights[begin]
            w1 = weights[s1] if begin + 1 < num_positions else ZERO
            w2 = weights[s2] if begin + 2 < num_positions else ZERO
            w3 = weights[s3] if begin + 3 < num_positions else ZERO
            for g in range(dim):
                out[g] += w * first[g] + w1 * second[g] + w2 * third[g] + w3 * fourth[g]


@kernel()
def add_context(address: Any) -> None:
    """From weights (K, S), values (S, G), rows (K, G) to rows plus means of the values.

    One row per sentence.
    """
    task = words_of(address)
    first, last = share(task)
    for b in range(first, last):
        for k in range(count(task, 3)):
            load(task, 2, b, k, floats(task, 3, b, k))
        _add_means(task, b, 3)


@kernel(sums=(2,))
def join_step(address: Any) -> None:
    """From weights (K, S), values (S, R), a product, rows (K, R) to the tanh of their sum (K, R).

    One row per sentence. The product is numbers (K, R), scale, bias. All but it may be left out.
    """
    task = words_of(address)
    first, last = share(task)
    for b in range(first, last):
        for k in range(count(task, 6)):
            out = floats(task, 6, b, k)
            load_sums(task, 2, b, k, out)
            add(task, 5, b, out, k)
        _add_means(task, b, 6)
        for k in range(count(task, 6)):
            out = floats(task, 6, b, k)
            for i in range(out.size):
                out[i] = tanh(out[i])


@kernel(0, 1)
def attend_backward(address: Any) -> None:
    """From d_attended (G), values (S, G), weights (S), d_weights (S) to d_scores (S)."""
    task = words_of(address)
    d_attended = np.empty(size(task, 0), np.float32)
    first, last = share(task)
    for b in range(first, last):
        load(task, 0, b, 0, d_attended)
        weights, d_weights, d_scores = floats(task, 2, b), floats(task, 3, b), floats(task, 4, b)
        mean = ZERO
        for s in range(weights.size):
            d_scores[s] = ZERO
            if weights[s] == ZERO:
                continue
            d_weight = d_weights[s]
            if is_low(task, 1):
                low = halves(task, 1, b, s)
                for g in range(d_attended.size):
                    d_weight += d_attended[g] * wide(low[g])
            else:
                value = floats(task, 1, b, s)
                for g in range(d_attended.size):
                    d_weight += d_attended[g] * value[g]
            d_scores[s] = d_weight
            mean += weights[s] * d_weight
        for s in range(weights.size):
            d_scores[s] = weights[s] * (d_scores[s] - mean)


@njit(**OPTIONS)
def _make_factors(x: Any, out: Any) -> Any:
    """e^-x of a row; say whether all of it is in range."""
    outside = ZERO
    for a in range(x.size):
        out[a] = exp(-x[a])
        outside += ZERO if abs(x[a]) <= LARGEST else ONE
    return outside == ZERO


@njit(**OPTIONS)
def _load_query(task: Any, b: Any, k: Any, query: Any, factors: Any) -> Any:
    """Query and factors of one row; say whether pairs are to be made of factors."""
    load(task, 0, b, k, query)
    return _make_factors(query, factors) and size(task, 2) > 0


@njit(**OPTIONS)
def _load_queries(task: Any, b: Any, queries: Any, factors: Any, by_factors: Any) -> None:
    """All (K, A) queries of a sentence, as `_load_query` reads one."""
    for k in range(len(queries)):
        by_factors[k] = _load_query(task, b, k, queries[k], factors[k])


@njit(**OPTIONS)
def _hidden(task: Any, b: Any, s: Any, query: Any, factors: Any, by_factors: Any, out: Any) -> None:
    """sigmoid(q + k) of a query and of the key of a position."""
    if by_factors:
        key_factors = floats(task, 2, b, s)
        for a in range(out.size):
            out[a] = ONE / (ONE + factors[a] * key_factors[a])
    else:
        load(task, 1, b, s, out)
        for a in range(out.size):
            out[a] = sigmoid(query[a] + out[a])


@kernel(0, 1)
def additive_scores(address: Any) -> None:
    """From queries (K, A), keys (S, A), their factors or None, energy (A) to scores (K, S).

    One row per source position of each sentence.
    """
    task = words_of(address)
    num_queries, dim, num_positions = count(task, 0), size(task, 0), size(task, 4)
    queries = np.empty((num_queries, dim), np.float32)
    factors = np.empty((num_queries, dim), np.float32)
    by_factors = np.zeros(num_queries, np.bool_)
    hidden, energy = np.empty(dim, np.float32), floats(task, 3, 0)
    first, last = share(task)
    sentence = -1
    for row in range(first, last):
        b, s = row // num_positions, row % num_positions
        if b != sentence:
            sentence = b
            _load_queries(task, b, queries, factors, by_factors)
        key_factors = floats(task, 2, b, s)
        for k in range(num_queries):
            query_factors, score = factors[k], ZERO
            if by_factors[k]:
                for a in range(dim):
                    score += energy[a] / (ONE + query_factors[a] * key_factors[a])
            else:
                _hidden(task, b, s, queries[k], query_factors, False, hidden)
                for a in range(dim):
                    score += energy[a] * hidden[a]
            floats(task, 4, b, k)[s] = score


@kernel(0, 1, 5)
def additive_backward(address: Any) -> None:
    """From queries (K, A), keys (S, A), factors, energy (A), d_scores (K, S) to d_queries (K, A).

    One row per query of each sentence.
    """
    task = words_of(address)
    num_queries, dim, num_positions = count(task, 0), size(task, 0), size(task, 4)
    query, factors = np.empty(dim, np.float32), np.empty(dim, np.float32)
    hidden, d_query = np.empty(dim, np.float32), np.empty(dim, np.float32)
    energy = floats(task, 3, 0)
    first, last = share(task)
    for row in range(first, last):
        b, k = row // num_queries, row % num_queries
        by_factors = _load_query(task, b, k, query, factors)
        d_scores = floats(task, 4, b, k)
        d_query[:] = ZERO
        for s in range(num_positions):
            if d_scores[s] == ZERO:  # as at padding
                continue
            _hidden(task, b, s, query, factors, by_factors, hidden)
            for a in range(dim):
                d_query[a] += d_scores[s] * (hidden[a] - hidden[a] * hidden[a])
        for a in range(dim):
            d_query[a] *= energy[a]
        store(task, 5, b, k, d_query)


@kernel(0, 1)
def additive_gradients(address: Any) -> None:
    """From queries (K, A), keys (S, A), factors, energy (A), d_scores (K, S) to d_keys (S, A).

    Also to d_energy (A), which is to be summed over the sentences. One row per sentence.
    """
    task = words_of(address)
    num_queries, dim, num_positions = count(task, 0), size(task, 0), size(task, 4)
    queries = np.empty((num_queries, dim), np.float32)
    factors = np.empty((num_queries, dim), np.float32)
    by_factors = np.zeros(num_queries, np.bool_)
    hidden, energy = np.empty(dim, np.float32), floats(task, 3, 0)
    first, last = share(task)
    for b in range(first, last):
        _load_queries(task, b, queries, factors, by_factors)
        d_energy = floats(task, 6, b)
        d_energy[:] = ZERO
        for s in range(num_positions):
            d_key = floats(task, 5, b, s)
            d_key[:] = ZERO
            for k in range(num_queries):
                d_score = floats(task, 4, b, k)[s]
                if d_score == ZERO:
                    continue
                _hidden(task, b, s, queries[k], factors[k], by_factors[k], hidden)
                for a in range(dim):
                    d_key[a] += d_score * (hidden[a] - hidden[a] * hidden[a])
                    d_energy[a] += d_score * hidden[a]
            for a in range(dim):
                d_key[a] *= energy[a]
