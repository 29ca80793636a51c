"""The learning rate as a pure function of the step: nothing of it needs to be saved."""

from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "inverse_sqrt", "linear", "plateau"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each update.

    All shapes rise linearly over the first `warmup_steps`. Then

        constant      stays
        inverse_sqrt  falls with 1 / sqrt(step)  (Vaswani et al. 2017, section 5.3)
        linear        falls linearly to 0, just after `max_steps`
        plateau       stays, and is multiplied by `plateau_factor` at each reduction

    Attributes:
        peak: the highest rate.
    """

    shape: Shape
    peak: float
    warmup_steps: int
    max_steps: int
    plateau_factor: float = 0.5

    def learning_rate(self, step: int, reductions: int = 0) -> float:
        """The rate of a 1-based update.

        Args:
            reductions: how often validation has stopped improving so far (plateau only).
        """
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.shape == "inverse_sqrt":
            return self.peak * (self.warmup_steps / step) ** 0.5
        if self.shape == "linear":
            left = self.max_steps + 1 - step
            return self.peak * max(left, 0) / (self.max_steps + 1 - self.warmup_steps)
        if self.shape == "plateau":
            return self.peak * self.plateau_factor**reductions
        return self.peak
