"""How good a model is on held-out pairs: loss by teacher forcing, BLEU and chrF by translating."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nmt.data.batches import Batch, Batches
from nmt.errors import TrainingError
from nmt.evaluation.metrics import Score, bleu, chrf
from nmt.memory import free_memory, is_out_of_memory, memory_in_use
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
        """Mean cross entropy per target token, in nats.

        Raises:
            TrainingError: if memory is not enough for a single pair.
        """
        total, num_tokens = 0.0, 0
        for batch in self.batches.epoch(0):
            if should_stop():
                return None
            total += self._sum(batch)
            num_tokens += batch.num_tokens
        return total / num_tokens

    def _sum(self, batch: Batch) -> float:
        """Sum of the cross entropy of a batch, which is halved as long as memory is not enough."""
        device = self.translator.device
        try:
            moved = batch.to(device)
            loss = self.translator.model.loss(
                moved.src,
                moved.src_mask,
                moved.tgt_input,
                moved.tgt_output,
                moved.tgt_mask,
                label_smoothing=0.0,
            )
            return float(loss.negative_log_likelihood)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory(device)
        halves = batch.halves()
        if len(halves) == 1:
            raise TrainingError(
                f"out of memory: line {batch.lines[0]} of the validation text, of "
                f"{batch.src.size(1)} source and {batch.tgt_output.size(1)} target tokens, cannot "
                f"be measured ({memory_in_use(device)}); make the model smaller, or remove the line"
            )
        return sum(self._sum(half) for half in halves)
