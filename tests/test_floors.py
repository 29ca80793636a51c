"""`make test-floor` tests the lowest versions that pyproject.toml allows, and no others."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN_BY_TESTS = {"ruff", "mypy", "types-PyYAML", "types-tqdm"}
REQUIREMENT = re.compile(r"([A-Za-z0-9-]+)>=([0-9.]+)(,<[0-9.]+)?")


def pins(name):
    """The lines of a constraints file, without comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").split("\n")[:-1]
    return [line for line in lines if not line.startswith("#")]


def floors(requirements):
    """The lowest version of each requirement, written as a pin."""
    for requirement in requirements:
        match = REQUIREMENT.fullmatch(requirement)
        assert match, f"{requirement}: must be NAME>=VERSION, or NAME>=VERSION,<VERSION"
        yield f"{match[1]}=={match[2]}"


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(pyproject):
    return pyproject["project"]


def test_the_floors_are_those_of_pyproject(project):
    development = project["optional-dependencies"]["dev"]
    needed = [name for name in development if name.partition(">")[0] not in NOT_RUN_BY_TESTS]
    expected = [
        pin for pin in floors([*project["dependencies"], *needed]) if not pin.startswith("torch==")
    ]
    torch, *found = pins("constraints-floor.txt")
    assert found == expected
    assert [torch] == pins("constraints.txt")


def test_what_the_tests_do_not_run_is_named_as_it_is(project):
    names = {name.partition(">")[0] for name in project["optional-dependencies"]["dev"]}
    assert names > NOT_RUN_BY_TESTS


def test_the_lowest_python_is_the_one_that_is_linted_for(pyproject):
    minor = pyproject["project"]["requires-python"].removeprefix(">=3.")
    assert pyproject["tool"]["ruff"]["target-version"] == f"py3{minor}"
