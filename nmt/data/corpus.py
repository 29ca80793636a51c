"""Reading parallel text: line N of one file belongs to line N of the other, or nothing does."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from nmt.errors import DataError
from nmt.text.lines import read_lines
from nmt.text.tokenizer import UnknownTokens

EncodingErrors = Literal["strict", "replace", "skip"]
"""What is done with a line that is not valid UTF-8: it is an error, its bad bytes are read as
U+FFFD, or its pair is left out."""


@dataclass(frozen=True)
class Pair:
    """One sentence pair."""

    line: int
    """1-based line number in both files."""
    src: str
    tgt: str
    is_valid: bool = field(default=True, kw_only=True)
    """False for a pair to leave out, because a side is not valid UTF-8."""


@dataclass
class LineCount:
    """How many lines have a property, and which is the first."""

    count: int = 0
    first: int = 0
    """Its 1-based number; 0 if there is none."""

    def __call__(self, line: int) -> None:
        """Count a line."""
        self.count += 1
        self.first = self.first or line

    def __str__(self) -> str:
        return f"{self.count:,} (the first is line {self.first})"


@dataclass
class FileFindings:
    """What is odd in one file of a parallel text."""

    invalid: LineCount = field(default_factory=LineCount)
    """Lines that are not valid UTF-8."""
    with_nul: LineCount = field(default_factory=LineCount)
    with_return: LineCount = field(default_factory=LineCount)
    """Lines with a `\\r` inside."""
    unknown: UnknownTokens = field(default_factory=UnknownTokens)
    """Of the sentences that are kept."""

    def warnings(self, name: str, encoding_errors: EncodingErrors) -> Iterator[str]:
        """One line for each oddity of the text, with what was done about it."""
        if self.invalid.count:
            skipped = encoding_errors == "skip"
            done = "pairs were left out" if skipped else "bad bytes were read as U+FFFD"
            yield f"{name}: lines that are not valid UTF-8: {self.invalid}; their {done}"
        if self.with_nul.count:
            yield f"{name}: lines with NUL characters: {self.with_nul}; each was read as a space"
        if self.with_return.count:
            yield (
                f"{name}: lines with a carriage return inside: {self.with_return}; "
                "each was read as a space"
            )


@dataclass
class Findings:
    """What is odd in a parallel text."""

    src: FileFindings = field(default_factory=FileFindings)
    tgt: FileFindings = field(default_factory=FileFindings)


def read_pairs(
    src_path: str,
    tgt_path: str,
    encoding_errors: EncodingErrors = "strict",
    findings: Findings | None = None,
) -> Iterator[Pair]:
    """Read two files side by side.

    Args:
        findings: where odd lines are counted.

    Raises:
        ConfigError: if a file cannot be opened.
        DataError: if one file has more lines than the other, or if a line is not UTF-8 and
            `encoding_errors` is strict.
    """
    findings = findings or Findings()
    src_lines, tgt_lines = (
        read_lines(
            path,
            None if encoding_errors == "strict" else found.invalid,
            found.with_return,
        )
        for path, found in ((src_path, findings.src), (tgt_path, findings.tgt))
    )
    number = num_invalid = 0
    while True:
        src, tgt = next(src_lines, None), next(tgt_lines, None)
        if src is None and tgt is None:
            return
        number += 1
        if src is None or tgt is None:
            raise DataError(unequal_counts(src_path, tgt_path))
        for line, found in ((src, findings.src), (tgt, findings.tgt)):
            if "\0" in line:
                found.with_nul(number)
        num_invalid_before = num_invalid
        num_invalid = findings.src.invalid.count + findings.tgt.invalid.count
        is_valid = encoding_errors != "skip" or num_invalid == num_invalid_before
        yield Pair(number, src, tgt, is_valid=is_valid)


def unequal_counts(src_path: str, tgt_path: str) -> str:
    """Say how many lines two files have, and from where they look shifted."""
    src, tgt = (
        np.array([len(line) for line in read_lines(path, LineCount())])
        for path in (src_path, tgt_path)
    )
    message = f"{src_path} has {len(src)} lines but {tgt_path} has {len(tgt)}"
    if min(len(src), len(tgt)) == 0:
        return f"{message}; one of the files is empty"
    return f"{message}; lines look shifted from {first_shifted_line(src, tgt)} on"


def first_shifted_line(src: np.ndarray, tgt: np.ndarray) -> int:
    """Guess at which 1-based line the longer file has lines that the shorter one lacks.

    A pair of true translations has similar lengths. The guess is the point at which pairing
    straight before it, and shifted by the difference of the counts after it, disagrees least.

    Args:
        src: length of each source line; target lengths in `tgt`, a different number of them.
    """
    count, shift = min(len(src), len(tgt)), len(src) - len(tgt)
    src_logs, tgt_logs = np.log1p(src), np.log1p(tgt)
    typical = np.median(src_logs[:count] - tgt_logs[:count])
    straight = np.abs(src_logs[:count] - tgt_logs[:count] - typical)
    shifted = np.abs(
        src_logs[max(shift, 0) :][:count] - tgt_logs[max(-shift, 0) :][:count] - typical
    )
    before = np.concatenate([[0.0], np.cumsum(straight)])
    after = np.concatenate([np.cumsum(shifted[::-1])[::-1], [0.0]])
    return int(np.argmin(before + after)) + 1


DROPPED = {
    "empty_src": "with an empty source",
    "empty_tgt": "with an empty target",
    "too_long": "too long",
    "unequal_lengths": "of too unequal lengths",
    "invalid": "not valid UTF-8",
}
"""Why a pair may be dropped: the field of `FilterCounts`, and how people say it."""


@dataclass
class FilterCounts:
    """How many pairs a filter kept, and why it dropped the others."""

    kept: int = 0
    empty_src: int = 0
    empty_tgt: int = 0
    too_long: int = 0
    unequal_lengths: int = 0
    invalid: int = 0
    first_line: dict[str, int] = field(default_factory=dict)
    """For each reason the first line that it dropped."""

    @property
    def total(self) -> int:
        """The number of pairs that were looked at."""
        return sum(getattr(self, reason) for reason in ("kept", *DROPPED))

    def add(self, reason: str, line: int) -> None:
        """Count a pair as kept, or as dropped for a reason."""
        setattr(self, reason, getattr(self, reason) + 1)
        self.first_line.setdefault(reason, line)

    def __str__(self) -> str:
        reasons = [
            f"{count:,} {words} (first at line {self.first_line[reason]})"
            for reason, words in DROPPED.items()
            if (count := getattr(self, reason))
        ]
        dropped = f"; dropped {', '.join(reasons)}" if reasons else ""
        return f"{self.kept:,} of {self.total:,} pairs kept{dropped}"


@dataclass(frozen=True)
class PairFilter:
    """Decides which pairs are trained on. A pair is kept or dropped as a whole.

    Attributes:
        max_length: most tokens on a side, without `</s>`.
        max_length_ratio: most tokens of the longer side per token of the shorter.
    """

    max_length: int
    max_length_ratio: float | None = None

    def keeps(self, line: int, num_src: int, num_tgt: int, counts: FilterCounts) -> bool:
        """Judge a pair by its numbers of tokens, and count the verdict."""
        longer, shorter = max(num_src, num_tgt), min(num_src, num_tgt)
        reason = "kept"
        if num_src == 0:
            reason = "empty_src"
        elif num_tgt == 0:
            reason = "empty_tgt"
        elif longer > self.max_length:
            reason = "too_long"
        elif self.max_length_ratio is not None and longer > self.max_length_ratio * shorter:
            reason = "unequal_lengths"
        counts.add(reason, line)
        return reason == "kept"


def files_exist(*paths: str) -> None:
    """Open each file once, so that a missing one is found before any work is done.

    Raises:
        ConfigError: naming the first file that cannot be read.
    """
    for path in paths:
        next(read_lines(Path(path), LineCount()), None)
