"""The fast search for the largest numbers against sorting them all."""

import pytest
import torch

from nmt.search.topk import largest, largest_plainly


def random_values(kind, length):
    values = -5 * torch.rand(3, length, generator=torch.Generator().manual_seed(length))
    match kind:
        case "many ties":
            return values.round()
        case "mostly impossible":
            return values.masked_fill(values < -0.05, -torch.inf)
        case "both signs":
            return values + 2.5
    return values


@pytest.mark.parametrize("kind", ["distinct", "many ties", "mostly impossible", "both signs"])
@pytest.mark.parametrize("length", [10, 64, 65, 700, 3000, 8000])
@pytest.mark.parametrize("n", [1, 2, 10])
def test_it_is_the_plain_search_ties_included(kind, length, n):
    values = random_values(kind, length)
    found, expected = largest(values, n), largest_plainly(values, n)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("length", [5, 640, 5000])
def test_equal_numbers_come_from_left_to_right(length):
    values = torch.zeros(2, length)
    values[1, 3] = -0.0  # equal to 0.0
    values[1, 1] = 1.0
    assert largest(values, 4)[1].tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]


def test_no_number_is_worse_than_minus_infinity():
    values = torch.full((1, 1000), -torch.inf)
    values[0, 900] = -1e30
    found, places = largest(values, 3)
    assert places.tolist() == [[900, 0, 1]]
    assert found[0, 1:].isneginf().all()
