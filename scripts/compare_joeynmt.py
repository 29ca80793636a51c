"""Compare the speed of this toolkit with JoeyNMT 2.3 (Kreutzer et al. 2019) on this machine.

    python3 -m venv joey
    joey/bin/pip install torch==2.13.0
    joey/bin/pip install joeynmt==2.3.0
    python scripts/compare_joeynmt.py --joeynmt-python joey/bin/python --data data/multi30k \
        --json comparison.json

JoeyNMT needs an environment of its own, with the same torch; nothing in it is edited. The three
patches without which it does not start are in `compare_joeynmt_joey.py`, named and explained.

Both systems train and decode the same model on the same text with one tokenizer: V = 8,000 untied,
E = 256, bidirectional GRU of 512 per direction, GRU decoder of 512 that attends with its new state
by an additive score and is fed its last attentional vector. That is JoeyNMT's recurrent decoder
(`attention: bahdanau`, `input_feeding: true`), here `order: luong` with `score: additive`.
Dropout, label smoothing, clipping and Adam have equal settings. The parameters differ by two
biases: JoeyNMT has one in the attentional layer (512), this toolkit one in the vocabulary layer
(8,000).

Training is timed in each system's own loop over whole steps: data, forward, backward, optimizer.
A batch holds about 1,500 real target tokens, and only these count, </s> among them. JoeyNMT draws
sentences at random and pads them (`batch_type: sentence`; by tokens it would pad as much and also
tokenise each sentence twice); batches here are of similar target lengths.

Decoding is beam search that is forced to exactly 20 tokens for each of 64 sentences at a time,
</s> not counted; in int8 also with the shortlist that `nmt shortlist` learns from the text. JoeyNMT
decodes with the weights it has by then, this toolkit with its first ones: the forced length makes
the work the same.

The systems take turns, so that a disturbance meets all of them; a figure is the median of the
turns. The first steps, and one after each turn of another system, are not timed. Run it on a
machine that does nothing else.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compare_joeynmt_figures import TASKS, System, Turn, processor_name, rows, table

from nmt.build.data import build_token_store, build_tokenizers
from nmt.config import Config, load_config, to_yaml
from nmt.errors import NMTError
from nmt.text.lines import open_input

HERE = Path(__file__).resolve().parent
SIZE = {
    "embed_dim": 256,
    "hidden_dim": 512,
    "dropout": 0.3,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "learning_rate": 5e-4,
}
VOCAB_SIZE = 8000
BEAM, LENGTH, BATCH = 5, 20, 64

CONFIG = """\
run_dir: {run}
src_lang: {src}
tgt_lang: {tgt}
data:
  train: {{src: {text}/train.{src}, tgt: {text}/train.{tgt}}}
  valid: {{src: {text}/val.{src}, tgt: {text}/val.{tgt}}}
tokenizer: {{kind: unigram, vocab_size: {vocab_size}, shared: true}}
model:
  cell: gru
  embed_dim: {embed_dim}
  encoder: {{num_layers: 1, hidden_dim: {hidden_dim}, bidirectional: true}}
  decoder: {{order: luong, num_layers: 1, hidden_dim: {hidden_dim}, input_feeding: true}}
  attention: {{score: additive, key_dim: {hidden_dim}}}
  tie_embeddings: none
  dropout: {dropout}
training:
  device: cpu
  max_steps: 1000000000
  batch_tokens: {batch_tokens}
  optimizer: adam
  learning_rate: {learning_rate}
  schedule: constant
  clip_norm: {clip_norm}
  label_smoothing: {label_smoothing}
