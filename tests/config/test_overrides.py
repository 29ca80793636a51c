"""An override wins over the file, and is named when it is wrong."""

import pytest


def test_overrides_win_over_the_file_and_later_ones_over_earlier(base, load):
    config = load(
        base + "training: {max_steps: 7}",
        *("training.max_steps=100", "model.attention.score=dot", "run_dir=runs/y"),
        *("training.learning_rate=1e-3", "seed=2", "seed=3", "validation.patience="),
        "data.train={src: a=b, tgt: c}",
    )
    assert config.training.max_steps == 100
    assert config.model.attention.score == "dot"
    assert config.run_dir == "runs/y"
    assert config.training.learning_rate == 0.001
    assert config.seed == 3
    assert config.validation.patience is None
    assert config.data.train.src == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "must have the form key=value; e.g. training.max_steps=100"),
        ("=1", "must have the form key=value; e.g. training.max_steps=100"),
        ("training.=1", "must have the form key=value; e.g. training.max_steps=100"),
        ("seed.x=1", "'seed' is not a section of keys"),
        ("seed=x", "seed must be a whole number, but is 'x'"),
        (
            "training.max_step=1",
            "unknown key 'training.max_step'; did you mean 'max_steps'?",
        ),
        ("data.train={src: a}", "missing key 'data.train.tgt'; it has no default, so set it"),
        ("data.train={src: a, tgt: 1}", "data.train.tgt must be text, but is 1; put it in quotes"),
        (
            "seed=[1",
            "is not valid YAML: while parsing a flow sequence, expected ',' or ']', "
            "but got '<stream end>'",
        ),
        ("run_dir=a: b", "run_dir must be text, but is a section of keys"),
        ("run_dir=#x", "run_dir must be text, but is empty"),
        ("run_dir=!!str 1", "the tag 'tag:yaml.org,2002:str' is refused; write a plain value"),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_file(base, problems, override, message):
    assert problems(f"{base}seed: 1", override) == [f"--set {override}: {message}"]


@pytest.mark.parametrize("override", ["a\nb=1", "a\udcff=1"])
def test_a_key_of_an_override_is_printable(base, problems, override):
    assert problems(base, override) == [
        f"--set {override!r}: must have the form key=value; e.g. training.max_steps=100"
    ]


def test_an_override_can_break_a_rule_with_the_file(base, problems):
    text = base + "training:\n  warmup_steps: 200"
    assert problems(text, "training.max_steps=100") == [
        "x.yaml:8: training.warmup_steps must be < training.max_steps (100), but is 200; lower it"
    ]


def test_an_override_can_make_a_missing_section(base, load):
    text = base.replace("  valid: {src: valid.de, tgt: valid.en}\n", "")
    config = load(text, "data.valid.src=v.de", "data.valid.tgt=v.en")
    assert config.data.valid.tgt == "v.en"


def test_an_override_is_the_place_of_a_section_that_it_makes(base, problems):
    text = base.replace("  valid: {src: valid.de, tgt: valid.en}\n", "")
    assert problems(text, "data.valid.src=v.de") == [
        "--set data.valid.src=v.de: missing key 'data.valid.tgt'; it has no default, so set it"
    ]


def test_a_duplicate_key_inside_an_override_is_reported(base, problems):
    assert problems(base, "model={cell: gru, cell: lstm}") == [
        "--set model={cell: gru, cell: lstm}: duplicate key 'cell', first set on line 1; remove one"
    ]
