"""Memory: what it means to run out of it, how much there is, and what is kept for the next step."""

import ctypes
import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

SIGNS = (
    "DefaultCPUAllocator",  # torch on the CPU, whose error has no class of its own
    "not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What a RuntimeError says when memory was not enough."""

ONEDNN_SIGNS = {
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
}
"""All that oneDNN says then. Where it lacks an operation it names it, and says more."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_BLOCK = 1 << 25  # the most that glibc allows
LARGEST_REST = (1 << 31) - 1

MEBIBYTE = 2**20


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the machine was not enough.

    Leave the `except` block before you try anything smaller: until then the error's traceback
    keeps every tensor alive that was there when it was raised.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        message in ONEDNN_SIGNS or any(sign in message for sign in SIGNS)
    )


def free_memory(device: torch.device) -> None:
    """Give back what only garbage holds, and what torch keeps of a GPU for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_in_use(device: torch.device) -> str:
    """How much memory this process uses and how much there is, for a message."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
        return (
            f"{ours // MEBIBYTE} of the GPU's {total // MEBIBYTE} MiB are in use here, "
            f"{free // MEBIBYTE} MiB are free"
        )
    used = peak_memory()
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{used // MEBIBYTE} of the machine's {total // MEBIBYTE} MiB are in use here"
    if (may_have := machine_memory()) < total:
        text += f", and the process may have {may_have // MEBIBYTE} MiB"
    return text


def peak_memory() -> int:
    """The most bytes of memory that this process has had until now."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, else KiB


def machine_memory() -> int:
    """Bytes of memory of the machine, or fewer if the container or the process may not have all."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip()
        total = min(total, int(limit)) if limit.isdecimal() else total
    limit_here, _ = resource.getrlimit(resource.RLIMIT_AS)
    return total if limit_here == resource.RLIM_INFINITY else min(total, limit_here)


def keep_freed_memory() -> bool:
    """Ask the C library not to give freed memory back to the system, and say whether it will not.

    Every step of training and of search allocates the same large tensors. Given back in between,
    each of their pages would be cleared again by the system, which costs more than many an
    operation on it.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(M_TRIM_THRESHOLD, LARGEST_REST)
    )
