"""Checkpoints and files: F20 to F29, and F33."""

import ctypes
import json
import os
import resource
import shutil
import signal
import stat
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from nmt.cli.training_run import Hooks
from nmt.translator import Translator
from nmt.validation import Validator

DiskUsage = namedtuple("DiskUsage", "total used free")


def last_line(text):
    assert "Traceback" not in text
    return text.split("\n")[-2]


def raise_once(patch, owner, name, number, when=lambda *arguments: True):
    """Make a signal arrive at the beginning of a method, once."""
    real = getattr(owner, name)

    def method(*arguments, **options):
        if when(*arguments):
            patch.setattr(owner, name, real)
            signal.raise_signal(number)
        return real(*arguments, **options)

    patch.setattr(owner, name, method)


class TestF20DiskFull:
    def test_f20_a_full_disk_loses_nothing_that_was_saved(self, small_run, fork, undisturbed):
        assert small_run.train(training__max_steps=2).code == 0
        size = (small_run.checkpoint(2) / "training_state.pt").stat().st_size // 2

        def train_on_a_small_disk():
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            ended = small_run.train("--resume")
            Path("said").write_text(ended.err, encoding="utf-8")
            os._exit(ended.code)

        assert fork(train_on_a_small_disk) == 5
        error = last_line(Path("said").read_text(encoding="utf-8"))
        assert error.startswith("error: run/checkpoints/step-00000004: cannot be written (")
        assert error.endswith(
            "); older checkpoints are as they were; free some space and continue with --resume"
        )
        assert small_run.steps == [2]
        assert small_run.latest == "checkpoints/step-00000002\n"
        assert small_run.unfinished() == []
        assert small_run.train("--resume").code == 0
        assert small_run.weights == undisturbed

    def test_f20_a_disk_that_is_too_small_is_found_before_the_first_step(
        self, small_run, monkeypatch
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9, 9_000))
        ended = small_run.train(model__embed_dim=32)
        assert ended.code == 5
        assert last_line(ended.err) == (
            "error: run: a checkpoint takes about 0.1 MB, but the disk has only 0.0 MB free; free "
            "some space, or choose another run_dir"
        )
        assert not Path("run/metrics.jsonl").exists()

    def test_f20_a_disk_with_room_for_one_checkpoint_is_warned_of(self, small_run, monkeypatch):
        small_run.train(training__max_steps=2)
        files = small_run.checkpoint(2).iterdir()
        free = int(1.3 * sum(file.stat().st_size for file in files))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 0, free))
        ended = small_run.train("--resume", training__max_steps=3)
        assert ended.code == 0
        assert "warning: run: up to 3 more checkpoints will take about 0." in ended.err
        assert "free; free some space, or lower training.keep_last\n" in ended.err

    def test_f20_a_finished_run_needs_no_space(self, small_run, monkeypatch):
        small_run.train(training__max_steps=2)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9, 0))
        assert small_run.train("--resume", training__max_steps=2).code == 0
        assert small_run.train("--resume", training__max_steps=3).code == 5


class TestF21KilledWhileSaving:
    def test_f21_a_kill_in_the_middle_of_a_file_costs_only_that_checkpoint(
        self, small_run, fork, monkeypatch, undisturbed
    ):
        def train_until_killed():
            small_run.train(training__max_steps=2)

            def save(state, stream):
                stream.write(b"PK half a file")
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(torch, "save", save)
            small_run.train("--resume")

        assert fork(train_until_killed) == -signal.SIGKILL
        assert small_run.latest == "checkpoints/step-00000002\n"
        assert small_run.unfinished()
        assert small_run.train("--resume").code == 0
        assert small_run.weights == undisturbed
        assert small_run.unfinished() == []

    def test_f21_what_killed_processes_left_is_swept_away_and_nothing_else(
        self, small_run, undisturbed
    ):
        small_run.train(training__max_steps=4)
        left = ["checkpoints/step-00000006.tmp-99", "data/train.tmp-99", ".latest.ab12cd34"]
        left += [".metrics.jsonl.abcdef01", "tokenizer/.shared.model.abcdef01"]
        kept = [".nfs00000001", ".latest.txt", "tokenizer/.keep", "data/notes"]
        for name in left + kept:
            (small_run.path / name).mkdir() if "tmp-" in name else (small_run.path / name).touch()
        assert small_run.train("--resume").code == 0
        assert [name for name in left if (small_run.path / name).exists()] == []
        assert [name for name in kept if not (small_run.path / name).exists()] == []
        assert small_run.steps[-2:] == [4, 6]
        assert small_run.weights == undisturbed


