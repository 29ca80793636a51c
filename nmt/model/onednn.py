"""Matrix products with oneDNN: fp32 on AMD processors, and weights that are packed beforehand.

torch multiplies fp32 matrices on the CPU with MKL, which gives processors that are not Intel's its
kernels of half the vector width. oneDNN, which torch has too and multiplies bf16 with, uses all of
it: 2.2 times as fast on Zen 5. So on an AMD processor with AVX-512 `use_onednn` gives the products
of this process to oneDNN, those inside of torch's own recurrent layers included. Both round to
fp32; only the order of the sums differs.

oneDNN reads the weight of a product in an order of its own. Given a plain matrix, it reorders it
each time; a weight that never changes is better packed once: 1.2 times as fast for 80 rows, twice
for 5. `pack` does so for what oneDNN multiplies (`multiplies` says what that is).
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PRODUCTS = ("mm", "mm.out", "addmm", "addmm.out", "addmm_")
_SMALLEST = 1 << 21
"""Multiplications in a product that is worth the 10 microseconds that this detour costs."""

SMALLEST_MODEL = 2_000_000
"""Parameters of a model whose products are mostly worth it."""

SMALLEST_PACKED = 1 << 17
"""Numbers of a weight that is worth packing: `linear` then costs 10 microseconds more to call."""

_enabled = True


def use_onednn(model: nn.Module) -> bool:
    """Multiply fp32 matrices with oneDNN from now on, if that makes a model faster; say whether."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if size < SMALLEST_MODEL or not suits_processor():
        return False
    replace_products()
    return True


@functools.cache
def suits_processor() -> bool:
    """Whether oneDNN is faster than torch's own products here."""
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return has_avx512 and _is_available() and _is_amd()


@contextlib.contextmanager
def torch_products() -> Iterator[None]:
    """Multiply as torch does by itself meanwhile, to compare with."""
    global _enabled
    _enabled = False
    try:
        yield
    finally:
        _enabled = True


def multiplies(matrix: Tensor) -> bool:
    """Whether oneDNN multiplies matrices of this kind in this process, so that they may be packed.

    It does so with bf16 where the processor can, and with fp32 where `use_onednn` has said so.
    """
    if matrix.device.type != "cpu" or not _is_available():
        return False
    if matrix.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return matrix.dtype == torch.float32 and _enabled and replace_products.cache_info().currsize > 0


def pack(weight: Tensor) -> Tensor:
    """Put an (out, in) weight into oneDNN's own order, for `linear` only; `to_dense` undoes it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map (..., in) to (..., out) as torch's `linear` does; the weight may be packed."""
    if not weight.is_mkldnn:
        return nn.functional.linear(inputs, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return result


def _is_available() -> bool:
    return torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


@functools.cache
def replace_products() -> torch.library.Library:
    """Register the products of this module as torch's, for this process; at most once."""
    torch_own = {name: torch.library.get_kernel(f"aten::{name}", "CPU") for name in _PRODUCTS}

    def own(name: str) -> Callable[..., Tensor]:
        return torch_own[name].call_boxed

    def mm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        return product(a, b) if _is_worth(a, b) else own("mm")(keys, a, b)

    def mm_out(keys: Any, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        if _is_worth(a, b) and out.shape == (len(a), b.size(1)):
            return out.copy_(product(a, b))
        return own("mm.out")(keys, a, b, out=out)

    def addmm(
        keys: Any, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        if _is_worth(a, b, beta, alpha) and c.dtype == torch.float32:
            return _sum(c, a, b)
        return own("addmm")(keys, c, a, b, beta=beta, alpha=alpha)

    def addmm_out(
        keys: Any,
        c: Tensor,
        a: Tensor,
        b: Tensor,
        *,
        beta: float = 1,
        alpha: float = 1,
        out: Tensor,
    ) -> Tensor:
        if _is_worth(a, b, beta, alpha) and out.shape == (len(a), b.size(1)):
            return out.copy_(_sum(c, a, b))
        return own("addmm.out")(keys, c, a, b, beta=beta, alpha=alpha, out=out)

    def addmm_(
        keys: Any, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        if _is_worth(a, b, beta, alpha) and c.shape == (len(a), b.size(1)):
            return c.add_(product(a, b))
        return own("addmm_")(keys, c, a, b, beta=beta, alpha=alpha)

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a kernel is replaced
        for name, kernel in zip(_PRODUCTS, (mm, mm_out, addmm, addmm_out, addmm_), strict=True):
            library.impl(  # type: ignore[no-untyped-call]
                name, kernel, "CPU", with_keyset=True, allow_override=True
            )
    return library


def _is_worth(a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> bool:
    return (
        a.dtype is torch.float32
        and b.dtype is torch.float32
        and a.numel() * b.size(1) >= _SMALLEST
        and a.size(1) == b.size(0)  # else torch says what is wrong
        and beta == alpha == 1
        and _enabled
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (N, K) and (K, M), and add (M,): (N, M)."""
    weight = b.t()
    if not weight.is_contiguous() and not b.is_contiguous():
        weight = weight.contiguous()  # oneDNN has no fast kernel for slices of a matrix
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")
    return result


def _sum(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Multiply (N, K) and (K, M), and add what broadcasts to (N, M)."""
    if c.dim() == 1 and c.is_contiguous() and len(c) == b.size(1):
        return product(a, b, bias=c)
    return product(a, b).add_(c)
