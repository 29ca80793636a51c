"""All that is saved of a run is needed: with any piece of it lost, a resumed run is another one."""

import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from nmt.cli import resuming, training_run
from nmt.errors import ConfigError, ModelError
from nmt.text.tokenizer import train_tokenizer
from nmt.training.trainer import Progress

EXIT_STOPPED = 128 + signal.SIGTERM


def clear_optimizer(state):
    state["trainer"]["optimizer"]["state"] = {}


def forget_moments(state):
    for moments in state["trainer"]["optimizer"]["state"].values():
        moments["exp_avg"].zero_()


def forget_adams_steps(state):
    for moments in state["trainer"]["optimizer"]["state"].values():
        moments["step"].zero_()


def lose_trained_weights(state):
    """The average is there: it is what was saved as the weights."""
    state["trainer"]["trained_weights"] = None


def reseed(state):
    state["trainer"]["random"] = torch.Generator().manual_seed(1).get_state()


def progress(**changes):
    return lambda state: state["trainer"]["progress"].update(changes)


@pytest.fixture
def reading(monkeypatch):
    """Makes the training state come back changed."""

    def arm(change):
        read = resuming.read_training_state

        def read_and_change(checkpoint):
            state = read(checkpoint)
            change(state)
            return state

        monkeypatch.setattr(resuming, "read_training_state", read_and_change)

    return arm


PIECES = {"progress", "optimizer", "scaler", "random", "cuda_random", "trained_weights"}
"""Each is lost in a test; CUDA's random state in test_gpu.py."""


def test_no_other_piece_is_saved(straight):
    """A new one needs a test in which it is lost."""
    state = straight().state
    assert state.keys() == {"trainer", "data_fingerprint", "config", "window"}
    assert state["trainer"].keys() <= PIECES
    assert state["trainer"]["progress"].keys() == {field.name for field in fields(Progress)}


@pytest.mark.parametrize(
    ("step", "lose"),
    [
        pytest.param(7, clear_optimizer, id="optimizer"),
        pytest.param(7, forget_moments, id="moments"),
        pytest.param(7, forget_adams_steps, id="adam's step count"),
        pytest.param(7, reseed, id="random state"),
        pytest.param(7, lose_trained_weights, id="trained weights"),
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


@pytest.fixture
def in_fp16(monkeypatch):
    """Overrides with which a run scales its loss, which else only a CUDA device does."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(training_run, "check_precision", lambda *_: None)
    return "training.device=auto", "training.precision=fp16"


def test_a_scaled_loss_goes_on_exactly(trainer, straight, stop_after, same_state, in_fp16):
    stop_after(7)
    stopped = trainer(*in_fp16, expect=EXIT_STOPPED)
    assert stopped.state["trainer"]["scaler"]["scale"] > 1
    resumed, expected = trainer(*in_fp16, resume=True), straight(*in_fp16)
    assert resumed.weights == expected.weights
    assert same_state(resumed.state, expected.state)
    assert resumed.events == expected.events


def reset_scale(state):
    state["trainer"]["scaler"]["scale"] = 2.0**-8


def forget_good_steps(state):
    state["trainer"]["scaler"]["_growth_tracker"] = 0


@pytest.mark.parametrize(
    ("lose", "changes_weights"), [(reset_scale, True), (forget_good_steps, False)]
)
def test_the_scale_is_needed(
    trainer, straight, stop_after, same_state, in_fp16, reading, lose, changes_weights
):
    """And the number of updates since it was changed, which says when it grows."""
    stop_after(7)
    trainer(*in_fp16, expect=EXIT_STOPPED)
    reading(lose)
    resumed, expected = trainer(*in_fp16, resume=True), straight(*in_fp16)
    assert (resumed.weights != expected.weights) is changes_weights
    assert not same_state(resumed.state, expected.state)


def test_without_the_fingerprint_of_its_data_a_run_does_not_go_on(stopped, resume, reading):
    stopped(7)
    reading(lambda state: state.update(data_fingerprint=""))
    with pytest.raises(ConfigError) as caught:
        resume()
    assert str(caught.value) == (
        "run: the training data has changed since the run was begun; restore it, go on with the "
        "changed data by --override-resume data.train, or choose another run_dir"
    )


def test_with_another_tokenizer_a_run_does_not_go_on(stopped, resume):
    run = stopped(7)
    text = [Path(name).read_text(encoding="utf-8") for name in ("train.de", "train.en")]
    other = train_tokenizer("".join(text).split("\n"), kind="bpe", vocab_size=42)
    other.save(run.path / "tokenizer" / "shared.model")
    with pytest.raises(ModelError) as caught:
        resume()
    assert str(caught.value) == (
        "run/tokenizer: is not the tokenizer that step-00000007 was trained with; restore the one "
        "that was"
    )


def test_the_weights_are_read_back(stopped, resume, straight, monkeypatch):
    stopped(7)
    monkeypatch.setattr(resuming, "load_weights", lambda *_: None)
    assert resume().weights != straight().weights


def test_the_saved_config_is_the_one_that_a_resumed_run_is_compared_with(stopped, resume, reading):
    def change(state):
        assert "dropout: 0.3" in state["config"]
        state["config"] = state["config"].replace("dropout: 0.3", "dropout: 0.1")

    stopped(7)
    reading(change)
    with pytest.raises(ConfigError, match=r"\(model\.dropout: 0\.1 -> 0\.3\)"):
        resume()
