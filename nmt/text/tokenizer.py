"""Sentences ↔ token ids with SentencePiece (Kudo & Richardson 2018).

Ids are the same in every tokenizer: 0 `<pad>`, 1 `<unk>`, 2 `<s>`, 3 `</s>`.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal

import sentencepiece

from nmt.errors import ConfigError, DataError, ModelError, NMTError
from nmt.text.lines import atomic_write, one_line
from nmt.text.sampling import drop_merges, sample_unigram

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
EOS = "</s>"
WORD_START = "\u2581"  # how SentencePiece writes the space before a word

Kind = Literal["unigram", "bpe", "word", "char"]


@dataclass(frozen=True)
class Segmented:
    """A sentence cut into tokens, and which word each token is a part of."""

    token_ids: list[int]
    """Without </s>."""
    tokens: list[str]
    """The pieces, `▁` at the start of a word."""
    word_ids: list[int]
    """For each token the 0-based index of its word; never decreasing."""
    words: list[str]
    """The sentence split at white space."""


class Tokenizer:
    """A trained SentencePiece model.

    Args:
        model: the bytes of the model file.
        name: what errors call it.

    Raises:
        ModelError: if the bytes are not a SentencePiece model with our special ids.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError:
            raise ModelError(f"{name}: is not a SentencePiece model, or is damaged") from None
        special = (
            self._processor.pad_id(),
            self._processor.unk_id(),
            self._processor.bos_id(),
            self._processor.eos_id(),
        )
        if special != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise ModelError(
                f"{name}: pad, unk, bos and eos must have the ids 0, 1, 2, 3, but have "
                f"{', '.join(map(str, special))}; train it with `nmt tokenizer train`"
            )
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a model file.

        Raises:
            ModelError: if it is missing or not a model.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None

    def __len__(self) -> int:
        """The number of pieces, special ones included."""
        return int(self._processor.get_piece_size())

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The token ids of each sentence, without `<s>` and `</s>`."""
        return self._processor.encode([clean(sentence) for sentence in sentences])

    def sample(self, sentence: str, alpha: float, seed: int) -> list[int]:
        """Token ids of a segmentation drawn at random; the same seed draws the same one.

        Args:
            alpha: unigram: smoothing of the distribution over all segmentations (Kudo 2018);
                bpe: probability that a merge is left out (Provilkov et al. 2020).
        """
        text, random = self._processor.normalize(clean(sentence)), Random(seed)
        if self._is_bpe:
            words = re.findall(f"{WORD_START}*[^{WORD_START}]*", text)
            pieces = [p for word in words for p in drop_merges(word, self._scores, alpha, random)]
        else:
            pieces = sample_unigram(text, self._scores, alpha, random)
        token_ids: list[int] = []
        for piece in pieces:
            if piece in self._scores:
                token_ids.append(self._processor.piece_to_id(piece))
            elif self._processor.is_byte(self._processor.piece_to_id("<0x00>")):
                token_ids += [self._processor.piece_to_id(f"<0x{b:02X}>") for b in piece.encode()]
            elif token_ids[-1:] != [UNK_ID]:  # neighbouring unknown characters are one token
                token_ids.append(UNK_ID)
        return token_ids

    @cached_property
    def _scores(self) -> dict[str, float]:
        """The score of each piece of text; special tokens and bytes are none."""
        processor = self._processor
        return {
            processor.id_to_piece(i): processor.get_score(i)
            for i in range(len(self))
            if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))
        }

    @cached_property
    def _is_bpe(self) -> bool:
        """Whether scores are ranks of merges, not log-probabilities."""
        return all(score.is_integer() for score in self._scores.values())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, on one line; special tokens other than `<unk>` are left out."""
        return one_line(self._processor.decode(list(token_ids)))

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The pieces behind token ids."""
        return [self._processor.id_to_piece(i) for i in token_ids]

    def segment(self, sentence: str) -> Segmented:
        """Cut a sentence into tokens that know their word."""
        text = clean(sentence)
        mapping = self._processor.encode_as_offset_mapping(text)
        words: list[str] = []
        word_at: list[int] = []  # of each character: its word; of a space: the word after it
        for match in re.finditer(r"\S+", text):
            word_at += [len(words)] * (match.end() - len(word_at))
            words.append(match.group())
        word_at += [len(words) - 1] * (len(text) + 1 - len(word_at))
        # The last character tells the word: what normalisation removes belongs to the next piece.
        word_ids = [word_at[max(begin, end - 1)] for begin, end in mapping["offsets"]]
        return Segmented(list(mapping["ids"]), list(mapping["pieces"]), word_ids, words)

    def segment_ids(self, token_ids: Sequence[int]) -> Segmented:
        """Group tokens that search has found into words: those of the decoded text.

        A word starts at each `▁`; `<unk>`, which decodes to ` ⁇ `, is a word of its own.
        """
        tokens = self.tokens(token_ids)
        word_ids: list[int] = []
        groups: list[list[int]] = []
        for i, token in enumerate(tokens):
            starts = token.startswith(WORD_START) or UNK_ID in token_ids[max(i - 1, 0) : i + 1]
            if i == 0 or (starts and tokens[i - 1] != WORD_START):
                groups.append([])
            groups[-1].append(token_ids[i])
            word_ids.append(len(groups) - 1)
        words = [self.decode(group).strip() for group in groups]
        return Segmented(list(token_ids), tokens, word_ids, words)

    def save(self, path: Path) -> None:
        """Write the model file."""
        with atomic_write(path) as stream:
            stream.write(self.model)


def clean(sentence: str) -> str:
    """What SentencePiece can read: no NUL, no lone surrogate, no line end."""
    return one_line(sentence).replace("\0", " ")


def train_tokenizer(
    sentences: Iterable[str],
    *,
    kind: Kind,
    vocab_size: int,
    character_coverage: float = 1.0,
    byte_fallback: bool = False,
    name: str = "this corpus",
) -> Tokenizer:
    """Learn a vocabulary from sentences.

    Training runs in a process of its own, because SentencePiece does not let itself be
    interrupted: Ctrl-C ends it at once.

    Args:
        name: what errors call the sentences.

    Raises:
        DataError: if there is no text.
        ConfigError: if `vocab_size` is impossible for this text; says the largest possible one.
    """
    with tempfile.TemporaryDirectory(prefix="nmt-tokenizer-") as folder:
        corpus, longest, empty = Path(folder, "corpus.txt"), 0, True
        with open(corpus, "w", encoding="utf-8", newline="\n") as stream:
            for sentence in map(clean, sentences):
                empty = empty and not sentence.strip()
                longest = max(longest, len(sentence.encode()))
                stream.write(sentence + "\n")
        if empty:
            raise no_text(name)
        arguments = {
            "input": corpus.name,
            "model_prefix": "tokenizer",
            "model_type": kind,
            "vocab_size": vocab_size,
            "character_coverage": character_coverage,
            "byte_fallback": byte_fallback,
            "max_sentence_length": max(longest + 1, 10),  # bytes; the trainer takes no less
            "pad_id": PAD_ID,
            "unk_id": UNK_ID,
            "bos_id": BOS_ID,
            "eos_id": EOS_ID,
            "minloglevel": 2,
        }
        process = subprocess.run(
            [sys.executable, "-m", "nmt.text.learn_pieces", folder],
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise explain(process.stderr, vocab_size, name)
        return Tokenizer(Path(folder, "tokenizer.model").read_bytes())


def explain(message: str, vocab_size: int, name: str) -> NMTError:
    """Say in our words what SentencePiece's trainer complains of."""
    where = f"tokenizer.vocab_size: is {vocab_size}, but {name}"
    if match := re.search(r"value <= (\d+)", message):
        return ConfigError(f"{where} allows at most {match[1]} pieces; lower it")
    if match := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return ConfigError(
            f"{where} needs at least {match[1]} pieces for its characters; raise it, or lower "
            "tokenizer.character_coverage"
        )
    if "(vocab_size) >= (0)" in message:  # of word and char, what the 256 bytes leave of it
        return ConfigError(
            f"tokenizer.vocab_size: is {vocab_size}, but 256 bytes and 4 special pieces need at "
            "least 260; raise it, or turn tokenizer.byte_fallback off"
        )
    if "(all_chars_count) > (0)" in message:
        return no_text(name)
    lines = message.strip().split("\n")
    return ConfigError(f"tokenizer: training failed: {lines[-1]}")


def no_text(name: str) -> DataError:
    """The error that there is nothing to learn from."""
    return DataError(f"{name}: has no text for the tokenizer to learn from; is it empty?")
