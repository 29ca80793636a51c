"""What a user waits for: tokenisation, the start of each command, and the memory they need."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench_flops import Shape
from bench_setup import Bench, make_config, make_text

from nmt.config.load import to_yaml
from nmt.text.tokenizer import Tokenizer, train_tokenizer

# Runs a command and prints its seconds and its highest resident memory. It stands between us and
# the command because Linux counts the memory of the process that starts another as the other's.
WATCH = """
import resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
NUM_VALID = 2
TRAINED_STEPS = 5


@dataclass(frozen=True)
class Tokenization:
    """The speed of the tokenizer of a vocabulary."""

    vocab_size: int
    lines: int
    training_seconds: float
    """To learn the vocabulary from the lines."""
    lines_per_second: float
    tokens_per_second: float


@dataclass(frozen=True)
class CommandRow:
    """One command as a user runs it, start of the process included."""

    command: str
    seconds: float
    """Median of the repetitions."""
    peak_bytes: int
    """Highest resident memory of any of them."""


def tokenization(bench: Bench, vocab_size: int) -> tuple[Tokenization, Tokenizer]:
    """Learn a vocabulary from synthetic text and encode the text."""
    lines = make_text(bench.effort.num_lines)
    began = time.perf_counter()
    tokenizer = train_tokenizer(lines, kind="unigram", vocab_size=vocab_size)
    training_seconds = time.perf_counter() - began
    num_tokens = sum(map(len, tokenizer.encode(lines)))
    seconds = bench.median(lambda: tokenizer.encode(lines))
    bench.say(f"tokenisation: {num_tokens / seconds:,.0f} tokens/s")
    found = Tokenization(
        vocab_size, len(lines), training_seconds, len(lines) / seconds, num_tokens / seconds
    )
    return found, tokenizer


def command_rows(bench: Bench, shape: Shape, tokenizer: Tokenizer) -> list[CommandRow]:
    """Train a model of this shape for a few updates, then run each command on one sentence."""
    folder = bench.folder / "commands"
    prepare(bench, folder, shape, tokenizer)
    device = ["--device", bench.device.type]
    pair = ["--src", "one.src", "--tgt", "one.tgt"]
    commands = {
        f"train ({TRAINED_STEPS} updates)": ["train", "--config", "config.yaml", "--resume"],
        "--help": ["--help"],
        "translate": ["translate", "--model", "run", "-i", "one.src", *device],
        "schema": ["schema"],
        "check": ["check", "--config", "config.yaml"],
        "tokenizer encode": ["tokenizer", "encode", "-m", "run", "--side", "src", "-i", "one.src"],
        "score": ["score", "--model", "run", *pair, *device],
        "attn-dump": ["attn-dump", "--model", "run", *pair, *device],
        "eval": ["eval", "--hyp", "one.tgt", "--ref", "one.tgt"],
    }
    rows = []
    for name, arguments in list(commands.items())[: bench.effort.num_commands]:
        once = name.startswith("train")  # the second time there would be nothing left to do
        rows.append(run(bench, folder, name, arguments, 1 if once else bench.effort.repeats))
    return rows


def prepare(bench: Bench, folder: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write the corpus, the tokenizer and the experiment file of a short training."""
    folder.mkdir()
    lines = make_text(bench.effort.num_lines)
    one, valid, train = lines[:1], lines[:NUM_VALID], lines[NUM_VALID:]
    for name, part in {"one": one, "valid": valid, "train": train}.items():
        for side in ("src", "tgt"):
            text = "".join(line + "\n" for line in part)
            (folder / f"{name}.{side}").write_text(text, encoding="utf-8")
    (folder / "run" / "tokenizer").mkdir(parents=True)
    tokenizer.save(folder / "run" / "tokenizer" / "shared.model")
    config = make_config(shape, "bahdanau", batch_tokens=bench.effort.batch_tokens[0])
    training = config.training.model_copy(
        update={"max_steps": TRAINED_STEPS, "device": bench.device.type}
    )
    text = to_yaml(config.model_copy(update={"training": training}))
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def run(bench: Bench, folder: Path, name: str, arguments: list[str], times: int) -> CommandRow:
    """Run a command some times.

    Raises:
        SystemExit: if it fails, with what it said.
    """
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "nmt", *arguments]
    seconds, peaks = [], []
    for _ in range(times):
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"nmt {name} failed: {ended.stderr}")
        took, peak = ended.stdout.split()
        seconds.append(float(took))
        peaks.append(int(peak) * (1 if sys.platform == "darwin" else 1024))
    bench.say(f"nmt {name}: {median(seconds):.2f} s, {max(peaks) / 1e6:,.0f} MB")
    return CommandRow(name, median(seconds), max(peaks))
