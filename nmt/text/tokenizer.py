"""Sentences ↔ token ids with SentencePiece (Kudo & Richardson 2018).

Ids are the same in every tokenizer: 0 `<pad>`, 1 `<unk>`, 2 `<s>`, 3 `</s>`.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Literal

import sentencepiece

from nmt.errors import ConfigError, DataError, ModelError, NMTError
from nmt.text.files import read_file
from nmt.text.lines import atomic_write, one_line
from nmt.text.sampling import drop_merges, sample_unigram

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
EOS = "</s>"
WORD_START = "\u2581"  # how SentencePiece writes the space before a word
LARGEST = re.compile(r"value <= (\d+)")  # in the trainer's complaint about too many pieces

MAX_MODEL = 1 << 26
"""Most bytes of a model file; a piece takes about 20."""

Kind = Literal["unigram", "bpe", "word", "char"]
SizeMode = Literal["exact", "at_most"]

TRAINING_BYTES = 1 << 28
"""Most text that a vocabulary is learned from, because SentencePiece holds it all in memory."""
BLOCK = "\u2585"  # how SentencePiece marks <unk>; it leaves out training sentences with it
PART_LENGTH = 1000  # characters; SentencePiece's time grows with the square of repetitive sentences


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


@dataclass
class UnknownTokens:
    """How many tokens of a text are `<unk>`."""

    num_tokens: int = 0
    num_unknown: int = 0
    first_line: int = 0
    """1-based number of the first line with an unknown token; 0 if there is none."""

    def add(self, line: int, token_ids: Sequence[int]) -> None:
        """Count the tokens of a line."""
        self.num_tokens += len(token_ids)
        if num_unknown := token_ids.count(UNK_ID):
            self.num_unknown += num_unknown
            self.first_line = self.first_line or line

    @property
    def share(self) -> float:
        """The unknown ones of all tokens, from 0 to 1; 0 if there are none."""
        return self.num_unknown / max(self.num_tokens, 1)

    def advice(self, name: str) -> str:
        """What a user whose text has unknown tokens can do."""
        return (
            f"{name}: {self.num_unknown:,} of {self.num_tokens:,} tokens are unknown (the first is "
            f"in line {self.first_line}); a tokenizer trained with tokenizer.byte_fallback: true "
            "spells what it does not know"
        )


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
            self._processor.id_to_piece(list(range(len(self))))
        except (RuntimeError, UnicodeDecodeError):
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
        return cls(read_model_file(path), str(path))

    def __len__(self) -> int:
        """The number of pieces, special ones included."""
        return int(self._processor.get_piece_size())

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The token ids of each sentence, without `<s>` and `</s>`."""
        return self._processor.encode([clean(sentence) for sentence in sentences])

    def count_unknown(self, sentences: Iterable[str]) -> UnknownTokens:
        """How much of a text this tokenizer does not know."""
        found, source, line = UnknownTokens(), iter(sentences), 0
        while chunk := list(islice(source, 1000)):
            for token_ids in self.encode(chunk):
                line += 1
                found.add(line, token_ids)
        return found

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
        text = self._processor.decode(list(token_ids), out_type=bytes)
        line = one_line(text.decode("utf-8", "replace"))  # a foreign model may write anything
        if WORD_START in line:  # spelled as bytes, which SentencePiece does not take for a space
            line = line.replace(WORD_START, " ").removeprefix(" ")
        return line

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The pieces behind token ids."""
        return [self._processor.id_to_piece(i) for i in token_ids]

    def segment(self, sentence: str) -> Segmented:
        """Cut a sentence into tokens that know their word."""
        text = clean(sentence)
        try:
            mapping = self._processor.encode_as_offset_mapping(text)
        except UnicodeDecodeError:
            raise ModelError("tokenizer: normalises text to what is not UTF-8") from None
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


def read_model_file(path: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        ModelError: if it is missing, or longer than any model.
    """
    try:
        return read_file(path, MAX_MODEL)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


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
    size_mode: SizeMode = "exact",
    name: str = "this corpus",
    say: Callable[[str], None] = lambda message: None,
) -> Tokenizer:
    """Learn a vocabulary from sentences.

    Training runs in a process of its own, because SentencePiece does not let itself be
    interrupted: Ctrl-C ends it at once. Every sentence is learned from, however long it is; but
    of a text of more than `TRAINING_BYTES` only a part that large, drawn at random.

    Args:
        size_mode: at_most takes the largest vocabulary that the text allows where it allows less
            than `vocab_size`.
        name: what errors call the sentences.
        say: is told if only a part of the text is learned from.

    Raises:
        DataError: if there is no text.
        ConfigError: if `vocab_size` is impossible for this text; says the largest possible one.
    """
    with tempfile.TemporaryDirectory(prefix="nmt-tokenizer-") as folder:
        corpus, longest, empty = Path(folder, "corpus.txt"), 0, True
        with open(corpus, "w", encoding="utf-8", newline="\n") as stream:
            for part in chain.from_iterable(map(learnable, sentences)):
                empty = empty and not part.strip()
                longest = max(longest, len(part.encode()))
                stream.write(part + "\n")
        if empty:
            raise no_text(name)
        if (size := corpus.stat().st_size) > TRAINING_BYTES:
            draw_lines(corpus, TRAINING_BYTES / size)
            say(
                f"tokenizer: learns from a random {TRAINING_BYTES / size:.1%} of {name}, which has "
                f"{size:,} bytes"
            )
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
        problem = learn_pieces(folder, arguments)
        largest = LARGEST.search(problem)
        if size_mode == "at_most" and largest:
            problem = learn_pieces(folder, arguments | {"vocab_size": int(largest[1])})
        if problem:
            raise explain(problem, vocab_size, name)
        return Tokenizer(Path(folder, "tokenizer.model").read_bytes())


def learnable(sentence: str) -> Iterator[str]:
    """The sentence in parts that SentencePiece can learn from, cut between words if possible.

    No piece crosses a space, so what is cut there is learned as from the whole.
    """
    text, start = clean(sentence).replace(BLOCK, " "), 0
    while len(text) - start > PART_LENGTH:
        space = text.rfind(" ", start + 1, start + PART_LENGTH + 1)
        end = space if space > 0 else start + PART_LENGTH
        yield text[start:end]
        start = end
    yield text[start:]


def learn_pieces(folder: str, arguments: dict[str, object]) -> str:
    """Run SentencePiece's trainer in a folder, and give what it complains of, or nothing."""
    process = subprocess.run(
        [sys.executable, "-m", "nmt.text.learn_pieces", folder],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        check=False,
    )
    return process.stderr if process.returncode else ""


def draw_lines(path: Path, share: float) -> None:
    """Keep a random part of the lines of a file: the same part whenever it is called."""
    random, drawn = Random(1), path.with_name("drawn")
    with open(path, "rb") as whole, open(drawn, "wb") as part:
        part.writelines(line for line in whole if random.random() < share)
    os.replace(drawn, path)


def explain(message: str, vocab_size: int, name: str) -> NMTError:
    """Say in our words what SentencePiece's trainer complains of."""
    where = f"tokenizer.vocab_size: is {vocab_size}, but {name}"
    if match := LARGEST.search(message):
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
