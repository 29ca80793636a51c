"""The experiment file: strict YAML, checked against one schema, the only home of defaults."""

from nmt.config.changes import (
    RESUMABLE,
    can_be_forced,
    changed_keys,
    forbidden_changes,
    named_keys,
)
from nmt.config.load import json_schema, load_config, parse_config, to_yaml
from nmt.config.schema import Config

__all__ = [
    "RESUMABLE",
    "Config",
    "can_be_forced",
    "changed_keys",
    "forbidden_changes",
    "json_schema",
    "load_config",
    "named_keys",
    "parse_config",
    "to_yaml",
]
