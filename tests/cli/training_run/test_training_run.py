"""What a run leaves behind, and with what it refuses to begin or to go on."""

import os
import shutil
from pathlib import Path

import pytest

from nmt.build.saved import find_model
from nmt.config import load_config
from nmt.errors import ConfigError, DataError, ModelError, TrainingError
from nmt.model import compiled
from nmt.training.checkpoint import pointed
from nmt.training.run_directory import RunDirectory
from nmt.validation import Validator


def refusal(trainer, *overrides, resume=False, error=ConfigError):
    with pytest.raises(error) as caught:
        trainer(*overrides, resume=resume)
    return str(caught.value)


class TestResult:
    def test_the_run_directory_holds_what_it_should(self, straight):
        run = straight()
        assert sorted(os.listdir(run.path)) == [
            ".lock",
            "best",
            "checkpoints",
            "config.yaml",
            "data",
            "latest",
            "log.txt",
            "metrics.jsonl",
            "tokenizer",
        ]
        assert run.steps == [3, 6, 9, 12]
        assert run.latest.name == "step-00000012"

    def test_the_resolved_config_is_saved(self, straight):
        run = straight()
        saved = load_config(str(run.path / "config.yaml"))
        assert saved == load_config(str(run.path.parent / "config.yaml"))

    def test_the_metrics_tell_the_run(self, straight):
        events = straight().events
        assert [(event["event"], event["step"]) for event in events[:5]] == [
            ("train", 1),
            ("train", 2),
            ("train", 3),
            ("valid", 3),
            ("train", 4),
        ]
        train, valid, end = events[0], events[3], events[-1]
        assert set(train) == {
            "event",
            "step",
            "loss",
            "perplexity",
            "learning_rate",
            "gradient_norm",
        }
        assert set(valid) == {
            "event",
            "step",
            "loss",
            "perplexity",
            "bleu",
            "chrf",
            "bleu_signature",
        }
        assert "tok:13a" in valid["bleu_signature"]
        assert (end["event"], end["step"], end["reason"]) == ("end", 12, "12 steps done")
        assert end["best"] == pointed(straight().path / "best").name

    def test_the_log_and_the_screen_say_how_it_went(self, trainer, capsys):
        run = trainer("training.max_steps=3")
        shown = capsys.readouterr().err
        log = (run.path / "log.txt").read_text(encoding="utf-8")
        for text in (
            "training on cpu in fp32: ",
            "from step 0 to 3\n",
            "step 3: valid loss ",
            "3 steps done; best is step-00000003: BLEU ",
            " with beam 1 on valid.de (nrefs:1|",
        ):
            assert text in shown
            assert text in log

    @pytest.mark.usefixtures("real_scores")
    def test_the_best_checkpoint_is_that_of_the_best_metric(self, trainer):
        run = trainer("validation.metric=loss", "training.learning_rate=0.05")
        losses = {e["step"]: e["loss"] for e in run.events if e["event"] == "valid"}
        best = min(losses, key=losses.get)
        assert pointed(run.path / "best").name == f"step-{best:08d}"
        progress = run.state["trainer"]["progress"]
        assert -progress["best_score"] == pytest.approx(losses[best], abs=1e-4)

    @pytest.mark.usefixtures("real_scores")
    def test_validation_chooses_by_chrf_if_asked(self, trainer):
        run = trainer("validation.metric=chrf", "training.max_steps=3")
        progress = run.state["trainer"]["progress"]
        assert progress["best_score"] == pytest.approx(run.events[3]["chrf"], abs=0.01)
        assert progress["best_score"] > 0

    def test_each_validation_has_its_own_beam(self, trainer, monkeypatch, capsys):
        """Small while training, that of the finished model for the number at the end."""
        sizes = []
        real = Validator.__call__

        def validate(self, should_stop):
            sizes.append(self.options.beam_size)
            return real(self, should_stop)

        monkeypatch.setattr(Validator, "__call__", validate)
        trainer("validation.beam_size=2", "decoding.beam_size=3", "training.max_steps=1")
        assert sizes == [2, 3]
        assert " with beam 3 on valid.de (" in capsys.readouterr().err

    def test_old_checkpoints_are_deleted_but_not_the_best(self, trainer):
        run = trainer("training.keep_last=2", "validation.every=2")
        assert run.steps == [2, 10, 12]
        assert pointed(run.path / "best").name == "step-00000002"

    def test_patience_ends_a_run_early(self, trainer):
        run = trainer("validation.patience=2")
        assert run.events[-1]["reason"] == "no improvement in 2 validations"
        assert run.latest.name == "step-00000009"

    def test_means_are_logged_every_so_many_steps(self, trainer, straight):
        every = [e for e in straight().events if e["event"] == "train"]
        run = trainer("training.log_every=4")
        events = [e for e in run.events if e["event"] == "train"]
        assert [event["step"] for event in events] == [4, 8, 12]
        losses = [event["loss"] for event in every[:4]]
        assert min(losses) < events[0]["loss"] < max(losses)
        assert events[0]["loss"] == pytest.approx(sum(losses) / 4, abs=0.05)

    def test_the_model_it_leaves_can_be_found(self, straight):
        assert find_model(straight().path).checkpoint == pointed(straight().path / "best")


