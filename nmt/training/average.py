"""A running average of the weights (Polyak and Juditsky 1992), which is often the better model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a model's weights.

    After update t the average moves towards the weights by 1 - d, where d is the smaller of
    `decay` and (1 + t) / (10 + t), so that the first, random weights are forgotten soon.

    Args:
        decay: share of the average that each update leaves of it; 0.999 averages over about the
            last 1,000 updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = [parameter.detach() for parameter in model.parameters()]
        self._average = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Meanwhile the model has the averaged weights, and this object those being trained."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> list[Tensor]:
        """What the model does not have: outside of `in_model` the average, inside the weights."""
        return self._average

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor] | None) -> None:
        """Take what `state_dict` gave inside of `in_model`; the model has the average by now.

        None lets the average begin with the weights that the model has.
        """
        torch._foreach_copy_(self._average, self._weights if state is None else state)
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        kept = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        torch._foreach_copy_(self._average, kept)
