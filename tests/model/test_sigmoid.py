"""Sigmoids of sums from exponentials made before: the same numbers, and never one out of range."""

import math

import pytest
import torch

from nmt.model.attention import Memory
from nmt.model.folded import _additive, _FactorMemory
from nmt.model.sigmoid import LARGEST, factors, sigmoid_of_sum

EDGE = LARGEST * 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_sigmoid_of_the_sum(dtype):
    q = torch.tensor([0.0, 1.5, -3.0, 20.0, -20.0, EDGE, -EDGE], dtype=dtype).unsqueeze(1)
    k = torch.tensor([0.0, -1.5, 2.5, 19.0, -21.0, EDGE, -EDGE, 1e-6], dtype=dtype)
    found = sigmoid_of_sum(factors(q), factors(k))
    torch.testing.assert_close(found.double(), torch.sigmoid(q.double() + k.double()))


@pytest.mark.parametrize("x", [LARGEST * 1.01, -LARGEST * 1.01, math.inf, -math.inf, math.nan])
def test_what_is_out_of_range_has_no_factors(x):
    assert factors(torch.tensor([0.0, x, 1.0])) is None
    assert factors(torch.tensor([0.0, EDGE, -EDGE])) is not None


@pytest.mark.parametrize("largest", [1.0, 80.0, 300.0])
@pytest.mark.parametrize("large_keys", [False, True])
def test_scores_are_exact_for_queries_and_keys_of_any_size(largest, large_keys):
    torch.manual_seed(1)
    keys, queries, energy = torch.randn(3, 4, 5), torch.randn(3, 2, 5), torch.randn(5)
    (keys if large_keys else queries)[0, 0] *= largest
    (queries if large_keys else keys)[0, 0, :2] = -largest  # which may cancel
    mask = torch.ones(3, 4, dtype=torch.bool)
    plain = Memory(keys, keys, mask)
    key_factors = factors(keys)
    memory = plain if key_factors is None else _FactorMemory(keys, key_factors, mask)
    exact = torch.sigmoid(queries.double().unsqueeze(2) + keys.double().unsqueeze(1)) @ (
        energy.double()
    )
    torch.testing.assert_close(_additive(queries, memory, energy).double(), exact, **CLOSE)
    torch.testing.assert_close(_additive(queries, plain, energy).double(), exact, **CLOSE)


CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def test_a_memory_with_factors_stays_one_when_sentences_leave():
    x = torch.ones(3, 4, 5)
    memory = _FactorMemory(x, x, x[..., 0].bool())
    assert isinstance(memory.keep(torch.tensor([2, 0])), _FactorMemory)
