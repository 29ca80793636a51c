"""Dropout, whose decisions share random numbers of 64 bits."""

import math

import pytest
import torch

from nmt.model.dropout import Dropout
from nmt.model.rnn import RecurrentStack

NUMBERS = 40_000


def drop(p, like, seed=0):
    """What dropout makes of a tensor of ones."""
    torch.manual_seed(seed)
    return Dropout(p).train()(torch.ones_like(like))


def assert_share(dropped, p):
    """The share of ones is p, within 5 standard deviations of the binomial distribution."""
    num = dropped.numel()
    assert abs(int(dropped.sum()) - num * p) <= 5 * math.sqrt(num * p * (1 - p))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_a_share_of_p_is_dropped_and_the_rest_grows_so_that_the_mean_stays(p):
    x = drop(p, torch.empty(200, NUMBERS // 200, dtype=torch.float64))
    assert_share(x == 0, p)
    assert torch.allclose(x[x != 0], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-4)
    spread = math.sqrt(p / (1 - p) / NUMBERS)
    assert abs(float(x.mean()) - 1) <= 5 * spread


@pytest.mark.parametrize("p", [1e-3, 0.999])
def test_p_may_be_near_0_and_near_1(p):
    assert_share(drop(p, torch.empty(NUMBERS)) == 0, p)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_the_nearest_p_that_16_bits_have_is_not_all_or_nothing(p):
    x = drop(p, torch.empty(NUMBERS))
    if p < 0.5:
        assert x.eq(1).all()
    else:  # p is 1 - 2**-16
        assert set(x.unique().tolist()) <= {0.0, 65536.0}


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("distance", [1, 2, 3, 4, 64])
def test_neighbours_are_dropped_independently(p, distance):
    """Numbers that share a draw of 64 bits are up to three places apart."""
    dropped = drop(p, torch.empty(NUMBERS)) == 0
    assert_share(dropped[distance:] & dropped[:-distance], p * p)
    assert_share(dropped[distance:] != dropped[:-distance], 2 * p * (1 - p))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_each_place_of_a_draw_is_dropped_as_often(p):
    dropped = drop(p, torch.empty(NUMBERS)) == 0
    for place in range(4):
        assert_share(dropped[place::4], p)


def test_calls_differ_and_a_seed_repeats_them():
    dropout, x = Dropout(0.3).train(), torch.ones(5, 7)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)


def test_nothing_is_dropped_in_evaluation_or_with_p_0_and_nothing_is_drawn():
    x = torch.ones(5)
    state = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_gradient_is_what_the_numbers_were_multiplied_with(dtype, p):
    torch.manual_seed(0)
    x = torch.randn(9, 11).to(dtype).requires_grad_()
    dropped = Dropout(p).train()(x)
    dropped.backward(torch.ones_like(dropped))
    assert dropped.dtype == x.grad.dtype == dtype
    assert set(x.grad.unique().tolist()) == {0.0, float(x.grad.max())}
    assert float(x.grad.max()) == pytest.approx(1 / (1 - p), rel=0.005)
    assert torch.equal(dropped, x * x.grad)


@pytest.mark.parametrize("sizes", [(0,), (3, 0), (), (1,), (2,), (3,), (5,), (3, 7, 5)])
def test_all_sizes_keep_their_shape(sizes):
    x = torch.full(sizes, 3.0)
    assert drop(0.5, x).shape == sizes
    assert Dropout(0.5).train()(x).shape == sizes


def test_tensors_of_any_layout_are_dropped():
    x = torch.ones(3, 8, 5).transpose(0, 2)
    dropped = drop(0.5, torch.empty(5, 8, 3))
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.5).train()(x), dropped)


# ------------------------------------------------------------------- masks for a whole target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masks_of_a_stack_are_what_dropout_makes_of_ones(cell, dtype):
    torch.manual_seed(0)
    stack = RecurrentStack(cell, 3, 20, 3, dropout=0.3).train()
    masks = stack.dropout_masks(torch.full((50, 10, 7), 2.0, dtype=dtype))
    assert [mask.shape for mask in masks] == [(50, 10, 20)] * 2
    for mask in masks:
        assert mask.dtype == dtype
        assert_share(mask == 0, 0.3)
        assert float(mask.max()) == pytest.approx(1 / 0.7, rel=0.005)
        assert mask.unique().numel() == 2
    assert not torch.equal(*masks)


def test_a_stack_has_no_masks_where_dropout_does_nothing(cell):
    like = torch.ones(2, 3, 4)
    assert RecurrentStack(cell, 3, 5, 3, dropout=0.3).eval().dropout_masks(like) == []
    assert RecurrentStack(cell, 3, 5, 3, dropout=0.0).train().dropout_masks(like) == []
    assert RecurrentStack(cell, 3, 5, 1, dropout=0.3).train().dropout_masks(like) == []