class TestRefusal:
    @pytest.mark.parametrize(
        ("override", "name"),
        [("data.train.src=no.de", "no.de"), ("data.valid.tgt=no.en", "no.en")],
    )
    def test_a_missing_file_is_found_before_anything_is_made(self, trainer, override, name):
        message = refusal(trainer, override, "run_dir=new")
        assert message == f"{name}: cannot be read: No such file or directory"
        assert not Path("new").exists()

    def test_a_missing_device_is_found_before_anything_is_made(self, trainer, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        message = refusal(trainer, "training.device=cuda", "run_dir=new")
        assert message == "device: cuda was asked for, but this machine has no CUDA; use cpu"
        assert not Path("new").exists()

    def test_fp16_on_the_automatic_cpu_is_refused(self, trainer, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        message = refusal(trainer, "training.device=auto", "training.precision=fp16")
        assert message == ("precision: fp16 needs a CUDA device; use bf16 or fp32 on the CPU")

    def test_unequal_line_counts_are_refused(self, trainer):
        with open("train.en", "a", encoding="utf-8") as stream:
            stream.write("one more\n")
        message = refusal(trainer, error=DataError)
        assert message.startswith("train.de has 60 lines but train.en has 61; lines look shifted")

    def test_a_begun_run_needs_resume(self, trainer):
        trainer("training.max_steps=1")
        assert refusal(trainer) == (
            "run: holds a run already; continue it with --resume, or choose another run_dir"
        )

    def test_a_run_in_use_is_refused(self, trainer):
        run = RunDirectory(Path("run"), resume=False)
        assert refusal(trainer).startswith("run: is in use by another training run (process ")
        run.close()

    def test_a_failed_run_lets_go_of_its_directory(self, trainer):
        refusal(trainer, "tokenizer.vocab_size=9000")
        RunDirectory(Path("run"), resume=False).close()

    def test_a_tokenizer_of_another_size_is_refused(self, trainer):
        assert refusal(trainer, "tokenizer.vocab_size=41") == (
            "run/tokenizer/shared.model: has 42 pieces, but tokenizer.vocab_size is 41; delete the "
            "file to train it anew, or change the key"
        )


class TestResume:
    def test_resume_on_nothing_begins(self, trainer, straight):
        run = trainer("training.max_steps=12", resume=True)
        assert run.weights == straight().weights

    def test_resuming_a_finished_run_reports_its_best_again(self, trainer):
        first = trainer("training.max_steps=3")
        weights, events = first.weights, first.events
        again = trainer("training.max_steps=3", resume=True)
        assert again.weights == weights
        assert again.events == events

    def test_another_config_is_refused_with_all_changes(self, stopped, resume):
        stopped(1)
        with pytest.raises(ConfigError) as caught:
            resume("model.dropout=0.1", "seed=7", "training.log_every=2")
        assert str(caught.value) == (
            "run: the run was begun with another config (seed: 1 -> 7; model.dropout: 0.3 -> 0.1); "
            "undo the change, go on with it by --override-resume seed --override-resume "
            "model.dropout, or choose another run_dir"
        )

    def test_what_the_weights_are_made_of_cannot_be_forced(self, stopped, resume):
        stopped(1)
        with pytest.raises(ConfigError) as caught:
            resume("seed=7", "model.cell=lstm", "training.log_every=2")
        assert str(caught.value) == (
            "run: the run was begun with another config (seed: 1 -> 7; model.cell: gru -> lstm); "
            "its weights fit no other model.cell: undo the change, or choose another run_dir"
        )

    def test_a_refused_change_does_not_touch_the_run(self, stopped, resume):
        run = stopped(1)
        before = (run.path / "config.yaml").read_bytes(), (run.path / "metrics.jsonl").read_bytes()
        with pytest.raises(ConfigError):
            resume("seed=7")
        after = (run.path / "config.yaml").read_bytes(), (run.path / "metrics.jsonl").read_bytes()
        assert after == before
        assert run.latest.name == "step-00000001"

    def test_changed_training_data_is_refused(self, stopped, resume):
        stopped(1)
        text = Path("train.en").read_text(encoding="utf-8")
        Path("train.en").write_text(text.replace("dog", "cat", 1), encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            resume()
        assert str(caught.value) == (
            "run: the training data has changed since the run was begun; restore it, go on with "
            "the changed data by --override-resume data.train, or choose another run_dir"
        )

    def test_restored_training_data_is_accepted_again(self, stopped, resume, straight):
        stopped(1)
        shutil.copy("train.en", "backup")
        Path("train.en").write_text("cow\n" * 60, encoding="utf-8")
        with pytest.raises(ConfigError):
            resume()
        shutil.move("backup", "train.en")
        assert resume().weights == straight().weights

    def test_moved_training_data_is_accepted(self, stopped, resume, straight):
        stopped(1)
        for name in ("train.de", "train.en"):
            os.rename(name, f"moved.{name}")
        resumed = resume("data.train.src=moved.train.de", "data.train.tgt=moved.train.en")
        assert resumed.weights == straight().weights

    def test_a_whole_run_can_move(self, stopped, resume, straight):
        run = stopped(1)
        run.path.rename(run.path.with_name("renamed"))
        assert resume("run_dir=renamed").weights == straight().weights

    def test_pointers_are_set_right(self, stopped, resume):
        """As after a crash between the checkpoint and its pointers."""
        run = stopped(7)
        (run.path / "latest").write_text("checkpoints/step-00000003\n")
        (run.path / "best").unlink()
        resume("training.max_steps=7")
        assert run.latest.name == "step-00000007"
        assert pointed(run.path / "best").name == "step-00000003"

    def test_what_an_interrupted_write_moved_away_is_found_again(self, stopped, resume, capsys):
        """As after a kill between the two renames that replace a checkpoint."""
        run = stopped(7)
        run.latest.rename(run.latest.with_suffix(".replaced"))
        resume("training.max_steps=7")
        assert "from step 7 to 7\n" in capsys.readouterr().err
        assert run.latest.name == "step-00000007"

    def test_a_run_without_checkpoints_begins_again_with_clean_metrics(
        self, stopped, resume, straight
    ):
        run = stopped(2)
        shutil.rmtree(run.path / "checkpoints")
        assert resume().events == straight().events

    def test_a_run_of_damaged_checkpoints_is_an_error(self, stopped, resume):
        run = stopped(1)
        (run.latest / "manifest.json").unlink()
        with pytest.raises(ModelError, match=r"^run: every checkpoint is damaged; start"):
            resume()

    def test_a_run_that_was_killed_before_its_first_step_begins(self, trainer, straight):
        Path("run/config.yaml").write_text("left by a killed run", encoding="utf-8")
        assert trainer().weights == straight().weights


class TestTrainingError:
    def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(self, trainer, monkeypatch):
        from nmt.training.trainer import Trainer

        real = Trainer._update

        def update(self, group):
            if self.progress.step == 4:
                self.model.decoder.register_forward_hook(
                    lambda _, __, out: (out[0] * float("nan"), out[1])
                )
            return real(self, group)

        monkeypatch.setattr(Trainer, "_update", update)
        message = refusal(trainer, error=TrainingError)
        assert message.startswith("step 5: the loss is not finite (loss nan, gradient norm nan) on")
        assert pointed(Path("run/latest")).name == "step-00000003"
        monkeypatch.setattr(Trainer, "_update", real)
        RunDirectory(Path("run"), resume=True).close()

    def test_after_a_full_disk_the_run_goes_on(self, trainer, straight, monkeypatch, same_state):
        import nmt.training.checkpoint as module

        real, count = module.safetensors.torch.save, 0

        def save(*arguments, **options):
            nonlocal count
            count += 1
            if count == 2:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        monkeypatch.setattr(module.safetensors.torch, "save", save)
        message = refusal(trainer, error=TrainingError)
        assert message.startswith("run/checkpoints/step-00000006: cannot be written (")
        resumed = trainer(resume=True)
        assert resumed.weights == straight().weights
        assert same_state(resumed.state, straight().state)
        assert resumed.events == straight().events


class TestWithoutNumba:
    WARNING = "warning: numba cannot be imported, so training will be slower; pip install numba\n"

    def test_a_run_says_that_it_will_be_slower(self, trainer, monkeypatch, capfd):
        monkeypatch.setattr(compiled, "load", lambda: False)
        monkeypatch.setattr(compiled, "is_loaded", lambda: False)
        assert trainer("training.max_steps=3").steps == [3]
        assert capfd.readouterr().err.count(self.WARNING) == 1

    def test_with_numba_it_says_nothing(self, trainer, capfd):
        trainer("training.max_steps=3")
        assert "numba" not in capfd.readouterr().err
