"""Files of aligned pairs, written one pair at a time: JSONL, NPZ, Pharaoh, a folder of SVGs.

Every writer is a context manager around a path. Its file appears when the body ends without an
error, complete; otherwise what was there before stays. One pair at a time is in memory.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np

from nmt.alignment.links import format_links
from nmt.alignment.pair import AlignedPair, hard_links
from nmt.alignment.svg import heatmap_svg
from nmt.errors import ConfigError
from nmt.text.lines import atomic_write, json_line, open_output

DIGITS = 6
"""Digits of a weight after the decimal point, in JSONL."""


class PairWriter(ABC):
    """A context manager around a path to which aligned pairs are written, one by one."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = path
        self._output = self._open()

    def __enter__(self) -> Self:
        self._output.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._output.__exit__(kind, error, traceback)

    @abstractmethod
    def _open(self) -> AbstractContextManager[None]:
        """Open the output for the time of the `with` block."""

    @abstractmethod
    def write(self, pair: AlignedPair) -> None:
        """Add one pair."""


class JSONLWriter(PairWriter):
    """One JSON object a line; `None` and `-` are stdout.

    The keys are `line`, `rank`, `score` (if there is one), `src_tokens`, `tgt_tokens`, `weights`
    (T × S, six digits) and `links` (0-based `[source, target]`).
    """

    @contextmanager
    def _open(self) -> Iterator[None]:
        with open_output(self.path) as self._stream:
            yield

    def write(self, pair: AlignedPair) -> None:
        row: dict[str, Any] = {"line": pair.line, "rank": pair.rank}
        if pair.score is not None:
            row["score"] = pair.score
        row |= {
            "src_tokens": pair.src_tokens,
            "tgt_tokens": pair.tgt_tokens,
            "weights": np.round(pair.weights.astype(np.float64), DIGITS).tolist(),
            "links": hard_links(pair),
        }
        self._stream.write(json_line(row) + "\n")


class NPZWriter(PairWriter):
    """A NumPy archive, for `np.load` with `allow_pickle=False`.

    The pair of rank R of line N is `N.R/weights` (T, S) float32, `N.R/src_tokens` (S,) and
    `N.R/tgt_tokens` (T,) strings, `N.R/links` (L, 2) int32, and `N.R/score` () float64 if there
    is a score. Equal pairs give equal bytes. The names, and only they, are kept in memory.
    """

    @contextmanager
    def _open(self) -> Iterator[None]:
        if self.path is None or str(self.path) == "-":
            raise ConfigError("standard output: cannot hold an NPZ archive; name a file")
        with (
            atomic_write(self.path) as stream,
            ZipFile(stream, "w", ZIP_DEFLATED) as self._archive,
        ):
            yield

    def write(self, pair: AlignedPair) -> None:
        name = f"{pair.line}.{pair.rank}"
        self._add(f"{name}/weights", pair.weights.astype(np.float32))
        self._add(f"{name}/src_tokens", np.array(pair.src_tokens, dtype=np.str_))
        self._add(f"{name}/tgt_tokens", np.array(pair.tgt_tokens, dtype=np.str_))
        self._add(f"{name}/links", np.array(hard_links(pair), dtype=np.int32).reshape(-1, 2))
        if pair.score is not None:
            self._add(f"{name}/score", np.array(pair.score, dtype=np.float64))

    def _add(self, name: str, array: np.ndarray) -> None:
        content = BytesIO()
        np.lib.format.write_array(content, array, allow_pickle=False)
        # A fresh ZipInfo carries no time of day
        self._archive.writestr(ZipInfo(f"{name}.npy"), content.getvalue(), ZIP_DEFLATED)


class PharaohWriter(PairWriter):
    """Line N holds the links of line N's best translation, as `i-j`; `None` and `-` are stdout.

    Pairs come in the order of their lines. Those of rank 2 and below are left out; a line of
    which no pair comes is blank.
    """

    @contextmanager
    def _open(self) -> Iterator[None]:
        self._num_lines = 0
        with open_output(self.path) as self._stream:
            yield

    def write(self, pair: AlignedPair) -> None:
        """Add one pair.

        Raises:
            ValueError: if its line has been passed already.
        """
        if pair.rank != 1:
            return
        if pair.line <= self._num_lines:
            raise ValueError(f"line {pair.line} comes after line {self._num_lines}")
        self._stream.write("\n" * (pair.line - 1 - self._num_lines))
        self._stream.write(format_links(hard_links(pair)) + "\n")
        self._num_lines = pair.line


class SVGWriter(PairWriter):
    """A folder with one heat map a pair: `000012.svg`, or `000012-2.svg` for rank 2.

    The folder is made if it is missing. Each picture appears when it is complete; blank lines
    have none.
    """

    @contextmanager
    def _open(self) -> Iterator[None]:
        if self.path is None or str(self.path) == "-":
            raise ConfigError("standard output: cannot hold pictures; name a folder")
        self._folder = Path(self.path)
        try:
            self._folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise ConfigError(
                f"{self.path}: is a file, but must be a folder; name another one"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be made: {error.strerror}; name a folder in an existing one"
            ) from None
        yield

    def write(self, pair: AlignedPair) -> None:
        if not pair.src_tokens:
            return
        rank = "" if pair.rank == 1 else f"-{pair.rank}"
        with open_output(self._folder / f"{pair.line:06}{rank}.svg") as stream:
            stream.write(heatmap_svg(pair))
