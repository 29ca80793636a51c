"""Each fault case has a time limit: a test that hangs is a fault too. And a run to disturb."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from nmt.training.checkpoint import read_training_state

TIME_LIMIT = 120
"""Seconds; a test of a process that trains may take more on a machine that does other things."""


def pytest_collection_modifyitems(items):
    for item in items:
        here = Path(item.path).is_relative_to(Path(__file__).parent)
        if here and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMIT))


SMALL = """\
run_dir: run
src_lang: de
tgt_lang: en
data:
  train: {src: train.de, tgt: train.en}
  valid: {src: valid.de, tgt: valid.en}
tokenizer: {kind: unigram, vocab_size: 38, sampling: 0.5}
model:
  embed_dim: 8
  encoder: {hidden_dim: 6}
  decoder: {hidden_dim: 8}
  attention: {key_dim: 5}
  dropout: 0.3
training:
  device: cpu
  max_steps: 6
  batch_tokens: 56
  accumulate: 2
  learning_rate: 0.01
  keep_last: 2
  log_every: 1
validation: {every: 2, beam_size: 1}
decoding: {beam_size: 1, max_length_ratio: 1.0}
"""
"""A run of a second, in which much is drawn at random: six updates, saved at 2, 4 and 6; 4 end an
epoch."""

SUBJECTS = {"hund": "dog", "katze": "cat", "maus": "mouse", "kuh": "cow", "ziege": "goat"}
VERBS = {"sieht": "sees", "jagt": "hunts", "ruft": "calls", "kennt": "knows"}


class SmallRun:
    """A run in the folder `run` of the current folder, driven by the command line."""

    path = Path("run")

    def __init__(self, nmt):
        self.nmt = nmt

    def train(self, *arguments, **overrides):
        """`nmt train` with options and `section__key=value` overrides; what it left behind."""
        settings = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
        options = [text for setting in settings for text in ("--set", setting)]
        return self.nmt("train", "--config", "config.yaml", *arguments, *options)

    def checkpoint(self, step):
        return self.path / "checkpoints" / f"step-{step:08d}"

    @property
    def steps(self):
        """The steps of all checkpoints, whose names must be all that is there."""
        return sorted(int(name.removeprefix("step-")) for name in os.listdir("run/checkpoints"))

    @property
    def latest(self):
        return (self.path / "latest").read_text()

    @property
    def weights(self):
        """Those of the latest checkpoint."""
        return (self.path / self.latest.strip() / "model.safetensors").read_bytes()

    @property
    def progress(self):
        """Where the latest checkpoint stands."""
        return read_training_state(self.path / self.latest.strip())["trainer"]["progress"]

    def unfinished(self):
        """What is in the run's folders and has no name that a complete file has."""
        names = [path.name for path in self.path.rglob("*")]
        return [name for name in names if ".tmp" in name or (name[0] == "." and name != ".lock")]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """A folder with a corpus of sixty pairs and a config."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.yaml").write_text(SMALL, encoding="utf-8")
    pairs = [
        (f"{a} {verb} {b}", f"{SUBJECTS[a]} {VERBS[verb]} {SUBJECTS[b]}")
        for a in SUBJECTS
        for b in list(SUBJECTS)[:3]
        for verb in VERBS
    ]
    for name, chosen in (("train", pairs), ("valid", pairs[::15])):
        for side, language in enumerate(("de", "en")):
            text = "".join(pair[side] + "\n" for pair in chosen)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished_folder(corpus_folder, nmt, tmp_path_factory):
    """The same with a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(corpus_folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = SmallRun(nmt).train()
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="session")
def undisturbed(finished_folder):
    """The weights with which a run ends that nothing disturbs."""
    return (finished_folder / "run/checkpoints/step-00000006/model.safetensors").read_bytes()


@pytest.fixture
def small_run(finished_folder, nmt, tmp_path, monkeypatch):
    """A run that has its tokenizer and its data, but has not begun, in the current folder."""
    shutil.copytree(finished_folder, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # slow, and only a power cut could tell
    shutil.rmtree("run/checkpoints")
    for name in ("latest", "best", "metrics.jsonl", "log.txt", "config.yaml"):
        os.unlink(f"run/{name}")
    return SmallRun(nmt)


@pytest.fixture
def fork():
    """Runs an action in a forked process; its exit status, or minus the signal that ended it."""

    def run(action):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                action()
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run
