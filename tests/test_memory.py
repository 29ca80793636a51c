"""Out of memory is recognised, and nothing else is taken for it."""

import re
import resource

import pytest
import torch

from nmt import memory
from nmt.memory import free_memory, is_out_of_memory, machine_memory, memory_in_use

CPU = torch.device("cpu")


def test_torch_on_the_cpu_says_so_in_words_that_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        MemoryError("Unable to allocate 8 EiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't …"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=repr,
)
def test_each_way_to_say_it_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("could not create a primitive descriptor for the matmul primitive. Run …"),
        ValueError("std::bad_alloc"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_nothing_else_is_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_memory_in_use_is_that_of_this_process_and_this_machine():
    def numbers():
        text = memory_in_use(CPU)
        found = re.fullmatch(r"(\d+) of the machine's (\d+) MiB are in use here.*", text)
        return int(found[1]), int(found[2])

    before, total = numbers()
    kept = torch.zeros(2**28, dtype=torch.uint8).fill_(1)  # 256 MiB
    after, _ = numbers()
    assert 200 <= after - before <= 300
    assert after < total
    del kept
    free_memory(CPU)


def test_a_limit_of_the_process_is_named(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**33, 2**33))
    assert memory_in_use(CPU).endswith(", and the process may have 8192 MiB")


def test_a_container_may_have_less_memory_than_the_machine(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", limit)
    total = machine_memory()
    limit.write_text("max\n")
    assert machine_memory() == total
    limit.write_text("1000000\n")
    assert machine_memory() == 1_000_000
