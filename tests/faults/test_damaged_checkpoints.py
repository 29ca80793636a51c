"""Checkpoints that are not as they were written: F24 to F26."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from nmt.training.checkpoint import sealed

WEIGHTS, STATE, MANIFEST = "model.safetensors", "training_state.pt", "manifest.json"
MISSING = None


def truncated(content):
    return content[: len(content) // 2]


def zeroed(content):
    return bytes(len(content))


def flipped(index):
    def flip(content):
        changed = bytearray(content)
        changed[int(index * (len(content) - 1))] ^= 1
        return bytes(changed)

    return flip


def no_text(content):
    return b""


def text(content):
    return b"Thank you for your order.\n" * 10


DAMAGES = [
    *(
        pytest.param(WEIGHTS, damage, id=f"weights {damage.__name__}")
        for damage in (truncated, text)
    ),
    *(
        pytest.param(STATE, damage, id=f"state {damage.__name__}")
        for damage in (truncated, zeroed, text, no_text)
    ),
    pytest.param(STATE, MISSING, id="state missing"),
    pytest.param(MANIFEST, MISSING, id="manifest missing"),
    pytest.param(MANIFEST, truncated, id="manifest truncated"),
    pytest.param(MANIFEST, zeroed, id="manifest zeroed"),
]


def spoil(path, damage):
    content = path.read_bytes()
    path.unlink() if damage is MISSING else path.write_bytes(damage(content))


@pytest.fixture
def halfway(small_run):
    """A run that stands at step 4, with checkpoints of steps 2 and 4."""
    assert small_run.train(training__max_steps=4).code == 0
    return small_run


def error_of(ended):
    """The one line that a command which refuses a model says."""
    assert ended.code == 4
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.err
    return ended.err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_f24_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    halfway, undisturbed, name, damage
):
    spoil(halfway.checkpoint(4) / name, damage)
    ended = halfway.train("--resume")
    assert ended.code == 0
    assert "warning: run/checkpoints/step-00000004" in ended.err
    assert "; going on from the checkpoint before it\n" in ended.err
    assert "Traceback" not in ended.err
    assert halfway.weights == undisturbed


@pytest.mark.parametrize(("name", "damage"), [DAMAGES[0], DAMAGES[1], *DAMAGES[-3:]])
def test_f24_who_translates_with_it_is_told_which_file_is_damaged(halfway, nmt, name, damage):
    spoil(halfway.checkpoint(4) / name, damage)
    message = error_of(nmt("translate", "-m", str(halfway.checkpoint(4)), stdin="hund\n"))
    if name == MANIFEST:
        assert message.startswith("run/checkpoints/step-00000004: ")
        assert "manifest.json" in message or "no checkpoint" in message
    else:
        assert message == (
            f"run/checkpoints/step-00000004/{name}: is damaged (its checksum is not that of "
            "manifest.json); use an older checkpoint"
        )


@pytest.mark.parametrize("index", [0, 0.5, 1])
def test_f25_one_wrong_bit_of_the_weights_is_found(halfway, nmt, index):
    """Neither of the two file formats would notice it."""
    spoil(halfway.checkpoint(4) / WEIGHTS, flipped(index))
    message = error_of(nmt("translate", "-m", str(halfway.checkpoint(4)), stdin="hund\n"))
    assert "model.safetensors: is damaged (its checksum is not that of manifest.json)" in message
    assert (
        f"warning: {halfway.checkpoint(4)}/{WEIGHTS}: is damaged" in halfway.train("--resume").err
    )


@pytest.mark.parametrize("index", [0, 0.5, 1])
def test_f25_one_wrong_bit_of_the_training_state_is_found(halfway, undisturbed, index):
    spoil(halfway.checkpoint(4) / STATE, flipped(index))
    ended = halfway.train("--resume")
    assert f"warning: {halfway.checkpoint(4)}/{STATE}: is damaged" in ended.err
    assert halfway.weights == undisturbed


class Payload:
    """Whoever unpickles it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def plant(checkpoint, name):
    """Put the payload in the place of a file, with a manifest that agrees."""
    torch.save({"trainer": Payload()}, checkpoint / name)
    content = (checkpoint / name).read_bytes()
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))


def test_f26_a_payload_in_the_training_state_is_never_executed(halfway):
    plant(halfway.checkpoint(4), STATE)
    message = error_of(halfway.train("--resume"))
    assert message.startswith("run/checkpoints/step-00000004/training_state.pt: ")
    assert not Path("executed").exists()


def test_f26_a_payload_in_the_place_of_the_weights_is_never_executed(halfway, nmt):
    plant(halfway.checkpoint(4), WEIGHTS)
    message = error_of(nmt("translate", "-m", str(halfway.checkpoint(4)), stdin="hund\n"))
    assert message.startswith("run/checkpoints/step-00000004/model.safetensors: ")
    assert message in halfway.train("--resume").err
    assert not Path("executed").exists()


def test_f26_the_payload_works_where_it_is_let(tmp_path, monkeypatch):
    """Else the two tests above prove nothing."""
    monkeypatch.chdir(tmp_path)
    torch.save({"trainer": Payload()}, "payload.pt")
    torch.load("payload.pt", weights_only=False)
    assert Path("executed").is_dir()
