"""A report on a translated test set: scores, BLEU by sentence length, and what looks wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sacrebleu

from nmt import __version__
from nmt.evaluation.metrics import (
    References,
    Score,
    Tokenize,
    check_counts,
    chrf,
    corpus_bleu,
    ter,
)

LENGTHS: tuple[tuple[int, int | None], ...] = (
    (0, 0),
    (1, 10),
    (11, 20),
    (21, 30),
    (31, 40),
    (41, 50),
    (51, None),
)
BAR_WIDTH = 40  # characters for BLEU 100
MAX_LINES_SHOWN = 10


@dataclass(frozen=True)
class Bucket:
    """The sentences of `low` to `high` words (both included; `None` is no limit)."""

    low: int
    high: int | None
    num_sentences: int
    bleu: float

    @property
    def label(self) -> str:
        """The range of lengths as people write it: `0`, `1-10`, `51+`."""
        if self.high is None:
            return f"{self.low}+"
        return f"{self.low}" if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Report:
    """What `evaluate` found out about a translated test set."""

    bleu: Score
    chrf: Score
    ter: Score
    num_sentences: int
    num_empty_hypotheses: int
    """Hypotheses with nothing but whitespace; they are scored like all others."""
    empty_references: tuple[tuple[int, ...], ...]
    """For each reference set, the 1-based numbers of its lines that are blank."""
    length_ratio: float
    """Tokens of the hypotheses per token of the references, as BLEU counts them.

    With several references, each sentence counts the one closest in length. 0 if the references
    have no tokens.
    """
    length_of: Literal["source", "reference"]
    """Whose words, separated by whitespace, sort a sentence into `by_length`."""
    by_length: tuple[Bucket, ...]
    """The buckets that have sentences, shortest first; each sentence is in exactly one."""
    unknown_tokens: Mapping[str, float] = field(default_factory=dict)
    """For each file that a model has read, the share of its tokens that are `<unk>`, in [0, 1]."""

    @property
    def scores(self) -> tuple[Score, Score, Score]:
        """BLEU, chrF and TER."""
        return self.bleu, self.chrf, self.ter

    def to_text(self) -> str:
        """The report as plain text, columns aligned, without a newline at the end."""
        lines = [f"{score.name:5}  {score.value:5.1f}  {score.signature}" for score in self.scores]
        lines += [
            "",
            f"sentences: {self.num_sentences}, empty hypotheses: {self.num_empty_hypotheses}, "
            f"length ratio: {self.length_ratio:.3f}",
        ]
        if self.unknown_tokens:
            shares = (f"{share:.2%} of {name}" for name, share in self.unknown_tokens.items())
            lines.append(f"unknown tokens: {', '.join(shares)}")
        for number, empty in enumerate(self.empty_references, 1):
            if empty:
                shown = ", ".join(map(str, empty[:MAX_LINES_SHOWN]))
                more = ", …" if len(empty) > MAX_LINES_SHOWN else ""
                lines.append(f"empty lines in reference {number}: {len(empty)} ({shown}{more})")
        lines += ["", f"BLEU by words of the {self.length_of}", "words  sentences   BLEU"]
        for bucket in self.by_length:
            bar = "█" * round(bucket.bleu / 100 * BAR_WIDTH)
            row = f"{bucket.label:5}  {bucket.num_sentences:9}  {bucket.bleu:5.1f}  {bar}"
            lines.append(row.rstrip())
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON values; all numbers are finite."""
        return {
            "scores": {
                score.name: {"value": score.value, "signature": score.signature}
                for score in self.scores
            },
            "num_sentences": self.num_sentences,
            "num_empty_hypotheses": self.num_empty_hypotheses,
            "empty_references": [list(empty) for empty in self.empty_references],
            "length_ratio": self.length_ratio,
            "unknown_tokens": dict(self.unknown_tokens),
            "length_of": self.length_of,
            "by_length": [
                {
                    "low": bucket.low,
                    "high": bucket.high,
                    "num_sentences": bucket.num_sentences,
                    "bleu": bucket.bleu,
                }
                for bucket in self.by_length
            ],
            "versions": {"nmt": __version__, "sacrebleu": sacrebleu.__version__},
        }


def evaluate(
    hypotheses: Sequence[str],
    references: References,
    *,
    sources: Sequence[str] | None = None,
    tokenize: Tokenize = "13a",
    lowercase: bool = False,
    unknown_tokens: Mapping[str, float] | None = None,
) -> Report:
    """Score hypotheses against one or more references.

    Args:
        hypotheses: detokenised translations, one per sentence; may be empty strings.
        references: one list of sentences per reference set.
        sources: if given, `by_length` sorts by their words, else by those of the first reference.
        tokenize: how BLEU splits text into tokens.
        lowercase: whether BLEU and chrF ignore case (TER always does).
        unknown_tokens: is passed on to the report.

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference, or the packages for `tokenize` are not installed.
    """
    check_counts(hypotheses, references, sources)
    score, signature = corpus_bleu(hypotheses, references, tokenize=tokenize, lowercase=lowercase)
    lengths = [len(text.split()) for text in (references[0] if sources is None else sources)]
    by_length = []
    for low, high in LENGTHS:
        rows = [
            n
            for n, length in enumerate(lengths)
            if low <= length and (high is None or length <= high)
        ]
        if rows:
            part, _ = corpus_bleu(
                [hypotheses[n] for n in rows],
                [[reference[n] for n in rows] for reference in references],
                tokenize=tokenize,
                lowercase=lowercase,
            )
            by_length.append(Bucket(low, high, len(rows), part.score))
    return Report(
        bleu=Score(score.name, score.score, signature),
        chrf=chrf(hypotheses, references, lowercase=lowercase),
        ter=ter(hypotheses, references),
        num_sentences=len(hypotheses),
        num_empty_hypotheses=sum(not text.strip() for text in hypotheses),
        empty_references=tuple(
            tuple(number for number, text in enumerate(reference, 1) if not text.strip())
            for reference in references
        ),
        length_ratio=score.ratio,
        length_of="reference" if sources is None else "source",
        by_length=tuple(by_length),
        unknown_tokens=unknown_tokens or {},
    )
