"""A run that was stopped and continued is, bit for bit, the run that was never stopped.

With dropout, subword sampling, accumulated batches, and a learning rate that validation lowers
(it says that the model is best at step 3). Of the twelve steps, 4 and 8 end an epoch; 3, 6, 9 and
12 are validated.
"""

import random
import signal
from dataclasses import fields
from itertools import chain, islice

import numpy as np
import pytest
import torch

from nmt.build.data import build_batches, load_tokenizers
from nmt.cli.training_run import Hooks
from nmt.config import load_config
from nmt.data.batches import Batches
from nmt.data.store import TokenStore
from nmt.errors import ConfigError
from nmt.training.checkpoint import SEAL, STATE, verify

EXIT_STOPPED = 128 + signal.SIGTERM
# Why a run may be stopped there
MOMENTS = {
    1: "after the first step",
    2: "in the middle of an epoch",
    3: "in a validation",
    4: "after the last step of an epoch",
    5: "after the first step of an epoch",
    12: "in the last validation",
}


def manifest(run):
    """What is said about the latest checkpoint, all but the bytes of its training state."""
    about = verify(run.latest)
    del about["files"][STATE], about[SEAL]
    return about


def assert_same_runs(found, expected, same_state):
    assert found.weights == expected.weights
    assert manifest(found) == manifest(expected)
    assert same_state(found.state, expected.state)
    assert found.events == expected.events
    assert found.latest.name == expected.latest.name == "step-00000012"
    assert (found.path / "best").read_text() == (expected.path / "best").read_text()


@pytest.mark.parametrize("step", MOMENTS, ids=MOMENTS.values())
def test_stop_and_resume_is_as_if_nothing_had_happened(stopped, resume, straight, same_state, step):
    run = stopped(step)
    assert run.latest.name == f"step-{step:08d}"
    assert run.state["trainer"]["progress"]["validation_due"] is (step % 3 == 0)
    assert_same_runs(resume(), straight(), same_state)


def test_it_holds_for_a_schedule_of_the_step(trainer, straight, stop_after, same_state):
    overrides = ("training.schedule=inverse_sqrt", "training.warmup_steps=4")
    stop_after(2)
    trainer(*overrides, expect=EXIT_STOPPED)
    assert_same_runs(trainer(*overrides, resume=True), straight(*overrides), same_state)


def test_it_holds_for_merges_that_are_left_out_at_random(trainer, straight, stop_after, same_state):
    overrides = ("tokenizer.kind=bpe", "run_dir=bpe")
    stop_after(2)
    trainer(*overrides, expect=EXIT_STOPPED)
    assert_same_runs(trainer(*overrides, resume=True), straight(*overrides), same_state)
    without_sampling = straight(*overrides, "tokenizer.sampling=0.0")
    assert straight(*overrides).weights != without_sampling.weights


