"""One training run owns its folder, and its log of measurements survives crashes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.errors import ConfigError, TrainingError
from nmt.training.run_directory import RunDirectory


def message_of(path, resume=False):
    with pytest.raises(ConfigError) as caught:
        RunDirectory(path, resume=resume)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def begin(path):
    run = RunDirectory(path, resume=False)
    run.record("train", step=1)
    run.close()


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run", resume=False)
    yield directory
    directory.close()


class TestOpening:
    def test_a_new_folder_is_made_with_its_parents(self, tmp_path):
        run = RunDirectory(tmp_path / "runs" / "a" / "b", resume=False)
        assert run.path.is_dir()
        assert not run.has_begun()
        run.close()

    def test_a_second_run_in_the_same_process_is_refused(self, run):
        owner = f"process {os.getpid()} on {os.uname().nodename}"
        assert message_of(run.path) == f"is in use by another training run ({owner})"

    def test_another_process_is_refused_and_told_who_owns_the_folder(self, run):
        program = (
            "import sys, pathlib\n"
            "from nmt.training.run_directory import RunDirectory\n"
            "try:\n"
            "    RunDirectory(pathlib.Path(sys.argv[1]), resume=True)\n"
            "except Exception as error:\n"
            "    sys.exit(f'{type(error).__name__} {error}')\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", program, str(run.path)], capture_output=True, text=True
        )
        assert found.stderr == (
            f"ConfigError {run.path}: is in use by another training run "
            f"(process {os.getpid()} on {os.uname().nodename})\n"
        )

    def test_the_lock_goes_with_its_process(self, tmp_path):
        """Whatever ends the owner, the kernel lets go of the lock; the file may stay."""
        (tmp_path / ".lock").write_text("process 1234567 on a machine that lost power" * 9)
        run = RunDirectory(tmp_path, resume=False)
        owner = f"process {os.getpid()} on {os.uname().nodename}"
        assert (tmp_path / ".lock").read_text() == owner
        run.close()
        RunDirectory(tmp_path, resume=False).close()

    def test_refusing_a_begun_run_lets_go_of_the_lock(self, tmp_path):
        begin(tmp_path)
        message_of(tmp_path)
        RunDirectory(tmp_path, resume=True).close()

    def test_a_folder_of_somebody_else_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        (tmp_path / "zebra").touch()
        expected = "is not empty and not a run of nmt (it holds thesis.tex); choose another run_dir"
        assert message_of(tmp_path) == message_of(tmp_path, resume=True) == expected
        assert sorted(os.listdir(tmp_path)) == ["thesis.tex", "zebra"]

    def test_files_beside_a_config_of_ours_are_welcome(self, tmp_path):
        (tmp_path / "config.yaml").touch()
        (tmp_path / "notes.txt").touch()
        RunDirectory(tmp_path, resume=False).close()

    def test_hidden_files_are_not_looked_at(self, tmp_path):
        (tmp_path / ".nfs0001").touch()
        RunDirectory(tmp_path, resume=False).close()

    def test_a_prepared_tokenizer_is_no_begun_run(self, tmp_path):
        for name in ("tokenizer", "data"):
            (tmp_path / name).mkdir()
        RunDirectory(tmp_path, resume=False).close()

    def test_a_begun_run_is_continued_only_on_request(self, tmp_path):
        begin(tmp_path)
        assert message_of(tmp_path) == (
            "holds a run already; continue it with --resume, or choose another run_dir"
        )
        RunDirectory(tmp_path, resume=True).close()

    def test_a_checkpoint_alone_makes_a_begun_run(self, tmp_path):
        (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
        assert message_of(tmp_path).startswith("holds a run already")

    def test_resume_on_nothing_begins(self, tmp_path):
        run = RunDirectory(tmp_path / "new", resume=True)
        assert not run.has_begun()
        run.close()

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("file/run", "Not a directory"),
            ("x" * 300, "File name too long"),
        ],
    )
    def test_a_folder_that_cannot_be_made_is_one_error(self, tmp_path, name, reason):
        (tmp_path / "file").touch()
        assert message_of(tmp_path / name) == f"cannot be written: {reason}"

    def test_a_file_is_no_run_directory(self, tmp_path):
        (tmp_path / "file").touch()
        assert message_of(tmp_path / "file") == "is a file, but must be a folder; choose another"

    def test_a_folder_without_write_permission_is_one_error(self, tmp_path, monkeypatch):
        def refuse(path, *_):
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "open", refuse)  # tests may run as root, whom nothing is denied
        assert message_of(tmp_path) == "cannot be written: Permission denied"


class TestMetrics:
    def events(self, run):
        return [json.loads(line) for line in run.metrics.read_text().split("\n")[:-1]]

    def test_every_event_is_one_line_that_is_on_disk_at_once(self, run):
        run.record("train", step=1, loss=2.5)
        run.record("valid", step=1, bleu_signature='a "quoted"\nvalue')
        first, second = self.events(run)
        assert first["event"] == "train"
        assert (first["step"], first["loss"]) == (1, 2.5)
        assert first["time"] > 1.7e9
        assert second["bleu_signature"] == 'a "quoted"\nvalue'

    def test_resuming_forgets_later_events_and_the_end(self, run):
        for step in (1, 2, 3):
            run.record("train", step=step)
            run.record("valid", step=step)
        run.record("end", step=2)
        run.forget_after(2)
        assert [(event["event"], event["step"]) for event in self.events(run)] == [
            ("train", 1),
            ("valid", 1),
            ("train", 2),
            ("valid", 2),
        ]

    def test_a_validation_that_will_be_repeated_is_forgotten(self, run):
        for step in (1, 2):
            run.record("train", step=step)
            run.record("valid", step=step)
        run.forget_after(2, validation_due=True)
        assert [(event["event"], event["step"]) for event in self.events(run)] == [
            ("train", 1),
            ("valid", 1),
            ("train", 2),
        ]

    def test_what_is_kept_is_kept_byte_for_byte(self, run):
        run.record("train", step=1, loss=0.1)
        before = run.metrics.read_bytes()
        run.record("train", step=2)
        run.forget_after(1)
        assert run.metrics.read_bytes() == before

    @pytest.mark.parametrize("cut", ['{"event": "tr', '{"event": "train", "step": 2', "\udcff"])
    def test_a_last_line_that_a_crash_cut_short_is_dropped(self, run, cut):
        run.record("train", step=1)
        with open(run.metrics, "ab") as stream:
            stream.write(cut.encode("utf-8", "surrogateescape"))
        run.forget_after(5)
        run.record("train", step=2)
        assert [event["step"] for event in self.events(run)] == [1, 2]

    def test_a_damaged_line_costs_only_itself(self, run):
        run.record("train", step=1)
        with open(run.metrics, "ab") as stream:
            stream.write(b"\0\0\0\n")
        run.record("train", step=2)
        run.forget_after(2)
        assert [event["step"] for event in self.events(run)] == [1, 2]

    def test_a_last_line_without_its_newline_does_not_swallow_the_next(self, run):
        with open(run.metrics, "w") as stream:
            stream.write('{"event": "train", "step": 1}')
        run.forget_after(1)
        run.record("train", step=2)
        assert [event["step"] for event in self.events(run)] == [1, 2]

    def test_without_metrics_there_is_nothing_to_forget(self, run):
        run.forget_after(0)
        assert not run.metrics.exists()

    @pytest.mark.parametrize("write", ["record", "log"])
    def test_a_full_disk_is_one_error(self, run, write):
        path = run.metrics if write == "record" else run.path / "log.txt"
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with pytest.raises(TrainingError) as caught:
                getattr(run, write)("a message")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert str(caught.value) == (
            f"{path}: cannot be written: File too large; free some space and continue with --resume"
        )


def test_the_log_has_one_dated_line_per_message(run):
    run.log("first")
    run.log("second, with ünïcode")
    lines = Path(run.path, "log.txt").read_text(encoding="utf-8").split("\n")
    assert [line[20:] for line in lines] == ["first", "second, with ünïcode", ""]
    assert lines[0][:2] == "20"
