"""The training loop. It trains; validating, saving and reporting are handed to it."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from nmt.data.batches import Batch, Batches
from nmt.errors import TrainingError
from nmt.memory import free_memory, is_out_of_memory, keep_freed_memory, memory_in_use
from nmt.model import compiled
from nmt.model.seq2seq import Seq2Seq
from nmt.training.average import WeightAverage
from nmt.training.schedule import Schedule

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """Where a run stands. With weights, optimizer and random state it is all a run is."""

    step: int = 0
    """Updates done."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    tokens: int = 0
    """Target tokens trained on."""
    best_score: float | None = None
    best_step: int = 0
    bad_validations: int = 0
    """Validations since the best one."""
    reductions: int = 0
    """How often the plateau schedule has lowered the learning rate."""
    validation_due: bool = False
    """Whether the run was stopped in the middle of the validation of this step."""
    skipped: int = 0
    """Consecutive groups of batches without an update because fp16 overflowed."""


@dataclass(frozen=True)
class StepReport:
    """What one update did."""

    step: int
    loss: float
    """Mean smoothed cross entropy per target token, in nats."""
    nll: float
    """The same without smoothing: perplexity is its exponential."""
    tokens: int
    seconds: float
    learning_rate: float
    gradient_norm: float
    is_split: bool = False
    """Whether the batches did not fit in memory, and were computed in halves."""


class Hooks(Protocol):
    """What the trainer tells and asks the outside."""

    def on_step(self, report: StepReport) -> None:
        """After every update."""

    def validate(self, step: int) -> float | None:
        """Measure the model, higher is better; None if it was told to stop before the end."""

    def save(self, step: int, is_best: bool) -> None:
        """Write a checkpoint."""

    def should_stop(self) -> bool:
        """Whether somebody wants the run to end after this update."""


