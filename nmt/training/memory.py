"""Memory of freed tensors, kept for the next step."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_BLOCK = 1 << 25  # the most that glibc allows
LARGEST_REST = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Ask the C library not to give freed memory back to the system, and say whether it will not.

    Every training step allocates the same large tensors. Given back in between, each of their
    pages would be cleared by the system again, which costs more than many an operation on it.
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
