"""The token store: a corpus tokenised once, memory-mapped, with random access.

A folder holds, for each side, all token ids behind each other (uint16, or uint32 for a large
vocabulary) and the int64 offset of each sentence in them; and the line number of each pair. Where
subwords are sampled in training, the text is kept in the same way. Building and reading need
memory for the offsets only, however large the corpus is.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from nmt.data.corpus import EncodingErrors, FilterCounts, Findings, Pair, PairFilter
from nmt.errors import DataError, ModelError, TrainingError
from nmt.text.files import open_regular, read_json
from nmt.text.lines import read_lines, sync_folder

Side = Literal["src", "tgt"]
SIDES: tuple[Side, Side] = ("src", "tgt")
Encode = Callable[[Sequence[str]], list[list[int]]]

CHUNK = 10_000  # pairs tokenised at a time
CHUNK_CHARACTERS = 10_000_000  # fewer pairs if they are this long
FORMAT_VERSION = 1
TYPES = {name: np.dtype(name) for name in ("|u1", "<u2", "<u4")}
"""How bytes of text and token ids may be stored."""


def fingerprint(
    paths: Iterable[str], settings: dict[str, Any], encoding_errors: EncodingErrors = "strict"
) -> str:
    """A hash of the lines of files and of what is done with them.

    What `encoding_errors` is makes a difference only where a line is not UTF-8.

    Raises:
        ConfigError: if a file cannot be opened.
        DataError: if a line is not UTF-8 and `encoding_errors` is strict.
    """
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, settings], sort_keys=True).encode())
    for path in paths:
        file_digest = hashlib.sha256()

        def mark(number: int, file_digest: Any = file_digest) -> None:
            if encoding_errors == "skip":
                file_digest.update(b"\xff")  # a byte that no valid line has

        for line in read_lines(path, None if encoding_errors == "strict" else mark):
            file_digest.update(line.encode() + b"\n")
        digest.update(file_digest.digest())
    return digest.hexdigest()


class TokenStore:
    """A tokenised corpus on disk.

    Args:
        folder: as `build_store` wrote it.

    Raises:
        ModelError: if files are missing or do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = read_json(folder / "meta.json")
            self.fingerprint = str(meta["fingerprint"])
            self.counts = FilterCounts(**meta["counts"])
            self._flat: dict[str, np.ndarray] = {}
            self._offsets: dict[str, np.ndarray] = {}
            self.lines = _read_numbers(folder / "lines.bin")
            """(num_pairs,) 1-based line number of each pair in the corpus files."""
            for name in [*SIDES, *(f"{side}_text" for side in SIDES if meta["with_text"])]:
                dtype = TYPES["|u1" if name.endswith("_text") else meta["dtype"][name]]
                with open_regular(folder / f"{name}.bin"):
                    # A plain array over the map: slices of a memmap object cost ten times as much.
                    flat = np.asarray(np.memmap(folder / f"{name}.bin", dtype, "r"))
                offsets = _read_numbers(folder / f"{name}.offsets.bin", len(self.lines) + 1)
                if offsets[0] != 0 or offsets[-1] != len(flat):
                    raise ValueError(name)
                if (offsets[1:] < offsets[:-1]).any():
                    raise ValueError(name)
                self._flat[name], self._offsets[name] = flat, offsets
        except (OSError, ValueError, KeyError, TypeError, IndexError, MemoryError):
            raise ModelError(
                f"{folder}: is not a complete token store; delete it, and it is made anew"
            ) from None

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.lines)

    def lengths(self, side: Side) -> np.ndarray:
        """(num_pairs,) int32 numbers of tokens, without `</s>`."""
        return np.diff(self._offsets[side]).astype(np.int32)

    def check_ids(self, side: Side, vocab_size: int) -> None:
        """Refuse token ids that a vocabulary does not have; all are read, but not kept.

        Raises:
            ModelError: if there is one.
        """
        flat = self._flat[side]
        if flat.max(initial=0) >= vocab_size:
            raise ModelError(
                f"{self.folder}: has {side} token ids beyond the vocabulary; delete it, and it is "
                "made anew"
            )

    def token_ids(self, side: Side, index: int) -> np.ndarray:
        """The token ids of one sentence, without `</s>`."""
        return self._slice(side, index)

    def text(self, side: Side, index: int) -> str:
        """The text of one sentence; only where the store was built with text."""
        return self._slice(f"{side}_text", index).tobytes().decode("utf-8")

    def _slice(self, name: str, index: int) -> np.ndarray:
        offsets = self._offsets[name]
        return self._flat[name][offsets[index] : offsets[index + 1]]


