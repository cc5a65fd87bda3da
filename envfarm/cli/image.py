"""`envfarm image`: build the images of boxes, and see which there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from envfarm.images.recipe import Recipe

image = typer.Typer(name="image", help="Images of boxes, made without a registry.", no_args_is_help=True)

_IDS = typer.Argument(help="Environments whose images are wanted beside the base images; all that ask for one by default.")


@image.command("build")
def build(
    ids: Annotated[list[str] | None, _IDS] = None,
    engine: Annotated[bool, typer.Option(help="Load them into the Docker engine of DOCKER_HOST too.")] = False,
) -> None:
    """Build base images and those that environments ask for; what is there already stays. Needs mmdebstrap."""
    from envfarm.images.build import build as make
    from envfarm.images.build import cache

    api = None
    if engine:
        from envfarm.backends.docker import connect

        api = connect()
    for recipe in _wanted(ids or []):
        told = "built" if make(recipe) else "up to date"
        if api is not None:
            from envfarm.images.engine import load

            told += ", loaded" if load(api, recipe) else ", in the engine"
        print(f"{recipe.tag}  {told}", flush=True)
    print(f"unpacked in {cache()}")


@image.command("list")
def list_images(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Which images the known environments use, and whether they are built."""
    from envfarm.images.build import root_of

    rows = [{"image": r.tag, "built": root_of(r.tag).is_dir(), "root": str(root_of(r.tag))} for r in _wanted([])]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['image']}  {row['root'] if row['built'] else 'not built: `envfarm image build`'}")


def _wanted(ids: list[str]) -> list[Recipe]:
    """Recipes of the base images, and of the environments. Raises: UserError."""
    from envfarm.cli.shared import registry
    from envfarm.images.recipe import BASES, base, name_of, read

    known = registry()
    specs = [known.get(name) for name in ids or known.ids()]
    folders = {spec.id: spec.folder / spec.sandbox.build for spec in specs if spec.sandbox.build is not None}
    return [*map(base, BASES), *(read(folder, name_of(env)) for env, folder in folders.items())]
