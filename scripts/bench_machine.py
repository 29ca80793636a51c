"""The peak of the machine: matrix products and copies, as torch does them.

`fp32` is the product that torch comes with; `fp32-onednn` the one that `nmt.model.onednn` puts in
its place where that is faster.
"""

import contextlib
from collections.abc import Callable

import torch
from bench_flops import Shape
from bench_setup import Bench
from torch import Tensor

from nmt.model.onednn import product, suits_processor, torch_products

DTYPES = {
    "fp32": torch.float32,
    "fp32-onednn": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
DECODED_SENTENCES = 64


def gemm_precisions(device: torch.device) -> tuple[str, ...]:
    """The number formats whose peak is measured."""
    if device.type == "cpu":
        return ("fp32", *["fp32-onednn"] * suits_processor(), "bf16", "int8")
    return ("fp32", "tf32", "bf16", "fp16", "int8")


def gemm_flops(bench: Bench) -> dict[str, float]:
    """Operations per second of large products in each format: the best of several sizes."""
    found = {}
    for precision in gemm_precisions(bench.device):
        sizes = bench.effort.gemm_sizes
        found[precision] = max(product_flops(bench, precision, n, n, n) for n in sizes)
        bench.say(f"GEMM {precision}: {found[precision] / 1e9:,.0f} GFLOP/s")
    return found


def step_gemm_flops(bench: Bench, shape: Shape) -> dict[str, float]:
    """The same of the product in one decoder step: (64 x H) to all gates and the query."""
    width = shape.num_gates * shape.hidden_dim + shape.key_dim
    return {
        precision: product_flops(bench, precision, DECODED_SENTENCES, shape.hidden_dim, width)
        for precision in gemm_precisions(bench.device)
    }


def product_flops(bench: Bench, precision: str, rows: int, inner: int, columns: int) -> float:
    """Operations per second of (rows x inner) times (columns x inner) transposed."""
    product = _product(bench.device, precision, rows, inner, columns)
    flops = 2 * rows * inner * columns
    calls = max(1, round(2e9 / flops) if bench.device.type == "cpu" else round(1e11 / flops))
    calls = min(calls, 1000)

    def work() -> None:
        for _ in range(calls):
            product()

    matmul = torch.backends.cuda.matmul
    old, matmul.fp32_precision = matmul.fp32_precision, "tf32" if precision == "tf32" else "ieee"
    try:
        with torch_products() if precision == "fp32" else contextlib.nullcontext():
            return flops * calls / bench.median(work, max(bench.effort.repeats, 5))
    finally:
        matmul.fp32_precision = old


def _product(
    device: torch.device, precision: str, rows: int, inner: int, columns: int
) -> Callable[[], Tensor]:
    torch.manual_seed(1)
    if precision == "int8":
        left = torch.randint(-127, 128, (rows, inner), dtype=torch.int8, device=device)
        right = torch.randint(-127, 128, (columns, inner), dtype=torch.int8, device=device)
        return lambda: torch._int_mm(left, right.t())
    left = torch.randn(rows, inner, dtype=DTYPES[precision], device=device)
    right = torch.randn(columns, inner, dtype=DTYPES[precision], device=device)
    if precision == "fp32-onednn":
        return lambda: product(left, right.t())
    return lambda: torch.nn.functional.linear(left, right)


def copy_bandwidth(bench: Bench) -> float:
    """Bytes per second of a large copy, read and written bytes together."""
    source = torch.ones(bench.effort.copied_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.median(lambda: target.copy_(source), max(bench.effort.repeats, 5))
    bench.say(f"copy: {2 * len(source) / seconds / 1e9:,.1f} GB/s")
    return 2 * len(source) / seconds
