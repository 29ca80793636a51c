"""The learning rate of every step, against the formula of its shape."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmt.training.schedule import Schedule

SHAPES = ["constant", "inverse_sqrt", "linear", "plateau"]


def schedule(shape, warmup_steps=0, max_steps=100, **options):
    return Schedule(shape, 0.8, warmup_steps, max_steps, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_rises_linearly_to_the_peak_in_the_warm_up(shape):
    rates = [schedule(shape, warmup_steps=4).learning_rate(step) for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_constant_stays():
    constant = schedule("constant", warmup_steps=4)
    assert {constant.learning_rate(step) for step in (4, 5, 50, 100, 1000)} == {0.8}


def test_constant_without_warm_up_begins_at_the_peak():
    assert schedule("constant").learning_rate(1) == 0.8


def test_the_inverse_square_root_halves_at_four_times_the_warm_up():
    rates = [schedule("inverse_sqrt", 9).learning_rate(step) for step in (9, 36, 81, 900)]
    assert rates == pytest.approx([0.8, 0.4, 0.8 / 3, 0.08])


def test_the_inverse_square_root_is_the_formula_of_the_paper():
    """lr = c · min(step^-0.5, step · warmup^-1.5), Vaswani et al. 2017, eq. 3."""
    warmup = 7
    scale = 0.8 * warmup**0.5
    for step in range(1, 60):
        expected = scale * min(step**-0.5, step * warmup**-1.5)
        assert schedule("inverse_sqrt", warmup).learning_rate(step) == pytest.approx(expected)


@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 99])
def test_linear_falls_in_equal_steps_and_would_be_zero_just_after_the_last(warmup_steps):
    linear = schedule("linear", warmup_steps)
    start = max(warmup_steps, 1)
    rates = [linear.learning_rate(step) for step in range(start, 102)]
    falls = [a - b for a, b in pairwise(rates)]
    assert falls == pytest.approx([0.8 / (101 - warmup_steps)] * len(falls))
    assert rates[-1] == 0.0
    assert 0 < rates[-2] == pytest.approx(0.8 / (101 - warmup_steps))


def test_linear_is_not_negative_beyond_the_end():
    assert schedule("linear").learning_rate(500) == 0.0


def test_plateau_is_multiplied_at_each_reduction():
    plateau = schedule("plateau", warmup_steps=2, plateau_factor=0.5)
    assert [plateau.learning_rate(10, n) for n in range(4)] == [0.8, 0.4, 0.2, 0.1]


@pytest.mark.parametrize("shape", ["constant", "inverse_sqrt", "linear"])
def test_only_plateau_looks_at_reductions(shape):
    """The trainer counts them whatever the shape is."""
    assert schedule(shape, 2).learning_rate(10, 3) == schedule(shape, 2).learning_rate(10)


@given(
    shape=st.sampled_from(SHAPES),
    warmup_steps=st.integers(1, 50),
    max_steps=st.integers(51, 200),
    reductions=st.integers(0, 3),
)
def test_the_rate_is_always_between_zero_and_the_peak(shape, warmup_steps, max_steps, reductions):
    shaped = Schedule(shape, 2e-3, warmup_steps, max_steps)
    for step in range(1, max_steps + 1):
        rate = shaped.learning_rate(step, reductions)
        assert 0 < rate <= 2e-3
        assert math.isfinite(rate)
