"""A model and its tokenizer belong together, and old and new formats tell what they are."""

import json
import shutil
from pathlib import Path

import pytest

import nmt as package
from nmt.text.tokenizer import Tokenizer, train_tokenizer

SENTENCE, TRANSLATION = "어제 나는 밥을 먹었다", "I ate rice yesterday"
COMMANDS = {
    "translate": [],
    "eval": ["--src", "s", "--ref", "t"],
    "score": ["--src", "s", "--tgt", "t"],
    "attn-dump": ["--src", "s"],
    "tokenizer encode": ["--side", "src"],
}


@pytest.fixture
def copy(tiny, write, tmp_path):
    """A copy of the trained run, in the working directory."""
    write("s", f"{SENTENCE}\n")
    write("t", f"{TRANSLATION}\n")
    shutil.copytree(tiny.run, tmp_path / "copy")
    return Path("copy")


def refused(ended, message):
    """The command ended with 4 and one line that says this."""
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert message in ended.err


def swap_tokenizer(run, vocab_size):
    """Put a tokenizer of other text in the place of the run's own."""
    corpus = [f"{a}{b} {b}{a}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz"]
    other = train_tokenizer(corpus, kind="bpe", vocab_size=vocab_size)
    assert len(other) == vocab_size
    (run / "tokenizer/shared.model").unlink()
    other.save(run / "tokenizer/shared.model")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("difference", [0, -1, 1])
def test_f39_a_tokenizer_of_another_model_is_refused_also_of_the_same_size(
    nmt, tiny, copy, command, difference
):
    size = len(Tokenizer.load(Path(tiny.run) / "tokenizer/shared.model"))
    swap_tokenizer(copy, size + difference)
    ended = nmt(*command.split(), "--model", "copy", *COMMANDS[command], stdin=SENTENCE)
    refused(ended, "is not the tokenizer that step-")


def test_f39_a_run_is_not_resumed_with_another_tokenizer(nmt, tiny, copy):
    swap_tokenizer(copy, len(Tokenizer.load(Path(tiny.run) / "tokenizer/shared.model")))
    before = {path: path.stat().st_mtime_ns for path in copy.glob("checkpoints/*/*")}
    longer = ("run_dir=copy", "training.schedule=linear", "training.log_every=7")
    settings = [word for setting in longer for word in ("--set", setting)]
    ended = nmt("train", "-c", tiny.config, "--resume", *settings)
    assert ended.code in (2, 4)
    assert "error: " in ended.err
    assert "Traceback" not in ended.err
    assert {path: path.stat().st_mtime_ns for path in copy.glob("checkpoints/*/*")} == before


def test_f39_there_is_no_option_to_bring_another_tokenizer(nmt, copy):
    ended = nmt("translate", "--model", "copy", "--tokenizer", "x")
    assert ended.code == 2
    assert "No such option: --tokenizer" in ended.err


def test_f39_the_hash_in_the_checkpoint_is_that_of_the_tokenizer_beside_it(copy):
    tokenizer = Tokenizer.load(copy / "tokenizer/shared.model")
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        hashes = json.loads(manifest.read_text(encoding="utf-8"))["tokenizers"]
        assert hashes == {"src": tokenizer.sha256, "tgt": tokenizer.sha256}


@pytest.fixture
def change_manifests(copy):
    """Changes keys of the manifest of every checkpoint of the copy."""

    def change(**values):
        for path in copy.glob("checkpoints/*/manifest.json"):
            manifest = json.loads(path.read_text(encoding="utf-8")) | values
            del manifest["manifest_sha256"]  # which would tell that it was changed
            path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))

    return change


@pytest.mark.parametrize("command", COMMANDS)
def test_f40_a_newer_format_says_to_upgrade(nmt, copy, change_manifests, command):
    change_manifests(format_version=99, nmt_version="9.1")
    ended = nmt(*command.split(), "--model", "copy", *COMMANDS[command], stdin=SENTENCE)
    refused(ended, "was made by nmt 9.1; upgrade nmt to read it")


def test_f40_a_newer_format_is_named_before_anything_in_it_is_read(nmt, copy, change_manifests):
    """A newer nmt may write other files and keys, which then are nobody's mistake."""
    change_manifests(format_version=99, nmt_version="9.1", files=[1, 2], tokenizers=7)
    config = copy / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "brand_new: {key: 1}\n")
    refused(nmt("translate", "-m", "copy", stdin=SENTENCE), "was made by nmt 9.1; upgrade nmt")


def test_f40_a_config_of_another_version_is_named_with_that_version(nmt, copy, change_manifests):
    change_manifests(nmt_version="0.9")
    config = copy / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "brand_new: {key: 1}\n")
    ended = nmt("translate", "-m", "copy", stdin=SENTENCE)
    assert (ended.code, ended.out) == (4, "")
    [problem, advice] = ended.err.removesuffix("\n").split("\n")
    assert "unknown key 'brand_new'" in problem
    assert advice.endswith(
        f"was made by nmt 0.9, but this is nmt {package.__version__}; use that version"
    )


@pytest.mark.parametrize("version", [None, "new", [1], {}], ids=str)
def test_f40_a_format_that_says_nothing_is_damaged(nmt, copy, change_manifests, version):
    change_manifests(format_version=version)
    refused(nmt("translate", "-m", "copy", stdin=SENTENCE), "manifest.json is missing or damaged")


def test_f40_training_does_not_go_on_from_a_newer_format(nmt, tiny, copy, change_manifests):
    change_manifests(format_version=99, nmt_version="9.1")
    ended = nmt("train", "-c", tiny.config, "--resume", "--set", "run_dir=copy")
    assert ended.code == 4
    assert "was made by nmt 9.1; upgrade nmt to read it" in ended.err
    assert "Traceback" not in ended.err


def test_f40_a_model_that_lacks_a_key_of_today_is_read_with_its_default(nmt, copy):
    """An older config says nothing of what came later."""
    config = copy / "config.yaml"
    lines = config.read_text(encoding="utf-8").split("\n")
    without = [line for line in lines if "max_skipped" not in line and "log_every" not in line]
    assert len(without) == len(lines) - 2
    config.write_text("\n".join(without))
    ended = nmt("translate", "--model", "copy", stdin=f"{SENTENCE}\n")
    assert (ended.code, ended.out, ended.err) == (0, f"{TRANSLATION}\n", "")
