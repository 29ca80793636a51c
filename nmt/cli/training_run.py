"""One training run: its stages in order, and what happens around the training loop."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nmt.build.data import Tokenizers, build_batches, build_token_store, build_tokenizers
from nmt.build.model import build_model
from nmt.build.saved import build_translator, load_weights, search_options
from nmt.build.training import build_device, build_trainer, check_precision
from nmt.cli.messages import say, warn
from nmt.cli.progress import TrainingBar, Window
from nmt.cli.signals import StopRequest
from nmt.config import Config, forbidden_changes, load_config, to_yaml
from nmt.data.batches import Batches
from nmt.data.corpus import files_exist, read_pairs
from nmt.data.store import TokenStore
from nmt.errors import ConfigError
from nmt.model.seq2seq import Seq2Seq
from nmt.text.lines import open_output
from nmt.training.checkpoint import (
    checkpoint_name,
    choose_checkpoint,
    latest_good,
    point,
    read_training_state,
    remove_old,
    remove_unfinished,
    write_checkpoint,
)
from nmt.training.run_directory import RunDirectory
from nmt.training.trainer import StepReport, Trainer
from nmt.validation import Validation, Validator

Note = Callable[[str], None]


def run_training(config: Config, *, resume: bool) -> int:
    """Train as the config says, and give the exit code.

    Raises:
        ConfigError, DataError, ModelError, TrainingError: with one line for the user.
    """
    device = build_device(config.training.device)
    check_precision(config.training.precision, device)
    for files in (config.data.train, config.data.valid):
        files_exist(files.src, files.tgt)
    run = RunDirectory(Path(config.run_dir), resume=resume)
    try:
        return _train(config, run, device)
    finally:
        run.close()


def _train(config: Config, run: RunDirectory, device: torch.device) -> int:
    def note(message: str) -> None:
        say(message)
        run.log(message)

    _refuse_changed_config(config, run)
    tokenizers = build_tokenizers(config, run.path / "tokenizer", note)
    store = build_token_store(config, "train", tokenizers, run.path / "data" / "train", note)
    valid = build_token_store(config, "valid", tokenizers, run.path / "data" / "valid", note)
    torch.manual_seed(config.seed)
    model = build_model(config, len(tokenizers.src), len(tokenizers.tgt)).to(device)
    validator = _build_validator(config, valid, tokenizers, device, model)
    trainer = build_trainer(config, model, build_batches(config, store, tokenizers), device)
    _restore(run, trainer, store)
    with open_output(run.config) as stream:
        stream.write(to_yaml(config))
    size = sum(parameter.numel() for parameter in model.parameters())
    note(
        f"training on {device} in {config.training.precision}: {size:,} parameters, "
        f"from step {trainer.progress.step:,} to {config.training.max_steps:,}"
    )
    bar = TrainingBar(trainer.progress.step, config.training.max_steps)
    with StopRequest() as stop:
        hooks = Hooks(config, run, trainer, validator, tokenizers, store, bar, stop)
        try:
            reason = trainer.train(config.training.max_steps, hooks)
        finally:
            bar.close()
        if not stop():
            _report_best(config, run, trainer, validator, reason, stop, note)
    if stop():
        note(f"stopped at step {trainer.progress.step:,}; continue with --resume")
        return stop.exit_code
    return 0


def _refuse_changed_config(config: Config, run: RunDirectory) -> None:
    """Resume only what was begun."""
    if not run.has_begun() or not run.config.exists():
        return
    if changes := forbidden_changes(load_config(str(run.config)), config):
        raise ConfigError(
            f"{run.path}: the run was begun with another config ({'; '.join(changes)}); "
            "undo the change, or choose another run_dir"
        )


def _restore(run: RunDirectory, trainer: Trainer, store: TokenStore) -> None:
    """Put a trainer where the newest good checkpoint of the run stands, if there is one."""
    remove_unfinished(run.path)
    checkpoint = latest_good(run.path, warn)
    if checkpoint is None:
        run.forget_after(0)
        return
    state = read_training_state(checkpoint)
    if state["data_fingerprint"] != store.fingerprint:
        raise ConfigError(
            f"{run.path}: the training data has changed since the run was begun; restore it, "
            "or choose another run_dir"
        )
    load_weights(trainer.model, checkpoint)
    trainer.load_state_dict(state["trainer"])
    run.forget_after(trainer.progress.step)
    point(run.path / "latest", checkpoint)
    if trainer.progress.best_step:
        best = run.path / "checkpoints" / checkpoint_name(trainer.progress.best_step)
        point(run.path / "best", best)


def _build_validator(
    config: Config,
    store: TokenStore,
    tokenizers: Tokenizers,
    device: torch.device,
    model: Seq2Seq,
) -> Validator:
    pairs = list(read_pairs(config.data.valid.src, config.data.valid.tgt))
    return Validator(
        build_translator(config, model, tokenizers, device),
        Batches(store, config.training.batch_tokens, config.seed),
        [pair.src for pair in pairs],
        [pair.tgt for pair in pairs],
        search_options(config, beam_size=config.validation.beam_size),
    )


def _report_best(
    config: Config,
    run: RunDirectory,
    trainer: Trainer,
    validator: Validator,
    reason: str,
    stop: StopRequest,
    note: Note,
) -> None:
    """Measure the best checkpoint with the decoding options of the config, and say so."""
    best = choose_checkpoint(run.path)
    load_weights(trainer.model, best)
    trainer.model.eval()
    final = replace(validator, options=search_options(config))(stop)
    if final is None:
        return
    run.record("end", step=trainer.progress.step, reason=reason, best=best.name, **_values(final))
    note(
        f"{reason}; best is {best.name}: BLEU {final.bleu.value:.2f} with beam "
        f"{config.decoding.beam_size} on {config.data.valid.src} ({final.bleu.signature})"
    )


def _values(validation: Validation) -> dict[str, float | str]:
    """A validation as it stands in the metrics."""
    return {
        "loss": round(validation.loss, 4),
        "perplexity": round(validation.perplexity, 4),
        "bleu": round(validation.bleu.value, 2),
        "chrf": round(validation.chrf.value, 2),
        "bleu_signature": validation.bleu.signature,
    }


class Hooks:
    """What happens around the training loop: logs, validations, checkpoints."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        trainer: Trainer,
        validator: Validator,
        tokenizers: Tokenizers,
        store: TokenStore,
        bar: TrainingBar,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.run = run
        self.trainer = trainer
        self.validator = validator
        self.tokenizers = tokenizers
        self.store = store
        self.bar = bar
        self.should_stop = stop
        self.window = Window()

    def on_step(self, report: StepReport) -> None:
        """Show and log the means of the last `training.log_every` steps."""
        self.window.add(report)
        self.bar.advance()
        if report.step % self.config.training.log_every == 0:
            means = {**self.window.values(), "learning_rate": report.learning_rate}
            self.run.record(
                "train", step=report.step, gradient_norm=round(report.gradient_norm, 4), **means
            )
            self.bar.show(report.step, means)
            self.window = Window()

    def validate(self, step: int) -> float | None:
        """Measure the model and log what was found."""
        began = time.perf_counter()
        found = self.validator(self.should_stop)
        if found is None:
            return None
        seconds = time.perf_counter() - began
        self.run.record("valid", step=step, seconds=round(seconds, 2), **_values(found))
        message = (
            f"step {step:,}: valid loss {found.loss:.4f}, perplexity {found.perplexity:.3f}, "
            f"BLEU {found.bleu.value:.2f}, chrF {found.chrf.value:.2f} ({seconds:.0f} s)"
        )
        self.run.log(message)
        self.bar.say(message)
        self.bar.score = f", BLEU {found.bleu.value:.2f}"
        self.window.began += seconds  # validation is not training time
        match self.config.validation.metric:
            case "bleu":
                return found.bleu.value
            case "chrf":
                return found.chrf.value
            case "loss":
                return -found.loss

    def save(self, step: int, is_best: bool) -> None:
        """Write a checkpoint, and delete what is neither recent nor best."""
        checkpoint = write_checkpoint(
            self.run.path,
            step,
            dict(self.trainer.model.named_parameters()),
            {"trainer": self.trainer.state_dict(), "data_fingerprint": self.store.fingerprint},
            {"tokenizers": self.tokenizers.hashes},
        )
        if is_best:
            point(self.run.path / "best", checkpoint)
        remove_old(self.run.path, self.config.training.keep_last)
