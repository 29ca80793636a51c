"""`nmt schema`: the config's JSON schema, for editors that complete and check YAML."""

import json

import typer


def schema() -> None:
    """Print the JSON schema of the config, with the meaning and default of every key."""
    from nmt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
