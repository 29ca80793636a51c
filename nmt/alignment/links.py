"""Alignment links as text (the Pharaoh format), and the alignment error rate.

A line holds the links of one sentence pair: `i-j` links source word i to target word j. In gold
files `i-j` is a sure link and `ipj` or `i?j` a possible one.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nmt.alignment.pair import Link
from nmt.errors import DataError
from nmt.text.lines import read_lines

LINK = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")
GOLD_LINK = re.compile(r"([0-9]{1,9})[-p?]([0-9]{1,9})")

Base = Literal[0, 1]
"""The number of the first word in a file of links."""
Lengths = Sequence[tuple[int, int]]
"""Per line, the number of source and of target words."""


class Gold(NamedTuple):
    """The links that people have drawn, 0-based, one set a sentence pair."""

    sure: list[set[Link]]
    """Links that must be found."""
    possible: list[set[Link]]
    """Links that may be found; the sure ones are among them."""


@dataclass(frozen=True)
class AlignmentScore:
    """How well the links of a corpus agree with the gold links; the rates are from 0 to 1."""

    precision: float
    """The share of the found links that are possible; 1 if none was found."""
    recall: float
    """The share of the sure links that were found; 1 if there are none."""
    aer: float
    """Alignment error rate (Och and Ney 2003); 0 is best."""
    num_links: int
    """The number of links found."""
    num_sentences: int
    """The number of sentence pairs, blank ones included."""

    def __str__(self) -> str:
        return (
            f"AER {100 * self.aer:.1f} (precision {100 * self.precision:.1f}, "
            f"recall {100 * self.recall:.1f}, "
            f"{self.num_links} links in {self.num_sentences} sentences)"
        )


def format_links(links: Iterable[Link]) -> str:
    """The links as `i-j`, sorted and separated by spaces."""
    return " ".join(f"{src}-{tgt}" for src, tgt in sorted(links))


def read_links(
    path: str | os.PathLike[str], base: Base = 0, lengths: Lengths | None = None
) -> list[set[Link]]:
    """Read a file of found links; the result is 0-based, one set a line.

    Args:
        path: a text file, plain or `.gz`; `-` is stdin.
        base: the number of the first word in the file.
        lengths: if given, links must lie within these sentence pairs.

    Raises:
        ConfigError: if the file cannot be opened.
        DataError: if something in it is no link, contradicts `base`, or does not fit `lengths`.
    """
    return [
        {link for _, link in marked} for marked in marked_links(path, LINK, "i-j", base, lengths)
    ]


def read_gold(path: str | os.PathLike[str], base: Base, lengths: Lengths | None = None) -> Gold:
    """Read a file of gold links, sure and possible; the result is 0-based.

    Args:
        path: a text file, plain or `.gz`; `-` is stdin.
        base: the number of the first word in the file.
        lengths: if given, links must lie within these sentence pairs.

    Raises:
        ConfigError: if the file cannot be opened.
        DataError: if something in it is no link, contradicts `base`, or does not fit `lengths`.
    """
    gold = Gold([], [])
    for marked in marked_links(path, GOLD_LINK, "i-j, ipj or i?j", base, lengths):
        gold.sure.append({link for text, link in marked if "-" in text})
        gold.possible.append({link for _, link in marked})
    return gold


def marked_links(
    path: str | os.PathLike[str],
    pattern: re.Pattern[str],
    rule: str,
    base: Base,
    lengths: Lengths | None,
) -> Iterator[list[tuple[str, Link]]]:
    """The links of every line, each as it is written and as a 0-based pair.

    Raises:
        DataError: see `read_gold`.
    """
    name = "standard input" if str(path) == "-" else str(path)
    number = 0
    for number, line in enumerate(read_lines(path), 1):
        where = f"{name}:{number}"
        marked = [(text, parse_link(text, where, pattern, rule, base)) for text in line.split()]
        if lengths is not None and number <= len(lengths):
            check_within((link for _, link in marked), *lengths[number - 1], where, base)
        yield marked
    if lengths is not None and number != len(lengths):
        raise DataError(
            f"{name}: has {number} lines, but there are {len(lengths)} sentence pairs; "
            "give one line of links for each pair, a blank one if it has none"
        )


def parse_link(text: str, where: str, pattern: re.Pattern[str], rule: str, base: Base) -> Link:
    """One link, 0-based.

    Raises:
        DataError: if the text does not match, or names word 0 where the first word is word 1.
    """
    match = pattern.fullmatch(text)
    if match is None:
        raise DataError(
            f"{where}: {text!r} is no link; write {rule} (source first), separated by spaces"
        )
    src, tgt = int(match[1]) - base, int(match[2]) - base
    if src < 0 or tgt < 0:
        raise DataError(
            f"{where}: link {text!r} names word 0, but the first word of a 1-based file is word 1; "
            "the file looks 0-based, so read it with base 0"
        )
    return src, tgt


def check_within(
    links: Iterable[Link], num_src: int, num_tgt: int, where: str, base: Base = 0
) -> None:
    """Check that 0-based links lie within a pair of `num_src` and `num_tgt` words.

    Args:
        links: the links, 0-based.
        num_src: the number of source words.
        num_tgt: the number of target words.
        where: `file:line`, for the message.
        base: the base of the file: the message shows a link as the file does.

    Raises:
        DataError: if a link lies outside.
    """
    for src, tgt in links:
        if src >= num_src or tgt >= num_tgt:
            raise DataError(
                f"{where}: link {src + base}-{tgt + base} lies outside the sentence pair "
                f"({num_src} source and {num_tgt} target words, the first is word {base}); "
                f"check the base (is the file {1 - base}-based?), that the source comes first, "
                "and that the words are split as in the alignment"
            )


def score_links(
    found: Sequence[Collection[Link]],
    sure: Sequence[Collection[Link]],
    possible: Sequence[Collection[Link]],
) -> AlignmentScore:
    """Precision, recall and alignment error rate, counted over the whole corpus.

    With A found, S sure and P possible links (S ⊆ P; sure links count as possible):
    AER = 1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|).

    Raises:
        DataError: if the numbers of sentences differ.
    """
    if not len(found) == len(sure) == len(possible):
        gold = f"{len(sure)}" if len(sure) == len(possible) else f"{len(sure)}/{len(possible)}"
        raise DataError(
            f"alignment: {len(found)} lines of links were found, but the gold has {gold} lines; "
            "score the same sentences on both sides"
        )
    num_found = num_sure = found_sure = found_possible = 0
    for found_links, sure_links, possible_links in zip(found, sure, possible, strict=True):
        a, s = set(found_links), set(sure_links)
        num_found += len(a)
        num_sure += len(s)
        found_sure += len(a & s)
        found_possible += len(a & (s | set(possible_links)))
    return AlignmentScore(
        precision=share(found_possible, num_found),
        recall=share(found_sure, num_sure),
        aer=1 - share(found_sure + found_possible, num_found + num_sure),
        num_links=num_found,
        num_sentences=len(found),
    )


def share(part: int, whole: int) -> float:
    """Part of whole; 1 of nothing, since nothing is missing."""
    return part / whole if whole else 1.0
