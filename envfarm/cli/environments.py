"""Commands about environments. Each stands in a module of its own; a new one costs one file and one line here."""

from __future__ import annotations

from importlib import import_module

import typer

from envfarm.cli.farm import farm
from envfarm.cli.image import image

COMMANDS: dict[str, str] = {
    "list": "envfarm.cli.listing:list_environments",
    "show": "envfarm.cli.show:show",
    "play": "envfarm.cli.play:play",
    "new": "envfarm.cli.new:new",
    "check": "envfarm.cli.check:check",
    "serve": "envfarm.cli.serve:serve",
    "schema": "envfarm.cli.schema:schema",
}
"""Name -> `module:function`."""

app = typer.Typer()

for _name, _target in COMMANDS.items():
    _module, _, _function = _target.partition(":")
    app.command(_name)(getattr(import_module(_module), _function))

app.add_typer(image)
app.add_typer(farm)
