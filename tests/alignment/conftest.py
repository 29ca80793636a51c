import numpy as np
import pytest

from nmt.alignment.pair import AlignedPair


def make_pair(line=1, rank=1, score=None):
    """나는 밥을 먹었다 → I ate rice: two words of three have two pieces on the source side."""
    rows = [
        [0.50, 0.30, 0.05, 0.05, 0.04, 0.06],  # ▁I
        [0.00, 0.10, 0.10, 0.20, 0.50, 0.10],  # ▁a
        [0.20, 0.10, 0.10, 0.20, 0.30, 0.10],  # te
        [0.01, 0.01, 0.50, 0.40, 0.03, 0.05],  # ▁rice
        [0.00, 0.00, 0.00, 0.00, 0.25, 0.75],  # </s>
    ]
    return AlignedPair(
        line=line,
        rank=rank,
        src_tokens=["▁나", "는", "▁밥", "을", "▁먹었다", "</s>"],
        tgt_tokens=["▁I", "▁a", "te", "▁rice", "</s>"],
        weights=np.array(rows, dtype=np.float32),
        src_word_ids=[0, 0, 1, 1, 2, 3],
        tgt_word_ids=[0, 1, 1, 2, 3],
        src_words=["나는", "밥을", "먹었다"],
        tgt_words=["I", "ate", "rice"],
        score=score,
    )


def make_blank(line=1):
    weights = np.zeros((0, 0), dtype=np.float32)
    return AlignedPair(line, 1, [], [], weights, [], [], [], [])


def make_word_pair(src_words, tgt_words, weights=None, line=1, rank=1):
    """A pair whose tokens are its words; without weights, the weights are uniform."""
    src_tokens, tgt_tokens = [*src_words, "</s>"], [*tgt_words, "</s>"]
    shape = (len(tgt_tokens), len(src_tokens))
    if weights is None:
        weights = np.full(shape, 1 / shape[1])
    return AlignedPair(
        line,
        rank,
        src_tokens,
        tgt_tokens,
        np.array(weights, dtype=np.float32),
        list(range(shape[1])),
        list(range(shape[0])),
        list(src_words),
        list(tgt_words),
    )


@pytest.fixture
def pair():
    return make_pair()


@pytest.fixture
def pair_of():
    return make_pair


@pytest.fixture
def blank_of():
    return make_blank


@pytest.fixture
def word_pair():
    return make_word_pair
