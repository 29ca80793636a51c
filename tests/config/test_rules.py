"""Each rule of the schema has its message, with the line of the wrong value."""

import pytest

from nmt.config import to_yaml


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: true", "seed must be a whole number, but is true"),
        ("seed: [1]", "seed must be a whole number, but is a list"),
        ("seed:", "seed must be a whole number, but is empty"),
        ("seed: -1", "seed must be >= 0, but is -1"),
        ("seed: 4294967296", "seed must be < 4294967296, but is 4294967296"),
        (
            "seed: '5'",
            "seed must be a whole number, but is '5'; "
            "write it without quotes, leading zeros or underscores",
        ),
        (
            "training: {learning_rate: 1_0.5}",
            "training.learning_rate must be a number, but is '1_0.5'; "
            "write it without quotes, leading zeros or underscores",
        ),
        ("training: {learning_rate: true}", "training.learning_rate must be a number, but is true"),
        ("training: {learning_rate: 0}", "training.learning_rate must be > 0, but is 0"),
        (
            "training: {learning_rate: 1e999}",
            "training.learning_rate must be a finite number, but is inf",
        ),
        (
            "training: {precision: fp8}",
            "training.precision must be 'fp32', 'bf16' or 'fp16', but is 'fp8'",
        ),
        ("tokenizer: {vocab_size: 4}", "tokenizer.vocab_size must be >= 5, but is 4"),
        (
            "tokenizer: {character_coverage: 1.1}",
            "tokenizer.character_coverage must be <= 1, but is 1.1",
        ),
        (
            "tokenizer: {character_coverage: 0.9}",
            "tokenizer.character_coverage must be > 0.9, but is 0.9",
        ),
        ("training: 5", "training must be a section of keys, but is 5; indent its keys below it"),
        (
            "decoding: {length_penalty: " + "x" * 100 + "}",
            "decoding.length_penalty must be a number, but is "
            "'" + "x" * 27 + "..." + "x" * 28 + "'",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(base, problems, line, message):
    assert problems(f"{base}{line}\n") == [f"x.yaml:7: {message}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run_dir: ''", "run_dir must be non-empty text, but is ''"),
        ("run_dir: {a: 1}", "run_dir must be text, but is a section of keys"),
        ("run_dir: true", "run_dir must be text, but is true; put it in quotes"),
        (
            'run_dir: "a\\nb"',
            r"run_dir must be text without control characters, but is 'a\nb'",
        ),
    ],
)
def test_a_wrong_text_is_named_with_its_rule(base, problems, line, message):
    assert problems(base.replace("run_dir: runs/x", line)) == [f"x.yaml:1: {message}"]


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ("data: {max_length: 0}", ">= 1"),
        ("data: {max_length_ratio: 1}", "> 1"),
        ("tokenizer: {sampling: 1}", "< 1"),
        ("model: {dropout: 1}", "< 1"),
        ("model: {embed_dim: 0}", ">= 1"),
        ("model: {encoder: {num_layers: 0}}", ">= 1"),
        ("model: {decoder: {readout_dim: 0}}", ">= 1"),
        ("training: {batch_tokens: 0}", "'auto' or >= 1"),
        ("training: {batch_tokens: 1.5}", "'auto' or a whole number"),
        ("training: {ema_decay: 1}", "< 1"),
        ("training: {weight_decay: -1}", ">= 0"),
        ("training: {warmup_steps: -1}", ">= 0"),
        ("training: {plateau_factor: 1}", "< 1"),
        ("training: {plateau_patience: 0}", ">= 1"),
        ("training: {clip_norm: 0}", "> 0"),
        ("training: {label_smoothing: 1}", "< 1"),
        ("training: {keep_last: 1}", ">= 2"),
        ("training: {max_skipped: 0}", ">= 1"),
        ("validation: {patience: 0}", ">= 1"),
        ("decoding: {length_penalty: -0.5}", ">= 0"),
        ("decoding: {min_length: -1}", ">= 0"),
        ("decoding: {max_length_ratio: 0}", "> 0"),
    ],
)
def test_every_range_is_checked(base, problems, section, rule):
    key, _, value = section.replace("{", "").replace("}", "").rpartition(": ")
    dotted = key.replace(": ", ".")
    override = f"{dotted}={value}"
    assert problems(base, override) == [
        f"--set {override}: {dotted} must be {rule}, but is {value}"
    ]