def _read_numbers(path: Path, expected: int | None = None) -> np.ndarray:
    """The int64 numbers in a file.

    Args:
        expected: how many there must be; it is checked before they are read.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if there are more or fewer.
    """
    with open_regular(path) as stream:
        if expected is not None and os.fstat(stream.fileno()).st_size != 8 * expected:
            raise ValueError(path.name)
        return np.fromfile(stream, np.int64)


def build_store(
    folder: Path,
    pairs: Iterable[Pair],
    *,
    encode: dict[Side, Encode],
    vocab_size: dict[Side, int],
    pair_filter: PairFilter,
    fingerprint: str,
    with_text: bool = False,
    findings: Findings | None = None,
) -> TokenStore:
    """Tokenise and filter a corpus into a folder, which appears only when it is complete.

    Args:
        folder: is replaced if it exists.
        with_text: keep the text too, for subword sampling.
        findings: where the unknown tokens of the pairs that are kept are counted.

    Raises:
        DataError: if no pair is left.
        TrainingError: if the disk is full.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    dtype = {side: np.dtype("u2" if vocab_size[side] <= 1 << 16 else "u4") for side in SIDES}
    counts = FilterCounts()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with ExitStack() as stack:
            names = [*SIDES, *(f"{side}_text" for side in SIDES if with_text)]
            writers = {
                name: _Writer(
                    stack.enter_context(open(temporary / f"{name}.bin", "wb")),
                    stack.enter_context(open(temporary / f"{name}.offsets.bin", "wb")),
                )
                for name in names
            }
            lines = stack.enter_context(open(temporary / "lines.bin", "wb"))
            for chunk in chunks(pairs):
                text = {"src": [pair.src for pair in chunk], "tgt": [pair.tgt for pair in chunk]}
                ids = {side: encode[side](text[side]) for side in SIDES}
                for i, pair in enumerate(chunk):
                    if not pair.is_valid:
                        counts.add("invalid", pair.line)
                        continue
                    num_src, num_tgt = len(ids["src"][i]), len(ids["tgt"][i])
                    if not pair_filter.keeps(pair.line, num_src, num_tgt, counts):
                        continue
                    lines.write(np.int64(pair.line).tobytes())
                    for side in SIDES:
                        writers[side].write(np.array(ids[side][i], dtype[side]))
                        if findings is not None:
                            getattr(findings, side).unknown.add(pair.line, ids[side][i])
                        if with_text:
                            raw = np.frombuffer(text[side][i].encode(), np.uint8)
                            writers[f"{side}_text"].write(raw)
        if not counts.kept:
            raise DataError(f"{folder.name}: no sentence pair is left: {counts}")
        meta = {
            "fingerprint": fingerprint,
            "counts": vars(counts),
            "dtype": {side: dtype[side].str for side in SIDES},
            "with_text": with_text,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return TokenStore(folder)


def chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Cut a corpus into parts of at most `CHUNK` pairs and about `CHUNK_CHARACTERS`."""
    chunk: list[Pair] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += len(pair.src) + len(pair.tgt)
        if len(chunk) == CHUNK or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Writer:
    """Appends arrays to a file, and where each one ends to another."""

    def __init__(self, flat: BinaryIO, offsets: BinaryIO) -> None:
        self._flat, self._offsets, self._end = flat, offsets, 0
        offsets.write(np.int64(0).tobytes())

    def write(self, values: np.ndarray) -> None:
        self._flat.write(values.tobytes())
        self._end += len(values)
        self._offsets.write(np.int64(self._end).tobytes())
