"""From a file and `--set` overrides to a checked config, with all problems reported at once."""

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nmt.config.schema import Config
from nmt.config.strict_yaml import MAX_SIZE, KeyPath, StrictYAMLError, Value, dump, parse
from nmt.errors import ConfigError

RULES = {
    "model_type": "a section of keys",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "non-empty text",
    "string_pattern_mismatch": "text without control characters",
    "literal_error": "{expected}",
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
}
"""What a value must be, by the type of pydantic's error."""

NUMBER_LIKE = re.compile(r"[-+.]?[0-9][-+0-9_.eE]*\Z")

_abbreviate = reprlib.Repr()
_abbreviate.maxstring = _abbreviate.maxlong = 60


class _Place(NamedTuple):
    """Where a key was set; problems are reported in the order of their places."""

    order: int
    name: str


@dataclass
class _Draft:
    """Values that are not checked yet, where each was set, and what is wrong so far."""

    values: dict[str, Value]
    places: dict[KeyPath, _Place]
    problems: list[tuple[_Place, str]] = field(default_factory=list)

    def place(self, path: KeyPath) -> _Place:
        """Where the key was set, or else the nearest key that encloses it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def override(self, key: str, value: Value, place: _Place) -> None:
        """Set a dotted key, whose sections are made if they are missing."""
        path = tuple(key.split("."))
        section = self.values
        for depth in range(1, len(path)):
            inner = section.setdefault(path[depth - 1], {})
            if not isinstance(inner, dict):
                outer = ".".join(path[:depth])
                self.problems.append((place, f"{outer!r} is not a section of keys"))
                return
            self.places.setdefault(path[:depth], place)
            section = inner
        section[path[-1]] = value
        for old in [old for old in self.places if old[: len(path)] == path]:
            del self.places[old]
        self.places[path] = place


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read and check an experiment file.

    Args:
        path: the YAML file.
        overrides: `key=value` strings that win over the file, e.g. `training.max_steps=100`; the
            key is dotted, the value is YAML, and of equal keys the last wins.

    Raises:
        ConfigError: if anything is wrong; the message has one line for each problem, each with
            its file and line, or its override.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_SIZE:
        raise ConfigError(f"{path}: has more than {MAX_SIZE:,} bytes, so it is no config")
    draft = _draft(raw, path)
    for number, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        shown = override if override.isprintable() else repr(override)
        place = _Place(2**31 + number, f"--set {shown}")
        if not equals or "" in key.split(".") or not key.isprintable():
            draft.problems.append(
                (place, "must have the form key=value; e.g. training.max_steps=100")
            )
            continue
        try:
            document = parse(text)
        except StrictYAMLError as error:
            draft.problems.append((place, error.text))
            continue
        draft.problems += [(place, text) for _, text in document.duplicates]
        draft.override(key, document.values, place)
    return _check(draft)


def parse_config(text: str, name: str) -> Config:
    """Read and check the text of an experiment file, which errors call `name`.

    Raises:
        ConfigError: if anything is wrong.
    """
    return _check(_draft(text.encode(), name))


def to_yaml(config: Config) -> str:
    """The config with all its keys in the order of the schema; `load_config` reads it back."""
    return dump(config.model_dump())


def json_schema() -> dict[str, Any]:
    """The JSON schema of the experiment file, with the meaning and the default of every key."""
    return Config.model_json_schema()


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """All dotted keys of the schema in its order, a section before what is in it."""
    for name, info in section.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from all_keys(info.annotation, f"{prefix}{name}.")


def _draft(raw: bytes, path: str) -> _Draft:
    """The values of a file, and the duplicates in it."""
    try:
        document = parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not valid UTF-8; save the file as UTF-8") from None
    except StrictYAMLError as error:
        raise ConfigError(f"{path}:{error.line}: {error.text}") from None
    if document.values is None:
        raise ConfigError(f"{path}: is empty; write at least run_dir, src_lang, tgt_lang and data")
    if not isinstance(document.values, dict):
        raise ConfigError(
            f"{path}:{document.lines[()]}: must be a mapping of keys to values, "
            f"but is {_show(document.values)}; write key: value lines"
        )
    places = {key: _Place(line, f"{path}:{line}") for key, line in document.lines.items()}
    draft = _Draft(document.values, places | {(): _Place(0, path)})
    for line, text in document.duplicates:
        draft.problems.append((_Place(line, f"{path}:{line}"), text))
    return draft


def _check(draft: _Draft) -> Config:
    """The config of these values.

    Raises:
        ConfigError: with all problems, in the order of their places.
    """
    try:
        config = Config.model_validate(draft.values)
    except ValidationError as invalid:
        errors = _without_alternatives(invalid.errors(include_url=False))
        draft.problems += [_explain(error, draft) for error in errors]
    if draft.problems:
        ordered = sorted(draft.problems, key=lambda problem: problem[0].order)
        raise ConfigError("\n".join(f"{place.name}: {text}" for place, text in ordered))
    return config


def _without_alternatives(errors: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """One error where pydantic gives one for each thing that a value may be, as `auto` or a number.

    Such errors stand at a place below the key, which names the alternative.
    """
    words = {
        error["loc"][:-1]: error["ctx"]["expected"]
        for error in errors
        if str(error["loc"][-1]).startswith("literal[")
    }
    for error in errors:
        key = error["loc"][:-1]
        if key not in words:
            yield error
        elif error["type"] != "literal_error":
            yield {**error, "loc": key, "ctx": {**error.get("ctx", {}), "or": words[key]}}


def _explain(error: ErrorDetails, draft: _Draft) -> tuple[_Place, str]:
    """Where pydantic's error is, and what it says in our words."""
    path = tuple(str(part) for part in error["loc"])
    key = ".".join(path)
    context: dict[str, Any] = {
        name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        for name, bound in error.get("ctx", {}).items()
    }
    if error["type"] == "missing":
        return draft.place(path), f"missing key {key!r}; it has no default, so set it"
    if error["type"] == "extra_forbidden":
        return draft.place(path), f"unknown key {key!r}; {_nearest(path)}"
    if error["type"] == "conflict":
        paths = [tuple(key.split(".")) for key in context["keys"]]
        set_ones = [path for path in paths if path in draft.places]
        return draft.place((set_ones or paths)[0]), context["text"]
    rule = RULES[error["type"]].format(**context)
    if "or" in context:
        rule = f"{context['or']} or {rule}"
    value = error["input"]
    advice = ""
    if error["type"] == "string_type" and isinstance(value, int | float):
        advice = "; put it in quotes"
    elif error["type"] in ("int_type", "float_type") and _is_number_like(value):
        advice = "; write it without quotes, leading zeros or underscores"
    elif error["type"] == "model_type":
        advice = "; indent its keys below it"
    return draft.place(path), f"{key} must be {rule}, but is {_show(value)}{advice}"


def _nearest(path: KeyPath) -> str:
    """Advice for an unknown key: what may have been meant."""
    *sections, name = path
    if "." in name:
        return "in the file, a key with dots is written as sections, one indented below the other"
    keys = list(all_keys())
    prefix = "".join(f"{section}." for section in sections)
    inside = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    siblings = [key for key in inside if "." not in key]
    meant = get_close_matches(name, siblings, n=1)
    if not meant:
        last = {key: key.rpartition(".")[2] for key in keys}
        found = get_close_matches(name, last.values(), n=1)
        meant = [key for key in keys if last[key] in found]
    if meant:
        return f"did you mean {' or '.join(repr(key) for key in meant)}?"
    return f"the keys here are {', '.join(siblings)}"


def _is_number_like(value: object) -> bool:
    """Whether this is text that its writer may have taken for a number."""
    return isinstance(value, str) and NUMBER_LIKE.match(value) is not None


def _show(value: Value) -> str:
    """A value as the reader of a message knows it from the file."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case dict():
            return "a section of keys"
        case list():
            return "a list"
        case _:
            return _abbreviate.repr(value)
