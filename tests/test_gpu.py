"""Training, resuming and translating on a CUDA device."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nmt.build.saved import load
from nmt.build.training import build_device
from nmt.errors import ConfigError
from nmt.model.rnn import recurrent_layer, run_padded
from nmt.training.checkpoint import pointed, read_training_state, read_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.fixture
def train(nmt, tiny, tmp_path, monkeypatch):
    """Trains the tiny model in the current folder, which is the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, resume=False, run_dir="run", device="cuda"):
        settings = (
            f"run_dir={run_dir}",
            f"training.device={device}",
            "training.log_every=1",
            *overrides,
        )
        options = [word for setting in settings for word in ("--set", setting)]
        ended = nmt("train", "--config", tiny.config, *options, *["--resume"] * resume)
        assert ended.code == 0, ended.err
        return Path(run_dir)

    return run


def losses(run):
    """The loss of each update."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    events = [json.loads(line) for line in lines]
    return {event["step"]: event["loss"] for event in events if event["event"] == "train"}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_falls_in_every_precision(train, precision, cell):
    run = train(f"training.precision={precision}", f"model.cell={cell}")
    measured = losses(run)
    assert len(measured) == 200
    assert measured[200] < 0.5 * measured[1]
    checkpoint = pointed(run / "latest")
    assert {weight.dtype for weight in read_weights(checkpoint).values()} == {torch.float32}
    state = read_training_state(checkpoint)["trainer"]
    assert len(state["cuda_random"]) == torch.cuda.device_count()
    assert bool(state["scaler"]) is (precision == "fp16")


def test_a_resumed_run_goes_on_where_it_was(train):
    """With dropout: the next losses are the same but for the order in which sums are taken."""
    overrides = (
        "model.dropout=0.3",
        "training.schedule=constant",
        "training.warmup_steps=0",
        "training.max_steps=60",
        "validation.every=30",
    )
    straight = train(*overrides)
    shutil.copytree(straight, "resumed")
    shutil.rmtree("resumed/checkpoints/step-00000060")
    resumed = losses(train(*overrides, resume=True, run_dir="resumed"))
    expected = losses(straight)
    assert resumed.keys() == expected.keys()
    assert resumed[31] == pytest.approx(expected[31], rel=1e-3)
    assert resumed[32] == pytest.approx(expected[32], rel=1e-2)
    assert resumed[60] == pytest.approx(expected[60], rel=0.3)


def test_a_run_can_move_to_a_cuda_device_and_back(train):
    overrides = ("training.schedule=constant", "training.warmup_steps=0")
    for steps, device in ((20, "cpu"), (40, "cuda"), (60, "cpu")):
        run = train(f"training.max_steps={steps}", *overrides, device=device, resume=True)
    measured = losses(run)
    assert list(measured) == list(range(1, 61))
    assert measured[21] < measured[1]
    assert measured[60] < measured[20]


@pytest.mark.parametrize("beam_size", [1, 5])
def test_translations_are_those_of_the_cpu(tiny, beam_size):
    sentences = [*tiny.lines("test.ko"), ""]
    cpu, cuda = (
        load(tiny.run, device=device, beam_size=beam_size).translate(sentences)
        for device in ("cpu", "cuda")
    )
    assert [found.text for found in cuda] == [found.text for found in cpu]
    assert [found.score for found in cuda] == pytest.approx(
        [found.score for found in cpu], abs=1e-2
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_translates_nearly_the_same(tiny, precision):
    sentences = tiny.lines("test.ko")
    cpu = load(tiny.run, device="cpu").translate(sentences)
    cuda = load(tiny.run, device="cuda", precision=precision).translate(sentences)
    same = sum(a.text == b.text for a, b in zip(cpu, cuda, strict=True))
    assert same >= 27  # of 30


def test_scores_and_attention_are_those_of_the_cpu(tiny):
    pairs = list(zip(tiny.lines("test.ko"), tiny.lines("test.en"), strict=True))
    cpu, cuda = (load(tiny.run, device=device).score(pairs) for device in ("cpu", "cuda"))
    for a, b in zip(cpu, cuda, strict=True):
        assert b.log_prob == pytest.approx(a.log_prob, abs=1e-2)
        assert b.weights == pytest.approx(a.weights, abs=1e-2)


def test_a_device_beyond_the_last_is_refused():
    with pytest.raises(ConfigError, match=r"cuda:99 was asked for, but there are only \d+ CUDA"):
        build_device("cuda:99")


def test_fp32_is_not_rounded_to_tf32():
    layer = torch.nn.GRU(512, 512).to(build_device("cuda"))
    inputs = torch.randn(20, 64, 512, device="cuda")
    twin = torch.nn.GRU(512, 512).cuda().double()
    twin.load_state_dict({name: weight.double() for name, weight in layer.state_dict().items()})
    exact, _ = twin(inputs.double())
    outputs, _ = layer(inputs)
    assert float((outputs - exact).norm() / exact.norm()) < 1e-5


def test_bf16_encodes_in_bf16_and_not_in_fp16():
    """Torch would run recurrent layers in fp16, where small gradients vanish."""
    layer = recurrent_layer("gru", 64, 64).to("cuda")
    inputs = torch.randn(5, 8, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        outputs, (final,) = run_padded(layer, inputs, torch.ones(5, 8, dtype=bool, device="cuda"))
    assert outputs.dtype == final.dtype == torch.bfloat16
    (1e-9 * outputs.float().sum()).backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())
