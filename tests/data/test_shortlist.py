"""Shortlists: the table is that of IBM Model 1, and the tokens that matter are allowed."""

import numpy as np
import pytest

import nmt.data.shortlist
from nmt.data.shortlist import (
    ITERATIONS,
    NUM_SPECIAL,
    Shortlist,
    learn_shortlist,
    learn_table,
    sentence_chunks,
)
from nmt.errors import ConfigError, ModelError
from nmt.text.tokenizer import EOS_ID

# 10 das 11 haus 12 buch 13 ein   20 the 21 house 22 book 23 a
TEXTS = [("10 11", "20 21"), ("10 12", "20 22"), ("13 12", "23 22"), ("13 12 12", "22")]
VOCAB = (30, 40)


def learn(store, **options):
    defaults = {"per_token": 1, "frequent": 0, "max_pairs": 100, "copies": False, "hashes": {}}
    return learn_shortlist(store, VOCAB, **{**defaults, **options})


def model_1(texts, num_iterations):
    """IBM Model 1 as in figure 1 of Brown et al. 1993, with `</s>` for the empty word."""
    pairs = [([*map(int, src.split()), EOS_ID], list(map(int, tgt.split()))) for src, tgt in texts]
    probability = {(s, t): 1.0 for src, tgt in pairs for s in src for t in tgt}
    for _ in range(num_iterations):
        expected = dict.fromkeys(probability, 0.0)
        for src, tgt in pairs:
            for t in tgt:
                total = sum(probability[s, t] for s in src)
                for s in src:
                    expected[s, t] += probability[s, t] / total
        totals = {s: sum(x for (of, _), x in expected.items() if of == s) for s, _ in expected}
        probability = {(s, t): x / totals[s] for (s, t), x in expected.items()}
    return probability


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_table_is_that_of_the_paper(build, monkeypatch, chunk):
    monkeypatch.setattr(nmt.data.shortlist, "CHUNK", chunk)
    table = learn_table(build(TEXTS), VOCAB, 100)
    found = dict(zip(zip(table.src, table.tgt, strict=True), table.probability, strict=True))
    assert found == pytest.approx(model_1(TEXTS, ITERATIONS))
    assert np.bincount(table.src, table.probability)[[3, 10, 11, 12, 13]] == pytest.approx(1)


def test_words_find_their_translation(build):
    shortlist = learn(build(TEXTS))
    for src, tgt in ((10, 20), (11, 21), (12, 22), (13, 23)):
        assert shortlist.allowed([src]).tolist() == [0, 1, 2, 3, tgt]


def test_what_is_allowed_rises_and_holds_each_id_once(build):
    allowed = learn(build(TEXTS), per_token=3, frequent=2).allowed([12, 10, 12, 13, 10])
    assert allowed.dtype == np.int64
    assert allowed.tolist() == sorted(set(allowed.tolist()))


def test_two_sentences_allow_what_one_of_them_allows(build):
    shortlist = learn(build(TEXTS), per_token=2, frequent=1)
    both = set(shortlist.allowed([10, 11])) | set(shortlist.allowed([13]))
    assert set(shortlist.allowed([10, 11, 13])) == both


def test_special_and_frequent_tokens_are_always_allowed(build):
    store = build(TEXTS)  # 22 three times, 20 twice, 21 and 23 once
    special = list(range(NUM_SPECIAL))
    for number, expected in ((0, []), (1, [22]), (2, [20, 22]), (3, [20, 21, 22])):
        for unseen in ([], [5], [29]):
            assert learn(store, frequent=number).allowed(unseen).tolist() == [*special, *expected]
    # what never occurs is not frequent
    assert learn(store, frequent=100).allowed([]).tolist() == [*special, 20, 21, 22, 23]


def test_a_source_token_allows_so_many_and_no_more(build):
    store = build(TEXTS)
    for number in (1, 2, 3):
        assert len(learn(store, per_token=number).allowed([12])) == NUM_SPECIAL + number
    assert len(learn(store, per_token=100).allowed([11])) == NUM_SPECIAL + 2


def test_with_one_vocabulary_a_token_may_be_copied(build):
    shortlist = learn(build(TEXTS), copies=True)
    assert shortlist.allowed([10, 29]).tolist() == [0, 1, 2, 3, 10, 20, 29]


def test_few_pairs_are_taken_from_all_over_the_corpus(build):
    assert [i for chunk in sentence_chunks(10, 5) for i in chunk] == [0, 2, 4, 6, 8]
    assert [i for chunk in sentence_chunks(3, 5) for i in chunk] == [0, 1, 2]
    table = learn_table(build(TEXTS), VOCAB, 2)  # the first and the third pair
    assert set(table.src) == {3, 10, 11, 12, 13}
    assert 2 not in table.tgt[table.src == 10]


def test_a_description_says_size_and_coverage(build):
    store = build(TEXTS)
    valid = build([("10", "20 20 21"), ("12 13", "22 23 20")], folder="valid")
    assert learn(store).describe(valid) == (
        "allows 6 target tokens per sentence on average, and 66.7% of the tokens of the "
        "references (2 pairs)"
    )


@pytest.mark.parametrize(("name", "least"), [("per_token", 1), ("frequent", 0), ("max_pairs", 1)])
def test_an_impossible_number_is_refused(build, name, least):
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"^{option}: must be at least {least}, but is -1$"):
        learn(build(TEXTS), **{name: -1})


def test_what_was_saved_is_read(build, tmp_path):
    shortlist = learn(build(TEXTS), per_token=2, frequent=1, copies=True, hashes={"src": "ä"})
    shortlist.save(tmp_path / "s.npz")
    found = Shortlist.load(tmp_path / "s.npz")
    assert found.hashes == {"src": "ä"}
    for sentence in ([], [10], [11, 12], [29]):
        assert found.allowed(sentence).tolist() == shortlist.allowed(sentence).tolist()


def test_what_is_no_shortlist_is_refused(build, tmp_path, monkeypatch):
    path = tmp_path / "s.npz"
    with pytest.raises(ModelError) as caught:
        Shortlist.load(path)
    assert str(caught.value) == f"{path}: there is no such file; make it with `nmt shortlist`"
    learn(build(TEXTS)).save(path)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", meta=np.arange(3))
    other = (tmp_path / "other.npz").read_bytes()
    np.savez(tmp_path / "code.npz", meta=np.array([{}], dtype=object))
    code = (tmp_path / "code.npz").read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:-50], b"text", bytes(spoiled), other, code):
        path.write_bytes(damaged)
        with pytest.raises(ModelError) as caught:
            Shortlist.load(path)
        assert str(caught.value) == (
            f"{path}: is damaged, or no shortlist; make it anew with `nmt shortlist`"
        )
    monkeypatch.setattr(nmt.data.shortlist, "FORMAT_VERSION", 2)
    learn(build(TEXTS)).save(path)
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"was made by a newer nmt; upgrade nmt to read it$"):
        Shortlist.load(path)
