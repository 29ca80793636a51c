"""`--model`, `--device` and `--precision`, which most commands have."""

import json
import shutil
from pathlib import Path

import pytest
import torch

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
COMMANDS = {
    "translate": [],
    "eval": ["--src", "s", "--ref", "t"],
    "score": ["--src", "s", "--tgt", "t"],
    "attn-dump": ["--src", "s", "--tgt", "t"],
    "tokenizer encode": ["--side", "src"],
    "tokenizer decode": ["--side", "tgt"],
}
WITH_DEVICE = ["translate", "eval", "score", "attn-dump"]


@pytest.fixture
def use(nmt, write):
    """Runs a command on one sentence pair with any model and further options."""
    write("s", f"{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")

    def run(command, model, *options):
        args = [*command.split(), "--model", model, *COMMANDS[command], *options]
        return nmt(*args, stdin=f"{SENTENCE}\n")

    return run


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the run, and its best checkpoint, to be spoiled."""
    shutil.copytree(tiny.run, tmp_path / "copy")
    return tmp_path / "copy", tmp_path / "copy" / (tmp_path / "copy/best").read_text().strip()


def test_a_run_stands_for_its_best_checkpoint(use, copy):
    run, _ = copy
    answers = set()
    first, last = sorted((run / "checkpoints").iterdir())
    for best in (first, last):
        (run / "best").write_text(f"checkpoints/{best.name}\n")
        answer = use("translate", "copy", "--format", "jsonl")
        assert answer.out == use("translate", best, "--format", "jsonl").out
        answers.add(answer.out)
    assert len(answers) == 2
    (run / "best").unlink()
    assert use("translate", "copy", "--format", "jsonl").out == answer.out  # the latest


def test_a_run_can_be_moved_and_used_from_anywhere(use, copy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path.parent)
    assert use("translate", tmp_path / "copy").out == f"{TRANSLATION}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_not_there_exits_with_4(use, command):
    ended = use(command, "none")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == (
        "error: none: no such folder; give a run directory or one of its checkpoints\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_something_else_exits_with_4(use, command, tmp_path):
    Path("other/checkpoints/step-1").mkdir(parents=True)
    Path("other/best").write_bytes(b"\xff\xfe")
    ended = use(command, "other")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == (
        "error: other: holds no checkpoint of nmt; give a run directory or one of its checkpoints\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", [100, -1])
def test_one_changed_byte_exits_with_4(use, copy, command, place):
    _, checkpoint = copy
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[place] ^= 1
    (checkpoint / "model.safetensors").write_bytes(weights)
    ended = use(command, "copy")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == (
        f"error: copy/checkpoints/{checkpoint.name}/model.safetensors: is damaged (its checksum is "
        "not that of manifest.json); use an older checkpoint\n"
    )


def test_a_model_without_its_tokenizer_exits_with_4(use, copy):
    run, _ = copy
    shutil.rmtree(run / "tokenizer")
    ended = use("translate", "copy")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: ")
    assert ended.err.endswith(
        "copy/tokenizer/shared.model: cannot be read: No such file or directory\n"
    )


def test_a_damaged_tokenizer_exits_with_4(use, copy):
    run, _ = copy
    (run / "tokenizer/shared.model").write_bytes(b"garbage")
    ended = use("translate", "copy")
    assert (ended.code, ended.out) == (4, "")
    assert "copy/tokenizer: is not the tokenizer that step-" in ended.err  # it is not even parsed
    assert ended.err.count("\n") == 1


def test_the_tokenizer_of_another_model_exits_with_4(use, nmt, tiny, copy):
    run, checkpoint = copy
    (run / "tokenizer/shared.model").unlink()
    other = ("--set", "run_dir=copy", "--set", "tokenizer.vocab_size=63")
    assert nmt("tokenizer", "train", "-c", tiny.config, *other).code == 0
    ended = use("translate", "copy")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.endswith(
        f"copy/tokenizer: is not the tokenizer that {checkpoint.name} was trained with; "
        "restore the one that was\n"
    )


def test_a_model_without_its_config_exits_with_4(use, copy):
    (copy[0] / "config.yaml").unlink()
    ended = use("translate", "copy")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("copy/config.yaml: cannot be read: No such file or directory\n")


def test_a_config_of_other_sizes_exits_with_4(use, copy):
    config = copy[0] / "config.yaml"
    config.write_text(config.read_text().replace("key_dim: 32", "key_dim: 33"))
    ended = use("translate", "copy")
    assert (ended.code, ended.out) == (4, "")
    assert "does not fit its config: decoder.attention" in ended.err
    assert ended.err.count("\n") == 1


def test_a_model_of_a_newer_nmt_exits_with_4(use, copy):
    manifest = copy[1] / "manifest.json"
    values = json.loads(manifest.read_text()) | {"format_version": 2, "nmt_version": "9.1"}
    manifest.write_text(json.dumps(values))
    ended = use("translate", "copy")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.endswith("was made by nmt 9.1; upgrade nmt to read it\n")


@pytest.mark.parametrize("command", WITH_DEVICE)
@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:", "cuda:x", "CPU", ""])
def test_a_device_that_we_do_not_have_exits_with_2(use, tiny, command, device):
    ended = use(command, tiny.run, "--device", device)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: device: must be auto, cpu, cuda or cuda:N, but is {device}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", WITH_DEVICE)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none_exits_with_2(use, tiny, command, device):
    ended = use(command, tiny.run, "--device", device)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: device: {device} was asked for, but this machine has no CUDA; use cpu\n"
    )


@pytest.mark.parametrize("command", WITH_DEVICE)
def test_every_device_and_precision_of_the_cpu_serves(use, tiny, command):
    usual = use(command, tiny.run)
    assert (usual.code, usual.err) == (0, "")
    assert use(command, tiny.run, "--device", "cpu", "--precision", "fp32").code == 0
    assert use(command, tiny.run, "--device", "cpu", "--precision", "bf16").code == 0
    refused = use(command, tiny.run, "--device", "cpu", "--precision", "fp16")
    assert refused.code == 2
    assert refused.err.startswith("error: precision: fp16 needs a CUDA device")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("command", WITH_DEVICE)
def test_every_precision_serves_on_cuda(use, tiny, command, precision):
    ended = use(command, tiny.run, "--device", "cuda", "--precision", precision)
    assert (ended.code, ended.err) == (0, "")
    if command == "translate":
        assert ended.out == f"{TRANSLATION}\n"
