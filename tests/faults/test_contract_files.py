"""What is promised of resuming: R5 (damage), R6 (signals) and R9 (changed configs)."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nmt.cli.training_run import Hooks
from nmt.data.batches import Batches
from nmt.training.checkpoint import read_training_state


def last_line(ended):
    assert "Traceback" not in ended.err
    return ended.err.split("\n")[-2]


def state_of(checkpoint):
    return read_training_state(checkpoint)["trainer"]


class TestR5Damage:
    def test_r5_with_strict_a_damaged_newest_checkpoint_is_an_error(self, small_run):
        small_run.train(training__max_steps=4)
        os.truncate(small_run.checkpoint(4) / "training_state.pt", 100)
        before = Path("run/config.yaml").read_bytes()
        ended = small_run.train("--resume", "--strict")
        assert ended.code == 4
        assert ended.err == (
            "error: run/checkpoints/step-00000004/training_state.pt: is damaged (its checksum is "
            "not that of manifest.json); use an older checkpoint; leave out --strict to go on from "
            "the one before it\n"
        )
        assert small_run.steps == [2, 4]
        assert Path("run/config.yaml").read_bytes() == before

    def test_r5_strict_changes_nothing_for_a_run_that_is_whole(self, small_run, undisturbed):
        assert small_run.train("--resume", "--strict", training__max_steps=2).code == 0
        assert small_run.train("--resume", "--strict").code == 0
        assert small_run.weights == undisturbed

    @pytest.mark.parametrize("option", [["--strict"], ["--override-resume", "seed"]])
    def test_r5_and_r9_are_about_resuming(self, small_run, option):
        ended = small_run.train(*option)
        assert (ended.code, ended.err) == (
            2,
            f"error: {option[0]}: means something with --resume only; add it\n",
        )

    @pytest.mark.parametrize("options", [[], ["--strict"]])
    def test_r5_a_run_of_a_newer_nmt_is_never_taken_back_to_an_older_checkpoint(
        self, small_run, options
    ):
        small_run.train(training__max_steps=4)
        manifest = small_run.checkpoint(4) / "manifest.json"
        newer = json.loads(manifest.read_text()) | {"format_version": 99, "nmt_version": "7.1"}
        manifest.write_text(json.dumps(newer))
        ended = small_run.train("--resume", *options)
        assert (ended.code, ended.err) == (
            4,
            "error: run/checkpoints/step-00000004: was made by nmt 7.1; upgrade nmt to read it\n",
        )
        assert small_run.steps == [2, 4]

    def test_r5_two_checkpoints_are_kept_at_least(self, small_run):
        ended = small_run.train(training__keep_last=1)
        assert ended.code == 2
        assert "training.keep_last must be >= 2" in ended.err


# `nmt train`, but a validation does not end before somebody has told it to stop
PROGRAM = """
import sys, time
from nmt.cli.main import main
from nmt.cli.training_run import Hooks

validate = Hooks.validate

def wait_in_validation(self, step):
    print("validating", file=sys.stderr, flush=True)
    while not self.should_stop():
        time.sleep(0.01)
    return validate(self, step)

