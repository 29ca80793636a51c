"""R8: a model from anyone runs no code, writes nothing, and leads nowhere else."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import nmt as package

STEP = "step-00000200"
WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"
FILES = ["best", "latest", "config.yaml", "tokenizer/shared.model", "shortlist.npz"]
FILES += [f"checkpoints/{STEP}/{name}" for name in (WEIGHTS, STATE, MANIFEST)]
TERABYTE = 1 << 40


class Payload:
    """What unpickles to a folder made, as in any attack with pickles."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


class TestCode:
    """Payloads that would make a folder are put wherever something is read."""

    @pytest.fixture
    def executed(self, tmp_path):
        yield tmp_path / "executed"
        assert not (tmp_path / "executed").exists()

    @pytest.fixture(params=["pickle", "torch", "torch of old", "object array"])
    def payload(self, request, executed, tmp_path):
        path, value = tmp_path / "payload", Payload(executed)
        match request.param:
            case "pickle":
                path.write_bytes(pickle.dumps(value))
            case "torch":
                torch.save({"x": value}, path)
            case "torch of old":
                torch.save({"x": value}, path, _use_new_zipfile_serialization=False)
            case "object array":
                with open(path, "wb") as stream:
                    array = np.array([value], dtype=object)
                    np.savez(stream, meta=array, candidates=array, offsets=array, frequent=array)
        return path

    def test_the_payload_works_where_it_is_unpickled(self, executed):
        """Else the tests below would prove nothing."""
        pickle.loads(pickle.dumps(Payload(executed)))
        assert executed.is_dir()
        executed.rmdir()

    @pytest.mark.parametrize("name", [name for name in FILES if STATE not in name])
    def test_r8_a_pickle_in_the_place_of_a_file_is_not_unpickled(
        self, run, payload, name, refused, nmt, seal
    ):
        shutil.copy(payload, run / name)
        if name in ("best", "latest"):  # a broken pointer is no pointer: the newest is taken
            assert nmt("translate", "--model", run, "--device", "cpu", stdin="나는\n").code == 0
            return
        if MANIFEST not in name:
            seal()
        refused(*(["--shortlist"] if "shortlist" in name else []))

    def test_r8_training_goes_on_from_no_payload(self, run, payload, tiny, nmt, monkeypatch, seal):
        for checkpoint in (run / "checkpoints").iterdir():
            if checkpoint.name != STEP:
                shutil.rmtree(checkpoint)
        shutil.copy(payload, run / "checkpoints" / STEP / STATE)
        seal()
        monkeypatch.chdir(tiny.folder)
        ended = nmt("train", "--config", tiny.config, "--resume", "--set", f"run_dir={run}")
        assert ended.code == 4, ended.err
        assert ended.err.endswith(
            f"{STATE}: is not a training state that can be read with weights_only=True; use an "
            "older checkpoint\n"
        )

    @pytest.mark.parametrize(
        "text",
        [
            "!!python/object/apply:os.mkdir [FOLDER]",
            "!!python/object/new:os.mkdir [FOLDER]",
            "!!python/name:os.mkdir",
            '!!python/object/apply:eval [\'__import__("os").mkdir("FOLDER")\']',
        ],
    )
    def test_r8_a_tag_in_a_config_is_refused(self, run, executed, text, refused, nmt):
        text = text.replace("FOLDER", str(executed))
        with open(run / "config.yaml", "a", encoding="utf-8") as stream:
            stream.write(f"evil: {text}\n")
        assert "is refused; write a plain value" in refused()
        ended = nmt("check", "--config", run / "config.yaml", "--set", f"evil={text}")
        assert ended.code == 2
        assert not executed.exists()

    def test_r8_names_in_a_config_are_names_of_a_list(self, run, executed, refused):
        """No text of a config is looked up as a module, a class or an attribute."""
        text = (run / "config.yaml").read_text("utf-8")
        (run / "config.yaml").write_text(text.replace("cell: gru", "cell: os.mkdir"), "utf-8")
        assert refused().endswith("model.cell must be 'gru' or 'lstm', but is 'os.mkdir'")


class TestReading:
    def test_r8_translating_writes_nothing_and_does_not_look_at_the_training_state(
        self, run, monkeypatch, tmp_path, spying, listing
    ):
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        before = listing(tmp_path)
        with spying() as found:
            translator = package.load(run, device="cpu", shortlist=run / "shortlist.npz")
            (translation,) = translator.translate(["나는 밥을 먹었다"])
            translator.attend(translation)
        assert found == []
        assert listing(tmp_path) == before

    def test_a_training_state_that_is_damaged_or_gone_is_no_matter_to_translate(self, run, nmt):
        state = run / "checkpoints" / STEP / STATE
        state.write_bytes(b"damaged")
        assert nmt("translate", "--model", run, "--device", "cpu", stdin="나는\n").code == 0
        state.unlink()
        os.mkfifo(state)  # whoever opened it would wait for ever
        assert nmt("translate", "--model", run, "--device", "cpu", stdin="나는\n").code == 0

    @pytest.mark.parametrize("name", [name for name in FILES if STATE not in name])
    @pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "sparse", "loop", "elsewhere"])
    def test_r8_what_is_not_a_file_of_sane_size_is_refused_at_once(
        self, run, name, kind, refused, nmt
    ):
        path = run / name
        path.unlink()
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "endless":
                path.symlink_to("/dev/zero")
            case "folder":
                path.mkdir()
            case "sparse":
                path.touch()
                os.truncate(path, TERABYTE)
            case "loop":
                path.symlink_to(path)
            case "elsewhere":
                path.symlink_to("/etc/passwd")
        if name in ("best", "latest"):
            assert nmt("translate", "--model", run, "--device", "cpu", stdin="나는\n").code == 0
        else:
            refused(*(["--shortlist"] if "shortlist" in name else []))

    @pytest.mark.parametrize(
        "target",
        ["../../step-00000777", "/etc", "../../elsewhere", "..", "step-" + "9" * 300,
         "checkpoints/step-99999999", "step-00000200\0", "a" * 5000],
    )  # fmt: skip
    def test_r8_a_pointer_leads_nowhere_else(self, run, tmp_path, target):
        other = shutil.copytree(run / "checkpoints" / STEP, tmp_path / "step-00000777")
        (other / WEIGHTS).write_bytes(b"never read")
        for pointer in ("best", "latest"):
            (run / pointer).write_text(target)
        assert package.load(run, device="cpu").translate(["나는"])

    def test_a_message_shows_little_of_a_file_that_a_link_leads_to(self, run, tmp_path, refused):
        secret = "".join(f"line {i} of a private file\n" for i in range(100))
        (tmp_path / "secret").write_text(secret)
        (run / "config.yaml").unlink()
        (run / "config.yaml").symlink_to(tmp_path / "secret")
        message = refused()
        assert "line 3 of" not in message
        assert len(message) < 300

    def test_a_name_that_no_file_system_has_is_one_line(self, nmt):
        ended = nmt("translate", "--model", "x" * 5000, stdin="a\n")
        assert ended.code == 4
        assert ended.err.endswith(": cannot be read: File name too long\n")
