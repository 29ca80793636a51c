"""A training run of a second: sixty sentence pairs, a network of some hundred weights."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from nmt.cli.training_run import Hooks, run_training
from nmt.config import load_config
from nmt.training.checkpoint import pointed, read_training_state

NOUNS = ["hund", "katze", "maus", "kuh", "ziege"]
ENGLISH = ["dog", "cat", "mouse", "cow", "goat"]
VERBS = ["sieht", "jagt", "ruft", "kennt"]
ENGLISH_VERBS = ["sees", "hunts", "calls", "knows"]

STEPS = 12  # three epochs of four updates; validated at 3, 6, 9 and 12
CONFIG = """\
run_dir: run
src_lang: de
tgt_lang: en
data:
  train: {src: train.de, tgt: train.en}
  valid: {src: valid.de, tgt: valid.en}
tokenizer: {kind: unigram, vocab_size: 42, sampling: 0.5}
model:
  embed_dim: 8
  encoder: {hidden_dim: 6}
  decoder: {hidden_dim: 8}
  attention: {key_dim: 5}
  dropout: 0.3
training:
  device: cpu
  max_steps: 12
  batch_tokens: 56
  accumulate: 2
  learning_rate: 0.01
  schedule: plateau
  plateau_patience: 2
  ema_decay: 0.9
  log_every: 1
validation: {every: 3, beam_size: 1}
decoding: {beam_size: 1, max_length_ratio: 1.0}
"""


def sentences():
    for i in range(60):
        a, verb, b = i % 5, i % 4, i // 5 % 5
        yield (
            f"{NOUNS[a]} {VERBS[verb]} {NOUNS[b]}",
            f"{ENGLISH[a]} {ENGLISH_VERBS[verb]} {ENGLISH[b]}",
        )


def without_times(event):
    return {k: v for k, v in event.items() if k not in ("time", "seconds", "tokens_per_second")}


class Run:
    """What a run has left in its directory."""

    def __init__(self, path):
        self.path = path

    @property
    def latest(self):
        return pointed(self.path / "latest")

    @property
    def weights(self):
        return (self.latest / "model.safetensors").read_bytes()

    @property
    def state(self):
        return read_training_state(self.latest)

    @property
    def events(self):
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return [without_times(json.loads(line)) for line in lines]

    @property
    def steps(self):
        """The steps whose checkpoints are there."""
        return sorted(int(folder.name[5:]) for folder in (self.path / "checkpoints").iterdir())


def equal(a, b):
    """Whether two training states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with the corpus, the config, and a tokenizer and token store made of it."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    pairs = list(sentences())
    for name, chosen in (("train", pairs), ("valid", pairs[::15])):
        for side, language in enumerate(("de", "en")):
            text = "".join(pair[side] + "\n" for pair in chosen)
            (folder / f"{name}.{language}").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_training(load_config("config.yaml", ["training.max_steps=1"]), resume=False)
    for entry in (folder / "run").iterdir():
        if entry.name not in ("tokenizer", "data"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return folder


REAL_VALIDATE = Hooks.validate


def worse_and_worse(hooks, step):
    """Validate, but give a score that falls, so that the first validation is the best one."""
    return None if REAL_VALIDATE(hooks, step) is None else 1 / step


def enter(original, folder, patch):
    """Copy a folder, and work there."""
    shutil.copytree(original, folder)
    patch.chdir(folder)
    patch.setattr(os, "fsync", lambda handle: None)  # slow, and only a power cut could tell
    patch.setattr(Hooks, "validate", worse_and_worse)


def train(*overrides, resume=False, expect=0):
    """Train in `run`; what it has left."""
    config = load_config("config.yaml", overrides)
    assert run_training(config, resume=resume) == expect
    return Run(Path(config.run_dir).absolute())


@pytest.fixture
def trainer(corpus, tmp_path, monkeypatch):
    """Trains in a fresh copy of the corpus: `trainer(*overrides, resume=…, expect=…)`."""
    enter(corpus, tmp_path / "work", monkeypatch)
    return train


@pytest.fixture(scope="session")
def straight(corpus, tmp_path_factory):
    """The run of twelve steps that nothing has disturbed, made with the given overrides."""
    runs = {}

    def get(*overrides):
        if overrides not in runs:
            with pytest.MonkeyPatch.context() as patch:
                enter(corpus, tmp_path_factory.mktemp("straight") / "work", patch)
                runs[overrides] = train(*overrides)
        return runs[overrides]

    return get


def arm(patch, step, number=signal.SIGTERM):
    """Make a real signal arrive just after an update, once."""
    real = Hooks.on_step

    def on_step(self, report):
        real(self, report)
        if report.step == step:
            patch.setattr(Hooks, "on_step", real)
            signal.raise_signal(number)

    patch.setattr(Hooks, "on_step", on_step)


@pytest.fixture
def stop_after(monkeypatch):
    """Makes SIGTERM, or another signal, arrive just after an update, once."""
    return lambda step, number=signal.SIGTERM: arm(monkeypatch, step, number)


@pytest.fixture(scope="session")
def stopped_runs(corpus, tmp_path_factory):
    """Folders in which a run was stopped just after an update."""
    folders = {}

    def get(step):
        if step not in folders:
            folders[step] = tmp_path_factory.mktemp("stopped") / "work"
            with pytest.MonkeyPatch.context() as patch:
                enter(corpus, folders[step], patch)
                arm(patch, step)
                train(expect=128 + signal.SIGTERM)
        return folders[step]

    return get


@pytest.fixture
def stopped(stopped_runs, tmp_path, monkeypatch):
    """Enters a copy of the folder of a run that was stopped after an update; what it has left."""

    def enter_stopped(step):
        enter(stopped_runs(step), tmp_path / "work", monkeypatch)
        return Run(tmp_path / "work" / "run")

    return enter_stopped


@pytest.fixture
def real_scores(trainer, monkeypatch):
    """Lets validation give the score that it has measured."""
    monkeypatch.setattr(Hooks, "validate", REAL_VALIDATE)


@pytest.fixture
def resume():
    """Continues the run in the current folder."""
    return lambda *overrides: train(*overrides, resume=True)


@pytest.fixture
def same_state():
    """Compares two training states bit for bit."""
    return equal