def test_it_holds_where_the_batches_of_an_update_are_of_two_epochs(
    trainer, straight, stop_after, same_state
):
    overrides = ("training.accumulate=3",)
    stop_after(3)
    stopped = trainer(*overrides, expect=EXIT_STOPPED)
    progress = stopped.state["trainer"]["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 1)
    assert_same_runs(trainer(*overrides, resume=True), straight(*overrides), same_state)


def test_it_holds_for_a_run_that_patience_ends(stopped, resume, straight, same_state):
    stopped(7)
    resumed, expected = (ended("validation.patience=2") for ended in (resume, straight))
    assert resumed.latest.name == expected.latest.name == "step-00000009"
    assert resumed.weights == expected.weights
    assert same_state(resumed.state, expected.state)
    assert resumed.events == expected.events


def test_it_holds_whatever_else_was_drawn_before(stopped, resume, straight, same_state):
    """All that is random in training comes from the seed or torch's state, which is saved."""
    stopped(7)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert_same_runs(resume(), straight(), same_state)


def test_it_holds_for_a_stop_between_validation_and_the_next_step(
    trainer, straight, monkeypatch, same_state
):
    real = Hooks.validate

    def validate(self, step):
        score = real(self, step)
        monkeypatch.setattr(Hooks, "validate", real)
        signal.raise_signal(signal.SIGTERM)
        return score

    monkeypatch.setattr(Hooks, "validate", validate)
    stopped = trainer(expect=EXIT_STOPPED)
    assert stopped.latest.name == "step-00000003"
    assert not stopped.state["trainer"]["progress"]["validation_due"]
    assert_same_runs(trainer(resume=True), straight(), same_state)


def test_it_holds_for_metrics_of_several_steps(trainer, straight, stop_after, same_state):
    stop_after(7)
    trainer("training.log_every=5", expect=EXIT_STOPPED)
    resumed = trainer("training.log_every=5", resume=True)
    assert_same_runs(resumed, straight("training.log_every=5"), same_state)
    assert [event["step"] for event in resumed.events if event["event"] == "train"] == [5, 10]


def test_it_holds_for_a_kill_after_a_repeated_validation(
    trainer, straight, stop_after, same_state, monkeypatch
):
    """Stopped in a validation, it is made again; its line must not be there twice."""
    stop_after(3)
    stopped = trainer(expect=EXIT_STOPPED)
    assert stopped.state["trainer"]["progress"]["validation_due"]

    class PowerCutError(Exception):
        pass

    def save(self, step, is_best):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(Hooks, "save", save)
        with pytest.raises(PowerCutError):
            trainer(resume=True)
    assert [event["event"] for event in stopped.events][-1] == "valid"
    assert_same_runs(trainer(resume=True), straight(), same_state)


def test_it_holds_for_a_run_that_is_stopped_again_and_again(
    trainer, straight, stop_after, same_state
):
    for step in (1, 2, 3, 7, 9):
        stop_after(step)
        trainer(resume=True, expect=EXIT_STOPPED)
    assert_same_runs(trainer(resume=True), straight(), same_state)


def test_it_holds_for_a_run_that_was_killed_between_two_checkpoints(
    trainer, straight, monkeypatch, same_state
):
    """The steps since the last checkpoint are made, and measured, again."""

    class PowerCut(BaseException):
        pass

    real = Hooks.on_step

    def on_step(self, report):
        real(self, report)
        if report.step == 8:
            raise PowerCut

    monkeypatch.setattr(Hooks, "on_step", on_step)
    with pytest.raises(PowerCut):
        trainer()
    monkeypatch.setattr(Hooks, "on_step", real)
    assert_same_runs(trainer(resume=True), straight(), same_state)


def test_the_runs_compared_here_do_what_they_should(straight):
    """Learning rate lowered, units dropped, subwords sampled: else the tests above prove little."""
    run = straight()
    rates = [event["learning_rate"] for event in run.events if event["event"] == "train"]
    assert rates == [0.01] * 9 + [0.005] * 3
    assert run.state["trainer"]["progress"]["epoch"] == 2
    losses = [event["loss"] for event in run.events if event["event"] == "train"]
    without_sampling = straight("tokenizer.sampling=0.0")
    without_dropout = straight("model.dropout=0.0")
    for other in (without_sampling, without_dropout):
        assert [e["loss"] for e in other.events if e["event"] == "train"] != losses


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(trainer, straight):
    assert trainer().weights == straight().weights
    assert trainer("seed=2", "run_dir=other").weights != straight().weights


@pytest.fixture
def batches_read(monkeypatch):
    """The training batches in the order in which the loop takes them."""
    taken = []
    real = Batches.epoch

    def epoch(self, epoch, start=0):
        for batch in real(self, epoch, start):
            if self.samplers is not None:  # those of training
                taken.append(batch)
            yield batch

    monkeypatch.setattr(Batches, "epoch", epoch)
    return taken


def batches_of_seed(run, first):
    """The training batches from the given one on, as the seed alone tells them."""
    config = load_config(str(run.path / "config.yaml"))
    store = TokenStore(run.path / "data" / "train")
    made = build_batches(config, store, load_tokenizers(config, run.path / "tokenizer"))
    return islice((batch for epoch in range(9) for batch in made.epoch(epoch)), first, None)


@pytest.mark.parametrize("step", MOMENTS, ids=MOMENTS.values())
def test_the_next_batches_are_a_function_of_seed_and_step(
    stopped, resume, batches_read, step, same_state
):
    """No iterator is saved: a run that goes on takes the batches of its seed, from its step on."""
    run = stopped(step)
    progress = run.state["trainer"]["progress"]
    assert {type(value) for value in progress.values()} <= {int, float, bool, type(None)}
    resume("training.max_steps=16")
    expected = list(islice(batches_of_seed(run, 2 * step), 8))
    assert len(batches_read) >= len(expected) == 8
    for found, wanted in zip(batches_read, expected, strict=False):
        for field in fields(wanted):
            assert same_state(getattr(found, field.name), getattr(wanted, field.name)), field.name


def test_a_run_takes_the_batches_of_its_seed_from_the_first_on(trainer, batches_read):
    run = trainer()
    taken = [batch.lines for batch in batches_read]
    assert taken == [batch.lines for batch in islice(batches_of_seed(run, 0), 24)]
    for start in (0, 8, 16):  # an epoch is every line once
        assert sorted(chain(*taken[start : start + 8])) == list(range(1, 61))


def test_a_run_can_be_made_longer(trainer, straight, same_state):
    """Six steps, then twelve, with a constant rate: the weights of twelve."""
    constant = ("training.schedule=constant",)
    trainer(*constant, "training.max_steps=7")
    longer = trainer(*constant, resume=True)
    expected = straight(*constant)
    assert longer.weights == expected.weights
    for piece in ("optimizer", "random"):
        assert same_state(longer.state["trainer"][piece], expected.state["trainer"][piece])
    assert [e["step"] for e in longer.events if e["event"] == "train"] == list(range(1, 13))


def test_a_linear_schedule_cannot_be_made_longer(trainer):
    trainer("training.schedule=linear", "training.max_steps=2")
    with pytest.raises(ConfigError, match=r"training\.max_steps: 2 -> 12 \(the linear schedule"):
        trainer("training.schedule=linear", resume=True)


def test_a_damaged_checkpoint_costs_time_but_changes_nothing(
    stopped, resume, straight, same_state, capsys
):
    run = stopped(7)
    assert run.steps == [3, 6, 7]
    content = bytearray((run.latest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run.latest / "model.safetensors").write_bytes(content)
    resumed = resume()
    assert (
        "warning: run/checkpoints/step-00000007/model.safetensors: is damaged (its checksum is not "
        "that of manifest.json); use an older checkpoint; going on from the checkpoint before it"
    ) in capsys.readouterr().err
    assert_same_runs(resumed, straight(), same_state)
