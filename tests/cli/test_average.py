"""`nmt average`: a model of its own whose weights are the mean of those of checkpoints."""

import json
import os
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nmt.training.checkpoint import sealed, write_checkpoint

FIRST, LAST = "step-00000100", "step-00000200"
CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.chmod"}


@pytest.fixture
def run(tiny, write):
    """A copy of the run, with two checkpoints, in the current folder."""
    shutil.copytree(tiny.run, "run")
    return Path("run")


@pytest.fixture
def average(nmt):
    return lambda *args: nmt("average", "--model", "run", "--output", "mean", *args)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def add_checkpoint(run, step, change):
    """Write a checkpoint like the last one, with other weights."""
    last = run / "checkpoints" / LAST
    about = {"tokenizers": json.loads((last / "manifest.json").read_bytes())["tokenizers"]}
    found = {name: change(name, weight) for name, weight in weights(last).items()}
    return write_checkpoint(run, step, found, {}, about)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def refused(ended, code, message):
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == f"error: {message}\n"
    assert not [name for name in os.listdir() if name.startswith("mean")]


@contextmanager
def largest_file(size):
    """A disk on which no file can grow beyond a size."""
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_each_weight_is_the_mean_of_the_checkpoints(run, average):
    ended = average("--last", "2")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == f"mean: the mean of {FIRST}, {LAST}\n"
    found, first, last = (weights(p) for p in ("mean", *sorted((run / "checkpoints").iterdir())))
    assert found.keys() == first.keys()
    for name in found:
        expected = (first[name].double() + last[name].double()) / 2
        assert torch.equal(found[name], expected.float())
        assert not torch.equal(first[name], last[name])


def test_the_sum_is_held_in_float64(run, average):
    """In float32 the 1 would be lost beside the 1e9."""
    for step, value in ((300, 1e9), (400, 1.0), (500, -1e9)):
        add_checkpoint(run, step, lambda name, weight, value=value: torch.full_like(weight, value))
    assert average("--last", "3").code == 0
    for weight in weights("mean").values():
        assert torch.equal(weight, torch.full_like(weight, 1 / 3))


def test_only_the_newest_count(run, average):
    for step in (300, 400):
        add_checkpoint(run, step, lambda name, weight: torch.full_like(weight, 5.0))
    assert average("--last", "2").code == 0
    assert all((weight == 5).all() for weight in weights("mean").values())


@pytest.mark.parametrize("prefix", ["", "run/checkpoints/", "./run/../run/checkpoints/"])
def test_checkpoints_can_be_named(run, average, nmt, prefix):
    add_checkpoint(run, 300, lambda name, weight: weight + 1)
    assert average("--last", "3").code == 0
    ended = nmt("average", "-m", "run", "-o", "other", f"{prefix}{FIRST}", f"{prefix}{LAST}")
    assert (ended.code, ended.err) == (0, f"other: the mean of {FIRST}, {LAST}\n")
    assert json.loads(Path("other/manifest.json").read_bytes())["average_of"] == [FIRST, LAST]
    assert json.loads(Path("mean/manifest.json").read_bytes())["step"] == 300


def test_every_command_reads_it_wherever_it_is(run, average, nmt, tiny, monkeypatch):
    assert average("--last", "2").code == 0
    assert files("mean") == [
        "config.yaml", "manifest.json", "model.safetensors", "tokenizer", "tokenizer/shared.model",
    ]  # fmt: skip
    shutil.rmtree("run")
    os.mkdir("far")
    shutil.move("mean", "far/away")
    monkeypatch.chdir("far")
    pair = ("--src", tiny.path("test.ko"), "--tgt", tiny.path("test.en"))
    for args in (
        ("translate", "--input", tiny.path("test.ko")),
        ("eval", "--src", tiny.path("test.ko"), "--ref", tiny.path("test.en")),
        ("score", *pair),
        ("attn-dump", *pair),
        ("tokenizer", "encode", "--side", "src"),
    ):
        ended = nmt(*args, "--model", "away")
        assert (ended.code, ended.err) == (0, "")
    assert len(nmt("translate", "--model", "away", "--input", tiny.path("test.ko")).lines) == 30


