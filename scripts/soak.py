"""Trains and translates for some minutes while everything goes wrong; nothing may be lost.

    python scripts/soak.py --minutes 10 [--seed N] [--json FILE]

A tiny model is trained twice: undisturbed, and with signals, full disks and damaged checkpoints at
random moments, continued with --resume after each. Then every tensor of weights and training state
and every line of the metrics is compared; they must be the same, bit for bit. In between, texts are
translated under the same faults. Exits with 1 if anything was lost, and keeps the files then.
"""

import argparse
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from soak_compare import Loss, compare_runs, stray_files
from soak_faults import DAMAGES, FAULTS, Ended, Phase, Strike, damage, run_nmt

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
CONFIG = """\
run_dir: run
seed: {seed}
src_lang: ko
tgt_lang: en
data:
  train: {{src: train.ko, tgt: train.en}}
  valid: {{src: valid.ko, tgt: valid.en}}
tokenizer: {{vocab_size: 400, sampling: 0.2}}
model:
  cell: {cell}
  embed_dim: 16
  encoder: {{hidden_dim: 16}}
  decoder: {{hidden_dim: 16, order: {order}}}
  attention: {{key_dim: 16}}
  dropout: 0.3
training:
  device: cpu
  max_steps: {updates}
  batch_tokens: 200
  accumulate: 2
  optimizer: {optimizer}
  learning_rate: 0.005
  schedule: plateau
  plateau_patience: 1
  keep_last: 3
  ema_decay: 0.9
  log_every: 1
validation: {{every: {every}, metric: {metric}, beam_size: 2, patience: null}}
decoding: {{beam_size: 2}}
"""
SHAPES = (
    {"cell": "gru", "order": "bahdanau", "optimizer": "adam", "metric": "loss"},
    {"cell": "lstm", "order": "luong", "optimizer": "adamw", "metric": "chrf"},
    {"cell": "gru", "order": "luong", "optimizer": "sgd", "metric": "loss"},
)
SIZES = {"train": 400, "valid": 20, "test": 150}
"""Lines of each part of the demo corpus that are used."""

TRANSLATE = ["translate", "--model=run", "--input=test.ko"]
TRANSLATE_FAR = ["translate", "--model=../calm/run", "--input=test.ko"]
LOST = ("bytes_lost", "metrics_lines_lost", "metrics_lines_doubled", "stray_files")
COUNTED = ("starts", "translations", *LOST)
FEWEST_FAULTS, MOST_FAULTS, MOST_STARTS = 5, 12, 60
DAMAGE_SHARE = 0.4
"""Of the starts after which the newest checkpoint is damaged."""
SAVE_SECONDS = 0.05
"""About how long it takes to write a checkpoint and point to it."""