Hooks.validate = wait_in_validation
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_r6_a_signal_from_outside_ends_a_validation(small_run, undisturbed, number):
    command = [sys.executable, "-c", PROGRAM, "train", "--config", "config.yaml"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "validating" in line:
            break
    process.send_signal(number)
    assert process.stderr.read().endswith("stopped at step 2; continue with --resume\n")
    assert process.wait(timeout=30) == 128 + number
    assert small_run.train("--resume").code == 0
    assert small_run.weights == undisturbed


@pytest.mark.slow
def test_r6_a_second_ctrl_c_ends_at_once(small_run, undisturbed):
    waiting = PROGRAM.replace("not self.should_stop()", "True")
    command = [sys.executable, "-c", waiting, "train", "--config", "config.yaml"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for text in ("validating", "Ctrl-C again ends at once"):
        for line in process.stderr:
            if text in line:
                break
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    process.stderr.close()
    assert not small_run.checkpoint(2).exists()
    assert small_run.train("--resume").code == 0
    assert small_run.weights == undisturbed


@pytest.fixture
def stopped(small_run, monkeypatch):
    """A run that was stopped in the middle of its first epoch, after three of four steps."""
    real = Hooks.on_step

    def on_step(hooks, report):
        real(hooks, report)
        if report.step == 3:
            monkeypatch.setattr(Hooks, "on_step", real)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Hooks, "on_step", on_step)
    assert small_run.train().code == 143
    assert small_run.steps == [2, 3]
    assert small_run.progress["batch"] == 6
    return small_run


@pytest.fixture
def batches_read(stopped, monkeypatch):
    """The first batch, counted from 0, and size in tokens of the batches trained on."""
    read = []
    real = Batches.epoch

    def epoch(batches, number, start=0):
        if batches.samplers:  # not those of the validation
            read.append((number, start, batches.batch_tokens))
        return real(batches, number, start)

    monkeypatch.setattr(Batches, "epoch", epoch)
    return read


FORCEABLE = {
    "seed": ("2", "1 -> 2"),
    "data.max_length": ("9", "100 -> 9"),
    "data.max_length_ratio": ("3", "null -> 3.0"),
    "tokenizer.sampling": ("0", "0.5 -> 0.0"),
    "model.dropout": ("0", "0.3 -> 0.0"),
    "training.batch_tokens": ("80", "56 -> 80"),
    "training.accumulate": ("1", "2 -> 1"),
    "training.optimizer": ("sgd", "adam -> sgd"),
    "training.learning_rate": ("0.5", "0.01 -> 0.5"),
    "training.weight_decay": ("0.1", "0.0 -> 0.1"),
    "training.schedule": ("plateau", "constant -> plateau"),
    "training.precision": ("bf16", "fp32 -> bf16"),
    "training.clip_norm": ("0.1", "1.0 -> 0.1"),
    "training.label_smoothing": ("0", "0.1 -> 0.0"),
    "training.ema_decay": ("0.5", "null -> 0.5"),
    "validation.metric": ("loss", "bleu -> loss"),
}


def setting(key):
    return {key.replace(".", "__"): FORCEABLE[key][0]}


class TestR9ChangedConfig:
    def test_r9_what_the_weights_do_not_depend_on_may_change(self, small_run, undisturbed):
        small_run.train(training__max_steps=4)
        for name in ("train.de", "train.en"):
            os.rename(name, f"moved.{name}")
        ended = small_run.train(
            "--resume",
            **{"data__train__src": "moved.train.de", "data__train__tgt": "moved.train.en"},
            **{"training__log_every": 3, "validation__every": 1, "decoding__beam_size": 2},
        )
        assert ended.code == 0
        assert small_run.weights == undisturbed

    @pytest.mark.parametrize("key", FORCEABLE)
    def test_r9_what_they_depend_on_is_refused_and_can_be_forced(
        self, stopped, undisturbed, batches_read, key
    ):
        ended = stopped.train("--resume", **setting(key))
        change = f"{key}: {FORCEABLE[key][1]}"
        assert (ended.code, ended.err) == (
            2,
            f"error: run: the run was begun with another config ({change}); undo the change, go on "
            f"with it by --override-resume {key}, or choose another run_dir\n",
        )
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert ended.code == 0
        assert f"going on although this has changed: {change}\n" in ended.err
        assert "from step 3 to 6\n" in ended.err
        assert stopped.weights != undisturbed or key in ("validation.metric", "training.schedule")
        # Once it has saved, nothing needs to be forced any more.
        again = stopped.train("--resume", **setting(key))
        assert again.code == 0
        assert "although" not in again.err

    @pytest.mark.parametrize(
        "key", ["seed", "data.max_length", "data.max_length_ratio", "training.batch_tokens"]
    )
    def test_r9_where_the_batches_are_others_the_epoch_begins_anew(
        self, stopped, batches_read, key
    ):
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert "\nthe batches are others now: epoch 1 begins anew\n" in ended.err
        assert batches_read[0] == (0, 0, 80 if key == "training.batch_tokens" else 56)

    @pytest.mark.parametrize("key", ["training.accumulate", "training.optimizer", "model.dropout"])
    def test_r9_where_they_are_the_same_the_epoch_goes_on(self, stopped, batches_read, key):
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert "begins anew\n" not in ended.err.replace("its state begins anew", "")
        assert batches_read[0] == (0, 6, 56)

    def test_r9_another_training_text_begins_the_epoch_anew(self, stopped, batches_read):
        text = Path("train.en").read_text(encoding="utf-8")
        Path("train.en").write_text(text.replace("dog", "cat", 1), encoding="utf-8")
        for other in ("seed", "data.valid", "data.train.tgt", "training"):
            assert stopped.train("--resume", "--override-resume", other).code == 2
        shutil.copytree("run", "copy")
        for run, key in (("run", "data.train"), ("copy", "data")):
            del batches_read[:]
            ended = stopped.train("--resume", "--override-resume", key, run_dir=run)
            assert ended.code == 0
            assert "going on although this has changed: the training data\n" in ended.err
            assert "\nthe batches are others now: epoch 1 begins anew\n" in ended.err
            assert batches_read[0] == (0, 0, 56)
        assert stopped.train("--resume").code == 0

    def test_r9_another_filter_does_not_let_another_text_pass(self, stopped):
        text = Path("train.en").read_text(encoding="utf-8")
        Path("train.en").write_text(text.replace("dog", "cat", 1), encoding="utf-8")
        key = "data.max_length"
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert ended.code == 2
        assert last_line(ended).startswith("error: run: the training data has changed since")

    def test_r9_another_optimizer_begins_with_nothing(self, stopped):
        key = "training.optimizer"
        ended = stopped.train("--resume", "--override-resume", key, training__optimizer="adamw")
        assert "\nthe optimizer is another now: its state begins anew\n" in ended.err
        steps = {
            float(m["step"]) for m in state_of(stopped.checkpoint(6))["optimizer"]["state"].values()
        }
        assert steps == {3.0}

    def test_r9_another_weight_decay_takes_effect_and_moments_go_on(self, stopped):
        key = "training.weight_decay"
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert "anew" not in ended.err
        optimizer = state_of(stopped.checkpoint(6))["optimizer"]
        assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.1]
        assert {float(moments["step"]) for moments in optimizer["state"].values()} == {6.0}

    def test_r9_another_seed_draws_other_dropout(self, stopped):
        stopped.train("--resume", "--override-resume", "seed", seed=2)
        seeds = [
            torch.Generator().set_state(state_of(stopped.checkpoint(step))["random"]).initial_seed()
            for step in (4, 6)
        ]
        assert seeds == [2, 2]

    def test_r9_scores_of_another_metric_are_not_compared(self, stopped):
        before = stopped.progress
        assert before["best_step"] == 2
        key = "validation.metric"
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert "\nscores are of another metric now: " in ended.err
        assert stopped.progress["best_score"] < 0  # minus the loss
        assert stopped.progress["best_step"] in (4, 6)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model.embed_dim", 16),
            ("model.cell", "lstm"),
            ("model.decoder.order", "luong"),
            ("tokenizer.vocab_size", 39),
            ("tokenizer.kind", "bpe"),
        ],
    )
    def test_r9_what_the_weights_are_made_of_can_never_change(self, stopped, key, value):
        changed = {key.replace(".", "__"): value}
        for name in (key, key.partition(".")[0]):
            ended = stopped.train("--resume", "--override-resume", name, **changed)
            assert ended.code == 2
            assert ended.err.startswith(
                f"error: run: the run was begun with another config ({key}: "
            )
            assert ended.err.endswith(
                f"); its weights fit no other {key}: undo the change, or choose another run_dir\n"
            )

    def test_r9_a_section_stands_for_all_in_it_and_the_rest_stays_refused(self, stopped):
        changes = {**setting("training.batch_tokens"), **setting("training.optimizer")}
        ended = stopped.train("--resume", "--override-resume", "training", **changes, seed=2)
        assert (ended.code, ended.err) == (
            2,
            "error: run: the run was begun with another config (seed: 1 -> 2); undo the change, go "
            "on with it by --override-resume seed, or choose another run_dir\n",
        )
        options = ["--override-resume", "training", "--override-resume", "seed"]
        assert stopped.train("--resume", *options, **changes, seed=2).code == 0

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("training.batch_token", "training.batch_tokens"),
            ("learning_rate", None),
            ("sed", "seed"),
        ],
    )
    def test_r9_an_unknown_key_gets_the_nearest_one(self, small_run, name, meant):
        ended = small_run.train("--resume", "--override-resume", name, run_dir="new")
        meant = meant or f"training.{name}"
        assert (ended.code, ended.err) == (
            2,
            f"error: --override-resume: unknown key {name!r}; did you mean {meant!r}?\n",
        )
        assert not Path("new").exists()

    def test_r9_a_kill_before_the_first_save_makes_nothing_of_it_silent(
        self, stopped, fork, monkeypatch, batches_read
    ):
        """The config is that of the checkpoint, not that of whoever tried last."""
        key = "training.batch_tokens"

        def killed():
            monkeypatch.setattr(Hooks, "on_step", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            stopped.train("--resume", "--override-resume", key, **setting(key))

        assert fork(killed) == -signal.SIGKILL
        ended = stopped.train("--resume", **setting(key))
        assert ended.code == 2
        assert "training.batch_tokens: 56 -> 80" in ended.err
        ended = stopped.train("--resume", "--override-resume", key, **setting(key))
        assert ended.code == 0
        assert batches_read[0] == (0, 0, 80)

    def test_r9_going_back_before_a_forced_change_needs_it_again(self, stopped):
        key = "training.optimizer"
        stopped.train("--resume", "--override-resume", key, **setting(key), training__max_steps=4)
        os.truncate(stopped.checkpoint(4) / "model.safetensors", 10)
        ended = stopped.train("--resume", **setting(key))
        assert ended.code == 2
        assert "training.optimizer: adam -> sgd" in ended.err
