"""A checkpoint comes back as it was written, and one that is not as written is refused."""

import contextlib
import hashlib
import json
import os
import stat

import pytest
import torch

import nmt
from nmt.errors import ModelError, TrainingError
from nmt.training.checkpoint import (
    SEAL,
    choose_checkpoint,
    latest_good,
    list_checkpoints,
    point,
    pointed,
    read_training_state,
    read_weights,
    remove_old,
    verify,
    write_checkpoint,
)

FILES = ["manifest.json", "model.safetensors", "training_state.pt"]
WEIGHTS, STATE = FILES[1:]
READERS = [(WEIGHTS, read_weights), (STATE, read_training_state)]
ABOUT = {"tokenizers": {"src": "1", "tgt": "2"}}


def make_weights(value=1.0):
    return {"encoder.a": torch.full((2, 3), value), "decoder.b": torch.tensor([value, -0.0, 1e-40])}


def write(run_dir, step, weights=None):
    state = {"step": step, "random": torch.arange(5, dtype=torch.uint8), "none": None}
    return write_checkpoint(run_dir, step, weights or make_weights(float(step)), state, ABOUT)


def flip_byte(path, index):
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


def edit_manifest(checkpoint, **values):
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop(SEAL, None)
    path.write_text(json.dumps(manifest | values))


@pytest.fixture
def umask():
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


@pytest.fixture
def warnings():
    return []


class TestRoundTrip:
    def test_weights_come_back_bit_for_bit(self, tmp_path):
        weights = make_weights(0.1)
        found = read_weights(write(tmp_path, 12, weights))
        assert list(found) == sorted(weights)
        for name, weight in weights.items():
            assert torch.equal(found[name].view(torch.int32), weight.view(torch.int32))

    def test_the_training_state_comes_back(self, tmp_path):
        state = read_training_state(write(tmp_path, 12))
        assert state["step"] == 12
        assert state["none"] is None
        assert torch.equal(state["random"], torch.arange(5, dtype=torch.uint8))

    def test_weights_that_are_views_are_written_in_full(self, tmp_path):
        matrix = torch.arange(6.0).view(2, 3)
        found = read_weights(write(tmp_path, 1, {"t": matrix.T, "row": matrix[1]}))
        assert torch.equal(found["t"], matrix.T)
        assert torch.equal(found["row"], matrix[1])

    def test_a_parameter_that_needs_gradients_is_written_as_a_plain_tensor(self, tmp_path):
        parameter = torch.nn.Parameter(torch.ones(2))
        found = read_weights(write(tmp_path, 1, {"p": parameter}))
        assert not found["p"].requires_grad
        assert parameter.requires_grad

    def test_the_manifest_says_what_was_written(self, tmp_path):
        checkpoint = write(tmp_path, 1200)
        assert checkpoint == tmp_path / "checkpoints" / "step-00001200"
        manifest = verify(checkpoint)
        assert manifest == json.loads((checkpoint / "manifest.json").read_text())
        assert (manifest["format_version"], manifest["step"]) == (1, 1200)
        assert manifest["nmt_version"] == nmt.__version__
        assert manifest["torch_version"] == torch.__version__
        assert manifest["tokenizers"] == ABOUT["tokenizers"]
        for name in ("model.safetensors", "training_state.pt"):
            content = (checkpoint / name).read_bytes()
            assert manifest["files"][name] == {
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }

    def test_nothing_but_its_three_files_is_left(self, tmp_path):
        checkpoint = write(tmp_path, 1)
        assert sorted(os.listdir(checkpoint)) == FILES
        assert os.listdir(checkpoint.parent) == ["step-00000001"]
        assert sorted(os.listdir(tmp_path)) == ["checkpoints", "latest"]

    def test_the_newest_is_the_latest(self, tmp_path):
        write(tmp_path, 1)
        second = write(tmp_path, 2)
        assert (tmp_path / "latest").read_text() == "checkpoints/step-00000002\n"
        assert pointed(tmp_path / "latest") == second

    def test_the_same_step_can_be_written_again(self, tmp_path):
        write(tmp_path, 3, make_weights(1.0))
        checkpoint = write(tmp_path, 3, make_weights(2.0))
        assert torch.equal(read_weights(checkpoint)["encoder.a"], torch.full((2, 3), 2.0))
        assert os.listdir(checkpoint.parent) == ["step-00000003"]

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_permissions_follow_the_umask(self, tmp_path, umask, mask, mode):
        umask(mask)
        checkpoint = write(tmp_path, 1)
        modes = {stat.S_IMODE((checkpoint / name).stat().st_mode) for name in FILES}
        assert modes == {mode}
        assert stat.S_IMODE((tmp_path / "latest").stat().st_mode) == mode

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_weight_that_is_not_finite_is_never_written(self, tmp_path, value):
        write(tmp_path, 1)
        with pytest.raises(
            TrainingError,
            match=r"^step 2: weight decoder\.b is not finite, so no checkpoint was written; go on "
            r"from the last one with a lower training\.learning_rate$",
        ):
            write(tmp_path, 2, make_weights() | {"decoder.b": torch.tensor([1.0, value])})
        assert os.listdir(tmp_path / "checkpoints") == ["step-00000001"]
        assert (tmp_path / "latest").read_text() == "checkpoints/step-00000001\n"


