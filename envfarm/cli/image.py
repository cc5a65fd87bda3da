"""`envfarm image`: build the images of boxes and workers, and see which there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envfarm.errors import UserError

if TYPE_CHECKING:
    from envfarm.images.recipe import Recipe

image = typer.Typer(name="image", help="Images of boxes and workers, made without a registry.", no_args_is_help=True)

_IDS = typer.Argument(help="Environments whose images are wanted beside the base images; all that ask for one by default.")


@image.command("build")
def build(
    ids: Annotated[list[str] | None, _IDS] = None,
    engine: Annotated[bool, typer.Option(help="Load them into the Docker engine of DOCKER_HOST too.")] = False,
    worker: Annotated[bool, typer.Option("--worker", help="And the image of workers and keepers.")] = False,
    install: Annotated[
        list[str] | None,
        typer.Option(metavar="REQUIREMENT|WHEEL", help="With --worker: a package more in it; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Build base images and those that environments ask for; what is there already stays. Needs mmdebstrap."""
    from envfarm.images.build import build as make
    from envfarm.images.build import cache
    from envfarm.images.engine import BOX
    from envfarm.images.recipe import BASES

    if install and not worker:
        raise UserError("--install adds to the image of workers: give --worker too")
    api = None
    if engine:
        from envfarm.backends.docker import connect

        api = connect()
    for recipe in _wanted(ids or []):
        _tell(api, recipe.tag, make(recipe), latest=recipe.name in BASES, config=BOX)
    if worker:
        from envfarm.images.worker import CONFIG, build_worker, worker_recipe

        wanted = worker_recipe(install or [])
        _tell(api, wanted.tag, build_worker(wanted), latest=True, config=CONFIG)
    print(f"unpacked in {cache()}")


def _tell(api: Any, tag: str, made: bool, *, latest: bool, config: tuple[str, ...]) -> None:
    """Load it into the engine where there is one, and say what was done. Raises: ImageError."""
    told = "built" if made else "up to date"
    if api is not None:
        from envfarm.images.engine import load

        told += ", loaded" if load(api, tag, latest=latest, config=config) else ", in the engine"
    print(f"{tag}  {told}", flush=True)


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
