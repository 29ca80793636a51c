"""Token stores of sentences that are written as their token ids."""

import pytest

from nmt.data.corpus import Pair, PairFilter
from nmt.data.store import build_store


def encode(sentences):
    return [[int(token) for token in sentence.split()] for sentence in sentences]


@pytest.fixture
def build(tmp_path):
    """Builds a store from (source, target) texts; what is not given is roomy."""

    def build(texts, folder="train", **options):
        pairs = (Pair(line, src, tgt) for line, (src, tgt) in enumerate(texts, 1))
        defaults = {
            "encode": {"src": encode, "tgt": encode},
            "vocab_size": {"src": 100, "tgt": 100},
            "pair_filter": PairFilter(1000),
            "fingerprint": "made of this",
        }
        return build_store(tmp_path / folder, pairs, **{**defaults, **options})

    return build