class TestDamage:
    @pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt"])
    @pytest.mark.parametrize("index", [0, 20, -1])
    def test_one_flipped_byte_is_found(self, tmp_path, name, index):
        checkpoint = write(tmp_path, 1)
        flip_byte(checkpoint / name, index)
        for read in (verify, {WEIGHTS: read_weights, STATE: read_training_state}[name]):
            with pytest.raises(ModelError) as caught:
                read(checkpoint)
            assert str(caught.value) == (
                f"{checkpoint / name}: is damaged (its checksum is not that of manifest.json); "
                "use an older checkpoint"
            )

    def test_what_is_not_read_need_not_be_whole(self, tmp_path):
        """To translate, nobody hashes the state of the optimizer, or needs it at all."""
        checkpoint = write(tmp_path, 1)
        flip_byte(checkpoint / STATE, -1)
        assert len(read_weights(checkpoint)) == 2
        (checkpoint / STATE).unlink()
        assert len(read_weights(checkpoint)) == 2

    @pytest.mark.parametrize(("name", "read"), READERS)
    def test_what_the_manifest_does_not_list_is_not_read(self, tmp_path, name, read):
        checkpoint = write(tmp_path, 1)
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        del files[name]
        edit_manifest(checkpoint, files=files)
        with pytest.raises(ModelError, match=f"{name}: is damaged"):
            read(checkpoint)

    @pytest.mark.parametrize("size", [0, 1, 100])
    def test_a_truncated_file_is_found(self, tmp_path, size):
        checkpoint = write(tmp_path, 1)
        os.truncate(checkpoint / "model.safetensors", size)
        with pytest.raises(ModelError, match="is damaged"):
            read_weights(checkpoint)

    @pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt"])
    def test_a_missing_file_is_found(self, tmp_path, name):
        checkpoint = write(tmp_path, 1)
        (checkpoint / name).unlink()
        with pytest.raises(
            ModelError, match=rf"{name}: cannot be read: No such file or directory$"
        ):
            verify(checkpoint)

    @pytest.mark.parametrize(
        "content",
        [
            None,
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b"{}",
            b"3",
            b'{"format_version": "x"}',
            b'{"format_version": 1, "nmt_version": "0", "files": 1}',
        ],
    )
    def test_a_manifest_that_cannot_be_read_is_one_error(self, tmp_path, content):
        checkpoint = write(tmp_path, 1)
        if content is None:
            (checkpoint / "manifest.json").unlink()
        else:
            (checkpoint / "manifest.json").write_bytes(content)
        with pytest.raises(ModelError) as caught:
            verify(checkpoint)
        assert str(caught.value) == (
            f"{checkpoint}: manifest.json is missing or damaged; use an older checkpoint"
        )

    def test_a_newer_format_asks_for_an_upgrade(self, tmp_path):
        checkpoint = write(tmp_path, 1)
        edit_manifest(checkpoint, format_version=2, nmt_version="7.1")
        with pytest.raises(
            ModelError, match=r"step-00000001: was made by nmt 7\.1; upgrade nmt to read it$"
        ):
            verify(checkpoint)

    @pytest.mark.parametrize("index", range(0, 520, 5))
    def test_a_flipped_bit_of_a_manifest_is_damage(self, tmp_path, index):
        checkpoint = write(tmp_path, 1)
        before = verify(checkpoint)
        flip_byte(checkpoint / "manifest.json", index)
        found = "damaged"
        with contextlib.suppress(ModelError):
            found = verify(checkpoint)
        if found != "damaged":  # it was a bit of the name of the checksum
            assert {name: found.get(name) for name in before if name != SEAL} == {
                name: value for name, value in before.items() if name != SEAL
            }

    def test_a_manifest_cannot_lead_out_of_its_folder(self, tmp_path):
        checkpoint = write(tmp_path, 1)
        (tmp_path / "secret").write_bytes(b"x")
        edit_manifest(checkpoint, files={"../../secret": {"size": 1, "sha256": "0"}})
        with pytest.raises(ModelError, match="step-00000001/secret: cannot be read"):
            verify(checkpoint)

    def test_reading_never_runs_code_from_the_training_state(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "executed"),))

        checkpoint = write_checkpoint(tmp_path, 1, make_weights(), {"x": Payload()}, ABOUT)
        with pytest.raises(Exception, match="weights_only"):
            read_training_state(checkpoint)
        assert not (tmp_path / "executed").exists()


