"""Any bytes are a config, or problems of one line each."""

import os
import re
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmt.config import Config, load_config, to_yaml
from nmt.config.strict_yaml import MAX_SIZE
from nmt.errors import ConfigError

OUTCOMES = Counter()
"""What became of the inputs that were tried."""

EXAMPLES = os.environ.get("NMT_FUZZ_EXAMPLES")  # set by scripts/fuzz.py
fuzz = settings(
    max_examples=int(EXAMPLES or 50),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
WORDS = r"""
a: - { } [ ] , ' " | > # ? ! !!str !!python/object/apply:os.system &a *a <<: |+2 !<%ff> \x41
\U0011ffff \ud800 1e5 010 ~ é 1e999 .nan 9223372036854775808 1000000000 no model: embed_dim:
training: encoder: hidden_dim: --- ... %YAML null true -1 0 0.5
"""
SPACES = ["\n", "\n  ", "\n    ", " ", "  ", "\t", ": ", "\r\n", "\0", "\x85", "\u2028", "\ufeff"]
PIECES = [*WORDS.split(), *SPACES]
BYTES = (
    st.lists(st.sampled_from(PIECES), max_size=60).map(lambda pieces: "".join(pieces).encode())
    | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=300)
)


@cache
def path():
    folder = tempfile.TemporaryDirectory(prefix="nmt-fuzz-")
    return folder, Path(folder.name, "config.yaml")


def attempt(raw, overrides=()):
    """Read it as a file; gives the config, or None."""
    _, file = path()
    file.write_bytes(raw)
    try:
        config = load_config(str(file), overrides)
    except ConfigError as error:
        for problem in str(error).split("\n"):
            where, colon, said = problem.removeprefix(str(file)).partition(": ")
            assert colon, problem
            assert said.strip(), problem
            assert re.fullmatch(r"(:[1-9]\d*)?|--set .*", where), problem
            assert len(problem) < 1000 + len(raw), problem
        said = re.sub(r"'[^']*'|\d+", "N", str(error).split("\n")[0].partition(": ")[2])
        OUTCOMES[said[:60]] += 1
        return None
    assert isinstance(config, Config)
    OUTCOMES["a config"] += 1
    return config


def read_again(config):
    """What was read is written and read back as the same."""
    if config is not None:
        assert attempt(to_yaml(config).encode()) == config


@fuzz
@given(BYTES)
def test_any_bytes_are_a_config_or_problems_of_one_line_each(raw):
    read_again(attempt(raw))


@fuzz
@given(st.data())
def test_a_real_config_with_changes(data):
    content = data.draw(st.sampled_from(CONFIGS)).read_bytes()
    lines = content.split(b"\n")
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        piece = data.draw(st.sampled_from(PIECES)).encode("utf-8", "replace")
        match data.draw(
            st.sampled_from(["value", "value", "insert", "delete", "double", "indent"])
        ):
            case "value":
                key, colon, _ = lines[index].partition(b":")
                lines[index] = key + colon + b" " + piece
            case "insert":
                place = data.draw(st.integers(0, len(lines[index])))
                lines[index] = lines[index][:place] + piece + lines[index][place:]
            case "delete":
                lines[index] = b""
            case "double":
                lines.insert(index, lines[index])
            case "indent":
                lines[index] = b" " * data.draw(st.integers(1, 4)) + lines[index].lstrip()
    read_again(attempt(b"\n".join(lines)))


@fuzz
@given(st.lists(st.text(max_size=40) | st.sampled_from([f"seed={x}" for x in PIECES]), max_size=3))
def test_any_overrides(overrides):
    attempt(CONFIGS[0].read_bytes(), overrides)


@fuzz
@given(st.sampled_from(PIECES), st.integers(1, MAX_SIZE))
def test_much_of_the_same(piece, times):
    raw = (piece.encode("utf-8", "replace") * times)[: MAX_SIZE + 1]
    attempt(raw)
