"""When compiled loops are used, what they are given, and where they are kept."""

import ctypes
import gc
import multiprocessing
import subprocess
import sys
import types
import weakref

import numba
import pytest
import torch

from nmt.model import compiled
from nmt.model.compiled import Each, Kernel, suits

ROWS, DIM = 5, 37


@pytest.fixture
def unloaded(monkeypatch):
    """As in a process that has not loaded the kernels."""
    for name in list(sys.modules):
        if name.startswith(("nmt.model.kernels", "nmt.model.compiled_tapes")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nmt.model.kernels", raising=False)
    monkeypatch.delattr("nmt.model.compiled_tapes", raising=False)


def operands_of_join(num_rows=ROWS):
    """What is attended to, its part, and where their sum's tanh goes."""
    torch.manual_seed(0)
    return torch.randn(num_rows, DIM), torch.randn(num_rows, DIM), torch.zeros(num_rows, DIM)


# ------------------------------------------------------------------------------ when they run


def test_kernels_suit_fp32_bf16_and_int32_on_a_cpu(kernels):
    x = torch.zeros(1)
    assert suits(x)
    assert suits(x, x.bfloat16(), x[None], x.int(), None)
    for other in (x.double(), x.half(), x.long(), x.bool(), x.to("meta")):
        assert not suits(other)
        assert not suits(x, other)
        assert not suits(other, x)


def test_kernels_that_are_not_loaded_suit_nothing(unloaded):
    assert not compiled.is_loaded()
    assert not suits(torch.zeros(1))


def test_kernels_can_be_put_aside(kernels):
    x = torch.zeros(1)
    with compiled.torch_only():
        assert not suits(x)
    assert suits(x)
    with pytest.raises(KeyError), compiled.torch_only():
        raise KeyError
    assert suits(x)


def test_kernels_put_aside_twice_stay_so_until_both_are_over(kernels):
    with compiled.torch_only():
        with compiled.torch_only():
            pass
        assert not suits(torch.zeros(1))
    assert suits(torch.zeros(1))


def test_loading_says_whether_numba_is_there(kernels):
    assert compiled.load()
    assert compiled.is_loaded()


def test_without_numba_nothing_is_loaded(unloaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not compiled.load()
    assert not compiled.is_loaded()
    assert not suits(torch.zeros(1))


def test_a_module_of_kernels_that_is_broken_is_an_error(unloaded, monkeypatch):
    monkeypatch.setattr(numba, "njit", None)
    with pytest.raises(TypeError, match="not callable"):
        compiled.load()


def test_importing_the_model_does_not_import_numba():
    code = (
        "import sys, nmt.decoding, nmt.training.trainer, nmt.model.seq2seq\n"
        "assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------------- what they are given


def test_an_operand_of_another_type_is_refused(kernels):
    attended, part, out = operands_of_join()
    for wrong in (part.double(), part.half(), part.int(), part.long()):
        with pytest.raises(TypeError, match=f"a kernel cannot read {wrong.dtype} on cpu"):
            kernels.join(ROWS, attended, wrong, out, None)
    with pytest.raises(TypeError, match=r"a kernel cannot read torch.float32 on meta"):
        kernels.join(ROWS, attended, part.to("meta"), out, None)
    with pytest.raises(TypeError, match="cannot read"):
        kernels.join.bind(ROWS, attended, Each(part.double()[None]), out, None)


def test_an_operand_whose_rows_are_scattered_is_refused(kernels):
    attended, part, out = operands_of_join()
    message = "the last axis of an operand of a kernel must be contiguous"
    for wrong in (part.t().contiguous().t(), torch.randn(ROWS, 2 * DIM)[:, ::2]):
        with pytest.raises(ValueError, match=message):
            kernels.join(ROWS, attended, wrong, out, None)
    kernels.join(ROWS, torch.ones(DIM, ROWS).t()[:, :1], None, out[:, :1], None)  # one number


def test_rows_may_lie_apart_backwards_or_be_the_same(kernels):
    attended, part, out = operands_of_join()
    apart = torch.zeros(ROWS, 3, DIM + 2)[:, 1, 1:-1].copy_(part)
    kernels.join(ROWS, attended, apart, out, None)
    torch.testing.assert_close(out, torch.tanh(attended + part))
    kernels.join(ROWS, attended, part[2].expand(ROWS, -1), out, None)
    torch.testing.assert_close(out, torch.tanh(attended + part[2]))
    kernels.join(ROWS, attended, part[2], out, None)
    torch.testing.assert_close(out, torch.tanh(attended + part[2]))


def test_an_operand_may_be_another_one_at_each_step(kernels):
    attended, part, out = operands_of_join()
    parts, outs = torch.stack([part, 2 * part, 3 * part]), torch.zeros(4, ROWS, DIM)
    run = kernels.join.bind(ROWS, attended, Each(parts), Each(outs[1:]), None)
    for step in (2, 0):
        run(step)
        torch.testing.assert_close(outs[step + 1], torch.tanh(attended + parts[step]))
    assert not outs[[0, 2]].any()
    kernels.join(ROWS, attended, Each(parts), out, None)  # the first one
    assert torch.equal(out, outs[1])


def test_only_as_many_rows_are_done_as_are_asked_for(kernels):
    attended, part, out = operands_of_join()
    kernels.join(3, attended, part, out, None)
    assert out[:3].all()
    assert not out[3:].any()
    kernels.join(0, attended, part, out, None)


def test_a_bound_kernel_keeps_its_operands_alive_and_lets_go_of_them(kernels):
    attended, part, out = operands_of_join()
    expected = torch.tanh(attended + part)
    parts = part[None]
    held = [weakref.ref(x) for x in (attended, parts, out)]
    run = kernels.join.bind(ROWS, attended, Each(parts), out, None)
    del attended, part, parts
    run(0)
    assert all(x() is not None for x in held)
    assert torch.equal(held[2](), out)
    torch.testing.assert_close(out, expected)
    gc.disable()
    try:
        del run, out
        assert all(x() is None for x in held)
    finally:
        gc.enable()


def test_runs_are_counted(kernels):
    operands = operands_of_join()
    before = kernels.join.num_runs
    kernels.join(ROWS, *operands, None)
    run = kernels.join.bind(ROWS, *operands, None)
    assert kernels.join.num_runs == before + 1
    run()
    run(0)
    assert kernels.join.num_runs == before + 3


# ------------------------------------------------------------------------------------- threads


class Team:
    """In place of OpenMP: writes down how many threads were asked for, and runs none."""

    def __init__(self):
        self.asked = []

    def GOMP_parallel(self, entry, task, num_threads, flags):
        assert entry.value
        self.asked.append((num_threads, flags))


def test_a_kernel_runs_in_as_many_threads_as_torch_but_not_more_than_rows(
    kernels, threads, monkeypatch
):
    team = Team()
    monkeypatch.setattr(compiled, "_team", lambda: team)
    for num_threads, num_rows, asked in (
        (2, 5, [(2, 0)]),
        (4, 3, [(3, 0)]),
        (4, 4, [(4, 0)]),
        (3, 1, []),
        (1, 5, []),
    ):
        threads(num_threads)
        attended, part, out = operands_of_join()
        kernels.join(num_rows, attended, part, out, None)
        assert team.asked == asked
        assert bool(out.any()) == (not asked)
        team.asked.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
def test_torchs_threads_are_used_on_linux():
    assert compiled._team().omp_get_num_threads() == 1  # outside of a team


def test_without_gnus_openmp_there_is_no_team(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert compiled._team.__wrapped__() is None


def test_where_there_is_no_team_one_thread_does_everything():
    """In a process of its own: what kernels know by name is told once."""
    code = """
import ctypes, torch
from nmt.model import compiled
compiled._team = lambda: None
assert compiled.load()
from nmt.model import kernels
torch.set_num_threads(2)
x, out = torch.randn(5, 37), torch.zeros(5, 37)
kernels.join(5, x, x, out, None)
torch.testing.assert_close(out, torch.tanh(2 * x))
from llvmlite import binding
for name, told in (("nmt_thread_number", 0), ("nmt_num_threads", 1)):
    address = binding.address_of_symbol(name)
    assert ctypes.CFUNCTYPE(ctypes.c_int32)(address)() == told
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_process_that_is_forked_off_calculates_the_same(kernels, threads):
    threads(2)
    attended, part, out = operands_of_join()
    kernels.join(ROWS, attended, part, out, None)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def calculate():
        torch.set_num_threads(1)
        again = torch.zeros_like(out)
        kernels.join(ROWS, attended, part, again, None)
        sender.send_bytes(again.numpy().tobytes())

    child = context.Process(target=calculate)
    child.start()
    try:
        assert receiver.poll(60)
        assert receiver.recv_bytes() == out.numpy().tobytes()
    finally:
        child.join(10)
        child.kill()


# ------------------------------------------------------------------------- where they are kept


def join_of(kernels, path, language):
    """The kernel, as if it had been written in another file."""
    code = kernels.join.body.__code__.replace(co_filename=str(path))
    body = types.FunctionType(code, kernels.join.body.__globals__, "join")
    return Kernel(body, kernels.join.options, language, kernels.join.types)


def assert_joins(kernel):
    attended, part, out = operands_of_join()
    kernel(ROWS, attended, part, out, None)
    torch.testing.assert_close(out, torch.tanh(attended + part))


def test_a_kernel_is_kept_on_disk_under_a_name_that_changes_with_its_language(
    kernels, tmp_path, monkeypatch
):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    path, language = tmp_path / "loops.py", tmp_path / "language.py"
    path.write_text("# a kernel\n")

    def kept_and_hits(text):
        language.write_text(text)
        kernel = join_of(kernels, path, language)
        assert_joins(kernel)
        kept = {file.name for file in (tmp_path / "__pycache__").glob("*.nbc")}
        return kept, kernel._compiled.cache_hits

    first, hits = kept_and_hits("one language")
    assert (len(first), hits) == (1, 0)
    assert kept_and_hits("one language") == (first, 1)
    both, hits = kept_and_hits("another language")
    assert (len(both), hits) == (2, 0)
    assert first < both
    assert kept_and_hits("one language") == (both, 1)


def test_where_nothing_can_be_kept_a_kernel_is_compiled_all_the_same(
    kernels, tmp_path, monkeypatch
):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    kernel = join_of(kernels, tmp_path / "not there.py", kernels.join.language)
    assert_joins(kernel)
    assert not list(tmp_path.iterdir())


def test_other_failures_to_compile_are_not_hidden(kernels, tmp_path, monkeypatch):
    compile_ = numba.cfunc

    def fail_to_keep(signature, cache=False, **options):
        if cache:
            raise RuntimeError("out of registers")
        return compile_(signature, **options)

    monkeypatch.setattr(numba, "cfunc", fail_to_keep)
    kernel = join_of(kernels, tmp_path / "loops.py", kernels.join.language)
    with pytest.raises(RuntimeError, match="out of registers"):
        kernel(ROWS, *operands_of_join(), None)


@pytest.mark.parametrize("k", [2, 3])
def test_an_operand_that_is_read_as_fp32_must_be_fp32(kernels, k):
    """Read as what it is not, a tensor would be taken for twice as long as it is."""
    operands = [torch.zeros(2, 4, 3), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 3)]
    scores, mask, weights, attended = operands[1], torch.ones(2, 4), operands[2], operands[3]
    bound = [scores, mask, operands[0].bfloat16(), weights, attended]
    kernels.attend(2, *bound)
    bound[k + 1] = bound[k + 1].bfloat16()
    with pytest.raises(TypeError, match=r"^a kernel cannot read torch.bfloat16 on cpu$"):
        kernels.attend(2, *bound)
