"""Text → text: tokenizers, a model and search together. This is the Python API.

translator = nmt.load("runs/demo")
for translation in translator.translate(["나는 밥을 먹었다"]):
    print(translation.text)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from nmt.data.batches import Batch, make_batch
from nmt.errors import ConfigError
from nmt.model.attention import Attention
from nmt.model.decoder import DecoderState
from nmt.model.seq2seq import Seq2Seq
from nmt.search.beam import Hypothesis as Found
from nmt.search.beam import beam_search
from nmt.text.tokenizer import BOS_ID, EOS, EOS_ID, PAD_ID, WORD_START, Segmented, Tokenizer

FORCED_LIMIT = 2000  # tokens on a side, beyond which a T x S matrix is more than anyone can use
EXTRA_LENGTH = 10  # tokens that a translation may have beyond max_length_ratio × source tokens


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a sentence."""

    text: str
    score: float
    """Log-probability in nats over the length penalty; of a sentence that was split, the mean
    over its pieces."""
    log_prob: float
    """Sum of the token log-probabilities, in nats; of a sentence that was split, also of the
    `</s>` of each piece."""
    tokens: list[str]
    """The pieces; the last one is `</s>`."""
    token_log_probs: list[float]
    token_ids: list[int] = field(repr=False)


@dataclass(frozen=True)
class Translation:
    """A sentence and its translations, best first. A blank sentence has one, which is empty."""

    src: str
    hypotheses: list[Hypothesis]
    num_pieces: int = 1
    """Into how many pieces a source beyond the model's limit was split."""

    @property
    def text(self) -> str:
        """The best translation."""
        return self.hypotheses[0].text

    @property
    def score(self) -> float:
        """The score of the best translation."""
        return self.hypotheses[0].score

    @property
    def tokens(self) -> list[str]:
        """The pieces of the best translation."""
        return self.hypotheses[0].tokens

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Forced:
    """A given pair under the model: one teacher-forced pass."""

    src: Segmented
    tgt: Segmented
    log_prob: float
    """Sum of the token log-probabilities, in nats; 0 for a blank pair."""
    token_log_probs: list[float]
    """T values; the last one is that of `</s>`."""
    weights: np.ndarray
    """(T, S) float32 attention; row t belongs to target token t, the last row and the last
    column to `</s>`. Rows sum to one."""

    @property
    def src_tokens(self) -> list[str]:
        """S source pieces, `</s>` included."""
        return [*self.src.tokens, EOS]

    @property
    def tgt_tokens(self) -> list[str]:
        """T target pieces, `</s>` included."""
        return [*self.tgt.tokens, EOS]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search. What a config can say has no default here: its schema has them.

    Raises:
        ConfigError: if the options contradict each other.
    """

    beam_size: int
    n_best: int = 1
    length_penalty: float
    """Exponent of the length penalty; 0 is none."""
    min_length: int
    """Fewest tokens of a translation."""
    max_length_ratio: float
    """Most target tokens per source token, `EXTRA_LENGTH` more being allowed."""
    max_length: int | None = None
    """Most tokens of a translation, whatever the length of the source."""
    batch_tokens: int
    """Source positions that are decoded together, padding included."""

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ConfigError(f"beam size: must be at least 1, but is {self.beam_size}")
        if not 1 <= self.n_best <= self.beam_size:
            raise ConfigError(
                f"n-best: must be between 1 and the beam size {self.beam_size}, but is "
                f"{self.n_best}; raise the beam size"
            )
        if not 0 <= self.length_penalty < math.inf:
            raise ConfigError(
                f"length penalty: must be a number of at least 0, but is {self.length_penalty}"
            )
        if self.min_length < 0:
            raise ConfigError(f"min length: must be at least 0, but is {self.min_length}")
        if self.max_length is not None and self.max_length < max(self.min_length, 1):
            raise ConfigError(
                f"max length: must be at least the min length {max(self.min_length, 1)}, "
                f"but is {self.max_length}"
            )
        if self.batch_tokens < 1:
            raise ConfigError(f"batch tokens: must be at least 1, but is {self.batch_tokens}")

    def max_lengths(self, src_lengths: np.ndarray) -> np.ndarray:
        """Most target tokens for sources of the given numbers of tokens, without `</s>`."""
        longest = np.ceil(self.max_length_ratio * src_lengths) + EXTRA_LENGTH
        if self.max_length is not None:
            longest = np.minimum(longest, self.max_length)
        return np.maximum(longest, max(self.min_length, 1)).astype(np.int64)


class Translator:
    """Translates, scores and aligns text with one model.

    Args:
        max_source_length: tokens, without `</s>`; a longer sentence is split, translated piece
            by piece and joined.
        options: what `translate` uses where it is not told otherwise.
        precision: the autocast type of the forward pass; None computes in fp32.
    """

    def __init__(
        self,
        model: Seq2Seq,
        src_tokenizer: Tokenizer,
        tgt_tokenizer: Tokenizer,
        *,
        max_source_length: int,
        options: SearchOptions,
        device: torch.device,
        precision: torch.dtype | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.src_tokenizer = src_tokenizer
        self.tgt_tokenizer = tgt_tokenizer
        self.max_source_length = max_source_length
        self.options = options
        self.device = device
        self.precision = precision

    @property
    def has_attention(self) -> bool:
        """Whether there are weights to look at."""
        return isinstance(self.model.decoder.attention, Attention)

    def translate(
        self, sentences: Sequence[str], options: SearchOptions | None = None
    ) -> list[Translation]:
        """Translate sentences; the result has the same order and length.

        What comes out for a sentence does not depend on the others.

        Raises:
            TypeError: for a single string, whose characters would be taken for sentences.
        """
        if isinstance(sentences, str):
            raise TypeError("translate takes a list of sentences; write translate([sentence])")
        return list(self._translate_window(sentences, options))

    def stream(
        self,
        sentences: Iterable[str],
        options: SearchOptions | None = None,
        *,
        window: int = 1024,
    ) -> Iterator[Translation]:
        """Translate a stream of any length, in order.

        Args:
            window: sentences that are read, sorted by length and translated together; nothing
                of a window comes out before all of it is read.
        """
        source = iter(sentences)
        while chunk := list(islice(source, window)):
            yield from self._translate_window(chunk, options)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Forced]:
        """How probable the given translations are, and what the model attends to in them."""
        return self.force(
            [(self.src_tokenizer.segment(s), self.tgt_tokenizer.segment(t)) for s, t in pairs]
        )

    def attend(self, translation: Translation) -> list[Forced]:
        """The attention of found translations, best first: one teacher-forced pass over each."""
        src = self.src_tokenizer.segment(translation.src)
        return self.force(
            [
                (src, self.tgt_tokenizer.segment_ids(hypothesis.token_ids))
                for hypothesis in translation.hypotheses
            ]
        )

    @torch.no_grad()
    def force(self, pairs: Sequence[tuple[Segmented, Segmented]]) -> list[Forced]:
        """Run the model over given pairs.

        A pair of which one side is blank, or has more than `FORCED_LIMIT` tokens, is not run:
        it has no log-probabilities, and weights of shape (0, 0).
        """
        nothing = np.zeros((0, 0), np.float32)
        forced = [Forced(src, tgt, 0.0, [], nothing) for src, tgt in pairs]
        real = [
            i
            for i, pair in enumerate(pairs)
            if all(0 < len(side.tokens) <= FORCED_LIMIT for side in pair)
        ]
        lengths = np.array([len(pairs[i][0].tokens) + len(pairs[i][1].tokens) for i in real])
        for chosen in self._plan(lengths + 2, self.options.batch_tokens):
            indices = [real[i] for i in chosen]
            batch = make_batch(
                [np.array(pairs[i][0].token_ids) for i in indices],
                [np.array(pairs[i][1].token_ids) for i in indices],
            ).to(self.device)
            with self._autocast():
                logits, weights = self.model(batch.src, batch.src_mask, batch.tgt_input)
            log_probs = logits.float().log_softmax(-1)
            log_probs = log_probs.gather(-1, batch.tgt_output.unsqueeze(-1)).squeeze(-1)
            for row, i in enumerate(indices):
                src, tgt = pairs[i]
                num_src, num_tgt = len(src.tokens) + 1, len(tgt.tokens) + 1
                token_log_probs = log_probs[row, :num_tgt].tolist()
                attended = weights[row, :num_tgt, :num_src].float().cpu().numpy()
                forced[i] = Forced(src, tgt, math.fsum(token_log_probs), token_log_probs, attended)
        return forced

    def _translate_window(
        self, sentences: Sequence[str], options: SearchOptions | None
    ) -> Iterator[Translation]:
        options = options or self.options
        pieces: list[list[int]] = []
        belongs: list[range] = []  # of each sentence: its pieces
        for token_ids in self.src_tokenizer.encode(sentences):
            cut = self._split(token_ids)
            belongs.append(range(len(pieces), len(pieces) + len(cut)))
            pieces += cut
        found = self.search(pieces, options)
        for sentence, indices in zip(sentences, belongs, strict=True):
            yield self._join(sentence, [found[i] for i in indices])

    def _split(self, token_ids: list[int]) -> list[list[int]]:
        """Cut a source into as few pieces as the limit allows, between words where possible."""
        cut: list[list[int]] = []
        limit = self.max_source_length
        while len(token_ids) > limit:
            end = limit
            tokens = self.src_tokenizer.tokens(token_ids[: limit + 1])
            starts = [i for i, token in enumerate(tokens) if i and token.startswith(WORD_START)]
            if starts:
                end = starts[-1]
            cut.append(token_ids[:end])
            token_ids = token_ids[end:]
        return [*cut, token_ids] if token_ids else cut

    def _join(self, sentence: str, pieces: list[list[Found]]) -> Translation:
        """Put the translations of the pieces of a sentence behind each other, rank by rank."""
        if not pieces:
            return Translation(sentence, [Hypothesis("", 0.0, 0.0, [], [], [])])
        hypotheses: list[Hypothesis] = []
        for rank in range(min(len(found) for found in pieces)):
            parts = [found[rank] for found in pieces]
            body = [i for part in parts for i in part.token_ids if i != EOS_ID]
            log_probs = [x for part in parts[:-1] for x in part.token_log_probs[:-1]]
            log_probs += parts[-1].token_log_probs
            hypotheses.append(
                Hypothesis(
                    " ".join(filter(None, (self.tgt_tokenizer.decode(p.token_ids) for p in parts))),
                    math.fsum(part.score for part in parts) / len(parts),
                    math.fsum(part.log_prob for part in parts),
                    [*self.tgt_tokenizer.tokens(body), EOS],
                    log_probs,
                    body,
                )
            )
        return Translation(sentence, hypotheses, len(pieces))

    def search(self, sources: list[list[int]], options: SearchOptions) -> list[list[Found]]:
        """The best hypotheses for sources of token ids, each at least one token long."""
        found: list[list[Found]] = [[] for _ in sources]
        lengths = np.array([len(token_ids) + 1 for token_ids in sources])
        for indices in self._plan(lengths, options.batch_tokens):
            empty = np.zeros(0, np.int64)
            batch = make_batch(
                [np.array(sources[i]) for i in indices], [empty for _ in indices]
            ).to(self.device)
            max_lengths = torch.from_numpy(options.max_lengths(lengths[indices] - 1))
            results = self._search_batch(batch, max_lengths.to(self.device), options)
            for i, hypotheses in zip(indices, results, strict=True):
                found[i] = hypotheses
        return found

    @torch.no_grad()
    def _search_batch(
        self, batch: Batch, max_lengths: Tensor, options: SearchOptions
    ) -> list[list[Found]]:
        decoder = self.model.decoder

        def step(token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
            with self._autocast():
                logits, _, state = decoder.step(token_ids, state)
            return logits.float().log_softmax(-1), state

        with self._autocast():
            start = self.model.encode(batch.src, batch.src_mask)
        return beam_search(
            step,
            start,
            beam_size=options.beam_size,
            n_best=options.n_best,
            max_lengths=max_lengths,
            min_length=options.min_length,
            alpha=options.length_penalty,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            forbidden_ids=(PAD_ID, BOS_ID),
        )

    def _plan(self, lengths: np.ndarray, batch_tokens: int) -> Iterator[list[int]]:
        """Batches of indices, longest first, each at most `batch_tokens` positions in all."""
        order = np.argsort(-lengths, kind="stable").tolist()
        while order:
            size = max(1, batch_tokens // int(lengths[order[0]]))
            yield order[:size]
            order = order[size:]

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)