@pytest.mark.parametrize(
    "override",
    [
        "data.max_length_ratio=",
        "model.decoder.readout_dim=null",
        "training.clip_norm=~",
        "validation.patience=null",
    ],
)
def test_optional_keys_take_null(base, load, override):
    assert ": null\n" in to_yaml(load(base, override))


@pytest.mark.parametrize(
    ("lines", "place", "message"),
    [
        (
            "tokenizer: {kind: word}\n\n# sampled\nmodel: {}",
            None,
            None,
        ),
        (
            "tokenizer:\n  kind: word\n  sampling: 0.1",
            9,
            "tokenizer.sampling needs tokenizer.kind unigram or bpe, but it is word; "
            "set tokenizer.sampling to 0",
        ),
        (
            "tokenizer: {shared: false}\nmodel:\n  tie_embeddings: all",
            9,
            "model.tie_embeddings all needs tokenizer.shared true, but it is false; "
            "share the tokenizer or set tie_embeddings to decoder",
        ),
        ("tokenizer: {shared: false}\nmodel:\n  tie_embeddings: decoder", None, None),
        (
            "model:\n  tie_embeddings: decoder\n  decoder:\n    readout_dim: 100",
            10,
            "model.decoder.readout_dim must be model.embed_dim (256) when model.tie_embeddings is "
            "decoder, but is 100; leave it out",
        ),
        ("model: {tie_embeddings: all, decoder: {readout_dim: 256}}", None, None),
        ("model: {decoder: {readout_dim: 100}}", None, None),
        (
            "model:\n  decoder:\n    input_feeding: true",
            9,
            "model.decoder.input_feeding needs model.decoder.order luong, but it is bahdanau, "
            "where the context already enters the next step; set input_feeding to false",
        ),
        ("model: {decoder: {input_feeding: true, order: luong}}", None, None),
        (
            "training:\n  warmup_steps: 20000",
            8,
            "training.warmup_steps must be < training.max_steps (20000), but is 20000; lower it",
        ),
        ("training: {warmup_steps: 19999}", None, None),
        (
            "training:\n  # none\n  schedule: inverse_sqrt",
            9,
            "training.schedule inverse_sqrt needs training.warmup_steps >= 1, but it is 0; "
            "set it, e.g. to 4000",
        ),
        ("training: {schedule: inverse_sqrt, warmup_steps: 1}", None, None),
        (
            "training:\n  device: cpu\n  precision: fp16",
            9,
            "training.precision fp16 needs a CUDA device, but training.device is cpu; "
            "use bf16 or fp32 on the CPU",
        ),
        ("training: {device: 'cuda:0', precision: fp16}", None, None),
        ("training: {device: cpu, precision: bf16}", None, None),
    ],
)
def test_rules_between_keys(base, load, problems, lines, place, message):
    if message is None:
        load(base + lines)
    else:
        assert problems(base + lines) == [f"x.yaml:{place}: {message}"]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_known_devices(base, load, device):
    assert load(base, f"training.device={device}").training.device == device


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:x", "cuda:01", "cuda:-1", "CPU", "cpu:0"])
def test_other_devices_are_refused(base, problems, device):
    (problem,) = problems(base, f"training.device={device}")
    assert problem == (
        f"--set training.device={device}: training.device must be auto, cpu, cuda or cuda:N, "
        f"but is {device!r}; other devices are not supported"
    )
