"""Loops compiled by Numba: when they are used, and how they run.

The kernels (`nmt.model.kernels`) calculate in fp32 on a CPU; what they read and write may be stored
as bf16. Everything else, fp64 above all, and everything if Numba cannot be imported, is left to
torch's operations, which say the same in more passes. It takes half a second to load kernels, so
training does it, and the search of a long text; then everybody uses them.

A kernel runs in the threads that torch's operations run in: each thread of a team of GNU's OpenMP,
with which torch is built on Linux, does its share of the rows. Threads of its own would fight
torch's for the cores, since those wait by spinning. Where torch has another OpenMP, a kernel runs
in one thread.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16)
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.int32: 2}
"""The types of operands, as kernels know them (`nmt.model.kernels.language`)."""
_enabled = True


def suits(*tensors: Tensor | None) -> bool:
    """Whether kernels are loaded and can read these, in fp32, bf16 or int32 on a CPU."""
    return (
        _enabled
        and is_loaded()
        and all(x is None or (x.device.type == "cpu" and x.dtype in _CODES) for x in tensors)
    )


def load() -> bool:
    """Load the kernels, and say whether they are there.

    Numba may not be installable yet for a new version of Python or of NumPy.
    """
    try:
        from nmt.model import kernels  # noqa: F401
    except ImportError:
        return False
    return True


def load_for_search() -> None:
    """Get all that a search runs ready, for this process and those it will fork."""
    if load():
        from nmt.model import kernels

        for kernel in kernels.OF_SEARCH:
            _ = kernel.address


def is_loaded() -> bool:
    """Whether the kernels have been loaded."""
    return "nmt.model.kernels" in sys.modules


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Calculate with torch's operations meanwhile, to compare with."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


class Each(NamedTuple):
    """An operand that is another one at each step."""

    tensor: Tensor
    """Its first axis is the steps."""


Operand = Tensor | Each | None
"""What a kernel reads or writes: fp32, bf16 or int32, its last axis contiguous; None, where it
shall do without. The axes before the last are at most two, and say which row it is."""


class Kernel:
    """A loop over rows, to be compiled.

    It is compiled when it is needed for the first time, in about a second, and kept on disk.

    Args:
        body: what each thread runs, given the address of a task (`nmt.model.kernels`).
        options: how it is compiled.
        language: the file of what it is written in.
        types: of some operands, by number, the types that they may have; all others are fp32.
    """

    def __init__(
        self,
        body: Callable[[Any], None],
        options: dict[str, Any],
        language: Path,
        types: Mapping[int, tuple[torch.dtype, ...]],
    ) -> None:
        functools.update_wrapper(self, body)
        self.body, self.options, self.language, self.types = body, options, language, types
        self.num_runs = 0

    def bind(self, num_rows: int, *operands: Operand) -> Callable[[int], None]:
        """A function that runs it over all rows, given the number of the step.

        It is cheap to call, and keeps the operands alive.
        """
        words = [num_rows, 0]
        for k, operand in enumerate(operands):
            words += _words(operand, self.types.get(k, FLOATS[:1]))
        task = (ctypes.c_int64 * len(words))(*words)
        threads = min(num_rows, torch.get_num_threads())
        team = _team() if threads > 1 else None
        if team is None:
            entry, address = self.alone, ctypes.addressof(task)
        else:
            entry, fork = self.address, team.GOMP_parallel

        def run(step: int = 0) -> None:
            self.num_runs += 1
            task[1] = step
            if team is None:
                entry(address)
            else:
                fork(entry, task, threads, 0)

        run.operands = operands  # type: ignore[attr-defined]
        return run

    def __call__(self, num_rows: int, *operands: Operand) -> None:
        """Run it once over all rows."""
        self.bind(num_rows, *operands)(0)

    @functools.cached_property
    def alone(self) -> Any:
        """The compiled function, which takes the address of a task."""
        return self._compiled.ctypes

    @functools.cached_property
    def address(self) -> ctypes.c_void_p:
        """Where the compiled function is."""
        return ctypes.c_void_p(self._compiled.address)

    @functools.cached_property
    def _compiled(self) -> Any:
        import numba

        _name_thread_functions()
        # What is kept on disk is found by name, and compiled anew if the file of the body changes;
        # if that of the language does, the name changes.
        digest = hashlib.sha256(self.language.read_bytes()).hexdigest()[:16]
        self.body.__qualname__ = f"{self.body.__name__}_{digest}"
        signature = numba.void(numba.types.voidptr)
        try:
            return numba.cfunc(signature, cache=True, **self.options)(self.body)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
            return numba.cfunc(signature, **self.options)(self.body)  # nowhere to keep it


def _words(operand: Operand, readable: tuple[torch.dtype, ...]) -> tuple[int, ...]:
    """What a task says of an operand: see `nmt.model.kernels.language`."""
    if operand is None:
        return 0, 0, 0, 0, 0, 0, 0
    is_each = isinstance(operand, Each)
    tensor = operand.tensor if isinstance(operand, Each) else operand
    if tensor.dtype not in readable or tensor.device.type != "cpu":
        raise TypeError(f"a kernel cannot read {tensor.dtype} on {tensor.device}")
    shape, strides, width = tensor.shape, tensor.stride(), tensor.element_size()
    if strides[-1] != 1 and shape[-1] > 1:
        raise ValueError("the last axis of an operand of a kernel must be contiguous")
    step = strides[0] * width if is_each else 0
    shape, strides = shape[is_each:], strides[is_each:]
    first, second = (*(stride * width for stride in strides[:-1]), 0, 0)[:2]
    count = shape[1] if len(shape) == 3 else 1
    code = _CODES[tensor.dtype]
    return tensor.data_ptr(), step, first, second, shape[-1], code, count


@functools.cache
def _team() -> Any:
    """GNU's OpenMP, if it is in this process; torch's is then."""
    try:
        return ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except (OSError, AttributeError):  # another OpenMP; not Linux
        return None


_ALONE = ctypes.CFUNCTYPE(ctypes.c_int32)
_number_alone, _count_alone = _ALONE(lambda: 0), _ALONE(lambda: 1)


@functools.cache
def _name_thread_functions() -> None:
    """Tell the compiler where the functions are that kernels know by name."""
    from llvmlite import binding

    team = _team()
    number = team.omp_get_thread_num if team else _number_alone
    count = team.omp_get_num_threads if team else _count_alone
    for name, function in (("nmt_thread_number", number), ("nmt_num_threads", count)):
        address = ctypes.cast(function, ctypes.c_void_p).value
        binding.add_symbol(name, address)
