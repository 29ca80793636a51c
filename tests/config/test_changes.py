"""A config is written and read back, and only harmless changes may be made on resume."""

import pytest

from nmt.config import RESUMABLE, changed_keys, forbidden_changes, to_yaml
from nmt.config.load import all_keys


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
    assert forbidden_changes(old, harmless) == []
    harmful = load(base, "seed=2", "training.max_steps=7", "model.dropout=0.1")
    assert forbidden_changes(old, harmful) == ["seed: 1 -> 2", "model.dropout: 0.3 -> 0.1"]


@pytest.mark.parametrize(
    ("schedule", "override", "change"),
    [
        ("linear", "training.max_steps=7", "training.max_steps: 20000 -> 7"),
        ("plateau", "validation.every=7", "validation.every: 500 -> 7"),
    ],
)
def test_what_the_schedule_depends_on_may_not_change(base, load, schedule, override, change):
    text = f"{base}training: {{schedule: {schedule}}}"
    assert forbidden_changes(load(text), load(text, override)) == [
        f"{change} (the {schedule} schedule depends on it)"
    ]
