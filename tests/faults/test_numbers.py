"""Memory and numbers that run out: F35 to F37."""

import json
import math
from itertools import pairwise

import pytest
import torch

from nmt.model.seq2seq import Seq2Seq

SMALL = (
    "training.max_steps=4",
    "training.batch_tokens=500",
    "training.warmup_steps=0",
    "validation.every=2",
)


def settings(*overrides):
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture
def config(tiny, tmp_path):
    """A config that trains a few steps into a folder of its own."""
    return ["--config", tiny.config, "--set", f"run_dir={tmp_path / 'run'}", *settings(*SMALL)]


def events(run):
    """The metrics of a run."""
    with open(run / "metrics.jsonl", "rb") as stream:
        return [json.loads(line) for line in stream]


@pytest.fixture
def small_memory(monkeypatch):
    """Lets training run out of memory beyond so many target positions."""
    loss = Seq2Seq.loss

    def limit(positions):
        def limited(self, src, src_mask, tgt_input, tgt_output, *rest, **options):
            if torch.is_grad_enabled() and tgt_output.numel() > positions:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return loss(self, src, src_mask, tgt_input, tgt_output, *rest, **options)

        monkeypatch.setattr(Seq2Seq, "loss", limited)

    return limit


def poison(monkeypatch, what):
    """Make the loss or its gradient not finite from the third update on."""
    loss, calls = Seq2Seq.loss, []

    def poisoned(self, *batch, **options):
        found = loss(self, *batch, **options)
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) > 3:  # the first is the rehearsal
                factor = found.total * 0 + what
                return type(found)(found.total * factor, found.negative_log_likelihood)
        return found

    monkeypatch.setattr(Seq2Seq, "loss", poisoned)


def test_f35_what_does_not_fit_is_found_before_the_first_step(nmt, config, small_memory, tmp_path):
    small_memory(0)
    result = nmt("train", *config)
    assert result.code == 5
    error = [line for line in result.err.split("\n") if "out of memory" in line]
    assert len(error) == 1
    assert "step 1: out of memory on cpu, also with half of the batch of" in error[0]
    assert error[0].endswith("lower training.batch_tokens or data.max_length")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_f35_a_batch_that_does_not_fit_is_computed_in_halves(nmt, config, small_memory, tmp_path):
    assert nmt("train", *config, "--set", f"run_dir={tmp_path / 'whole'}").code == 0
    small_memory(300)
    result = nmt("train", *config)
    assert result.code == 0
    assert "the largest batches do not fit in memory and will be computed in halves" in (result.err)
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "step 2: out of memory, so its batches were computed in halves" in log
    whole, halves = (events(tmp_path / name)[-1]["loss"] for name in ("whole", "run"))
    assert halves == pytest.approx(whole, abs=0.05)  # dropout is drawn anew


def test_f35_a_safe_batch_size_is_found_and_kept(nmt, config, small_memory, tmp_path):
    small_memory(520)
    auto = [*config, "--set", "training.batch_tokens=auto"]
    result = nmt("train", *auto)
    assert result.code == 0
    assert "training.batch_tokens: 512 fit in memory" in result.err
    assert "batch_tokens: 512" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    small_memory(10**9)
    resumed = nmt("train", *auto, "--resume")
    assert resumed.code == 0
    assert "batch_tokens: 512" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("what", [math.nan, math.inf], ids=str)
def test_f36_a_loss_that_is_not_finite_reaches_nothing(nmt, config, tmp_path, monkeypatch, what):
    poison(monkeypatch, what)
    result = nmt("train", *config)
    assert result.code == 5
    assert "step 3: the loss is not finite" in result.err
    assert "on training lines " in result.err
    monkeypatch.undo()
    run = tmp_path / "run"
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-00000002"]
    resumed = nmt("train", *config, "--resume")
    assert resumed.code == 0
    assert "from step 2 to 4" in resumed.err


def test_f37_an_overflow_of_fp16_ends_clearly_without_a_gpu(nmt, config):
    """The loss scale itself is tested where there is a GPU, and with the trainer."""
    result = nmt("train", *config, "--set", "training.precision=fp16")
    assert result.code == 2
    assert "fp16 needs a CUDA device" in result.err


def test_f37_skipped_updates_move_neither_schedule_nor_step(nmt, config, tmp_path, monkeypatch):
    from nmt.training.trainer import Trainer

    guard, calls = Trainer._guard, []

    def every_second_overflows(self, *arguments):
        calls.append(1)
        return guard(self, *arguments) and len(calls) % 2 == 0

    monkeypatch.setattr(Trainer, "_guard", every_second_overflows)
    warm = ["--set", "training.schedule=linear", "--set", "training.log_every=1"]
    assert nmt("train", *config, *warm).code == 0
    trained = [event for event in events(tmp_path / "run") if event["event"] == "train"]
    assert [event["step"] for event in trained] == [1, 2, 3, 4]
    assert len(calls) == 8
    rates = [event["learning_rate"] for event in trained]
    steps = [before - after for before, after in pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * 3)
