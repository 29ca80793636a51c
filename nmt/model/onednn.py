"""Matrix products in fp32 on AMD processors.

torch multiplies fp32 matrices on the CPU with MKL, which gives processors that are not Intel's its
kernels of half the vector width. oneDNN, which torch has too and multiplies bf16 with, uses all of
it: 2.2 times as fast on Zen 5. So on an AMD processor with AVX-512 `use_onednn` gives the products
of this process to oneDNN, those inside of torch's own recurrent layers included. Both round to
fp32; only the order of the sums differs.
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
    is_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_avx512 and is_there and _is_amd()


@contextlib.contextmanager
def torch_products() -> Iterator[None]:
    """Multiply as torch does by itself meanwhile, to compare with."""
    global _enabled
    _enabled = False
    try:
        yield
    finally:
        _enabled = True


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
