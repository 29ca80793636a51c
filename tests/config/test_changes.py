"""A config is written and read back, and only harmless changes may be made on resume."""

import pytest

from nmt.config import (
    RESUMABLE,
    can_be_forced,
    changed_keys,
    forbidden_changes,
    named_keys,
    parse_config,
    to_yaml,
)
from nmt.config.load import all_keys
from nmt.errors import ConfigError


def test_the_resolved_config_has_every_key_in_schema_order(base, load):
    text = to_yaml(load(base))
    last_names = [line.split(":")[0].strip() for line in text.split("\n") if line]
    assert last_names == [key.rpartition(".")[2] for key in all_keys()]


def test_names_that_look_like_other_things_survive_being_written(base, load):
    overrides = ("run_dir='1e-3'", "src_lang='no'", "tgt_lang='010'", "data.train.src='# 한'")
    config = load(base, *overrides)
    assert (config.run_dir, config.data.train.src) == ("1e-3", "# 한")
    assert load(to_yaml(config)) == config


def test_changed_keys_lists_leaves_with_both_values(base, load):
    old = load(base)
    new = load(
        base,
        *("decoding.beam_size=7", "run_dir=runs/y", "validation.patience=null"),
        "tokenizer.shared=false",
    )
    assert changed_keys(old, new) == [
        "run_dir: runs/x -> runs/y",
        "tokenizer.shared: true -> false",
        "validation.patience: 10 -> null",
        "decoding.beam_size: 5 -> 7",
    ]
    assert changed_keys(old, old) == []


def test_resumable_keys_exist_and_are_leaves():
    keys = list(all_keys())
    sections = {key for key in keys if any(other.startswith(f"{key}.") for other in keys)}
    assert set(keys) >= RESUMABLE
    assert not RESUMABLE & sections
    assert {"training.max_steps", "decoding.beam_size", "data.train.src", "run_dir"} <= RESUMABLE


def test_only_resumable_keys_may_change_on_resume(base, load):
    old = load(base)
    harmless = load(
        base,
        *("training.max_steps=7", "training.device=cpu", "decoding.length_penalty=0"),
        *("data.train.src=/elsewhere/train.de", "validation.every=7", "validation.patience=1"),
    )
    assert forbidden_changes(old, harmless) == {}
    harmful = load(base, "seed=2", "training.max_steps=7", "model.dropout=0.1")
    assert forbidden_changes(old, harmful) == {
        "seed": "seed: 1 -> 2",
        "model.dropout": "model.dropout: 0.3 -> 0.1",
    }


@pytest.mark.parametrize(
    ("schedule", "override", "change"),
    [
        ("linear", "training.max_steps=7", "training.max_steps: 20000 -> 7"),
        ("plateau", "validation.every=7", "validation.every: 500 -> 7"),
    ],
)
def test_what_the_schedule_depends_on_may_not_change(base, load, schedule, override, change):
    text = f"{base}training: {{schedule: {schedule}}}"
    assert list(forbidden_changes(load(text), load(text, override)).values()) == [
        f"{change} (the {schedule} schedule depends on it)"
    ]


def test_a_batch_size_to_be_found_out_is_the_one_that_was_found(base, load):
    number = load(base, "training.batch_tokens=512")
    assert forbidden_changes(number, load(base, "training.batch_tokens=auto")) == {}
    assert "training.batch_tokens" in forbidden_changes(number, load(base))


def test_what_the_weights_are_made_of_cannot_be_forced():
    fixed = {key for key in all_keys() if not can_be_forced(key)}
    assert {"model", "model.cell", "model.encoder.hidden_dim", "tokenizer.vocab_size"} <= fixed
    free = {"model.dropout", "tokenizer.sampling", "seed", "training.optimizer", "data.max_length"}
    assert not fixed & free


def test_a_section_names_all_in_it(base):
    assert named_keys(["data.train", "seed"], "--x") == {
        "seed",
        "data.train",
        "data.train.src",
        "data.train.tgt",
    }
    assert {"model.decoder.num_layers", "model.dropout"} < named_keys(["model"], "--x")
    assert named_keys([], "--x") == set()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("training.batch_token", "did you mean 'training.batch_tokens'?"),
        ("learning_rate", "did you mean 'training.learning_rate'?"),
        ("every", "did you mean 'validation.every'?"),
        ("trainin", "did you mean 'training'?"),
        ("data.", "did you mean 'data'?"),
        (
            "",
            "keys begin with run_dir, seed, src_lang, tgt_lang, data, tokenizer, model, training, "
            "validation, decoding",
        ),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(name, advice):
    with pytest.raises(ConfigError) as caught:
        named_keys([name], "--override-resume")
    assert str(caught.value) == f"--override-resume: unknown key {name!r}; {advice}"


def test_a_text_is_read_like_a_file(base, load):
    config = load(base)
    assert parse_config(to_yaml(config), "x") == config
    with pytest.raises(ConfigError, match=r"^step-7: its config:1: unknown key 'sed'"):
        parse_config("sed: 1\n" + base, "step-7: its config")
