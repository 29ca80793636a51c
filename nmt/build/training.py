"""Config → device, optimizer, schedule, trainer."""

import re

import torch

from nmt.config import Config
from nmt.data.batches import Batches
from nmt.errors import ConfigError
from nmt.model.onednn import use_onednn
from nmt.model.seq2seq import Seq2Seq
from nmt.training.schedule import Schedule
from nmt.training.trainer import Precision, Trainer

ADAM_BETAS = (0.9, 0.98)  # Vaswani et al. 2017; the usual 0.999 reacts too slowly to warm-up


def build_device(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda or cuda:N; fp32 means the same on all of them.

    Raises:
        ConfigError: if it is not there. There is no silent fall back to the CPU.
    """
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would round fp32 to 10 bits of it
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(0|[1-9][0-9]*))?", name)
    if not match:
        raise ConfigError(f"device: must be auto, cpu, cuda or cuda:N, but is {name}")
    if not torch.cuda.is_available():
        raise ConfigError(f"device: {name} was asked for, but this machine has no CUDA; use cpu")
    if match[1] and int(match[1]) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name} was asked for, but there are only {torch.cuda.device_count()} "
            "CUDA devices, counted from 0"
        )
    return torch.device(name)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that the device cannot compute in.

    Raises:
        ConfigError: for fp16 on the CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a CUDA device; use bf16 or fp32 on the CPU")


def build_optimizer(config: Config, model: Seq2Seq, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer; its learning rate is set by the schedule before every step."""
    training = config.training
    parameters = list(model.parameters())
    fused = device.type in ("cpu", "cuda")
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(
                parameters, betas=ADAM_BETAS, weight_decay=training.weight_decay, fused=fused
            )
        case "adamw":
            return torch.optim.AdamW(
                parameters, betas=ADAM_BETAS, weight_decay=training.weight_decay, fused=fused
            )
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=training.learning_rate, weight_decay=training.weight_decay
            )


def build_schedule(config: Config) -> Schedule:
    """The learning rate of each step."""
    training = config.training
    return Schedule(
        training.schedule,
        training.learning_rate,
        training.warmup_steps,
        training.max_steps,
        training.plateau_factor,
    )


def build_trainer(
    config: Config, model: Seq2Seq, batches: Batches, device: torch.device
) -> Trainer:
    """The training loop over a model that is already on its device."""
    training = config.training
    if device.type == "cpu" and training.precision == "fp32":
        use_onednn(model)
    return Trainer(
        model,
        build_optimizer(config, model, device),
        build_schedule(config),
        batches,
        device=device,
        precision=training.precision,
        label_smoothing=training.label_smoothing,
        accumulate=training.accumulate,
        clip_norm=training.clip_norm,
        validate_every=config.validation.every,
        patience=config.validation.patience,
        plateau_patience=training.plateau_patience,
        max_skipped=training.max_skipped,
        ema_decay=training.ema_decay,
    )


def with_batch_tokens(config: Config, batch_tokens: int) -> Config:
    """The config with a number in the place of `training.batch_tokens: auto`."""
    training = config.training.model_copy(update={"batch_tokens": batch_tokens})
    return config.model_copy(update={"training": training})