class Soak:
    """Runs with faults, what they have survived, and what was lost."""

    def __init__(self, folder: Path, seed: int, seconds: float, updates: int) -> None:
        self.folder = folder
        self.updates = updates
        self.draw = random.Random(seed)
        self.ends = time.monotonic() + seconds
        self.struck: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        self.loss = Loss()
        self.num_runs = self.num_starts = self.num_translations = self.num_strays = 0
        self.problems: list[str] = []

    def run(self, number: int) -> None:
        """Train a model undisturbed and disturbed, translate in between, and compare."""
        home = self.folder / f"{number:04d}"
        calm, storm = home / "calm", home / "storm"
        calm.mkdir(parents=True)
        self._write_inputs(calm, number)
        shutil.copytree(calm, storm)
        began = time.monotonic()
        run_calmly(["train", "--config=config.yaml"], calm)
        seconds = time.monotonic() - began
        run_calmly([*TRANSLATE, "--output=test.en"], calm)
        expected = (calm / "test.en").read_bytes()
        before, kinds = len(self.problems), Counter[str]()
        self._weather(storm, seconds, expected, kinds)
        self.struck += kinds
        if len(self.problems) == before and self._compare(storm / "run", calm / "run"):
            self.survived += kinds
            shutil.rmtree(home)

    def _weather(self, storm: Path, seconds: float, expected: bytes, kinds: Counter[str]) -> None:
        """Train to the end, whatever happens, or until there is a problem.

        Args:
            seconds: what it takes when nothing happens.
            expected: the translation that is right.
            kinds: counts what happens.
        """
        before, run = len(self.problems), storm / "run"
        num_faults = self.draw.randint(FEWEST_FAULTS, MOST_FAULTS)
        for start in range(MOST_STARTS):
            is_calm = start >= num_faults or (self.num_runs > 0 and time.monotonic() > self.ends)
            strike = None if is_calm else self._draw_strike(run, seconds)
            self.num_starts += 1
            ended = run_nmt(["train", "--config=config.yaml", "--resume"], storm, strike)
            self._count("training", ended, strike, kinds)
            if len(self.problems) > before or (is_calm and ended.code == 0):
                return
            if not is_calm:
                self._damage(run, kinds)
                self._translate(storm, seconds, expected, kinds)
        self.problems.append(f"{storm}: not finished after {MOST_STARTS} starts")

    def _write_inputs(self, folder: Path, number: int) -> None:
        for part, size in SIZES.items():
            for language in ("ko", "en"):
                lines = (DEMO / f"{part}.{language}").read_bytes().split(b"\n")
                (folder / f"{part}.{language}").write_bytes(b"\n".join(lines[:size]) + b"\n")
        config = CONFIG.format(
            **SHAPES[number % len(SHAPES)],
            seed=self.draw.randrange(10**6),
            updates=self.updates,
            every=max(self.updates // 12, 2),
        )
        (folder / "config.yaml").write_text(config, encoding="utf-8")

    def _draw_strike(self, run: Path, seconds: float) -> Strike:
        """A fault at any time, among the updates, or while a checkpoint is being written."""
        phase: Phase = self.draw.choice(("start", "updates", "save", "save"))
        latest = {"start": 1.2 * seconds, "updates": 0.5 * seconds, "save": SAVE_SECONDS}[phase]
        after, size = self.draw.uniform(0, latest), int(10 ** self.draw.uniform(2, 5))
        return Strike(self.draw.choice(FAULTS), after, phase, run, size)

    def _count(self, what: str, ended: Ended, strike: Strike | None, kinds: Counter[str]) -> None:
        if strike is not None and ended.was_struck:
            kinds[f"{what}: {strike.fault}"] += 1
        if not ended.is_fine(strike) or (ended.code > 0 and "Traceback" in ended.message):
            self.problems.append(
                f"{what} with {strike} ended with {ended.code} and left {ended.orphans} "
                f"processes:\n{ended.message[-3000:]}"
            )

    def _damage(self, run: Path, kinds: Counter[str]) -> None:
        """Damage the newest checkpoint now and then."""
        kind = self.draw.choice(DAMAGES)
        if self.draw.random() < DAMAGE_SHARE and damage(run, kind, self.draw):
            kinds[f"newest checkpoint: {kind}"] += 1

    def _translate(self, storm: Path, seconds: float, expected: bytes, kinds: Counter[str]) -> None:
        """Translate under a fault: the output is what it was before, or complete and right."""
        self.num_translations += 1
        output, old = storm / "out.en", self.draw.choice((None, b"what was there before\n"))
        output.unlink(missing_ok=True)
        if old is not None:
            output.write_bytes(old)
        fault = self.draw.choice(FAULTS)
        strike = Strike(
            fault, self.draw.uniform(0, seconds), size=int(10 ** self.draw.uniform(1, 4))
        )
        workers = f"--workers={self.draw.choice((1, 2))}"
        ended = run_nmt([*TRANSLATE_FAR, "--output=out.en", workers], storm, strike)
        self._count("translation", ended, strike, kinds)
        found = output.read_bytes() if output.exists() else None
        if found != expected and (ended.code == 0 or found != old):
            self.problems.append(
                f"translation with {strike} ended with {ended.code} and left {found!r:.200}"
            )
        for stray in storm.glob(".out.en.*"):
            self.num_strays += 1
            stray.unlink()

    def _compare(self, run: Path, undisturbed: Path) -> bool:
        """Compare a finished run with the undisturbed one; say whether all is the same."""
        loss = compare_runs(run, undisturbed)
        self.num_runs += 1
        self.num_strays += len(stray_files(run))
        self.loss.num_bytes += loss.num_bytes
        self.loss.lines_lost += loss.lines_lost
        self.loss.lines_doubled += loss.lines_doubled
        self.problems += [f"{run}: {where}" for where in loss.where]
        return not loss.where

    def figures(self) -> dict[str, Any]:
        """What was done and what was lost."""
        return {
            "runs": self.num_runs,
            "starts": self.num_starts,
            "translations": self.num_translations,
            "faults": dict(sorted(self.struck.items())),
            "survived": {kind: self.survived[kind] for kind in sorted(self.struck)},
            "bytes_lost": self.loss.num_bytes,
            "metrics_lines_lost": self.loss.lines_lost,
            "metrics_lines_doubled": self.loss.lines_doubled,
            "stray_files": self.num_strays,
            "problems": self.problems,
        }


def run_calmly(arguments: list[str], folder: Path) -> None:
    """Run a command that nothing disturbs."""
    ended = run_nmt(arguments, folder, None)
    if ended.code != 0:
        raise SystemExit(f"nmt {' '.join(arguments)}: ended with {ended.code}:\n{ended.message}")


def ask_nmt(*arguments: str) -> str:
    """What a command of nmt prints."""
    command = [sys.executable, "-m", "nmt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [("fault", "times", "survived"), ("---", "---:", "---:")]
    survived = figures["survived"]
    rows += [(kind, str(times), str(survived[kind])) for kind, times in figures["faults"].items()]
    total = sum(figures["faults"].values())
    rows.append(("**all**", f"**{total}**", f"**{sum(survived.values())}**"))
    rows += [("", "", ""), ("runs compared with undisturbed ones", str(figures["runs"]), "")]
    rows += [(name.replace("_", " "), str(figures[name]), "") for name in COUNTED]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="start no run after these")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn")
    parser.add_argument("--updates", type=int, default=120, help="of each training run")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def main() -> None:
    """Let things go wrong, and report."""
    arguments = parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else children would ignore it
    folder = Path(tempfile.mkdtemp(prefix="nmt-soak-"))
    soak = Soak(folder, arguments.seed, 60 * arguments.minutes, arguments.updates)
    number = 0
    while number == 0 or time.monotonic() < soak.ends:
        soak.run(number)
        number += 1
        print(f"[{time.strftime('%H:%M:%S')}] {number} runs", file=sys.stderr, flush=True)
    figures = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "python": platform.python_version(),
        "nmt": ask_nmt("--version").strip(),
        **soak.figures(),
    }
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if soak.problems:
        print("\n".join(["", *soak.problems, "", f"The files are in {folder}"]), file=sys.stderr)
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
