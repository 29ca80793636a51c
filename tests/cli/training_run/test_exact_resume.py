"""A run that was stopped and continued is, bit for bit, the run that was never stopped.

With dropout, subword sampling, accumulated batches, and a learning rate that validation lowers
(it says that the model is best at step 3). Of the twelve steps, 4 and 8 end an epoch; 3, 6, 9 and
12 are validated.
"""

import signal

import pytest
import torch

from nmt.cli import training_run
from nmt.cli.training_run import Hooks
from nmt.errors import ConfigError

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


def assert_same_runs(found, expected, same_state):
    assert found.weights == expected.weights
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


def clear_optimizer(state):
    state["trainer"]["optimizer"]["state"] = {}


def forget_moments(state):
    for moments in state["trainer"]["optimizer"]["state"].values():
        moments["exp_avg"].zero_()


def forget_adams_steps(state):
    for moments in state["trainer"]["optimizer"]["state"].values():
        moments["step"].zero_()


def reseed(state):
    state["trainer"]["random"] = torch.Generator().manual_seed(1).get_state()


def progress(**changes):
    return lambda state: state["trainer"]["progress"].update(changes)


@pytest.fixture
def reading(monkeypatch):
    """Makes the training state come back changed."""

    def arm(change):
        read = training_run.read_training_state

        def read_and_change(checkpoint):
            state = read(checkpoint)
            change(state)
            return state

        monkeypatch.setattr(training_run, "read_training_state", read_and_change)

    return arm


@pytest.mark.parametrize(
    ("step", "lose"),
    [
        pytest.param(7, clear_optimizer, id="optimizer"),
        pytest.param(7, forget_moments, id="moments"),
        pytest.param(7, forget_adams_steps, id="adam's step count"),
        pytest.param(7, reseed, id="random state"),
        pytest.param(7, progress(step=8), id="step"),
        pytest.param(7, progress(epoch=2), id="epoch"),
        pytest.param(7, progress(batch=0), id="batch"),
        pytest.param(7, progress(batch=7), id="one batch"),
        pytest.param(7, progress(best_score=None), id="best score"),
        pytest.param(7, progress(bad_validations=0), id="bad validations"),
        pytest.param(10, progress(reductions=0), id="reductions"),
        pytest.param(3, progress(validation_due=False), id="validation due"),
    ],
)
def test_each_saved_piece_is_needed(stopped, resume, straight, reading, step, lose):
    """Resumed with one piece lost, a run ends with other weights."""
    stopped(step)
    reading(lose)
    assert resume().weights != straight().weights


@pytest.mark.parametrize("change", [progress(tokens=1), progress(best_step=1)])
def test_pieces_that_no_weight_depends_on_come_back_too(
    stopped, resume, straight, reading, same_state, change
):
    stopped(7)
    reading(change)
    resumed = resume()
    assert resumed.weights == straight().weights
    assert not same_state(resumed.state, straight().state)


def test_the_weights_are_read_back(stopped, resume, straight, monkeypatch):
    stopped(7)
    monkeypatch.setattr(training_run, "load_weights", lambda *_: None)
    assert resume().weights != straight().weights


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
