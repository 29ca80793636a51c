"""This toolkit's side of `compare_joeynmt.py`, which starts it.

Training is that of `nmt train`, with hooks that count instead of validating and saving. Decoding
is that of `nmt translate`, from text to text, with one worker process for each thread.
"""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from compare_joeynmt_child import Meter, open_channel, restrict_to

import nmt
from nmt.build.data import build_batches, load_tokenizers
from nmt.build.model import build_model
from nmt.build.saved import load
from nmt.build.training import build_device, build_trainer
from nmt.cli.workers import Workers, plan
from nmt.config import Config, load_config
from nmt.data.batches import Batches
from nmt.data.store import TokenStore
from nmt.text.lines import read_lines
from nmt.training.checkpoint import write_checkpoint
from nmt.training.trainer import StepReport
from nmt.translator import Translator


class Hooks:
    """Ticks the meter after every update; there is nothing to validate or save."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step(self, report: StepReport) -> None:
        """Count the step."""
        self.meter.tick(report.tokens)

    def validate(self, step: int) -> float | None:
        """Nothing to measure."""
        return 0.0

    def save(self, step: int, is_best: bool) -> None:
        """Nothing to write."""

    def should_stop(self) -> bool:
        """The meter ends the process."""
        return False


class Search:
    """Translations of one forced length, in batches and processes as `nmt translate` makes them.

    It sorts what it has read by length; JoeyNMT takes the sentences in the order of the file.
    """

    def __init__(self, translator: Translator, job: dict[str, Any]) -> None:
        text = list(read_lines(job["valid"]))
        self.sentences = text[: job["batch"] * job["decode_batches"]]
        self.translator = translator
        translator.settle(text)  # as for the whole of it
        self.workers = Workers(translator, job["threads"])
        translator.options = replace(
            translator.options,
            beam_size=job["beam"],
            min_length=job["length"],
            max_length=job["length"],
            length_penalty=1.0,
        )

    def __call__(self) -> int:
        """Translate all sentences and count the tokens, without `</s>`."""
        tasks = plan(self.translator, self.sentences)
        done = self.workers.translate([[self.sentences[i] for i in task] for task in tasks])
        return sum(len(translation.tokens) - 1 for task in done for translation in task)


def padding_share(batches: Batches, num_batches: int = 50) -> float:
    """How much of the target positions is padding, in the first batches of an epoch."""
    real = positions = 0
    for batch in islice(batches.epoch(0), num_batches):
        real += batch.num_tokens
        positions += batch.tgt_output.numel()
    return 1 - real / positions


def prepare(config: Config) -> None:
    """Write a checkpoint with first weights, which every precision decodes with."""
    run = Path(config.run_dir)
    tokenizers = load_tokenizers(config, run / "tokenizer")
    torch.manual_seed(config.seed)
    model = build_model(config, len(tokenizers.src), len(tokenizers.tgt))
    about = {"tokenizers": tokenizers.hashes}
    write_checkpoint(run, 0, dict(model.named_parameters()), {}, about)


def shortlist(job: dict[str, Any]) -> Path | None:
    """The shortlist of the model, learned as `nmt shortlist` does, if one is asked for."""
    if not job["shortlist"]:
        return None
    run = Path(job["run_dir"])
    subprocess.run([sys.executable, "-m", "nmt", "shortlist", str(run)], check=True)
    return run / "shortlist.npz"


def main(job: dict[str, Any]) -> None:
    """Obey the parent until it hangs up."""
    answers = open_channel()
    restrict_to(job["threads"])
    torch.set_num_threads(1)  # until the workers are forked
    precision, run = job["precision"], Path(job["run_dir"])
    config = load_config(str(run / "config.yaml"))
    if not (run / "checkpoints").exists():
        prepare(config)
    device = build_device("cpu")
    search = Search(load(run, device="cpu", precision=precision, shortlist=shortlist(job)), job)
    search()
    torch.set_num_threads(job["threads"])
    tokenizers = load_tokenizers(config, run / "tokenizer")
    torch.manual_seed(config.seed)
    model = build_model(config, len(tokenizers.src), len(tokenizers.tgt)).to(device)
    about: dict[str, Any] = {
        "versions": {"nmt": nmt.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    meter = Meter(
        search,
        about,
        warm_up=job["warm_up"],
        commands=sys.stdin,
        answers=answers,
    )
    if not job["trains"]:
        meter.introduce()
        return
    config = load_config(str(run / "config.yaml"), [f"training.precision={precision}"])
    batches = build_batches(config, TokenStore(run / "data" / "train"), tokenizers)
    about["padding"] = padding_share(batches)
    trainer = build_trainer(config, model, batches, device)
    trainer.train(config.training.max_steps, Hooks(meter))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