validation: {{every: 1000000000, patience: null}}
"""


class Child:
    """A running system.

    Raises:
        SystemExit: if it cannot be run, or ends before it is told to: with the end of its log.
    """

    def __init__(self, system: System, job: dict[str, Any], log: Path) -> None:
        self.system = system
        self.log = log
        threads = str(job["threads"])
        command = [system.python, str(HERE / system.script), json.dumps(job)]
        with open(log, "wb") as stream:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stream,
                    env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                    encoding="utf-8",
                )
            except OSError as error:
                raise SystemExit(f"{system.python}: cannot be run: {error.strerror}") from None
        system.about = self._answer()

    def run(self, task: str, seconds: float) -> Turn:
        """Let it work for at least so long."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"task": task, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return Turn(**self._answer())

    def close(self) -> None:
        """Tell it to end, and wait until it has."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            end = "\n".join(self.log.read_text(encoding="utf-8").split("\n")[-15:])
            who = f"{self.system.name} ({self.system.precision})"
            raise SystemExit(f"{end}\n{who}: ended with exit code {code}; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def find_text(data: Path, name: str) -> Path:
    """The file of a corpus, plain or compressed.

    Raises:
        SystemExit: if there is none.
    """
    for path in (data / name, data / f"{name}.gz"):
        if path.exists():
            return path
    raise SystemExit(f"{data}: must hold {name} or {name}.gz; data/README.md says where it is from")


def prepare(data: Path, work: Path, src: str, tgt: str, batch_tokens: int) -> tuple[Config, int]:
    """Lay out what both systems read: plain text, one tokenizer, our token store.

    Returns:
        config: of our side.
        sentences: how many JoeyNMT needs for a batch of `batch_tokens` target tokens.
    """
    for part in ("train", "val"):
        for lang in (src, tgt):
            with (
                open_input(find_text(data, f"{part}.{lang}")) as source,
                open(work / f"{part}.{lang}", "wb") as target,
            ):
                shutil.copyfileobj(source, target)
    run = work / "nmt"
    run.mkdir()
    draft = work / "config.yaml"
    text = CONFIG.format(
        run=json.dumps(str(run)),
        text=work,
        src=src,
        tgt=tgt,
        vocab_size=VOCAB_SIZE,
        batch_tokens=batch_tokens,
        **SIZE,
    )
    draft.write_text(text, encoding="utf-8")
    config = load_config(str(draft))
    (run / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    tokenizers = build_tokenizers(config, run / "tokenizer", lambda message: None)
    store, _ = (
        build_token_store(config, part, tokenizers, run / "data" / part, lambda message: None)
        for part in ("train", "valid")
    )
    return config, max(1, round(batch_tokens / (1 + float(store.lengths("tgt").mean()))))


def measure(children: Sequence[Child], repeats: int, seconds: dict[str, float]) -> None:
    """Let the systems take turns at each task, and note the speed of every turn."""
    for repeat in range(1, repeats + 1):
        for task in TASKS:
            for child in children:
                system = child.system
                if task in system.tasks:
                    turn = child.run(task, seconds[task])
                    system.turns.setdefault(task, []).append(turn)
                    print(
                        f"{repeat}/{repeats} {task:6}  {system.name:12} {system.precision:4} "
                        f"{'shortlist' * system.shortlist:9} "
                        f"{turn.speed:10,.0f} tokens/s",
                        file=sys.stderr,
                    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--joeynmt-python", required=True, help="Python of JoeyNMT's environment")
    parser.add_argument("--data", type=Path, default=Path("data/multi30k"))
    parser.add_argument("--src", default="de", help="source language, an ending of files")
    parser.add_argument("--tgt", default="en", help="target language")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each system per task")
    parser.add_argument("--seconds", type=float, default=20.0, help="shortest turn at training")
    parser.add_argument("--decode-seconds", type=float, default=8.0, help="the same at decoding")
    parser.add_argument("--decode-batches", type=int, default=3, help=f"of {BATCH} sentences each")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before anything is timed")
    parser.add_argument("--batch-tokens", type=int, default=1500, help="target tokens per batch")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=("fp32", "bf16", "int8"),
        default=["fp32", "bf16", "int8"],
        help="of this toolkit; JoeyNMT has fp32 only on the CPU, and int8 is for decoding",
    )
    return parser.parse_args(arguments)


def line_up(options: argparse.Namespace) -> list[System]:
    """The systems in the order of their turns."""
    joeynmt = System("JoeyNMT", "fp32", options.joeynmt_python, "compare_joeynmt_joey.py", TASKS)
    variants = [(precision, False) for precision in options.precisions]
    if "int8" in options.precisions:
        variants.append(("int8", True))
    ours = [
        System(
            "nmt",
            precision,
            sys.executable,
            "compare_joeynmt_nmt.py",
            TASKS if precision != "int8" else ("decode",),
            shortlist,
        )
        for precision, shortlist in variants
    ]
    return [joeynmt, *ours]


def compare(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything from the text to the figures."""
    before = os.getloadavg()[0]
    config, sentences = prepare(options.data, work, options.src, options.tgt, options.batch_tokens)
    job: dict[str, Any] = {
        "work": str(work),
        "run_dir": config.run_dir,
        "tokenizer": str(Path(config.run_dir) / "tokenizer" / "shared.model"),
        "text": {"train": str(work / "train"), "val": str(work / "val")},
        "valid": config.data.valid.src,
        "src_lang": options.src,
        "tgt_lang": options.tgt,
        "size": SIZE,
        "train_sentences": sentences,
        "threads": options.threads,
        "warm_up": options.warm_up,
        "beam": BEAM,
        "length": LENGTH,
        "batch": BATCH,
        "decode_batches": options.decode_batches,
    }
    systems, children = line_up(options), []
    try:
        for i, system in enumerate(systems):
            trains = "train" in system.tasks
            mine = {**job, "precision": system.precision, "trains": trains}
            mine["shortlist"] = system.shortlist
            children.append(Child(system, mine, work / f"{i}.log"))
        seconds = {"train": options.seconds, "decode": options.decode_seconds}
        measure(children, options.repeats, seconds)
    finally:
        for child in children:
            child.close()
    return {
        "cpu": processor_name(),
        "threads": options.threads,
        "load_before": before,
        "repeats": options.repeats,
        "batch_tokens": options.batch_tokens,
        "joeynmt_batch_sentences": sentences,
        "joeynmt_patches": systems[0].about["patches"],
        "rows": rows(systems),
    }


def main() -> None:
    """Compare, print, write."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = compare(options, Path(folder))
        except NMTError as error:
            raise SystemExit(str(error)) from None
    print(table(result["rows"]))
    print(f"\n{result['cpu']}, {result['threads']} threads; medians of {result['repeats']} turns;")
    for row in result["rows"][:2]:
        print(", ".join(f"{name} {version}" for name, version in row["versions"].items()))
    if result["load_before"] > 0.5:
        print(
            f"The machine was busy before the start (load {result['load_before']:.1f}): these "
            "figures say little.",
            file=sys.stderr,
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