def test_the_mean_of_equal_checkpoints_translates_as_each_of_them(run, average, nmt, tiny):
    add_checkpoint(run, 300, lambda name, weight: weight)
    assert average("--last", "2").code == 0
    jsonl = ("--format", "jsonl", "--input", tiny.path("test.ko"))
    found = nmt("translate", "--model", "mean", *jsonl).out
    assert found == nmt("translate", "--model", f"run/checkpoints/{LAST}", *jsonl).out


def test_two_vocabularies_come_along(nmt, write, tiny):
    separate = ("--set", "tokenizer.shared=false", "--set", "tokenizer.vocab_size=34")
    short = ("--set", "training.max_steps=22", "--set", "validation.every=11")
    assert nmt("train", "--config", tiny.config, *separate, *short).code == 0
    assert nmt("average", "-m", "run", "-o", "mean", "--last", "2").code == 0
    for name in ("src.model", "tgt.model"):
        assert Path("mean/tokenizer", name).read_bytes() == Path("run/tokenizer", name).read_bytes()
    assert nmt("translate", "--model", "mean", stdin="나는\n").code == 0


def test_a_shortlist_comes_along(run, average, nmt, tiny):
    assert nmt("shortlist", "run").code == 0
    assert average("--last", "2").code == 0
    shutil.rmtree("run")
    options = ("--model", "mean", "--shortlist", "--input", tiny.path("test.ko"))
    assert nmt("translate", *options).code == 0


@pytest.mark.parametrize("resume", [("--resume",), ()])
def test_it_cannot_be_trained_further(run, average, nmt, tiny, resume):
    """Not as its own config says, and not if another config names its folder."""
    assert average("--last", "2").code == 0
    before = files("mean")
    for config in (["mean/config.yaml"], [tiny.config, "--set", "run_dir=mean"]):
        ended = nmt("train", "--config", *config, *resume)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == (
            "error: mean: is a model without its training state, such as `nmt average` makes, and "
            "cannot be trained further; choose another run_dir\n"
        )
    assert files("mean") == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--last", "1"], "--last: must be at least 2, but is 1"),
        (
            ["--last", "3"],
            "--last: must be at most the number of checkpoints in run, which is 2, but is 3; "
            "training.keep_last says how many a run keeps",
        ),
        (
            [],
            "--last: must be at most the number of checkpoints in run, which is 2, but is 5; "
            "training.keep_last says how many a run keeps",
        ),
        ([LAST], "CHECKPOINT: give at least 2, not 1"),
        ([LAST, f"run/checkpoints/{LAST}"], f"run/checkpoints/{LAST}: is given twice; leave one "
         "out"),
        (
            ["--last", "2", FIRST, LAST],
            "--last: is another way to choose than CHECKPOINT; leave one of them out",
        ),
        (
            [LAST, "step-00000150"],
            "step-00000150: is not a checkpoint of run, and only those of one run have a mean that "
            "means something",
        ),
    ],
)  # fmt: skip
def test_an_impossible_choice_is_refused(run, average, args, message):
    refused(average(*args), 2, message)


def test_checkpoints_of_another_run_are_refused(run, average):
    shutil.copytree("run", "run2")
    message = "is not a checkpoint of run, and only those of one run have a mean that means"
    name = f"run2/checkpoints/{FIRST}"
    refused(average(LAST, name), 2, f"{name}: {message} something")


def test_a_checkpoint_of_other_shapes_is_refused(run, average):
    add_checkpoint(run, 300, lambda name, weight: weight[:1] if name.endswith("bias") else weight)
    ended = average("--last", "2")
    assert ended.err.startswith("error: run/checkpoints/step-00000300: does not fit its config: ")
    refused(ended, 4, ended.err[7:-1])


def test_a_checkpoint_of_another_tokenizer_is_refused(run, average):
    manifest = run / "checkpoints" / FIRST / "manifest.json"
    about = json.loads(manifest.read_bytes())
    about["tokenizers"]["src"] = "0" * 64
    manifest.write_bytes(sealed(about))
    message = f"is not the tokenizer that {FIRST} was trained with; restore the one that was"
    refused(average("--last", "2"), 4, f"{run.resolve()}/tokenizer: {message}")


