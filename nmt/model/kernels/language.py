"""What kernels are written in: numbers, and the rows of their operands.

What a kernel reads and writes are *operands*: tensors of fp32, or of bf16, which is only how
numbers are stored, or of int32. `floats(task, k, i, j)` is row (i, j) of operand k at the step at
hand.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from nmt.model.compiled import FLOATS, Kernel

OPTIONS: dict[str, Any] = {
    # Sums in any order, a product and a sum in one instruction, reciprocals by Newton's method. Not
    # "nnan" and "ninf": nan stays nan, or nothing would tell that training has failed, and what is
    # impossible has a log-probability of -inf.
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    "error_model": "numpy",
}
HEADER, OPERAND = 2, 7
"""Words of a task: the number of rows, the step; then of each operand its address, the bytes from
step to step and from row to row on both axes, the size of a row, the type of a number, and how many
rows the second axis has."""
LOW, WHOLE = 1, 2
"""The types bf16 and int32; 0 is fp32."""
ZERO, HALF, ONE, TWO = (np.float32(x) for x in (0.0, 0.5, 1.0, 2.0))


def kernel(
    *low: int, sums: tuple[int, ...] = (), whole: tuple[int, ...] = ()
) -> Callable[[Callable[[Any], None]], Kernel]:
    """Make a kernel of a function of the address of a task.

    Args:
        low: the operands that may be bf16 or fp32.
        sums: those that may also be int32.
        whole: those that are int32.
    """
    types: dict[int, tuple[torch.dtype, ...]] = {k: FLOATS for k in low}
    types |= {k: (*FLOATS, torch.int32) for k in sums}
    types |= {k: (torch.int32,) for k in whole}
    return partial(Kernel, options=OPTIONS, language=Path(__file__), types=types)


thread_number = types.ExternalFunction("nmt_thread_number", types.int32())
num_threads = types.ExternalFunction("nmt_num_threads", types.int32())


# ------------------------------------------------------------------------------ numbers and rows


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _bits_of_float(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@njit(**OPTIONS)
def exp(x: Any) -> Any:
    """e^x for x within -80 and 80; beyond, that of the nearer end; nan stays nan."""
    low, high = np.float32(-80.0), np.float32(80.0)
    x = low if x < low else high if x > high else x
    n = np.floor(x * np.float32(1.44269504) + HALF)  # e^x = 2^n e^r
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)  # Cephes' polynomial
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + ONE
    return p * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@njit(**OPTIONS)
def sigmoid(x: Any) -> Any:
    """The logistic function."""
    return ONE / (ONE + exp(-x))


@njit(**OPTIONS)
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return TWO * sigmoid(TWO * x) - ONE


@njit(**OPTIONS)
def wide(low: Any) -> Any:
    """The fp32 number of a bf16 one."""
    return _float_of_bits(np.int32(low) << np.int32(16))


@njit(**OPTIONS)
def narrow(x: Any) -> Any:
    """The nearest bf16 number, of two equally near the even one; nan stays nan."""
    bits = _bits_of_float(x)
    rounded = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    return np.uint16(rounded if x == x else np.int32(0x7FC0))


@njit(**OPTIONS)
def words_of(address: Any) -> Any:
    """The words of a task, as many as its operands need."""
    return carray(address, (HEADER + 32 * OPERAND,), np.int64)


@njit(**OPTIONS)
def share(task: Any) -> tuple[Any, Any]:
    """The rows of this thread: first, and one beyond the last."""
    number, count = np.int64(thread_number()), np.int64(num_threads())
    return task[0] * number // count, task[0] * (number + 1) // count


@njit(**OPTIONS)
def size(task: Any, k: Any) -> Any:
    """Numbers in a row of operand k; 0 where there is no operand."""
    return task[HEADER + OPERAND * k + 4]


@njit(**OPTIONS)
def is_low(task: Any, k: Any) -> Any:
    """Whether operand k is bf16."""
    return task[HEADER + OPERAND * k + 5] == LOW


@njit(**OPTIONS)
def is_whole(task: Any, k: Any) -> Any:
    """Whether operand k is int32."""
    return task[HEADER + OPERAND * k + 5] == WHOLE


@njit(**OPTIONS)
def count(task: Any, k: Any) -> Any:
    """Rows (i, j) of operand k for each i."""
    return task[HEADER + OPERAND * k + 6]


@njit(**OPTIONS)
def _address(task: Any, k: Any, i: Any, j: Any) -> Any:
    start = HEADER + OPERAND * k
    step = task[1] * task[start + 1]
    return _pointer(task[start] + step + i * task[start + 2] + j * task[start + 3])


@njit(**OPTIONS)
def floats(task: Any, k: Any, i: Any, j: Any = 0) -> Any:
    """Row (i, j) of operand k, which is fp32."""
    return carray(_address(task, k, i, j), (size(task, k),), np.float32)


@njit(**OPTIONS)
def halves(task: Any, k: Any, i: Any, j: Any = 0) -> Any:
    """Row (i, j) of operand k, which is bf16."""
    return carray(_address(task, k, i, j), (size(task, k),), np.uint16)


@njit(**OPTIONS)
def integers(task: Any, k: Any, i: Any, j: Any = 0) -> Any:
    """Row (i, j) of operand k, which is int32."""
    return carray(_address(task, k, i, j), (size(task, k),), np.int32)


@njit(**OPTIONS)
def load(task: Any, k: Any, i: Any, j: Any, into: Any) -> None:
    """Read row (i, j) of operand k."""
    if is_low(task, k):
        low = halves(task, k, i, j)
        for a in range(low.size):
            into[a] = wide(low[a])
    else:
        row = floats(task, k, i, j)
        for a in range(row.size):
            into[a] = row[a]


@njit(**OPTIONS)
def add(task: Any, k: Any, i: Any, to: Any, j: Any = 0) -> None:
    """Add row (i, j) of operand k, if there is such an operand."""
    if is_low(task, k):
        low = halves(task, k, i, j)
        for a in range(low.size):
            to[a] += wide(low[a])
    else:
        row = floats(task, k, i, j)
        for a in range(row.size):
            to[a] += row[a]


@njit(**OPTIONS)
def store(task: Any, k: Any, i: Any, j: Any, row: Any) -> None:
    """Write row (i, j) of operand k, if there is such an operand."""
    if is_low(task, k):
        low = halves(task, k, i, j)
        for a in range(low.size):
            low[a] = narrow(row[a])
    else:
        out = floats(task, k, i, j)
        for a in range(out.size):
            out[a] = row[a]


@njit(**OPTIONS)
def load_sums(task: Any, k: Any, i: Any, j: Any, into: Any) -> None:
    """Read row (i, j) of a product whose numbers, scale and bias are operands k, k + 1, k + 2.

    The last two may be missing.
    """
    if is_whole(task, k):
        numbers, scale = integers(task, k, i, j), floats(task, k + 1, 0)
        for a in range(numbers.size):
            into[a] = np.float32(numbers[a]) * scale[a]
    else:
        load(task, k, i, j, into)
    add(task, k + 2, 0, into)
