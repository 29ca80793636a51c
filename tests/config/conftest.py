"""Loading a config from a text, and the problems that this raises."""

import pytest

from nmt.config import load_config
from nmt.errors import ConfigError

BASE = """\
run_dir: runs/x
src_lang: de
tgt_lang: en
data:
  train: {src: train.de, tgt: train.en}
  valid: {src: valid.de, tgt: valid.en}
"""


@pytest.fixture
def base():
    """The smallest valid config: six lines, all that is required."""
    return BASE


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a text that stands in x.yaml."""
    monkeypatch.chdir(tmp_path)

    def load_text(text, *overrides):
        (tmp_path / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config("x.yaml", overrides)

    return load_text


@pytest.fixture
def problems(load):
    """The lines of the error that loading a text raises."""

    def problems_of(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).split("\n")

    return problems_of
