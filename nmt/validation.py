"""How good a model is on held-out pairs: loss by teacher forcing, BLEU and chrF by translating."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nmt.data.batches import Batches
from nmt.evaluation.metrics import Score, bleu, chrf
from nmt.translator import SearchOptions, Translator


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    loss: float
    """Mean cross entropy per target token without smoothing, in nats."""
    bleu: Score
    chrf: Score

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class Validator:
    """Measures a model.

    Attributes:
        translator: around the model that is measured.
        batches: the pairs for the loss.
        sources, references: all lines of the held-out files, for translating.
    """

    translator: Translator
    batches: Batches
    sources: Sequence[str]
    references: Sequence[str]
    options: SearchOptions

    def __call__(self, should_stop: Callable[[], bool] = lambda: False) -> Validation | None:
        """Measure; None if `should_stop` became true meanwhile.

        The model must be in evaluation mode, so that dropout neither blurs the numbers nor
        draws from the random state.
        """
        loss = self.loss(should_stop)
        if loss is None:
            return None
        hypotheses: list[str] = []
        for translation in self.translator.stream(self.sources, self.options, window=256):
            if should_stop():
                return None
            hypotheses.append(translation.text)
        return Validation(
            loss, bleu(hypotheses, [self.references]), chrf(hypotheses, [self.references])
        )

    @torch.no_grad()
    def loss(self, should_stop: Callable[[], bool]) -> float | None:
        """Mean cross entropy per target token, in nats."""
        total, num_tokens = 0.0, 0
        for batch in self.batches.epoch(0):
            if should_stop():
                return None
            batch = batch.to(self.translator.device)
            loss = self.translator.model.loss(
                batch.src,
                batch.src_mask,
                batch.tgt_input,
                batch.tgt_output,
                batch.tgt_mask,
                label_smoothing=0.0,
            )
            total += float(loss.negative_log_likelihood)
            num_tokens += batch.num_tokens
        return total / num_tokens
