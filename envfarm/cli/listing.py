"""`envfarm list`: which environments there are."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def list_environments(
    pattern: Annotated[str, typer.Argument(help="Ids to show, as a glob: 'coding/*'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List environments: shipped, installed, and from --env-path. Runs none of their code."""
    from envfarm.cli.shared import registry

    known = registry()
    names = known.ids() if pattern == "*" else known.match(pattern)
    found = [_row(name, str(known.files[name])) for name in names]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "title", "tags"):
        table.add_column(column, no_wrap=column == "id")
    for row in found:
        table.add_row(row["id"], str(row["title"]), ", ".join(map(str, row["tags"])))
    Console().print(table)


def _row(name: str, file: str) -> dict[str, Any]:
    """What a list shows; read without checking the rest of the file, so that one mistake does not hide the others."""
    from envfarm.yaml_source import read_yaml

    data = read_yaml(file).data
    tags = data.get("tags")
    return {"id": name, "title": data.get("title", ""), "tags": tags if isinstance(tags, list) else [], "file": file}
