"""What differs between two configs, and which of it a run that goes on may bear."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from nmt.config.load import all_keys
from nmt.config.schema import Config, DecodingConfig
from nmt.config.strict_yaml import Value
from nmt.errors import ConfigError

RESUMABLE: frozenset[str] = frozenset(
    {
        "run_dir",
        "data.train.src",
        "data.train.tgt",
        "data.valid.src",
        "data.valid.tgt",
        "training.device",
        "training.max_steps",
        "training.keep_last",
        "training.log_every",
        "training.max_skipped",
        "validation.every",
        "validation.patience",
        *(f"decoding.{name}" for name in DecodingConfig.model_fields),
    }
)
"""Keys that may change when a run is resumed, because the weights do not depend on them. The paths
are there because data may move; that its content is the same, no config can tell."""

FORCEABLE_PARTS = {"model.dropout", "tokenizer.sampling"}
"""All other keys of the model and the tokenizer are built into the weights."""


def changed_keys(old: Config, new: Config) -> list[str]:
    """What differs, as `key: old -> new`, in the order of the schema."""
    return [f"{key}: {before} -> {after}" for key, before, after in _changes(old, new)]


def forbidden_changes(old: Config, new: Config) -> dict[str, str]:
    """By key, the changes as `key: old -> new` with which a run must not be resumed unforced.

    These are all keys outside `RESUMABLE`, and those the learning rate depends on: `max_steps`
    with the linear schedule, how often is validated with the plateau schedule. A batch size that
    is to be found out is the one that was found.
    """
    scheduled = {"linear": "training.max_steps", "plateau": "validation.every"}
    bound = scheduled.get(old.training.schedule)
    forbidden = {}
    for key, before, after in _changes(old, new):
        if (key, after) == ("training.batch_tokens", "auto"):
            continue
        if key == bound:
            forbidden[key] = (
                f"{key}: {before} -> {after} (the {old.training.schedule} schedule depends on it)"
            )
        elif key not in RESUMABLE:
            forbidden[key] = f"{key}: {before} -> {after}"
    return forbidden


def can_be_forced(key: str) -> bool:
    """Whether the weights of a run still have a meaning after a change of this key."""
    return key in FORCEABLE_PARTS or key.partition(".")[0] not in ("model", "tokenizer")


def named_keys(names: Iterable[str], option: str) -> frozenset[str]:
    """The keys of these names: a section stands for itself and for all in it.

    Args:
        option: how errors call where the names are from.

    Raises:
        ConfigError: if there is no such key.
    """
    keys = list(all_keys())
    named: set[str] = set()
    for name in names:
        if name not in keys:
            shown = name if name.isprintable() else repr(name)
            meant = get_close_matches(name, keys, n=1)
            if not meant:
                last = [key for key in keys if key.endswith(f".{name.rpartition('.')[2]}")]
                meant = last[:1]
            sections = ", ".join(key for key in keys if "." not in key)
            advice = f"did you mean {meant[0]!r}?" if meant else f"keys begin with {sections}"
            raise ConfigError(f"{option}: unknown key {shown!r}; {advice}")
        named |= {key for key in keys if key == name or key.startswith(f"{name}.")}
    return frozenset(named)


def _changes(old: Config, new: Config) -> Iterator[tuple[str, str, str]]:
    """Key, old and new value of each leaf that differs."""

    def leaf(config: Config, key: str) -> Any:
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        return value

    for key in all_keys():
        before, after = leaf(old, key), leaf(new, key)
        if before != after and not isinstance(before, BaseModel):
            yield key, _write(before), _write(after)


def _write(value: Value) -> str:
    """A leaf as it stands in the file."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
