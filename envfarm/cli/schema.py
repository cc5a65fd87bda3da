"""`envfarm schema`: the JSON Schema of environments' YAML, for editors."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON Schema of an environment's YAML (for editors: `# yaml-language-server: $schema=FILE`)."""
    from envfarm.spec_file import json_schema

    print(json.dumps(json_schema(), indent=2))