STOPS = {
    "in a step": (Hooks, "on_step", lambda hooks, report: report.step == 3, 3),
    "in the loss of a validation": (Validator, "loss", lambda *_: True, 2),
    "while a validation translates": (Translator, "stream", lambda *_: True, 2),
}


class TestF22F23Signals:
    @pytest.mark.parametrize("moment", STOPS)
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_f22_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_happened(
        self, small_run, monkeypatch, undisturbed, moment, number, code
    ):
        owner, name, when, step = STOPS[moment]
        raise_once(monkeypatch, owner, name, number, when)
        ended = small_run.train()
        assert ended.code == code
        assert last_line(ended.err) == f"stopped at step {step}; continue with --resume"
        assert small_run.steps == sorted({2, step})
        assert small_run.progress["validation_due"] is (step == 2)
        assert small_run.train("--resume").code == 0
        assert small_run.weights == undisturbed
        lines = Path("run/metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        events = [json.loads(line) for line in lines]
        assert [event["step"] for event in events if event["event"] == "valid"] == [2, 4, 6]

    def test_f23_ctrl_c_while_saving_does_not_disturb_the_save(
        self, small_run, monkeypatch, undisturbed
    ):
        raise_once(monkeypatch, torch, "save", signal.SIGINT)
        ended = small_run.train()
        assert ended.code == 130
        assert last_line(ended.err) == "stopped at step 2; continue with --resume"
        assert small_run.steps == [2]
        assert small_run.unfinished() == []
        assert small_run.train("--resume").code == 0
        assert small_run.weights == undisturbed

    def test_f23_ctrl_c_twice_ends_at_once_even_while_saving(
        self, small_run, fork, monkeypatch, undisturbed
    ):
        def save(state, stream):
            stream.write(b"half")
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            stream.write(b"never written")

        def press_twice():
            small_run.train(training__max_steps=2)
            monkeypatch.setattr(torch, "save", save)
            small_run.train("--resume")

        assert fork(press_twice) == 130
        assert small_run.latest == "checkpoints/step-00000002\n"
        assert small_run.train("--resume").code == 0
        assert small_run.weights == undisturbed
        assert small_run.unfinished() == []


class Unprivileged:
    """What root may do, this process may not do any more."""

    LINUX_CAPABILITY_VERSION_3 = 0x20080522

    def __init__(self):
        header = (ctypes.c_uint32 * 2)(self.LINUX_CAPABILITY_VERSION_3, 0)
        assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


class TestF27Output:
    @pytest.mark.parametrize("locked", ["run", "run/checkpoints", "run/data"])
    def test_f27_a_folder_that_cannot_be_written_is_found_before_any_work(
        self, small_run, fork, locked
    ):
        small_run.train(training__max_steps=2)
        os.unlink("run/tokenizer/shared.model")
        os.chmod(locked, 0o555)

        def train_unprivileged():
            Unprivileged()
            ended = small_run.train("--resume")
            Path("said").write_text(ended.err, encoding="utf-8")
            os._exit(ended.code)

        assert fork(train_unprivileged) == 2
        os.chmod(locked, 0o755)
        said = Path("said").read_text(encoding="utf-8")
        assert said == "error: run: cannot be written: Permission denied\n"

    def test_f27_a_missing_folder_is_made(self, small_run):
        shutil.move("run", "prepared")
        assert small_run.train(run_dir="a/b", training__max_steps=1).code == 0
        assert Path("a/b/checkpoints/step-00000001/manifest.json").exists()

    def test_f27_a_run_is_never_overwritten(self, small_run):
        small_run.train(training__max_steps=2)
        before = small_run.weights
        ended = small_run.train()
        assert ended.code == 2
        assert ended.err == (
            "error: run: holds a run already; continue it with --resume, or choose another "
            "run_dir\n"
        )
        assert small_run.weights == before

    def test_f27_a_folder_of_something_else_is_not_written_to(self, small_run):
        Path("thesis").mkdir()
        Path("thesis/chapter.tex").touch()
        ended = small_run.train("--resume", run_dir="thesis")
        assert ended.code == 2
        assert ended.err == (
            "error: thesis: is not empty and not a run of nmt (it holds chapter.tex); choose "
            "another run_dir\n"
        )
        assert os.listdir("thesis") == ["chapter.tex"]


def test_f28_two_processes_never_train_in_one_folder(small_run, monkeypatch, undisturbed):
    """And a killed one does not lock out the next."""
    begun, says_begun = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)

        def wait(hooks, report):
            os.write(says_begun, b"x")
            signal.pause()

        monkeypatch.setattr(Hooks, "on_step", wait)
        try:
            small_run.train()
        finally:
            os._exit(1)
    os.close(says_begun)
    assert os.read(begun, 1) == b"x"
    os.close(begun)
    for options in ([], ["--resume"]):
        ended = small_run.train(*options)
        assert ended.code == 2
        assert ended.err == (
            f"error: run: is in use by another training run (process {child} on "
            f"{os.uname().nodename})\n"
        )
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert small_run.train().code == 0
    assert small_run.weights == undisturbed


