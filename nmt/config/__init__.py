"""The experiment file: strict YAML, checked against one schema, the only home of defaults."""

from nmt.config.load import (
    RESUMABLE,
    changed_keys,
    forbidden_changes,
    json_schema,
    load_config,
    to_yaml,
)
from nmt.config.schema import Config

__all__ = [
    "RESUMABLE",
    "Config",
    "changed_keys",
    "forbidden_changes",
    "json_schema",
    "load_config",
    "to_yaml",
]
