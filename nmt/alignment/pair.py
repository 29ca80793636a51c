"""One sentence pair with its attention: from pieces to words, from weights to hard links."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

EOS = "</s>"

Link = tuple[int, int]
"""A 0-based (source, target) pair of word or token positions."""


@dataclass(frozen=True, eq=False)
class AlignedPair:
    """One sentence pair and the attention of its target tokens over its source tokens.

    A blank input line is a pair in which every list is empty and the weights are (0, 0).

    Raises:
        ValueError: if the fields do not fit together.
    """

    line: int
    """1-based line number in the input."""
    rank: int
    """1-based rank in the n-best list; 1 for given pairs."""
    src_tokens: list[str]
    """S source tokens, the last one is `</s>`."""
    tgt_tokens: list[str]
    """T target tokens, the last one is `</s>`."""
    weights: np.ndarray
    """(T, S) float32; row t belongs to the predicted token t; rows sum to one."""
    src_word_ids: list[int]
    """Per source token, the 0-based word it is a piece of; never falls, `</s>` is a last word."""
    tgt_word_ids: list[int]
    """The same per target token."""
    src_words: list[str]
    """The source words, without `</s>`."""
    tgt_words: list[str]
    """The target words, without `</s>`."""
    score: float | None = None
    """The score of the translation, if there is one."""

    def __post_init__(self) -> None:
        if self.weights.shape != (len(self.tgt_tokens), len(self.src_tokens)):
            raise ValueError(
                f"weights have the shape {self.weights.shape}, but there are "
                f"{len(self.tgt_tokens)} target and {len(self.src_tokens)} source tokens"
            )
        if bool(self.src_tokens) != bool(self.tgt_tokens):
            raise ValueError("one side has no tokens, not even </s>, but the other side has")
        check_word_ids("source", self.src_tokens, self.src_word_ids, self.src_words)
        check_word_ids("target", self.tgt_tokens, self.tgt_word_ids, self.tgt_words)


def check_word_ids(side: str, tokens: list[str], word_ids: list[int], words: list[str]) -> None:
    """Check that every token belongs to a word, in order, and that `</s>` is a last word.

    Raises:
        ValueError: if that is not so.
    """
    if len(word_ids) != len(tokens):
        raise ValueError(f"{len(tokens)} {side} tokens, but {len(word_ids)} word ids")
    if not tokens:
        if words:
            raise ValueError(f"no {side} tokens, but {len(words)} words")
        return
    if word_ids != sorted(word_ids) or word_ids[0] < 0:
        raise ValueError(f"{side} word ids {word_ids} must not fall and not be negative")
    if word_ids[-1] != len(words) or word_ids[-2:-1] == [len(words)]:
        raise ValueError(
            f"{side} word ids {word_ids} must end in one {len(words)}, "
            "the number of words, for </s>"
        )


def to_words(pair: AlignedPair) -> AlignedPair:
    """The pair at word level: its tokens are the words and `</s>`, its rows still sum to one.

    Weights are summed over the pieces of a source word and averaged over the pieces of a target
    word. A word may have no piece at all, because normalisation removed it: as a source word it
    gets no weight, as a target word it looks at the source `</s>`, which makes no link.
    """
    if not pair.src_tokens:
        return pair
    num_src, num_tgt = len(pair.src_words) + 1, len(pair.tgt_words) + 1
    # float64: the sum of a word's pieces does not depend on their order
    by_source = np.zeros((num_src, len(pair.tgt_tokens)))
    np.add.at(by_source, pair.src_word_ids, pair.weights.T)
    weights = np.zeros((num_tgt, num_src))
    np.add.at(weights, pair.tgt_word_ids, by_source.T)
    num_pieces = np.bincount(pair.tgt_word_ids, minlength=num_tgt)
    weights /= np.maximum(num_pieces, 1)[:, None]
    weights[num_pieces == 0, -1] = 1.0
    return replace(
        pair,
        src_tokens=[*pair.src_words, EOS],
        tgt_tokens=[*pair.tgt_words, EOS],
        weights=weights.astype(np.float32),
        src_word_ids=list(range(num_src)),
        tgt_word_ids=list(range(num_tgt)),
    )


def is_word_level(pair: AlignedPair) -> bool:
    """True if the tokens of the pair are its words already."""
    return not pair.src_tokens or (
        pair.src_tokens == [*pair.src_words, EOS] and pair.tgt_tokens == [*pair.tgt_words, EOS]
    )


def hard_links(pair: AlignedPair) -> list[Link]:
    """The 0-based (source, target) links: each target token with its arg-max source token.

    In the order of the target tokens; the leftmost if tied. A target token whose arg-max is the
    source `</s>` has no link, and neither has the target `</s>`.
    """
    if not pair.src_tokens:
        return []
    eos_column = len(pair.src_tokens) - 1
    columns = pair.weights[:-1].argmax(axis=1).tolist()
    return [(column, row) for row, column in enumerate(columns) if column != eos_column]


def token_links(pair: AlignedPair, word_links: Collection[Link]) -> list[Link]:
    """The (source, target) token positions whose words are linked, row by row; never `</s>`."""
    return [
        (column, row)
        for row, tgt_word in enumerate(pair.tgt_word_ids[:-1])
        for column, src_word in enumerate(pair.src_word_ids[:-1])
        if (src_word, tgt_word) in word_links
    ]
