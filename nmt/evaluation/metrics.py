"""Corpus scores: BLEU, chrF and TER of sacreBLEU, each with the signature that reproduces it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sacrebleu.metrics.bleu import BLEU, BLEUScore
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from nmt.errors import ConfigError, DataError

Tokenize = Literal["13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab"]
"""How BLEU splits detokenised text into tokens.

`ja-mecab` and `ko-mecab` need the packages that `pip install 'sacrebleu[ja]'` or `[ko]` brings.
sacreBLEU's SentencePiece tokenizers are not here: they download their model.
"""
TOKENIZE_CHOICES: tuple[Tokenize, ...] = get_args(Tokenize)

References = Sequence[Sequence[str]]
"""One list of sentences per reference set; sentence N of each belongs to hypothesis N."""


@dataclass(frozen=True)
class Score:
    """A score in points (0 to 100; TER may be higher) and how it was computed."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{self.name} {self.value:.1f}  {self.signature}"


def bleu(
    hypotheses: Sequence[str],
    references: References,
    *,
    tokenize: Tokenize = "13a",
    lowercase: bool = False,
) -> Score:
    """The corpus BLEU of detokenised hypotheses (Papineni et al. 2002).

    It is 0 when no hypothesis has four tokens, even if all are equal to their references.

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference, or the packages for `tokenize` are not installed.
    """
    score, signature = corpus_bleu(hypotheses, references, tokenize=tokenize, lowercase=lowercase)
    return Score(score.name, score.score, signature)


def chrf(hypotheses: Sequence[str], references: References, *, lowercase: bool = False) -> Score:
    """The corpus chrF2: character n-grams up to 6, recall counts twice (Popović 2015).

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference.
    """
    check_counts(hypotheses, references)
    metric = CHRF(lowercase=lowercase)
    score = metric.corpus_score(hypotheses, references)
    return Score(score.name, score.score, str(metric.get_signature()))


def ter(hypotheses: Sequence[str], references: References) -> Score:
    """The corpus translation edit rate (Snover et al. 2006), case ignored as usual; less is better.

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference.
    """
    check_counts(hypotheses, references)
    metric = TER()
    score = metric.corpus_score(hypotheses, references)
    return Score(score.name, score.score, str(metric.get_signature()))


def corpus_bleu(
    hypotheses: Sequence[str], references: References, *, tokenize: Tokenize, lowercase: bool
) -> tuple[BLEUScore, str]:
    """SacreBLEU's own BLEU value, which also knows lengths and precisions, and the signature.

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference, or the packages for `tokenize` are not installed.
    """
    check_counts(hypotheses, references)
    # `force` silences a guess that the text is tokenized: it would repeat at every validation.
    try:
        metric = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    except RuntimeError:
        raise ConfigError(
            f"tokenize: '{tokenize}' needs packages that are not installed; "
            f"run: pip install 'sacrebleu[{tokenize.removesuffix('-mecab')}]'"
        ) from None
    score: BLEUScore = metric.corpus_score(hypotheses, references)
    return score, str(metric.get_signature())


def check_counts(
    hypotheses: Sequence[str], references: References, sources: Sequence[str] | None = None
) -> None:
    """Check that each hypothesis has its references and source; sacreBLEU would cut silently.

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference.
        TypeError: if `references` is a list of sentences instead of a list of such lists.
    """
    if not references:
        raise ConfigError("references: there must be at least one; give a file of references")
    if any(isinstance(reference, str) for reference in references):
        raise TypeError("references must be a list of lists of sentences, one per reference set")
    if not hypotheses:
        raise DataError("hypotheses: there are none, so there is no score; is the file empty?")
    sides = [(f"reference {n}", reference) for n, reference in enumerate(references, 1)]
    if sources is not None:
        sides.append(("source", sources))
    for side, sentences in sides:
        if len(sentences) != len(hypotheses):
            raise DataError(
                f"{side}: number of lines must be that of the hypotheses, {len(hypotheses)}, "
                f"but is {len(sentences)}; line N of both must belong together"
            )
