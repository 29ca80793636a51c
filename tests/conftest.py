"""A tiny model, trained once through the real command line, and two ways to run a command."""

import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are fastest on one thread
# A shell starts background jobs with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONUNBUFFERED", None)  # processes buffer their output as a user's do


@pytest.fixture(scope="session", autouse=True)
def fast_products():
    """As with a model that is large enough."""
    from nmt.model import onednn  # not before the threads are set

    if onednn.suits_processor():
        onednn.replace_products()


@pytest.fixture(scope="session")
def kernels():
    """The loops compiled by Numba, loaded: from then on everybody in this process uses them."""
    from nmt.model import compiled

    assert compiled.load()
    from nmt.model import kernels

    return kernels


@pytest.fixture
def runs_of(kernels):
    """How often each kernel runs while something is done; only of those that run."""

    def count(do):
        every = {name: getattr(kernels, name) for name in kernels.__all__ if name.islower()}
        before = {name: kernel.num_runs for name, kernel in every.items()}
        do()
        runs = {name: kernel.num_runs - before[name] for name, kernel in every.items()}
        return {name: number for name, number in runs.items() if number}

    return count


@pytest.fixture
def threads():
    """Sets the number of threads of torch, for this test only."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SUBJECTS = {"나는": "I", "너는": "you", "그는": "he", "지우는": "Zoé", "민수는": "Minsu"}
SUBJECTS |= {"우리는": "we"}
OBJECTS = {"밥을": "rice", "빵을": "bread", "차를": "tea", "물을": "water", "책을": "books"}
OBJECTS |= {"꽃을": "flowers"}
VERBS = {"먹었다": "ate", "샀다": "bought", "보았다": "saw", "찾았다": "found"}
TIMES = {"": "", "어제": "yesterday", "오늘": "today"}

CONFIG = """\
run_dir: run
src_lang: ko
tgt_lang: en
data:
  train: {{src: "{folder}/train.ko", tgt: "{folder}/train.en"}}
  valid: {{src: "{folder}/valid.ko", tgt: "{folder}/valid.en"}}
tokenizer: {{vocab_size: 64}}
model:
  embed_dim: 32
  encoder: {{hidden_dim: 32}}
  decoder: {{hidden_dim: 32}}
  attention: {{key_dim: 32}}
  dropout: 0
training:
  max_steps: 200
  batch_tokens: 300
  learning_rate: 1e-2
  schedule: linear
  warmup_steps: 20
  log_every: 50
validation: {{every: 100, beam_size: 1}}
"""


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self):
        """The lines of stdout, which must end in a newline."""
        assert self.out == "" or self.out.endswith("\n")
        return self.out.split("\n")[:-1]


@dataclass(frozen=True)
class Tiny:
    """A model that turns object and verb of Korean sentences around, and its corpus."""

    folder: Path
    trained: Ended

    @property
    def run(self):
        return str(self.folder / "run")

    @property
    def config(self):
        return str(self.folder / "config.yaml")

    def path(self, name):
        """`train`, `valid` or `test`, with `.ko`, `.en`, or (0-based word links) `.gold`."""
        return str(self.folder / name)

    def lines(self, name):
        return (self.folder / name).read_text(encoding="utf-8").split("\n")[:-1]


def write_corpus(folder):
    """All sentences of a small grammar: time subject object verb → subject verb object time."""
    rows = []
    choices = product(TIMES.items(), SUBJECTS.items(), OBJECTS.items(), VERBS.items())
    for (ko_time, time), (ko_subject, subject), (ko_object, object_), (ko_verb, verb) in choices:
        first = 1 if time else 0  # the source position of the subject
        links = [(first, 0), (first + 2, 1), (first + 1, 2)] + ([(0, 3)] if time else [])
        rows.append(
            (
                f"{ko_time} {ko_subject} {ko_object} {ko_verb}".strip(),
                f"{subject} {verb} {object_} {time}".strip(),
                " ".join(f"{src}-{tgt}" for src, tgt in links),
            )
        )
    random.Random(1).shuffle(rows)
    for part, begin, end in (("train", 0, 200), ("valid", 200, 220), ("test", 220, 250)):
        for column, suffix in enumerate(("ko", "en", "gold")):
            text = "".join(row[column] + "\n" for row in rows[begin:end])
            (folder / f"{part}.{suffix}").write_text(text, encoding="utf-8")


def run_process(*args, stdin=b"", **options):
    """Run `python -m nmt` in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "nmt", *args],
        input=stdin,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
        **options,
    )
    return Ended(ended.returncode, (ended.stdout or b"").decode(), ended.stderr.decode())


@pytest.fixture(scope="session")
def nmt_process():
    """Runs a command in a process of its own: slow, but with real streams and signals."""
    return run_process


@pytest.fixture(scope="session")
def nmt():
    """Runs a command in this process; what would be a traceback is raised."""
    from nmt.cli.main import app

    def run(*args, stdin=""):
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=data, prog_name="nmt")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A corpus of 250 pairs, a config, and a run that has been trained on them."""
    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder)
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    trained = run_process("train", "--config", "config.yaml", cwd=folder)
    assert trained.code == 0, trained.err
    return Tiny(folder, trained)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of the test's own folder, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write_file
