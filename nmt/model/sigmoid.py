"""Additive scores without an exponential for every pair of a query and a key.

An additive score is a sum of v sigmoid(q + k) over the numbers q of a query, those k of a key, and
those v of the energy (`nmt.model.folded` says why a sigmoid). With the energy drawn into the
denominator,

    v sigmoid(q + k) = v / (1 + e^-q e^-k) = 1 / (1/v + (e^-q / v) e^-k)

so the exponentials are made once for each query and each key, and every pair takes a product, a
reciprocal and a plain sum. Both terms of the denominator have the sign of v: nothing cancels.

Nothing that leaves the range of numbers does harm. v is divided by the largest magnitude in it, by
which the sum is multiplied in the end. e^-q and e^-k are neither 0 nor infinite (`LARGEST`), so no
infinity meets a 0. If 1/v or e^-q / v is infinite, the term is 0: it rightly is no more than v,
which is then below e^-28, less than a sum is rounded. If only the product with e^-k is infinite,
or 0, the term is 0, or v, as it should be.
"""

import torch
from torch import Tensor

LARGEST = 60.0
"""Of q and k. e^60 divided by e^-28 is the largest number of fp32."""


class Energy:
    """The (A,) energy of an additive score."""

    def __init__(self, energy: Tensor) -> None:
        self.plain = energy
        self.largest = energy.abs().amax().clamp_min(torch.finfo(energy.dtype).tiny)
        self.reciprocal = (energy / self.largest).reciprocal()  # (A,) 1/v

    def scores(self, queries: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
        """Sums of v sigmoid(q + k): (..., A) to (...).

        Args:
            queries: q, which broadcasts with k.
            hidden: (..., A) memory to work in.
        """
        return torch.add(queries, keys, out=hidden).sigmoid_() @ self.plain

    def scores_of_factors(self, queries: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
        """What `scores` gives, from e^-q / v and e^-k."""
        torch.addcmul(self.reciprocal, queries, keys, out=hidden)
        return hidden.reciprocal_().sum(-1).mul_(self.largest)


def factors(x: Tensor) -> Tensor | None:
    """e^-x; None where that is out of range, or does not pay, as on a GPU."""
    if x.device.type != "cpu" or not x.abs().amax() <= LARGEST:
        return None
    return torch.exp(-x)