@pytest.mark.parametrize("name", [FIRST, LAST])
def test_a_damaged_checkpoint_is_refused(run, average, name):
    file = run / "checkpoints" / name / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(
        average("--last", "2"),
        4,
        f"{file}: is damaged (its checksum is not that of manifest.json); use an older checkpoint",
    )


@pytest.mark.parametrize("name", [FIRST, LAST])
def test_a_checkpoint_without_a_manifest_is_refused(run, average, name):
    (run / "checkpoints" / name / "manifest.json").unlink()
    message = "manifest.json is missing or damaged; use an older checkpoint"
    refused(average("--last", "2"), 4, f"run/checkpoints/{name}: {message}")


def test_without_a_run_there_is_nothing_to_average(average, write):
    message = "no such folder; give a run directory or one of its checkpoints"
    refused(average(), 4, f"run: {message}")


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(run, average, kind):
    if "folder" in kind:
        os.mkdir("mean")
        if kind == "folder":
            Path("mean/thesis.tex").touch()
    elif kind == "file":
        Path("mean").touch()
    else:
        os.symlink("nowhere", "mean")
    before = files(".")
    ended = average("--last", "2")
    assert (ended.code, ended.err) == (2, "error: mean: exists already; choose another --output\n")
    assert files(".") == before


def test_a_folder_for_checkpoints_is_left_to_training(run, nmt):
    ended = nmt("average", "-m", "run", "--last", "2", "-o", "run/checkpoints/mean")
    assert (ended.code, ended.err) == (
        2,
        "error: run/checkpoints/mean: a folder named checkpoints is for those that training "
        "writes; choose another --output\n",
    )
    assert sorted(os.listdir("run/checkpoints")) == [FIRST, LAST]


def test_folders_above_the_output_are_made(run, nmt):
    assert nmt("average", "-m", "run", "--last", "2", "-o", "some/new/mean").code == 0
    assert os.listdir("some/new") == ["mean"]


def test_an_output_that_cannot_be_made_is_refused(run, nmt):
    ended = nmt("average", "-m", "run", "--last", "2", "-o", "run/best/mean")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: run/best/mean: cannot be written: Not a directory\n"


def test_a_full_disk_leaves_nothing_behind(run, average):
    with largest_file(20_000):
        ended = average("--last", "2")
    assert ended.code == 5
    assert ended.err.startswith("error: mean: cannot be written (")
    assert ended.err.endswith("File too large); free some space and try again\n")
    refused(ended, 5, ended.err[7:-1])


def test_what_a_kill_has_left_is_swept_away_and_nothing_else(run, average):
    os.makedirs("mean.tmp-123/tokenizer")
    os.mkdir("mean.tmp-of-mine")
    assert average("--last", "2").code == 0
    assert {name for name in os.listdir() if name.startswith("mean")} == {
        "mean", "mean.tmp-of-mine",
    }  # fmt: skip


def test_a_kill_at_any_moment_leaves_all_or_nothing(run, nmt, monkeypatch):
    """SIGKILL before each change of the file system in turn, until a run gets through."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and only a power cut could tell
    expected = ["config.yaml", "manifest.json", "model.safetensors", "tokenizer"]
    for number in range(1, 500):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            kill_before_change(number)
            try:
                os._exit(nmt("average", "-m", "run", "--last", "2", "-o", "mean").code)
            finally:
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if os.path.exists("mean"):
            assert sorted(os.listdir("mean")) == expected
            assert nmt("translate", "--model", "mean", stdin="나는\n").code == 0
            shutil.rmtree("mean")
        else:
            assert status == -signal.SIGKILL
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 15
    assert not list(Path().glob("mean*"))


def kill_before_change(number):
    """Make this process kill itself before its n-th change of the file system."""
    count = 0

    def audit(event, arguments):
        nonlocal count
        if event not in CHANGES or (event == "open" and arguments[2] & 3 == os.O_RDONLY):
            return
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
