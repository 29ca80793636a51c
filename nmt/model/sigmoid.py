"""The sigmoid of all sums of two sets of numbers, without an exponential for each of them.

sigmoid(q + k) = 1 / (1 + e^-q e^-k): the exponentials of the queries and of the keys of an additive
score are made once each, so that every pair takes a product and a reciprocal.
"""

import torch
from torch import Tensor

LARGEST = 86.0
"""e^86 and e^-86 are within the range of fp32. Where a product of two is not, it is infinite or 0,
and the sigmoid rightly 0 or 1."""


def factors(x: Tensor) -> Tensor | None:
    """e^-x; None where that is out of range, or does not pay, as on a GPU."""
    if x.device.type != "cpu" or not x.abs().amax() <= LARGEST:
        return None
    return torch.exp(-x)


def sigmoid_of_sum(queries: Tensor, keys: Tensor) -> Tensor:
    """sigmoid(q + k) from the factors of queries and keys, which broadcast."""
    return torch.addcmul(queries.new_ones(()), queries, keys).reciprocal_()
