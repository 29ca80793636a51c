"""Products with fixed weights, for translating: in a float type, or in 8-bit integers.

Whatever type a product is computed in, it reads and gives the type of the states around it, so
that softmax, gates and states stay in fp32 and only the large sums of products are rounded.
"""

from abc import ABC, abstractmethod
from copy import copy

import torch
from torch import Tensor

from nmt.model import onednn

INT8_MAX = 127


class Product(ABC):
    """y = W x + b for the rows x of a matrix."""

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """Map (..., in) to (..., out); (N, in) to (N, out) with int8."""

    @abstractmethod
    def rows(self, chosen: Tensor) -> "Product":
        """The product that gives the (C,) chosen components of y only."""


class FloatProduct(Product):
    """A product in one float type.

    Args:
        weight: (out, in).
        bias: (out,), or None for 0.
        compute: the type of the factors.
        result: the type of y.
        is_whole: whether y is wanted whole, and not only `rows` of it; a weight of which rows are
            taken again and again is not packed.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        compute: torch.dtype,
        result: torch.dtype,
        is_whole: bool = True,
    ) -> None:
        weight = weight.detach().to(compute).contiguous()
        is_packed = (
            is_whole and weight.numel() >= onednn.SMALLEST_PACKED and onednn.multiplies(weight)
        )
        self.weight = onednn.pack(weight) if is_packed else weight
        self.bias = None if bias is None else bias.detach().to(compute)
        self.result = result

    def __call__(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.weight.dtype)
        return onednn.linear(inputs, self.weight, self.bias).to(self.result)

    def rows(self, chosen: Tensor) -> "FloatProduct":
        product = copy(self)
        weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        product.weight = weight[chosen]
        product.bias = None if self.bias is None else self.bias[chosen]
        return product


class Int8Product(Product):
    """A product of 8-bit integers, summed in 32 bits.

    Each row of W is scaled so that its largest magnitude becomes 127. What a step of a decoder
    multiplies has passed a tanh, so in x the 127 stand for 1. The scales depend on weights alone,
    and a result never on what else is in the batch.

    Args:
        weight: (out, in) for x within -1 and 1.
        bias: (out,), or None for 0.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        smallest = torch.finfo(weight.dtype).tiny  # also of a row of zeros
        unit = weight.abs().amax(1, keepdim=True).div_(INT8_MAX).clamp_min_(smallest)
        self.weight = (weight / unit).round_().to(torch.int8)
        self.scale = unit.squeeze(1) / INT8_MAX  # (out,) what 1 is worth in a sum
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, inputs: Tensor) -> Tensor:
        integers = (inputs * INT8_MAX).round_().to(torch.int8)
        outputs = torch._int_mm(integers, self.weight.t()).float().mul_(self.scale)
        return outputs if self.bias is None else outputs.add_(self.bias)

    def rows(self, chosen: Tensor) -> "Int8Product":
        product = copy(self)
        product.weight, product.scale = self.weight[chosen], self.scale[chosen]
        product.bias = None if self.bias is None else self.bias[chosen]
        return product
