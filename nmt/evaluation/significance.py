"""How sure scores are: bootstrap intervals, and the paired bootstrap test between systems.

All of it is sacreBLEU's own (Koehn 2004): its signatures name the number of resamples and the
seed, which the environment variable `SACREBLEU_SEED` can change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from nmt.evaluation.metrics import References, Tokenize, check_counts

NUM_RESAMPLES = 1000
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Estimate:
    """A score of a system, and what resampling its sentences says of it, in points."""

    value: float
    """The score of the whole test set."""
    mean: float
    """The mean over the resampled test sets."""
    half_width: float
    """Half the width of the interval that holds 95 % of their scores."""
    p_value: float | None
    """How often chance alone would bring a difference to the baseline as large as this one; None
    for the baseline itself."""

    def __str__(self) -> str:
        text = f"{self.value:5.1f}  ({self.mean:.1f} ± {self.half_width:.1f})"
        if self.p_value is None:
            return text
        return f"{text}  p = {self.p_value:.4f}{'*' if self.p_value < SIGNIFICANT else ''}"


@dataclass(frozen=True)
class Significance:
    """What `resample` found out."""

    systems: tuple[str, ...]
    """Their names; the first is the baseline."""
    estimates: dict[str, tuple[Estimate, ...]]
    """By name of the score (BLEU, chrF2, TER), one for each system."""
    signatures: dict[str, str]
    """By name of the score."""

    def to_text(self) -> str:
        """A table, columns aligned, without a newline at the end."""
        width = max(len(name) for name in self.systems)
        title = f"95 % intervals of {NUM_RESAMPLES} resampled test sets (mean ± half the width)"
        if len(self.systems) > 1:
            title += f"; p of the difference to {self.systems[0]}, * below {SIGNIFICANT}"
        lines = [title]
        for name, estimates in self.estimates.items():
            lines.append(f"{name:5}  {self.signatures[name]}")
            for system, estimate in zip(self.systems, estimates, strict=True):
                lines.append(f"  {system:{width}}  {estimate}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values; all numbers are finite."""
        return {
            "test": "paired bootstrap",
            "num_resamples": NUM_RESAMPLES,
            "numpy": version("numpy"),
            "baseline": self.systems[0],
            "signatures": self.signatures,
            "systems": [
                {
                    "name": system,
                    "scores": {
                        name: {
                            "value": estimates[n].value,
                            "mean": estimates[n].mean,
                            "half_width": estimates[n].half_width,
                            "p_value": estimates[n].p_value,
                        }
                        for name, estimates in self.estimates.items()
                    },
                }
                for n, system in enumerate(self.systems)
            ],
        }


def resample(
    systems: Sequence[tuple[str, Sequence[str]]],
    references: References,
    *,
    tokenize: Tokenize = "13a",
    lowercase: bool = False,
) -> Significance:
    """Score resampled test sets: the sentences of one are drawn from all, with replacement.

    Args:
        systems: names and hypotheses of at least one system; the first is the baseline, which
            each of the others is compared with on the same resampled test sets.
        references: one list of sentences per reference set.
        tokenize: how BLEU splits text into tokens.
        lowercase: whether BLEU and chrF ignore case (TER always does).

    Raises:
        DataError: if the corpus is empty or the numbers of sentences differ.
        ConfigError: if there is no reference.
    """
    for _, hypotheses in systems:
        check_counts(hypotheses, references)
    metrics = {
        "BLEU": BLEU(tokenize=tokenize, lowercase=lowercase, force=True, references=references),
        "chrF": CHRF(lowercase=lowercase, references=references),
        "TER": TER(references=references),
    }
    test = PairedTest(
        list(systems), metrics, references=None, test_type="bs", n_samples=NUM_RESAMPLES
    )
    signatures, columns = test()
    estimates = {
        name: tuple(estimate(result) for result in column if isinstance(result, Result))
        for name, column in columns.items()
        if name in signatures
    }
    return Significance(
        tuple(name for name, _ in systems),
        estimates,
        {name: str(signatures[name]) for name in estimates},
    )


def estimate(result: Result) -> Estimate:
    """What sacreBLEU found for one system and one score."""
    assert result.mean is not None
    assert result.ci is not None
    p_value = None if result.p_value is None else float(result.p_value)
    return Estimate(float(result.score), float(result.mean), float(result.ci), p_value)
