"""A small language of invented words, and a tokenizer of each kind that has learnt it."""

from functools import cache

import pytest

from nmt.text.tokenizer import train_tokenizer

SYLLABLES = [c + v for c in "bdgklmnrst" for v in "aeiou"]
WORDS = [SYLLABLES[i % 50] + SYLLABLES[i * 7 % 50] * (i % 3) for i in range(1, 120)]
CORPUS = [" ".join(WORDS[(i * k) % 119] for k in range(1, i % 9 + 2)) for i in range(250)]
CORPUS += ["나는 밥을 먹었다", "１２３ café (naïve)!"]
LONGEST = " ".join(WORDS[:8])
KINDS = {"unigram": 120, "bpe": 150, "word": 120, "char": 60}


@cache
def tokenizer_of(kind):
    if kind == "bytes":
        return train_tokenizer(CORPUS, kind="unigram", vocab_size=360, byte_fallback=True)
    return train_tokenizer(CORPUS, kind=kind, vocab_size=KINDS[kind])


@pytest.fixture(scope="session")
def corpus():
    return CORPUS


@pytest.fixture(scope="session")
def longest():
    return LONGEST


@pytest.fixture(scope="session", name="tokenizer_of")
def fixture_of_tokenizers():
    return tokenizer_of
