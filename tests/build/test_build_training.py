"""Device, precision, optimizer, schedule and trainer are what the config says."""

import pytest
import torch

from nmt.build.data import build_batches, build_token_store, build_tokenizers
from nmt.build.model import build_model
from nmt.build.training import (
    build_device,
    build_optimizer,
    build_schedule,
    build_trainer,
    check_precision,
)
from nmt.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    """Pretends that there are so many CUDA devices."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def message_of(name):
    with pytest.raises(ConfigError) as caught:
        build_device(name)
    return str(caught.value)


class TestDevice:
    def test_cpu_is_always_there(self, cuda):
        cuda(0)
        assert build_device("cpu") == CPU

    @pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda")])
    def test_auto_is_cuda_if_there(self, cuda, count, expected):
        cuda(count)
        assert build_device("auto") == torch.device(expected)

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
    def test_a_cuda_device_that_is_there_is_taken(self, cuda, name):
        cuda(2)
        assert build_device(name) == torch.device(name)

    @pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
    def test_without_cuda_there_is_no_silent_fall_back(self, cuda, name):
        cuda(0)
        assert message_of(name) == (
            f"device: {name} was asked for, but this machine has no CUDA; use cpu"
        )

    @pytest.mark.parametrize("name", ["cuda:2", "cuda:7"])
    def test_a_device_beyond_the_last_is_refused(self, cuda, name):
        cuda(2)
        assert message_of(name) == (
            f"device: {name} was asked for, but there are only 2 CUDA devices, counted from 0"
        )

    @pytest.mark.parametrize(
        "name",
        [
            "mps",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cuda:01",
            "cuda:²",
            "cpu:0",
            "",
            "tpu",
        ],
    )
    def test_other_names_are_refused_with_the_known_ones(self, cuda, name):
        cuda(2)
        assert message_of(name) == f"device: must be auto, cpu, cuda or cuda:N, but is {name}"


class TestPrecision:
    def test_fp16_on_the_cpu_is_refused(self):
        with pytest.raises(ConfigError) as caught:
            check_precision("fp16", CPU)
        assert str(caught.value) == (
            "precision: fp16 needs a CUDA device; use bf16 or fp32 on the CPU"
        )

    @pytest.mark.parametrize(
        ("precision", "device"),
        [("fp32", "cpu"), ("bf16", "cpu"), ("fp32", "cuda"), ("bf16", "cuda"), ("fp16", "cuda")],
    )
    def test_the_others_are_possible(self, precision, device):
        check_precision(precision, torch.device(device))


class TestOptimizer:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)],
    )
    def test_each_kind_gets_all_parameters_and_its_options(self, config_of, name, kind):
        config = config_of(f"training.optimizer={name}", "training.weight_decay=0.25")
        model = build_model(config_of("model.tie_embeddings=all"), 13, 13)
        optimizer = build_optimizer(config, model, CPU)
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert group["weight_decay"] == 0.25
        assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
        if name != "sgd":
            assert group["betas"] == (0.9, 0.98)
            assert group["fused"] is True

    @pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
    def test_a_fused_step_on_the_cpu_moves_the_weights(self, config_of, name):
        model = build_model(config_of(), 11, 13)
        optimizer = build_optimizer(config_of(f"training.optimizer={name}"), model, CPU)
        weight = model.decoder.output_layer.weight
        before = weight.detach().clone()
        weight.sum().backward()
        optimizer.step()
        assert bool((weight < before).all())


def test_the_schedule_has_the_values_of_the_config(config_of):
    schedule = build_schedule(
        config_of(
            "training.schedule=plateau",
            "training.learning_rate=0.02",
            "training.warmup_steps=3",
            "training.max_steps=70",
            "training.plateau_factor=0.25",
        )
    )
    assert (schedule.shape, schedule.peak) == ("plateau", 0.02)
    assert (schedule.warmup_steps, schedule.max_steps) == (3, 70)
    assert schedule.plateau_factor == 0.25


def test_the_trainer_has_the_values_of_the_config(config_of, tmp_path):
    config = config_of(
        "training.precision=bf16",
        "training.label_smoothing=0.2",
        "training.accumulate=3",
        "training.clip_norm=0.7",
        "training.plateau_patience=4",
        "training.max_skipped=5",
        "training.batch_tokens=99",
        "validation.every=6",
        "validation.patience=8",
        "seed=9",
    )
    tokenizers = build_tokenizers(config, tmp_path / "t", lambda message: None)
    store = build_token_store(config, "train", tokenizers, tmp_path / "s", lambda message: None)
    batches = build_batches(config, store, tokenizers)
    assert (batches.seed, batches.batch_tokens, batches.samplers) == (9, 99, None)
    model = build_model(config, len(tokenizers.src), len(tokenizers.tgt))
    trainer = build_trainer(config, model, batches, CPU)
    assert trainer.model is model
    assert trainer.batches is batches
    found = {
        name: getattr(trainer, name)
        for name in (
            "device",
            "precision",
            "label_smoothing",
            "accumulate",
            "clip_norm",
            "validate_every",
            "patience",
            "plateau_patience",
            "max_skipped",
        )
    }
    assert found == {
        "device": CPU,
        "precision": "bf16",
        "label_smoothing": 0.2,
        "accumulate": 3,
        "clip_norm": 0.7,
        "validate_every": 6,
        "patience": 8,
        "plateau_patience": 4,
        "max_skipped": 5,
    }
