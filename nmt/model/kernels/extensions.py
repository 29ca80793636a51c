"""The best extensions of hypotheses by one token, straight from what the last product gives.

A step of a search has the logits of some 100 hypotheses times some 10,000 tokens, of which it keeps
a dozen per sentence. Here they are read once, and nothing of their size is ever written.
"""

from typing import Any

import numpy as np
from numba import njit

from nmt.model.kernels.language import (
    OPTIONS,
    ZERO,
    add,
    count,
    exp,
    floats,
    integers,
    kernel,
    load_sums,
    share,
    size,
    words_of,
)

BLOCK = 64
"""Logits whose maximum is known, so that most of them are never looked at again."""
NONE = np.float32(-np.inf)


@njit(**OPTIONS)
def _make_maxima(logits: Any, maxima: Any) -> Any:
    """Find the maximum of each block, and that of all."""
    quarter = BLOCK // 4
    lanes = np.empty(quarter, np.float32)  # several at once, as in a register
    largest = NONE
    for c in range(maxima.size):
        block = logits[c * BLOCK : (c + 1) * BLOCK]
        for a in range(quarter):
            one, two = block[a], block[quarter + a]
            three, four = block[2 * quarter + a], block[3 * quarter + a]
            one, three = one if one > two else two, three if three > four else four
            lanes[a] = one if one > three else three
        maximum = lanes[0]
        for a in range(quarter):
            maximum = lanes[a] if lanes[a] > maximum else maximum
        maxima[c] = maximum
        largest = maximum if maximum > largest else largest
    return largest


@njit(**OPTIONS)
def _sum_of_exps(logits: Any, largest: Any) -> Any:
    total = ZERO
    for a in range(logits.size):
        total += exp(logits[a] - largest)
    return total


@njit(error_model="numpy")
def _log_prob(logit: Any, log_sum: Any, live: Any) -> Any:
    """That of an extension, rounded as it is written here: live is far from the other two."""
    return (logit - log_sum) + live


@njit(**OPTIONS)
def _insert(log_prob: Any, k: Any, token_id: Any, top: Any, parents: Any, token_ids: Any) -> None:
    """Take in an extension that is better than the last one, behind all that are as good."""
    i = top.size - 1
    while i > 0 and log_prob > top[i - 1]:
        top[i], parents[i], token_ids[i] = top[i - 1], parents[i - 1], token_ids[i - 1]
        i -= 1
    top[i], parents[i], token_ids[i] = log_prob, k, token_id


@kernel(sums=(0,), whole=(5, 6, 8, 9))
def best_extensions(address: Any) -> None:
    """From a product (K, V), barriers (V), live (K), banned, only (1) to the best extensions.

    One row per sentence. The product is numbers, scale, bias. The best extensions are their
    log-probabilities, parents and token ids, (n) each. Where `only` is a token and not -1, no other
    may come.
    """
    task = words_of(address)
    dim, num_rows, last_place = size(task, 0), count(task, 0), size(task, 7) - 1
    logits = np.full((dim + BLOCK - 1) // BLOCK * BLOCK, NONE, np.float32)
    maxima = np.empty(logits.size // BLOCK, np.float32)
    first, last = share(task)
    for b in range(first, last):
        live, banned, only = floats(task, 4, b), integers(task, 5, 0), integers(task, 6, b)[0]
        top, parents, token_ids = floats(task, 7, b), integers(task, 8, b), integers(task, 9, b)
        top[:], parents[:], token_ids[:] = NONE, 0, 0
        for k in range(num_rows):
            load_sums(task, 0, b, k, logits)
            add(task, 3, b, logits)
            largest = _make_maxima(logits, maxima)
            log_sum = largest + np.log(_sum_of_exps(logits, largest))
            for token_id in banned:
                if token_id < dim:
                    logits[token_id] = NONE
            if only >= 0:
                log_prob = _log_prob(logits[only], log_sum, live[k])
                if log_prob > top[last_place]:
                    _insert(log_prob, k, only, top, parents, token_ids)
                continue
            for c in range(maxima.size):
                if not _log_prob(maxima[c], log_sum, live[k]) > top[last_place]:
                    continue
                for a in range(c * BLOCK, (c + 1) * BLOCK):
                    log_prob = _log_prob(logits[a], log_sum, live[k])
                    if log_prob > top[last_place]:
                        _insert(log_prob, k, a, top, parents, token_ids)