class TestLatestGood:
    def test_a_run_without_checkpoints_has_none(self, tmp_path, warnings):
        assert latest_good(tmp_path, warnings.append) is None

    def test_the_newest_is_chosen_by_number(self, tmp_path, warnings):
        for step in (9, 10, 200000000, 8):
            write(tmp_path, step)
        assert [folder.name for folder in list_checkpoints(tmp_path)] == [
            "step-00000008",
            "step-00000009",
            "step-00000010",
            "step-200000000",
        ]
        assert latest_good(tmp_path, warnings.append).name == "step-200000000"
        assert warnings == []

    def test_damaged_ones_are_reported_and_passed_over(self, tmp_path, warnings):
        first, second, third = (write(tmp_path, step) for step in (1, 2, 3))
        (third / "manifest.json").unlink()
        flip_byte(second / "model.safetensors", -1)
        assert latest_good(tmp_path, warnings.append) == first
        assert warnings == [
            f"{third}: manifest.json is missing or damaged; use an older checkpoint; going on "
            "from the checkpoint before it",
            f"{second / 'model.safetensors'}: is damaged (its checksum is not that of "
            "manifest.json); use an older checkpoint; going on from the checkpoint before it",
        ]

    def test_if_all_are_damaged_it_does_not_start_again_silently(self, tmp_path, warnings):
        for step in (1, 2):
            (write(tmp_path, step) / "training_state.pt").write_bytes(b"")
        with pytest.raises(ModelError) as caught:
            latest_good(tmp_path, warnings.append)
        assert str(caught.value) == (
            f"{tmp_path}: every checkpoint is damaged; start again in another run_dir"
        )
        assert len(warnings) == 2

    def test_unfinished_and_foreign_folders_are_no_checkpoints(self, tmp_path, warnings):
        checkpoint = write(tmp_path, 1)
        for name in ("step-00000002.tmp-7", "step-00000003.replaced", "step-4", "step-x", "best"):
            (checkpoint.parent / name).mkdir()
        assert list_checkpoints(tmp_path) == [checkpoint]


class TestRemoveOld:
    def names(self, run_dir):
        return [int(folder.name[5:]) for folder in list_checkpoints(run_dir)]

    def test_the_last_ones_and_the_best_are_kept(self, tmp_path):
        for step in range(1, 7):
            checkpoint = write(tmp_path, step)
            if step == 2:
                point(tmp_path / "best", checkpoint)
        remove_old(tmp_path, keep_last=3)
        assert self.names(tmp_path) == [2, 4, 5, 6]

    def test_nothing_is_removed_while_there_are_few(self, tmp_path):
        for step in (1, 2):
            write(tmp_path, step)
        remove_old(tmp_path, keep_last=2)
        assert self.names(tmp_path) == [1, 2]

    def test_what_was_just_written_stays_even_before_later_damaged_ones(self, tmp_path, warnings):
        """A run that fell back from steps 6 and 8 to 4 has just written 5."""
        for step in (4, 6, 8):
            write(tmp_path, step)
        for step in (6, 8):
            (tmp_path / f"checkpoints/step-0000000{step}/manifest.json").unlink()
        write(tmp_path, 5)
        remove_old(tmp_path, keep_last=2)
        assert self.names(tmp_path) == [4, 5, 6, 8]
        write(tmp_path, 6)
        remove_old(tmp_path, keep_last=2)
        assert self.names(tmp_path) == [5, 6, 8]
        (tmp_path / "checkpoints/step-00000006/manifest.json").unlink()
        assert latest_good(tmp_path, warnings.append).name == "step-00000005"


class TestChoice:
    def test_the_best_comes_before_the_latest(self, tmp_path):
        first, second = write(tmp_path, 1), write(tmp_path, 2)
        assert choose_checkpoint(tmp_path) == second
        point(tmp_path / "best", first)
        assert choose_checkpoint(tmp_path) == first

    def test_a_checkpoint_is_itself(self, tmp_path):
        first = write(tmp_path, 1)
        write(tmp_path, 2)
        assert choose_checkpoint(first) == first

    @pytest.mark.parametrize("content", [b"", b"\n", b"..", b"\xff", b"checkpoints/step-00000009"])
    def test_without_usable_pointers_it_is_the_newest(self, tmp_path, content):
        write(tmp_path, 1)
        second = write(tmp_path, 2)
        for pointer in ("best", "latest"):
            (tmp_path / pointer).write_bytes(content)
        assert pointed(tmp_path / "best") is None
        assert choose_checkpoint(tmp_path) == second

    def test_a_pointer_cannot_lead_out_of_the_run(self, tmp_path):
        checkpoint = write(tmp_path / "run", 2)
        write(tmp_path / "other", 1)
        (tmp_path / "run" / "best").write_text("../other/checkpoints/step-00000001")
        assert choose_checkpoint(tmp_path / "run") == checkpoint

    @pytest.mark.parametrize(
        ("name", "hint"), [("empty", "holds no checkpoint of nmt"), ("missing", "no such folder")]
    )
    def test_where_there_is_none_the_message_says_what_to_give(self, tmp_path, name, hint):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelError) as caught:
            choose_checkpoint(tmp_path / name)
        assert str(caught.value) == (
            f"{tmp_path / name}: {hint}; give a run directory or one of its checkpoints"
        )
