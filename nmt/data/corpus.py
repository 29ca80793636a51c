"""Reading parallel text: line N of one file belongs to line N of the other, or nothing does."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nmt.errors import DataError
from nmt.text.lines import read_lines


@dataclass(frozen=True)
class Pair:
    """One sentence pair."""

    line: int
    """1-based line number in both files."""
    src: str
    tgt: str


def read_pairs(src_path: str, tgt_path: str) -> Iterator[Pair]:
    """Read two files side by side.

    Raises:
        ConfigError: if a file cannot be opened.
        DataError: if a line is not UTF-8, or one file has more lines than the other.
    """
    src_lines, tgt_lines = read_lines(src_path), read_lines(tgt_path)
    number = 0
    while True:
        src, tgt = next(src_lines, None), next(tgt_lines, None)
        if src is None and tgt is None:
            return
        number += 1
        if src is None or tgt is None:
            raise DataError(unequal_counts(src_path, tgt_path))
        yield Pair(number, src, tgt)


def unequal_counts(src_path: str, tgt_path: str) -> str:
    """Say how many lines two files have, and from where they look shifted."""
    src = np.array([len(line) for line in read_lines(src_path)])
    tgt = np.array([len(line) for line in read_lines(tgt_path)])
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


@dataclass
class FilterCounts:
    """How many pairs a filter kept, and why it dropped the others."""

    kept: int = 0
    empty_src: int = 0
    empty_tgt: int = 0
    too_long: int = 0
    unequal_lengths: int = 0
    first_line: dict[str, int] = field(default_factory=dict)
    """For each reason the first line that it dropped."""

    @property
    def total(self) -> int:
        """The number of pairs that were looked at."""
        return self.kept + self.empty_src + self.empty_tgt + self.too_long + self.unequal_lengths

    def __str__(self) -> str:
        reasons = [
            f"{count:,} {reason} (first at line {self.first_line[key]})"
            for key, count, reason in (
                ("empty_src", self.empty_src, "with an empty source"),
                ("empty_tgt", self.empty_tgt, "with an empty target"),
                ("too_long", self.too_long, "too long"),
                ("unequal_lengths", self.unequal_lengths, "of too unequal lengths"),
            )
            if count
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
        setattr(counts, reason, getattr(counts, reason) + 1)
        counts.first_line.setdefault(reason, line)
        return reason == "kept"


def files_exist(*paths: str) -> None:
    """Open each file once, so that a missing one is found before any work is done.

    Raises:
        ConfigError: naming the first file that cannot be read.
    """
    for path in paths:
        next(read_lines(Path(path)), None)
