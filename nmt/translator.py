"""Text → text: tokenizers, a model and search together. This is the Python API.

translator = nmt.load("runs/demo")
for translation in translator.translate(["나는 밥을 먹었다"]):
    print(translation.text)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from nmt.data.batches import make_batch
from nmt.decoding import Searcher, SearchOptions, Shortlist, autocast, run_batches
from nmt.errors import ConfigError
from nmt.memory import memory_in_use
from nmt.model.attention import Attention
from nmt.model.seq2seq import Seq2Seq
from nmt.search.beam import Hypothesis as Found
from nmt.text.tokenizer import EOS, EOS_ID, WORD_START, Segmented, Tokenizer

__all__ = ["Forced", "Hypothesis", "SearchOptions", "Shortlist", "Translation", "Translator"]

FORCED_LIMIT = 2000  # tokens on a side, beyond which a T x S matrix is more than anyone can use


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


class Translator:
    """Translates, scores and aligns text with one model.

    Args:
        max_source_length: tokens, without `</s>`; a longer sentence is split, translated piece
            by piece and joined.
        options: what `translate` uses where it is not told otherwise.
        precision: type of the matrix products; None is that of the weights. int8 is for search on
            the CPU only: what scores or aligns given text then computes in the type of the weights.
        shortlist: of each source the target tokens that search may use; None is all.
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
        shortlist: Shortlist | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.src_tokenizer = src_tokenizer
        self.tgt_tokenizer = tgt_tokenizer
        self.max_source_length = max_source_length
        self.options = options
        self.device = device
        self.precision = precision
        self.searcher = Searcher(self.model, device, precision, shortlist)

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

    def settle(self, sentences: Sequence[str]) -> bool:
        """Prepare what pays for the sentences that are translated next: `Searcher.settle`."""
        lengths = [len(token_ids) + 1 for token_ids in self.src_tokenizer.encode(sentences)]
        return self.searcher.settle(lengths, self.options.beam_size)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Forced]:
        """How probable the given translations are, and what the model attends to in them.

        Raises:
            ConfigError: with int8, whose rounding is made for search.
        """
        if self.precision == torch.int8:
            raise ConfigError("precision: int8 is for translating; score with fp32 or bf16")
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

        Raises:
            TrainingError: if memory is not enough for a single pair.
        """
        nothing = np.zeros((0, 0), np.float32)
        forced = [Forced(src, tgt, 0.0, [], nothing) for src, tgt in pairs]
        real = [
            i
            for i, pair in enumerate(pairs)
            if all(0 < len(side.tokens) <= FORCED_LIMIT for side in pair)
        ]
        lengths = np.array([len(pairs[i][0].tokens) + len(pairs[i][1].tokens) for i in real])

        def run(chosen: list[int]) -> None:
            indices = [real[i] for i in chosen]
            batch = make_batch(
                [np.array(pairs[i][0].token_ids) for i in indices],
                [np.array(pairs[i][1].token_ids) for i in indices],
            ).to(self.device)
            with autocast(self.device, None if self.searcher.int8 else self.precision):
                logits, weights = self.model(batch.src, batch.src_mask, batch.tgt_input)
            log_probs = logits.float().log_softmax(-1)
            log_probs = log_probs.gather(-1, batch.tgt_output.unsqueeze(-1)).squeeze(-1)
            for row, i in enumerate(indices):
                src, tgt = pairs[i]
                num_src, num_tgt = len(src.tokens) + 1, len(tgt.tokens) + 1
                token_log_probs = log_probs[row, :num_tgt].tolist()
                attended = weights[row, :num_tgt, :num_src].float().cpu().numpy()
                forced[i] = Forced(src, tgt, math.fsum(token_log_probs), token_log_probs, attended)

        def too_large(chosen: int) -> str:
            src, tgt = pairs[real[chosen]]
            return (
                f"a pair of {len(src.tokens)} source and {len(tgt.tokens)} target tokens cannot "
                f"be scored ({memory_in_use(self.device)}); split it"
            )

        run_batches(run, lengths + 2, self.options.batch_tokens, self.device, too_large)
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
        return self.searcher(sources, options)
