"""Products with fixed weights, for translating: in a float type, or in 8-bit integers.

Whatever type a product is computed in, it reads and gives the type of the states around it, so
that softmax, gates and states stay in fp32 and only the large sums of products are rounded.
"""

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nmt.model import onednn

INT8_MAX = 127
TABLE_BYTES = 256 * 2**20  # a larger table of tokens is not made: its rows are computed when needed


class Sums(NamedTuple):
    """What a product is before it is given its type: y = numbers * scale + bias."""

    numbers: Tensor
    """(..., out) of a float type or int32."""
    scale: Tensor | None = None
    """(out,) or None for 1."""
    bias: Tensor | None = None
    """(out,) or None for 0."""

    def to(self, dtype: torch.dtype) -> Tensor:
        """The (..., out) y."""
        y = self.numbers.to(dtype)
        if self.scale is not None and self.bias is not None:
            return torch.addcmul(self.bias, y, self.scale)
        if self.scale is not None:
            return y * self.scale
        return y if self.bias is None else y + self.bias

    def split(self, size: int) -> tuple["Sums", "Sums | None"]:
        """The first components of y, so many, and the others, if there are any."""

        def part(which: slice) -> "Sums":
            scale, bias = (None if x is None else x[which] for x in (self.scale, self.bias))
            return Sums(self.numbers[..., which], scale, bias)

        is_all = self.numbers.size(-1) == size
        return part(slice(size)), None if is_all else part(slice(size, None))


class Product(ABC):
    """y = W x + b for the rows x of a matrix. W and b are copied."""

    result: torch.dtype
    """The type of y."""
    num_outputs: int
    """Components of y."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map (..., in) to (..., out); (N, in) to (N, out) with int8."""
        return self.sums(inputs).to(self.result)

    @abstractmethod
    def sums(self, inputs: Tensor) -> Sums:
        """The same, for those who give it its type themselves."""

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
        weight = weight.detach().to(compute, copy=True).contiguous()
        is_packed = (
            is_whole and weight.numel() >= onednn.SMALLEST_PACKED and onednn.multiplies(weight)
        )
        self.weight = onednn.pack(weight) if is_packed else weight
        self.bias = None if bias is None else bias.detach().to(compute, copy=True)
        self.result, self.num_outputs = result, len(weight)

    def sums(self, inputs: Tensor) -> Sums:
        return Sums(onednn.linear(inputs.to(self.weight.dtype), self.weight, self.bias))

    def rows(self, chosen: Tensor) -> "FloatProduct":
        product = copy(self)
        weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        product.weight = weight[chosen]
        product.bias = None if self.bias is None else self.bias[chosen]
        product.num_outputs = len(chosen)
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

    result = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        smallest = torch.finfo(weight.dtype).tiny  # also of a row of zeros
        unit = weight.abs().amax(1, keepdim=True).div_(INT8_MAX).clamp_min_(smallest)
        self.weight = (weight / unit).round_().to(torch.int8)
        self.scale = unit.squeeze(1) / INT8_MAX  # (out,) what 1 is worth in a sum
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.num_outputs = len(weight)

    def sums(self, inputs: Tensor) -> Sums:
        integers = (inputs * INT8_MAX).round_().to(torch.int8)
        return Sums(torch._int_mm(integers, self.weight.t()), self.scale, self.bias)

    def rows(self, chosen: Tensor) -> "Int8Product":
        product = copy(self)
        product.weight, product.scale = self.weight[chosen], self.scale[chosen]
        product.bias = None if self.bias is None else self.bias[chosen]
        product.num_outputs = len(chosen)
        return product


class TokenProduct:
    """y = W x + b for the embeddings x of tokens: of each token the same, a row of a table.

    The table is made once as many tokens are read as there are.
    """

    def __init__(self, embeddings: Tensor, product: Product) -> None:
        self.embeddings, self.product = embeddings.detach(), product
        self.table: Tensor | None = None
        self.num_read, self.is_settled = 0, False

    def __call__(self, token_ids: Tensor) -> Tensor:
        """What the (N,) tokens give: (N, out)."""
        if not self.is_settled:
            self._count(len(token_ids))
        if self.table is not None:
            return self.table.index_select(0, token_ids)
        return self.product(self.embeddings.index_select(0, token_ids))

    def settle(self, num_tokens: int) -> None:
        """Count the tokens that will be read, and from then on no others."""
        self.is_settled = True
        self._count(num_tokens)

    def _count(self, num_tokens: int) -> None:
        self.num_read += num_tokens
        if self.table is not None or self.num_read < len(self.embeddings):
            return
        size = len(self.embeddings) * self.product.num_outputs * self.product.result.itemsize
        if size <= TABLE_BYTES:
            self.table = self.product(self.embeddings)


@dataclass(frozen=True)
class Precision:
    """In which types a model that is rewritten for search computes."""

    compute: torch.dtype
    """Of the products of each step: a float type or int8."""
    once: torch.dtype
    """Of the products that are done once per model or sentence."""
    result: torch.dtype
    """Of states, softmax, and all results."""

    @classmethod
    def make(cls, compute: torch.dtype | None, weights: torch.dtype) -> "Precision":
        """That of a model with weights of one type; None is the same type."""
        compute = compute or weights
        return cls(compute, type_beside_int8() if compute == torch.int8 else compute, weights)

    def product(
        self, weight: Tensor, bias: Tensor | None = None, *, is_whole: bool = True
    ) -> Product:
        """A product of each step, which reads states: they are within -1 and 1."""
        if self.compute == torch.int8:
            return Int8Product(weight, bias)
        return FloatProduct(
            weight, bias, compute=self.compute, result=self.result, is_whole=is_whole
        )

    def product_once(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        """A product of each sentence, or of the whole model."""
        return FloatProduct(weight, bias, compute=self.once, result=self.result)


def type_beside_int8() -> torch.dtype:
    """The type of what is not worth 8 bits: bf16 where the processor can multiply it."""
    fast = "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if fast else torch.float32