class TestF29Permissions:
    @pytest.mark.parametrize("mask", [0o022, 0o077])
    def test_f29_files_can_be_read_by_whom_the_umask_lets(self, small_run, mask):
        shutil.rmtree("run")
        old = os.umask(mask)
        try:
            assert small_run.train(training__max_steps=2).code == 0
        finally:
            os.umask(old)
        modes = {
            str(path): (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
            for path in [small_run.path, *small_run.path.rglob("*")]
        }
        expected = {True: 0o777 & ~mask, False: 0o666 & ~mask}
        assert {name: mode for name, (is_dir, mode) in modes.items()} == {
            name: expected[is_dir] for name, (is_dir, _) in modes.items()
        }
        assert "run/checkpoints/step-00000002/model.safetensors" in modes

    def test_f29_folders_may_be_links_to_another_disk(self, small_run, nmt, undisturbed):
        os.mkdir("disk")
        shutil.move("run", "disk/a run")
        os.symlink("disk/a run", "run")
        os.mkdir("disk/weights")
        os.symlink("../weights", "run/checkpoints")
        assert small_run.train(training__max_steps=4).code == 0
        assert small_run.train("--resume").code == 0
        assert os.path.islink("run")
        assert os.path.islink("run/checkpoints")
        assert sorted(os.listdir("disk/weights"))[-1] == "step-00000006"
        assert small_run.weights == undisturbed
        for path in ("run", "run/checkpoints/step-00000004"):
            ended = nmt("translate", "--model", path, stdin="hund sieht maus\n")
            assert (ended.code, len(ended.lines)) == (0, 1), ended.err

    def test_f29_a_model_may_be_a_link_to_a_checkpoint(self, small_run, nmt):
        assert small_run.train(training__max_steps=1).code == 0
        os.symlink("run/checkpoints/step-00000001", "model")
        ended = nmt("translate", "--model", "model", stdin="hund sieht maus\n")
        assert (ended.code, len(ended.lines)) == (0, 1), ended.err

    def test_f29_a_file_that_is_a_link_is_written_through(self, small_run):
        os.symlink("../outside.yaml", "run/config.yaml")
        assert small_run.train(training__max_steps=1).code == 0
        assert os.path.islink("run/config.yaml")
        assert "max_steps: 1\n" in Path("outside.yaml").read_text(encoding="utf-8")


class TestF33ChangedConfig:
    def test_f33_another_config_is_refused_with_a_list_of_what_has_changed(self, small_run):
        small_run.train(training__max_steps=2)
        before = Path("run/config.yaml").read_bytes(), small_run.weights
        ended = small_run.train("--resume", seed=2, training__optimizer="sgd", run_dir="run")
        assert ended.code == 2
        assert ended.err == (
            "error: run: the run was begun with another config (seed: 1 -> 2; training.optimizer: "
            "adam -> sgd); undo the change, go on with it by --override-resume seed "
            "--override-resume training.optimizer, or choose another run_dir\n"
        )
        assert (Path("run/config.yaml").read_bytes(), small_run.weights) == before

    def test_f33_changed_data_is_refused(self, small_run, undisturbed):
        small_run.train(training__max_steps=2)
        text = Path("train.en").read_text(encoding="utf-8")
        Path("train.en").write_text(text.replace("dog", "cat", 1), encoding="utf-8")
        ended = small_run.train("--resume")
        assert ended.code == 2
        assert last_line(ended.err) == (
            "error: run: the training data has changed since the run was begun; restore it, go on "
            "with the changed data by --override-resume data.train, or choose another run_dir"
        )
        Path("train.en").write_text(text, encoding="utf-8")
        assert small_run.train("--resume").code == 0
        assert small_run.weights == undisturbed
