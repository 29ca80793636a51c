"""Whatever ends the writing of a checkpoint, those before it stay, and the next one succeeds."""

import os
import resource
import shutil
import signal
import sys
from contextlib import contextmanager

import pytest
import torch

from nmt.errors import TrainingError
from nmt.training.checkpoint import (
    choose_checkpoint,
    latest_good,
    list_checkpoints,
    point,
    pointed,
    read_training_state,
    read_weights,
    remove_old,
    remove_unfinished,
    write_checkpoint,
)

CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod"}
SIZE = 1000  # numbers in the only weight: a file of some 4000 bytes


def write(run_dir, step, value=0.0):
    weights = {"w": torch.full((SIZE,), float(step) + value)}
    return write_checkpoint(run_dir, step, weights, {"step": step, "value": value}, {})


def save(run_dir, step, value=0.0):
    """All that happens to the files of a run when the trainer saves a best checkpoint."""
    checkpoint = write(run_dir, step, value)
    point(run_dir / "best", checkpoint)
    remove_old(run_dir, keep_last=2)


def is_complete(checkpoint, values):
    """Whether a checkpoint can be read, with weights and state of the same writing."""
    value = read_training_state(checkpoint)["value"]
    expected = torch.full((SIZE,), int(checkpoint.name[5:]) + value)
    return value in values and torch.equal(read_weights(checkpoint)["w"], expected)


def run_in_child(action):
    """Run in a forked process; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before_change(number):
    """Make this process kill itself before its n-th change of the file system."""
    count = 0

    def changing(*_):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        if event in CHANGES and not (event == "open" and arguments[2] & 3 == os.O_RDONLY):
            changing()

    real_fsync = os.fsync
    os.fsync = lambda handle: (changing(), real_fsync(handle))[1]
    sys.addaudithook(audit)


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


def fail_at(monkeypatch, name, number):
    """Make the n-th call of a function of `os` fail."""
    real, count = getattr(os, name), 0

    def function(*arguments, **options):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, function)
    return lambda: count >= number


@pytest.fixture
def run_dir(tmp_path):
    """A run with two checkpoints."""
    run = tmp_path / "run"
    save(run, 1)
    save(run, 2)
    return run


def assert_nothing_unfinished(run):
    names = [folder.name for folder in (run / "checkpoints").iterdir()]
    assert names == [folder.name for folder in (run / "checkpoints").glob("step-????????")]


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "the same step again"])
def test_a_kill_at_any_moment_loses_no_earlier_checkpoint(run_dir, tmp_path, monkeypatch, step):
    """SIGKILL before each change of the file system in turn, until a run gets through."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and only a power cut could tell
    kill_points = 0
    while True:
        run = tmp_path / f"run-{kill_points}"
        shutil.copytree(run_dir, run)

        def killed(run=run, number=kill_points + 1):
            kill_before_change(number)
            save(run, step, value=0.5)

        status = run_in_child(killed)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kill_points += 1

        # What a user of the model sees, before anybody has cleaned up:
        assert all(is_complete(folder, {0.0, 0.5}) for folder in list_checkpoints(run))
        assert is_complete(choose_checkpoint(run), {0.0, 0.5})
        # What a resumed run sees:
        remove_unfinished(run)
        assert_nothing_unfinished(run)
        newest = latest_good(run, pytest.fail)
        assert int(newest.name[5:]) in (2, step)
        for pointer in ("latest", "best"):
            assert is_complete(pointed(run / pointer), {0.0, 0.5})
        # And it can save again:
        save(run, step, value=0.25)
        assert is_complete(pointed(run / "latest"), {0.25})
        assert pointed(run / "best") == pointed(run / "latest")
        assert_nothing_unfinished(run)
    assert kill_points > 20
    assert is_complete(pointed(run / "latest"), {0.5})
    assert len(list_checkpoints(run)) == 2


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "the same step again"])
@pytest.mark.parametrize("name", ["rename", "replace", "fsync", "mkdir", "open"])
def test_a_failing_system_call_is_a_training_error_and_is_cleaned_up(
    run_dir, tmp_path, monkeypatch, name, step
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    number = 0
    while True:
        number += 1
        run = tmp_path / f"run-{number}"
        shutil.copytree(run_dir, run)
        message = ""
        with monkeypatch.context() as patch:
            has_failed = fail_at(patch, name, number)
            try:
                write(run, step, value=0.5)
            except TrainingError as error:
                message = str(error)
        if not has_failed():
            break
        assert len(list_checkpoints(run)) >= 2
        assert all(is_complete(folder, {0.0, 0.5}) for folder in list_checkpoints(run))
        assert is_complete(pointed(run / "latest"), {0.0, 0.5})
        if message:  # else the call was one that sweeps up, which the next write does again
            assert message.startswith(f"{run}/checkpoints/step-0000000{step}: cannot be written (")
            assert "No space left on device" in message
            assert message.endswith(
                "; older checkpoints are as they were; free some space and continue with --resume"
            )
            assert_nothing_unfinished(run)
        write(run, step, value=0.25)
        assert is_complete(pointed(run / "latest"), {0.25})
    assert number > 1


@pytest.mark.parametrize("size", [0, 1, 100, 700, 1000, 1500, 4000])
def test_a_full_disk_is_a_training_error_and_is_cleaned_up(run_dir, size):
    with largest_file(size), pytest.raises(TrainingError) as caught:
        write(run_dir, 3)
    message = str(caught.value)
    assert message.startswith(f"{run_dir}/checkpoints/step-00000003: cannot be written (")
    assert message.endswith(
        "; older checkpoints are as they were; free some space and continue with --resume"
    )
    assert "\n" not in message
    assert [folder.name for folder in list_checkpoints(run_dir)] == [
        "step-00000001",
        "step-00000002",
    ]
    assert all(is_complete(folder, {0.0}) for folder in list_checkpoints(run_dir))
    assert pointed(run_dir / "latest") == run_dir / "checkpoints" / "step-00000002"
    assert_nothing_unfinished(run_dir)
    write(run_dir, 3)
    assert is_complete(pointed(run_dir / "latest"), {0.0})


def test_a_disk_that_fills_up_within_a_large_training_state_is_a_training_error(run_dir):
    """Where a file is larger than Python's buffer, torch says so with an error of its own."""
    large = {"optimizer": torch.zeros(100_000)}
    with largest_file(100_000), pytest.raises(TrainingError) as caught:
        write_checkpoint(run_dir, 3, {"w": torch.zeros(SIZE)}, large, {})
    assert "\n" not in str(caught.value)
    assert_nothing_unfinished(run_dir)
    assert pointed(run_dir / "latest") == run_dir / "checkpoints" / "step-00000002"


def test_what_a_killed_process_left_is_swept_away_by_the_next_write(run_dir):
    """Also of a process with our own number, as containers have it after every start."""
    for name in (f"step-00000003.tmp-{os.getpid()}", "step-00000007.tmp-99999"):
        (run_dir / "checkpoints" / name).mkdir()
        (run_dir / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    write(run_dir, 3)
    assert_nothing_unfinished(run_dir)


def test_files_are_synced_before_their_name_appears_and_the_name_after(run_dir, monkeypatch):
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(handle):
        events.append(os.fstat(handle).st_ino)
        real_fsync(handle)

    def rename(source, target):
        events.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    checkpoint = write(run_dir, 3)
    moment = events.index("rename")
    for name in ("model.safetensors", "training_state.pt", "manifest.json"):
        assert (checkpoint / name).stat().st_ino in events[:moment], name
    assert events[moment + 1] == checkpoint.parent.stat().st_ino
