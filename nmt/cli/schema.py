"""`nmt schema`: the config's JSON schema, for editors that complete and check YAML."""

import json


def schema() -> None:
    """Print the JSON schema of the config, with the meaning and default of every key."""
    from nmt.config import json_schema
    from nmt.text.lines import open_output

    with open_output(None) as out:
        out.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
