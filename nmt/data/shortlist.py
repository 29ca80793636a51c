"""Lexical shortlists: the few target tokens that a source sentence can need.

The output layer is the largest product of a decoding step; it need not score all of the
vocabulary if the tokens that translate the source tokens are known (Jean et al. 2015, section
3.2; Mi et al. 2016). They come from a word translation table, which IBM Model 1 learns from the
training pairs in seconds (Brown et al. 1993, section 4.2).
"""

import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nmt.data.store import TokenStore
from nmt.errors import ConfigError, ModelError
from nmt.text.files import open_regular
from nmt.text.lines import atomic_write
from nmt.text.tokenizer import EOS_ID

FORMAT_VERSION = 1
ARRAY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<type><[ui]\d|<U[1-9]\d{0,6})', "
    rb"'fortran_order': False, 'shape': \((?:(?P<length>\d{1,18}),)?\), \} *\n",
    re.DOTALL,
)
NUM_SPECIAL = EOS_ID + 1  # their ids come first
ITERATIONS = 5  # of expectation-maximisation, as usual for Model 1
MAX_SIZE = 1 << 30  # bytes of a file: 1000 tokens for each of 256 thousand
CHUNK = 5_000  # sentence pairs looked at together
SAMPLE = 1_000  # pairs on which a shortlist is measured


@dataclass(frozen=True)
class TranslationTable:
    """Word translation probabilities t(tgt | src), where src and tgt occur in one pair."""

    src: np.ndarray
    """(num_entries,) source ids, rising."""
    tgt: np.ndarray
    """(num_entries,) target ids."""
    probability: np.ndarray
    """(num_entries,) float64; they sum to 1 over the entries of a source id."""


@dataclass(frozen=True)
class Chunk:
    """All combinations of a source token and a target token of some sentence pairs."""

    keys: np.ndarray
    """Which two tokens; those of one target position are neighbours."""
    starts: np.ndarray
    """(num_tgt_tokens,) where the combinations of each target position begin."""