class Trainer:
    """Updates a model until a number of steps, or until it no longer improves.

    Args:
        accumulate: batches per update; their gradients are those of one large batch.
        clip_norm: longest gradient; None does not clip.
        patience: validations without improvement before training ends; None never ends it.
        plateau_patience: the same before the plateau schedule lowers the learning rate.
        max_skipped: consecutive updates that fp16 may skip for overflow.
        ema_decay: of the running average of the weights, with which the model is validated and
            saved; None: there is none.
    """

    def __init__(
        self,
        model: Seq2Seq,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        batches: Batches,
        *,
        device: torch.device,
        precision: Precision,
        label_smoothing: float,
        accumulate: int,
        clip_norm: float | None,
        validate_every: int,
        patience: int | None,
        plateau_patience: int,
        max_skipped: int,
        ema_decay: float | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.batches = batches
        self.device = device
        self.precision = precision
        self.label_smoothing = label_smoothing
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.validate_every = validate_every
        self.patience = patience
        self.plateau_patience = plateau_patience
        self.max_skipped = max_skipped
        self.average = None if ema_decay is None else WeightAverage(model, ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.progress = Progress()
        if device.type == "cpu":
            compiled.load()

    def state_dict(self) -> dict[str, Any]:
        """All that, with the weights saved, makes a run go on exactly: bit for bit on the CPU.

        To be called by `Hooks.save` only: with a running average, it is the average that is saved
        as the weights then, and the weights being trained are part of this state.
        """
        return {
            "trained_weights": None if self.average is None else self.average.state_dict(),
            "progress": asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the model has the weights saved with it."""
        trained_weights = state.get("trained_weights")
        if self.average is not None:
            self.average.load_state_dict(trained_weights)
        elif trained_weights is not None:  # of a run that had an average until now
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), trained_weights)
        self.progress = Progress(**state["progress"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_random"][: torch.cuda.device_count()])

    def train(self, max_steps: int, hooks: Hooks) -> str:
        """Train until the end of the run, and say in a few words why it ended.

        Raises:
            TrainingError: if the loss or a gradient is not finite, or memory is not enough even
                for half a batch; the weights are those of the last good update.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model.train()
        progress, stream = self.progress, self._stream()
        if progress.validation_due and not self._validate(hooks):
            return "stopped"
        while progress.step < max_steps:
            if self.patience is not None and progress.bad_validations >= self.patience:
                return f"no improvement in {self.patience} validations"
            group, position = next(stream)
            report = self._update(group)
            progress.epoch, progress.batch = position
            if report is None:
                continue
            progress.step += 1
            progress.tokens += report.tokens
            hooks.on_step(report)
            if progress.step % self.validate_every == 0 or progress.step == max_steps:
                if not self._validate(hooks):
                    return "stopped"
            elif hooks.should_stop():
                self._save(hooks, is_best=False)
                return "stopped"
        return f"{max_steps} steps done"

    def _stream(self) -> Iterator[tuple[list[Batch], tuple[int, int]]]:
        """Groups of batches for one update each, with (epoch, batches done) after them."""
        epoch, start = self.progress.epoch, self.progress.batch
        group: list[Batch] = []
        while True:
            for batch in self.batches.epoch(epoch, start):
                start += 1
                group.append(batch)
                if len(group) == self.accumulate:
                    yield group, (epoch, start)
                    group = []
            epoch, start = epoch + 1, 0

    def rehearse(self) -> bool:
        """Compute the gradient of the largest batch, and say whether it had to be split in two.

        What does not fit in memory is found in the first minute, not in the ninth hour. Nothing
        changes by it: the gradient is thrown away, the random state put back.

        Raises:
            TrainingError: if memory is not enough even for its halves.
        """
        random = torch.get_rng_state()
        on_cuda = self.device.type == "cuda"
        cuda_random = torch.cuda.get_rng_state(self.device) if on_cuda else None
        self.model.train()
        moments = [  # as much as Adam will keep, if it does not do so yet
            torch.empty_like(parameter)
            for parameter in self.model.parameters()
            if not self.optimizer.state
            for _ in range(2)
        ]
        try:
            return self._gradients([self.batches.largest()])[2]
        finally:
            del moments
            self.optimizer.zero_grad(set_to_none=True)
            torch.set_rng_state(random)
            if cuda_random is not None:
                torch.cuda.set_rng_state(cuda_random, self.device)

    def _update(self, group: list[Batch]) -> StepReport | None:
        """One optimizer step on the summed gradient of a group, per target token.

        None if fp16 overflowed, so that there was no step.
        """
        began, step = time.perf_counter(), self.progress.step + 1
        learning_rate = self.schedule.learning_rate(step, self.progress.reductions)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate
        num_tokens = sum(batch.num_tokens for batch in group)
        total, nll, is_split = self._gradients(group)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm or math.inf)
        mean_loss, mean_nll = float(total) / num_tokens, float(nll) / num_tokens
        is_finite = self._guard(step, group, mean_loss, float(norm))
        self.scaler.step(self.optimizer)  # which skips what the guard has let pass
        self.scaler.update()
        if not is_finite:
            return None
        if self.average is not None:
            self.average.update(step)
        return StepReport(
            step,
            mean_loss,
            mean_nll,
            num_tokens,
            time.perf_counter() - began,
            learning_rate,
            float(norm),
            is_split,
        )

    def _gradients(self, group: list[Batch]) -> tuple[Tensor, Tensor, bool]:
        """Leave the gradient of a group in the parameters, and give its losses.

        What does not fit in memory is computed once more in halves, whose gradients add up to the
        same.

        Returns:
            total: smoothed cross entropy, summed over the target tokens.
            nll: the same without smoothing.
            is_split: whether it was computed in halves.

        Raises:
            TrainingError: if the halves do not fit in memory either.
        """
        try:
            return *self._accumulate(group), False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone by now, and with it all that was computed until then.
        free_memory(self.device)
        try:
            return *self._accumulate([half for batch in group for half in batch.halves()]), True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        free_memory(self.device)
        worst = max(group, key=lambda batch: batch.src.numel() + batch.tgt_output.numel())
        raise TrainingError(
            f"step {self.progress.step + 1}: out of memory on {self.device}, also with half of "
            f"the batch of {len(worst.src):,} pairs, {worst.src.size(1):,} source and "
            f"{worst.tgt_output.size(1):,} target positions long ({memory_in_use(self.device)}); "
            "lower training.batch_tokens or data.max_length"
        )

    def _accumulate(self, group: list[Batch]) -> tuple[Tensor, Tensor]:
        """Forward and backward through all batches; losses are sums over target tokens."""
        num_tokens = sum(batch.num_tokens for batch in group)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        nll = torch.zeros((), device=self.device)
        for batch in group:
            batch = batch.to(self.device)
            with self.autocast():
                loss = self.model.loss(
                    batch.src,
                    batch.src_mask,
                    batch.tgt_input,
                    batch.tgt_output,
                    batch.tgt_mask,
                    self.label_smoothing,
                )
            torch.autograd.backward(self.scaler.scale(loss.total / num_tokens))
            total += loss.total.detach()
            nll += loss.negative_log_likelihood
        return total, nll

    def _guard(self, step: int, group: list[Batch], loss: float, norm: float) -> bool:
        """Let nothing that is not finite reach the weights; say whether all is finite.

        With fp16 an infinite gradient is an overflow: the scaler skips the update and lowers
        its scale, which may happen a few times in a row.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.progress.skipped = 0
            return True
        if self.precision == "fp16" and math.isfinite(loss):
            self.progress.skipped += 1
            if self.progress.skipped <= self.max_skipped:
                return False
            raise TrainingError(
                f"step {step}: more than {self.max_skipped} updates in a row overflowed fp16; "
                "use training.precision bf16 or fp32"
            )
        lines = sorted({line for batch in group for line in batch.lines})
        shown = ", ".join(map(str, lines[:20])) + (", …" if len(lines) > 20 else "")
        what = "the gradient" if math.isfinite(loss) else "the loss"
        raise TrainingError(
            f"step {step}: {what} is not finite (loss {loss}, gradient norm {norm}) on training "
            f"lines {shown}; nothing of it was saved; look at these lines, or lower "
            "training.learning_rate and continue with --resume"
        )

    def _validate(self, hooks: Hooks) -> bool:
        """Validate, keep count and save; say whether to go on."""
        progress = self.progress
        self.model.eval()
        with self._averaged():
            score = hooks.validate(progress.step)
        self.model.train()
        progress.validation_due = score is None
        if score is None:
            self._save(hooks, is_best=False)
            return False
        is_best = math.isfinite(score) and (
            progress.best_score is None or score > progress.best_score
        )
        if is_best:
            progress.best_score, progress.best_step = score, progress.step
            progress.bad_validations = 0
        else:
            progress.bad_validations += 1
            if progress.bad_validations % self.plateau_patience == 0:
                progress.reductions += 1
        self._save(hooks, is_best)
        return not hooks.should_stop()

    def _save(self, hooks: Hooks, is_best: bool) -> None:
        with self._averaged():
            hooks.save(self.progress.step, is_best)

    def _averaged(self) -> AbstractContextManager[None]:
        """Where the model has the averaged weights, if there are such."""
        return nullcontext() if self.average is None else self.average.in_model()

    def autocast(self) -> AbstractContextManager[Any]:
        """Run products in the chosen precision; softmax and sums are always fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])
