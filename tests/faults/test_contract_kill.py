"""R4: whatever a run is doing when it is killed, what it has saved is whole, and it goes on."""

import os
import shutil
import signal
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from nmt.training.checkpoint import choose_checkpoint, latest_good, list_checkpoints, verify

CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod"}
"""Events of Python's audit that can change the file system; `os.replace` is a rename."""


def watch_changes(before_change):
    """Call a function before each change of the file system, with the file that is synced or None.

    For the rest of the process: to be called in a forked one.
    """

    def audit(event, arguments):
        if event in CHANGES and not (event == "open" and arguments[2] & 3 == os.O_RDONLY):
            before_change(None)

    real_write = os.write
    os.fsync = before_change  # instead: it is slow, and only a power cut could tell
    os.write = lambda handle, data: (before_change(None), real_write(handle, data))[1]
    sys.addaudithook(audit)


def kill_before_change(number):
    """Let this process be killed before its n-th change; a file to be synced is half written."""
    numbers = count(1)

    def before_change(handle):
        if next(numbers) == number:
            with suppress(OSError):  # of a folder
                os.ftruncate(handle or -1, os.fstat(handle or -1).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    watch_changes(before_change)


@pytest.fixture(scope="module")
def names(finished_folder):
    """All files that a finished run has, and nothing else."""
    return list_files(finished_folder / "run")


def list_files(run):
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


@pytest.fixture
def fresh(corpus_folder, tmp_path, monkeypatch):
    """Enters a folder with a corpus and a config, and nothing of a run."""

    def enter(name):
        shutil.copytree(corpus_folder, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)

    return enter


@pytest.fixture
def train_until(small_run, fork):
    """Runs `nmt train` in a forked process that is killed before its n-th change."""

    def run(number, *options):
        def train():
            kill_before_change(number)
            os._exit(small_run.train(*options).code)

        return fork(train)

    return run


@pytest.fixture
def num_changes(small_run, fork, fresh):
    """How often a whole run changes the file system."""

    def count_changes():
        changes = count()
        watch_changes(lambda handle: next(changes))
        assert small_run.train().code == 0
        found = next(changes)
        Path("count").write_text(str(found), encoding="utf-8")

    fresh("counted")
    assert fork(count_changes) == 0
    return int(Path("count").read_text(encoding="utf-8"))


def assert_is_whole(small_run):
    """What a user of the model finds before anybody has cleaned up."""
    if checkpoints := list_checkpoints(small_run.path):
        for checkpoint in checkpoints:
            verify(checkpoint)
        assert latest_good(small_run.path, pytest.fail) == checkpoints[-1]
        verify(choose_checkpoint(small_run.path))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_r4_a_run_that_is_killed_at_any_moment_goes_on_to_the_same_end(
    small_run, num_changes, fresh, train_until, undisturbed, names, stride
):
    """From its first change of the file system (tokenizer, data) to its last, the report."""
    assert num_changes > 100
    for number in range(num_changes, 0, -stride):
        fresh(f"killed-{number}")
        assert train_until(number) == -signal.SIGKILL
        assert_is_whole(small_run)
        assert train_until(0, "--resume") == 0
        assert small_run.weights == undisturbed, number
        assert list_files(small_run.path) == names, number


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_r4_a_run_that_is_killed_again_and_again_comes_to_the_same_end(
    small_run, fresh, train_until, undisturbed, names
):
    """Each process comes one change further than the one before it, so each cleans up in turn."""
    fresh("killed")
    for number in count(1):
        status = train_until(number, "--resume")
        assert_is_whole(small_run)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 20
    assert small_run.weights == undisturbed
    assert list_files(small_run.path) == names
