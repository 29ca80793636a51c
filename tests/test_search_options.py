"""How to search: limits that follow from the source, and options that contradict each other."""

import numpy as np
import pytest

from nmt.errors import ConfigError
from nmt.translator import SearchOptions

COMMON = {
    "beam_size": 5,
    "length_penalty": 1.0,
    "min_length": 1,
    "max_length_ratio": 2.0,
    "batch_tokens": 4096,
}


def options(**values):
    return SearchOptions(**{**COMMON, **values})


def test_the_longest_translation_depends_on_the_source():
    lengths = np.array([1, 3, 10])
    assert options().max_lengths(lengths).tolist() == [12, 16, 30]
    assert options(max_length_ratio=1.5).max_lengths(lengths).tolist() == [12, 15, 25]
    assert options(max_length=14).max_lengths(lengths).tolist() == [12, 14, 14]
    assert options(min_length=20).max_lengths(lengths).tolist() == [20, 20, 30]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam_size": 0}, "beam size: must be at least 1, but is 0"),
        (
            {"beam_size": 3, "n_best": 4},
            "n-best: must be between 1 and the beam size 3, but is 4; raise the beam size",
        ),
        (
            {"n_best": 0},
            "n-best: must be between 1 and the beam size 5, but is 0; raise the beam size",
        ),
        (
            {"length_penalty": -0.5},
            "length penalty: must be a number from 0 to 10, but is -0.5",
        ),
        (
            {"length_penalty": float("nan")},
            "length penalty: must be a number from 0 to 10, but is nan",
        ),
        (
            {"length_penalty": 10.5},
            "length penalty: must be a number from 0 to 10, but is 10.5",
        ),
        (
            {"length_penalty": float("inf")},
            "length penalty: must be a number from 0 to 10, but is inf",
        ),
        ({"min_length": -1}, "min length: must be at least 0, but is -1"),
        (
            {"max_length": 0, "min_length": 0},
            "max length: must be at least the min length 1, but is 0",
        ),
        (
            {"min_length": 9, "max_length": 8},
            "max length: must be at least the min length 9, but is 8",
        ),
        ({"batch_tokens": 0}, "batch tokens: must be at least 1, but is 0"),
    ],
)
def test_impossible_options_are_named(values, message):
    with pytest.raises(ConfigError) as error:
        options(**values)
    assert str(error.value) == message
