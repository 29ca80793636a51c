"""Freed memory is kept where the C library can be asked to."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, resource
from nmt.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.malloc.argtypes = [ctypes.c_size_t]
size = 16 << 20
def use():
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_cleared_once_and_not_at_every_step():
    pages = 10 * (16 << 20) // 4096

    def faults(keep):
        command = [sys.executable, "-c", CODE.format(keep=keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < 0.1 * pages
