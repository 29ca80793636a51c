"""One training run: its stages in order, and what happens around the training loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nmt.build.data import (
    Tokenizers,
    build_batches,
    build_token_store,
    build_tokenizers,
    read_part,
)
from nmt.build.model import build_model
from nmt.build.saved import build_translator, load_weights, search_options
from nmt.build.training import (
    build_device,
    build_trainer,
    check_precision,
    with_batch_tokens,
)
from nmt.cli.messages import say, warn
from nmt.cli.progress import TrainingBar, Window
from nmt.cli.resuming import OPTION, find_origin, restore
from nmt.cli.signals import StopRequest
from nmt.config import Config, load_config, named_keys, to_yaml
from nmt.data.batches import Batches
from nmt.data.corpus import files_exist
from nmt.data.store import TokenStore
from nmt.model import compiled
from nmt.model.seq2seq import Seq2Seq
from nmt.text.lines import open_output
from nmt.training.batch_size import find_batch_tokens
from nmt.training.checkpoint import (
    choose_checkpoint,
    point,
    remove_old,
    write_checkpoint,
)
from nmt.training.disk_space import refuse_full_disk
from nmt.training.run_directory import RunDirectory
from nmt.training.trainer import StepReport, Trainer
from nmt.validation import Validation, Validator

Note = Callable[[str], None]


def run_training(
    config: Config, *, resume: bool, override: Sequence[str] = (), strict: bool = False
) -> int:
    """Train as the config says, and give the exit code.

    Args:
        resume: whether a run that has begun may be continued.
        override: keys and sections whose change shall not hinder that.
        strict: whether that needs the newest checkpoint to be good.

    Raises:
        ConfigError, DataError, ModelError, TrainingError: with one line for the user.
    """
    forced = named_keys(override, OPTION)
    device = build_device(config.training.device)
    check_precision(config.training.precision, device)
    for files in (config.data.train, config.data.valid):
        files_exist(files.src, files.tgt)
    run = RunDirectory(Path(config.run_dir), resume=resume)
    try:
        return _train(config, run, device, forced, strict)
    finally:
        run.close()


def _train(
    config: Config, run: RunDirectory, device: torch.device, forced: frozenset[str], strict: bool
) -> int:
    def note(message: str) -> None:
        say(message)
        run.log(message)

    config = _with_settled_batches(config, run)
    origin = find_origin(config, run, forced, strict=strict)
    tokenizers = build_tokenizers(config, run.path / "tokenizer", note)
    store = build_token_store(config, "train", tokenizers, run.path / "data" / "train", note)
    valid = build_token_store(config, "valid", tokenizers, run.path / "data" / "valid", note)
    torch.manual_seed(config.seed)
    model = build_model(config, len(tokenizers.src), len(tokenizers.tgt)).to(device)
    trainer = build_trainer(config, model, build_batches(config, store, tokenizers), device)
    if device.type == "cpu" and not compiled.is_loaded():
        warn("numba cannot be imported, so training will be slower; pip install numba")
    config = _try_largest_batch(config, trainer, note)
    validator = _build_validator(config, valid, tokenizers, device, model)
    restore(origin, run, config, trainer, store, tokenizers, note)
    _refuse_full_disk(config, run, trainer)
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
        if "window" in origin.state:
            hooks.window.load_state_dict(origin.state["window"])
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


def _with_settled_batches(config: Config, run: RunDirectory) -> Config:
    """The batch size that a run has found out stays that of the run."""
    begun = run.has_begun() and run.config.exists()
    if config.training.batch_tokens != "auto" or not begun:
        return config
    settled = load_config(str(run.config)).training.batch_tokens
    return config if settled == "auto" else with_batch_tokens(config, settled)


def _try_largest_batch(config: Config, trainer: Trainer, note: Note) -> Config:
    """Let what does not fit in memory be found now, or find out what does."""
    if config.training.batch_tokens == "auto":
        config = with_batch_tokens(config, find_batch_tokens(trainer))
        note(f"training.batch_tokens: {config.training.batch_tokens:,} fit in memory")
    elif trainer.rehearse():
        note(
            "the largest batches do not fit in memory and will be computed in halves; lower "
            "training.batch_tokens to be faster"
        )
    return config


def _refuse_full_disk(config: Config, run: RunDirectory, trainer: Trainer) -> None:
    """Let a disk that is too small be found before hours of training, not after."""
    copies = {"adam": 3, "adamw": 3, "sgd": 1}[config.training.optimizer]
    copies += config.training.ema_decay is not None
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    if trainer.progress.step < config.training.max_steps:
        refuse_full_disk(run.path, copies * weights, config.training.keep_last, warn)


def _build_validator(
    config: Config,
    store: TokenStore,
    tokenizers: Tokenizers,
    device: torch.device,
    model: Seq2Seq,
) -> Validator:
    pairs = list(read_part(config, "valid"))
    return Validator(
        build_translator(config, model, tokenizers, device),
        Batches(store, int(config.training.batch_tokens), config.seed),
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
        if report.is_split:
            message = f"step {report.step:,}: out of memory, so its batches were computed in halves"
            self.run.log(message)
            self.bar.say(message)
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
            {
                "trainer": self.trainer.state_dict(),
                "data_fingerprint": self.store.fingerprint,
                "config": to_yaml(self.config),
                "window": self.window.state_dict(),
            },
            {"tokenizers": self.tokenizers.hashes},
        )
        if is_best:
            point(self.run.path / "best", checkpoint)
        remove_old(self.run.path, self.config.training.keep_last)
