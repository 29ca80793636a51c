"""Additive scores from exponentials made before: the same numbers, and never one out of range."""

import math

import pytest
import torch

from nmt.model.folded_attention import FoldedMemory, additive_scores
from nmt.model.sigmoid import LARGEST, Energy, factors

EDGE = LARGEST * 0.999
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def exact_scores(queries, keys, energy):
    """(B, K, S), in fp64."""
    hidden = torch.sigmoid(queries.double().unsqueeze(2) + keys.double().unsqueeze(1))
    return hidden @ energy.double()


def memory_of(keys, *, has_factors):
    mask = torch.ones(keys.shape[:2], dtype=torch.bool)
    return FoldedMemory(keys, factors(keys) if has_factors else keys, mask, has_factors, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("v", [1.0, -1.0, 3e-4, -2e20, 5e-25])
def test_it_is_v_times_the_sigmoid_of_the_sum(dtype, v):
    q = torch.tensor([0.0, 1.5, -3.0, 20.0, -20.0, EDGE, -EDGE], dtype=dtype).view(1, -1, 1)
    k = torch.tensor([0.0, -1.5, 2.5, 19.0, -21.0, EDGE, -EDGE, 1e-6], dtype=dtype).view(1, -1, 1)
    energy = torch.tensor([v], dtype=dtype)
    found = additive_scores(q, memory_of(k, has_factors=True), Energy(energy)).double()
    exact = exact_scores(q, k, energy)
    torch.testing.assert_close(found / v, exact / v, atol=1e-37 / min(1, abs(v)), rtol=2e-5)


@pytest.mark.parametrize("small", [0.0, -0.0, 0.01, -0.01, 1e-4, 1e-12, -1e-13, 1e-30, -1e-42])
@pytest.mark.parametrize("q", [EDGE, -EDGE, 0.0])
@pytest.mark.parametrize("k", [EDGE, -EDGE, 0.0])
def test_energies_of_every_size_add_what_they_should(small, q, k):
    """The extremes of everything at once: no score is infinite or no number."""
    energy = torch.tensor([2.0, small, -1.0, small])
    queries, keys = torch.full((1, 1, 4), q), torch.full((1, 1, 4), k)
    found = additive_scores(queries, memory_of(keys, has_factors=True), Energy(energy))
    torch.testing.assert_close(found.double(), exact_scores(queries, keys, energy), **CLOSE)


def test_an_energy_of_zeros_scores_zero():
    energy, x = Energy(torch.zeros(5)), torch.randn(1, 2, 5)
    found = additive_scores(x, memory_of(x, has_factors=True), energy)
    assert not found.any()


@pytest.mark.parametrize("x", [LARGEST * 1.01, -LARGEST * 1.01, math.inf, -math.inf, math.nan])
def test_what_is_out_of_range_has_no_factors(x):
    assert factors(torch.tensor([0.0, x, 1.0])) is None
    assert factors(torch.tensor([0.0, EDGE, -EDGE])) is not None


@pytest.mark.parametrize("largest", [1.0, 55.0, 300.0])
@pytest.mark.parametrize("large_keys", [False, True])
def test_scores_are_exact_for_queries_and_keys_of_any_size(largest, large_keys):
    torch.manual_seed(1)
    keys, queries, energy = torch.randn(3, 4, 5), torch.randn(3, 2, 5), torch.randn(5)
    (keys if large_keys else queries)[0, 0] *= largest
    (queries if large_keys else keys)[0, 0, :2] = -largest  # which may cancel
    exact = exact_scores(queries, keys, energy)
    for has_factors in {False, factors(keys) is not None}:
        memory = memory_of(keys, has_factors=has_factors)
        found = additive_scores(queries, memory, Energy(energy))
        torch.testing.assert_close(found.double(), exact, **CLOSE)


def test_a_memory_with_factors_stays_one_when_sentences_leave():
    memory = memory_of(torch.ones(3, 4, 5), has_factors=True)
    assert memory.keep(torch.tensor([2, 0])).has_factors
