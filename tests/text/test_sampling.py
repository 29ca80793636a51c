"""Drawn segmentations: how often each comes, and that a seed means the same in every process."""

import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise, product
from random import Random

import pytest

from nmt.text.sampling import drop_merges, sample_unigram
from nmt.text.tokenizer import train_tokenizer

SCORES = {"a": -1.0, "b": -1.5, "ab": -2.0, "ba": -1.7, "aba": -3.5}
RANKS = {"a": -9.0, "b": -10.0, "c": -11.0, "ab": -0.0, "bc": -1.0, "abc": -2.0}
SYLLABLES = ["hun", "kat", "mau", "zie", "jag"]
CORPUS = [f"{a}{b} {b}{c}" for a, b, c in product(SYLLABLES, repeat=3)]


def segmentations(text, scores):
    """Every way to write a text with these pieces."""
    if not text:
        yield ()
    for end in range(1, len(text) + 1):
        if text[:end] in scores:
            for rest in segmentations(text[end:], scores):
                yield (text[:end], *rest)


def strength(tokenizer):
    """A parameter with which many segmentations are drawn."""
    return 0.3 if tokenizer._is_bpe else 0.05


@pytest.fixture(scope="module", params=["unigram", "bpe", "bytes"])
def tokenizer(request):
    if request.param == "bpe":
        return train_tokenizer(CORPUS, kind="bpe", vocab_size=50)
    size = 291 if request.param == "bytes" else 35
    byte_fallback = request.param == "bytes"
    return train_tokenizer(CORPUS, kind="unigram", vocab_size=size, byte_fallback=byte_fallback)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_each_segmentation_comes_as_often_as_its_smoothed_probability(alpha):
    text = "ababa"
    weights = {
        pieces: math.exp(alpha * sum(SCORES[piece] for piece in pieces))
        for pieces in segmentations(text, SCORES)
    }
    assert len(weights) == 12
    random, count = Random(1), 20000
    drawn = Counter(tuple(sample_unigram(text, SCORES, alpha, random)) for _ in range(count))
    assert drawn.keys() <= weights.keys()
    for pieces, weight in weights.items():
        share = weight / sum(weights.values())
        tolerance = 5 * math.sqrt(share * (1 - share) / count)
        assert drawn[pieces] / count == pytest.approx(share, abs=tolerance)


def test_an_unknown_character_stands_alone():
    for seed in range(50):
        pieces = sample_unigram("axxb", SCORES, 0.5, Random(seed))
        assert pieces == ["a", "x", "x", "b"]


def test_nothing_has_no_pieces():
    assert sample_unigram("", SCORES, 0.5, Random(1)) == []
    assert drop_merges("", RANKS, 0.5, Random(1)) == []


def test_without_dropout_the_best_merge_comes_first():
    assert drop_merges("abc", RANKS, 0.0, Random(1)) == ["abc"]
    assert drop_merges("abbc", RANKS, 0.0, Random(1)) == ["ab", "bc"]


def test_with_full_dropout_only_characters_remain():
    assert drop_merges("abc", RANKS, 1.0, Random(1)) == ["a", "b", "c"]


def test_each_outcome_comes_as_often_as_the_algorithm_says():
    """Of "abc": ab comes first, or else bc, or else nothing; and then c or a joins, or not."""
    p, count = 0.3, 20000
    expected = {
        ("abc",): (1 - p) * (1 - p) + p * (1 - p) * (1 - p),
        ("ab", "c"): (1 - p) * p,
        ("a", "bc"): p * (1 - p) * p,
        ("a", "b", "c"): p * p,
    }
    random = Random(1)
    drawn = Counter(tuple(drop_merges("abc", RANKS, p, random)) for _ in range(count))
    for pieces, share in expected.items():
        tolerance = 5 * math.sqrt(share * (1 - share) / count)
        assert drawn[pieces] / count == pytest.approx(share, abs=tolerance)


@pytest.mark.parametrize(
    "sentence", ["hunkat katmau", "  zie  jag ", "x日本y hun日 本", "①½ a", "", "ⓗun"]
)
def test_the_limit_without_randomness_is_the_usual_segmentation(tokenizer, sentence):
    limit = 0.0 if tokenizer._is_bpe else 1000.0
    assert tokenizer.sample(sentence, limit, 7) == tokenizer.encode([sentence])[0]


def test_every_segmentation_is_of_the_same_sentence(tokenizer):
    alpha = strength(tokenizer)
    drawn = {tuple(tokenizer.sample("hunkat katmau zie", alpha, seed)) for seed in range(100)}
    assert len(drawn) > 2
    assert {tokenizer.decode(ids) for ids in drawn} == {"hunkat katmau zie"}


def test_a_seed_draws_the_same_in_every_process(tokenizer, tmp_path):
    """Unlike with SentencePiece's own sampling, whose generator has a salt of the process."""
    tokenizer.save(tmp_path / "t.model")
    alpha = strength(tokenizer)
    program = (
        "import sys; from pathlib import Path; from nmt.text.tokenizer import Tokenizer\n"
        "t = Tokenizer.load(Path(sys.argv[1]))\n"
        f"print([t.sample('hunkat katmau zie', {alpha}, seed) for seed in range(20)])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "t.model")],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [tokenizer.sample("hunkat katmau zie", alpha, seed) for seed in range(20)]
    assert found == {f"{here}\n"}
    assert any(a != b for a, b in pairwise(here))
