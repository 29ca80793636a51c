"""Every file in configs/ is valid, explains itself, and survives being written and read back."""

from pathlib import Path

import pytest

from nmt.config import load_config, to_yaml
from nmt.config.strict_yaml import parse

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))


def test_the_published_experiments_are_there():
    names = {path.stem for path in CONFIGS}
    assert {"demo", "multi30k-de-en", "bahdanau15", "luong15"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_resolved_config_is_read_back_equal(path, tmp_path):
    config = load_config(str(path))
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(resolved)) == config
    assert to_yaml(load_config(str(resolved))) == to_yaml(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_value_has_a_comment_on_its_line(path):
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    assert lines[0].startswith("# ")
    places = parse(text).lines
    leaves = {key for key in places if not any(o[: len(key)] == key and o != key for o in places)}
    for key in leaves:
        assert "  # " in lines[places[key] - 1], ".".join(key)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_run_directory_is_named_after_its_config(path):
    assert load_config(str(path)).run_dir == f"runs/{path.stem}"