class Shortlist:
    """Which target tokens a source sentence allows.

    Args:
        candidates: target ids of each source id, behind each other.
        offsets: (source vocabulary + 1,) where those of each source id begin.
        frequent: the most frequent target ids, always allowed.
        copies: whether a source id stands for the same token on the target side, and is allowed.
        hashes: of the tokenizers that the ids belong to.
    """

    def __init__(
        self,
        candidates: np.ndarray,
        offsets: np.ndarray,
        frequent: np.ndarray,
        *,
        copies: bool,
        hashes: dict[str, str],
    ) -> None:
        self.candidates, self.offsets, self.frequent = candidates, offsets, frequent
        self.copies, self.hashes = copies, hashes
        self._always = np.concatenate([np.arange(NUM_SPECIAL), frequent]).astype(np.int64)

    def allowed(self, src_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The target ids that a sentence may be translated with, int64, rising.

        Special tokens are always among them. What is allowed for two sentences together is what
        is allowed for the one or the other.
        """
        tokens = np.unique(np.asarray(src_ids, np.int64))
        rows = [self.candidates[self.offsets[i] : self.offsets[i + 1]] for i in tokens]
        copied = [tokens] if self.copies else []
        return np.unique(np.concatenate([self._always, *copied, *rows]).astype(np.int64))

    def fits(self, src_vocab_size: int, tgt_vocab_size: int) -> bool:
        """Whether it speaks of each source token, and of target tokens that there are."""
        rows = len(self.offsets) - 1 == src_vocab_size
        ids = np.concatenate([self.candidates, self.frequent]).astype(np.int64)
        return rows and ((ids >= 0) & (ids < tgt_vocab_size)).all().item()

    def describe(self, store: TokenStore) -> str:
        """How many tokens it allows, and how many of those needed, in a sample of pairs."""
        sample = [i for chunk in sentence_chunks(len(store), SAMPLE) for i in chunk]
        size = needed = covered = 0
        for i in sample:
            allowed, tgt = self.allowed(store.token_ids("src", i)), store.token_ids("tgt", i)
            size, needed = size + len(allowed), needed + len(tgt)
            covered += int(np.isin(tgt, allowed).sum())
        return (
            f"allows {size / len(sample):,.0f} target tokens per sentence on average, and "
            f"{covered / needed:.1%} of the tokens of the references ({len(sample):,} pairs)"
        )

    def save(self, path: Path) -> None:
        """Write the shortlist; the file appears only when it is complete.

        Raises:
            ConfigError, TrainingError: if it cannot be written.
        """
        meta = {"format_version": FORMAT_VERSION, "copies": self.copies, "hashes": self.hashes}
        arrays = {name: getattr(self, name) for name in ("candidates", "offsets", "frequent")}
        stream = io.BytesIO()
        np.savez(stream, meta=np.array(json.dumps(meta)), **arrays)
        with atomic_write(path) as file:
            file.write(stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Shortlist":
        """Read what `save` wrote.

        Raises:
            ModelError: if it is missing, damaged, or written by a newer `nmt`.
        """
        try:
            with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
                size = os.fstat(stream.fileno()).st_size
                if max(size, sum(entry.file_size for entry in archive.filelist)) > MAX_SIZE:
                    raise ValueError
                meta = json.loads(str(_read_array(archive, "meta")[0]))
                candidates, offsets, frequent = (
                    _read_array(archive, name) for name in ("candidates", "offsets", "frequent")
                )
            version, copies, hashes = meta["format_version"], meta["copies"], dict(meta["hashes"])
            if (
                type(version) is not int
                or type(copies) is not bool
                or "U" in {array.dtype.kind for array in (candidates, offsets, frequent)}
            ):
                raise TypeError
            if offsets[0] != 0 or offsets[-1] != len(candidates) or (np.diff(offsets) < 0).any():
                raise ValueError
        except FileNotFoundError:
            raise ModelError(
                f"{path}: there is no such file; make it with `nmt shortlist`"
            ) from None
        except (
            OSError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            RuntimeError,  # of an encrypted archive, or endless nesting
            zipfile.BadZipFile,
            zlib.error,
        ):
            raise ModelError(
                f"{path}: is damaged, or no shortlist; make it anew with `nmt shortlist`"
            ) from None
        if version > FORMAT_VERSION:
            raise ModelError(f"{path}: was made by a newer nmt; upgrade nmt to read it")
        return cls(candidates, offsets, frequent, copies=copies, hashes=hashes)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array that `np.savez` wrote: (num_items,), one item for a text.

    `np.load` would allocate what the header claims before it looks how much there is.

    Raises:
        ValueError, LookupError, zipfile.BadZipFile: if it is anything else.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(name)
    content = archive.read(entry)  # no more than the file has
    header = ARRAY_HEADER.match(content)
    if header is None:
        raise ValueError(name)
    array = np.frombuffer(content, np.dtype(header["type"].decode()), offset=header.end())
    if len(array) != int(header["length"] or 1):
        raise ValueError(name)
    return array


def learn_shortlist(
    store: TokenStore,
    vocab_size: tuple[int, int],
    *,
    per_token: int,
    frequent: int,
    max_pairs: int,
    copies: bool,
    hashes: dict[str, str],
) -> Shortlist:
    """Learn a shortlist from a tokenised corpus.

    Args:
        vocab_size: of source and target.
        per_token: most target tokens that a source token allows, the most probable ones.
        frequent: how many of the most frequent target tokens are always allowed.
        max_pairs: sentence pairs to learn from, taken from all over the corpus; memory and time
            grow with the products of their lengths.

    Raises:
        ConfigError: if a number is impossible.
    """
    for name, value, least in (
        ("--per-token", per_token, 1),
        ("--frequent", frequent, 0),
        ("--max-pairs", max_pairs, 1),
    ):
        if value < least:
            raise ConfigError(f"{name}: must be at least {least}, but is {value}")
    table = learn_table(store, vocab_size, max_pairs)
    order = np.lexsort((table.tgt, -table.probability, table.src))
    src, tgt = table.src[order], table.tgt[order]
    offsets = np.searchsorted(src, np.arange(vocab_size[0] + 1))
    best = np.arange(len(src)) - offsets[src] < per_token
    kept = np.bincount(src[best], minlength=vocab_size[0])
    return Shortlist(
        tgt[best].astype(np.uint32),
        np.concatenate([[0], np.cumsum(kept)]),
        most_frequent(store, vocab_size[1], frequent),
        copies=copies,
        hashes=hashes,
    )


def most_frequent(store: TokenStore, vocab_size: int, number: int) -> np.ndarray:
    """The ids of the most frequent target tokens, the most frequent first."""
    counts = np.zeros(vocab_size, np.int64)
    for sentences in sentence_chunks(len(store), len(store)):
        tokens = np.concatenate([store.token_ids("tgt", i) for i in sentences])
        counts += np.bincount(tokens, minlength=vocab_size)
    return np.argsort(-counts, kind="stable")[: min(number, np.count_nonzero(counts))]


def sentence_chunks(num_pairs: int, max_pairs: int) -> Iterator[list[int]]:
    """Indices of at most `max_pairs` pairs, evenly spread, some at a time."""
    wanted = min(num_pairs, max_pairs)
    chosen = (np.arange(wanted) * num_pairs // wanted).tolist()
    for begin in range(0, wanted, CHUNK):
        yield chosen[begin : begin + CHUNK]


def learn_table(store: TokenStore, vocab_size: tuple[int, int], max_pairs: int) -> TranslationTable:
    """Fit IBM Model 1: each target token comes from one source token, any of them alike.

    The source `</s>` stands for the empty word: it takes the target tokens that nothing in the
    source accounts for.
    """
    chunks = [
        combine(store, sentences, vocab_size[1])
        for sentences in sentence_chunks(len(store), max_pairs)
    ]
    entries = np.unique(np.concatenate([np.unique(chunk.keys) for chunk in chunks]))
    for i, chunk in enumerate(chunks):
        position = np.searchsorted(entries, chunk.keys).astype(np.int32)
        chunks[i] = Chunk(position, chunk.starts)
    src, tgt = entries // vocab_size[1], entries % vocab_size[1]
    probability = np.ones(len(entries))
    for _ in range(ITERATIONS):
        expected = np.zeros(len(entries))
        for chunk in chunks:
            # Expectation: how much of each target token comes from each of its source tokens.
            joint = probability[chunk.keys]
            total = np.add.reduceat(joint, chunk.starts)
            num_src = np.diff(chunk.starts, append=len(joint))
            joint /= np.repeat(total, num_src)
            expected += np.bincount(chunk.keys, joint, len(entries))
        # Maximisation: relative frequencies.
        probability = expected / np.bincount(src, expected)[src]
    return TranslationTable(src, tgt, probability)


def combine(store: TokenStore, sentences: list[int], tgt_vocab_size: int) -> Chunk:
    """Combine each target token with each source token of its pair, and with the source `</s>`."""
    keys: list[np.ndarray] = []
    num_src: list[np.ndarray] = []
    for i in sentences:
        src = np.append(store.token_ids("src", i), EOS_ID).astype(np.int64)
        tgt = store.token_ids("tgt", i).astype(np.int64)
        keys.append((src * tgt_vocab_size + tgt[:, None]).ravel())
        num_src.append(np.full(len(tgt), len(src)))
    ends = np.cumsum(np.concatenate(num_src))
    return Chunk(np.concatenate(keys), ends - np.concatenate(num_src))
