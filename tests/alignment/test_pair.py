from dataclasses import replace

import numpy as np
import pytest

from nmt.alignment.pair import AlignedPair, hard_links, is_word_level, to_words, token_links


def random_pair(seed):
    """Words of one to three pieces each, and random weights."""
    rng = np.random.default_rng(seed)

    def side(num_words):
        ids = [word for word in range(num_words) for _ in range(rng.integers(1, 4))]
        words = [f"w{word}" for word in range(num_words)]
        return [f"t{n}" for n in range(len(ids))] + ["</s>"], [*ids, num_words], words

    src_tokens, src_word_ids, src_words = side(5)
    tgt_tokens, tgt_word_ids, tgt_words = side(4)
    weights = rng.dirichlet(np.ones(len(src_tokens)), size=len(tgt_tokens)).astype(np.float32)
    return AlignedPair(
        3, 2, src_tokens, tgt_tokens, weights, src_word_ids, tgt_word_ids, src_words, tgt_words, -1
    )


@pytest.mark.parametrize("seed", range(3))
def test_word_weights_are_sums_over_source_pieces_and_means_over_target_pieces(seed):
    pair = random_pair(seed)
    words = to_words(pair)
    for j in range(len(pair.tgt_words) + 1):
        rows = [t for t, word in enumerate(pair.tgt_word_ids) if word == j]
        for i in range(len(pair.src_words) + 1):
            columns = [s for s, word in enumerate(pair.src_word_ids) if word == i]
            total = sum(float(pair.weights[t, s]) for t in rows for s in columns)
            assert words.weights[j, i] == pytest.approx(total / len(rows), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_words_sum_to_one(seed):
    words = to_words(random_pair(seed))
    np.testing.assert_allclose(words.weights.sum(1), 1, atol=1e-6)
    assert words.weights.dtype == np.float32


def test_the_tokens_of_a_word_level_pair_are_the_words_and_the_end(pair_of):
    words = to_words(pair_of(line=7, rank=2, score=-0.5))
    assert words.src_tokens == ["나는", "밥을", "먹었다", "</s>"]
    assert words.tgt_tokens == ["I", "ate", "rice", "</s>"]
    assert (words.src_word_ids, words.tgt_word_ids) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert (words.line, words.rank, words.score) == (7, 2, -0.5)


def test_words_of_words_are_the_same_words(pair):
    once = to_words(pair)
    twice = to_words(once)
    assert twice.src_tokens == once.src_tokens
    np.testing.assert_array_equal(twice.weights, once.weights)
    assert is_word_level(once)
    assert not is_word_level(pair)


def test_a_source_word_without_pieces_gets_no_weight(pair):
    gap = replace(
        pair, src_words=["나는", "\u200b", "밥을", "먹었다"], src_word_ids=[0, 0, 2, 2, 3, 4]
    )
    words = to_words(gap)
    assert words.weights[:, 1].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(words.weights.sum(1), 1, atol=1e-6)


def test_a_target_word_without_pieces_looks_at_the_end_and_has_no_link(pair):
    gap = replace(pair, tgt_words=["I", "ate", "\u200b", "rice"], tgt_word_ids=[0, 1, 1, 3, 4])
    words = to_words(gap)
    assert words.weights[2].tolist() == [0, 0, 0, 1]
    assert hard_links(words) == [(0, 0), (2, 1), (1, 3)]


def test_each_target_token_is_linked_to_its_strongest_source_token(pair):
    assert hard_links(pair) == [(0, 0), (4, 1), (4, 2), (2, 3)]
    assert hard_links(to_words(pair)) == [(0, 0), (2, 1), (1, 2)]


def test_a_tie_is_won_by_the_leftmost(word_pair):
    assert hard_links(word_pair(["a", "b", "c"], ["x"], [[0.1, 0.4, 0.4, 0.1], [0, 0, 0, 1]])) == [
        (1, 0)
    ]


def test_the_source_end_takes_the_link_away_only_if_it_is_strongest_alone(word_pair):
    rows = [[0.2, 0.3, 0.5], [0.2, 0.4, 0.4], [0.9, 0.1, 0.0]]
    assert hard_links(word_pair(["a", "b"], ["x", "y"], rows)) == [(1, 1)]


def test_an_empty_translation_has_no_links(word_pair):
    assert hard_links(word_pair(["a"], [])) == []


def test_a_blank_line_has_no_links_and_no_words(blank_of):
    blank = blank_of()
    assert hard_links(blank) == []
    assert to_words(blank) is blank
    assert is_word_level(blank)
    assert token_links(blank, {(0, 0)}) == []


def test_a_link_between_words_is_a_link_between_all_their_pieces(pair):
    assert token_links(pair, {(0, 1)}) == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert token_links(to_words(pair), {(0, 1)}) == [(0, 1)]


def test_the_end_has_no_word_links(pair):
    assert token_links(pair, {(3, 3), (3, 0), (0, 3)}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": np.zeros((5, 4))},
            "weights have the shape (5, 4), but there are 5 target and 6 source tokens",
        ),
        ({"src_word_ids": [0, 0, 1]}, "6 source tokens, but 3 word ids"),
        (
            {"src_word_ids": [0, 1, 0, 1, 2, 3]},
            "source word ids [0, 1, 0, 1, 2, 3] must not fall and not be negative",
        ),
        (
            {"tgt_word_ids": [-1, 1, 1, 2, 3]},
            "target word ids [-1, 1, 1, 2, 3] must not fall and not be negative",
        ),
        (
            {"tgt_word_ids": [0, 1, 1, 2, 2]},
            "target word ids [0, 1, 1, 2, 2] must end in one 3, the number of words, for </s>",
        ),
        (
            {"tgt_word_ids": [0, 1, 1, 3, 3]},
            "target word ids [0, 1, 1, 3, 3] must end in one 3, the number of words, for </s>",
        ),
        (
            {"src_tokens": [], "src_word_ids": [], "weights": np.zeros((5, 0))},
            "one side has no tokens, not even </s>, but the other side has",
        ),
    ],
)
def test_fields_that_do_not_fit_are_refused(pair, change, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        replace(pair, **change)
    assert str(error.value) == message


def test_a_blank_line_has_no_words(blank_of):
    with pytest.raises(ValueError, match=r"^no target tokens, but 1 words$"):
        replace(blank_of(), tgt_words=["a"])
