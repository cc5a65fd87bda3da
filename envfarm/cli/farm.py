"""`envfarm farm`: workers and boxes that several runs share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Group

    from envfarm.farm.file import FarmFile
    from envfarm.farm.status import Status

farm = typer.Typer(name="farm", help="A farm of workers and boxes that several runs share.", no_args_is_help=True)


def _say_cluster(described: FarmFile) -> None:
    from envfarm.farm import KEEPER_PORT, TOKEN_VARIABLE
    from envfarm.farm.manifests.names import TOKEN_KEY, TOKEN_SECRET

    assert described.target.kubernetes is not None
    namespace = described.target.kubernetes.namespace
    secret = f"kubectl -n {namespace} get secret {TOKEN_SECRET} -o jsonpath='{{.data.{TOKEN_KEY}}}'"
    print(f"farm {described.farm} is applied: see `kubectl -n {namespace} rollout status deployment`")
    print(f"in the cluster its keeper is at http://keeper.{namespace}.svc:{KEEPER_PORT}, its token in the Secret {TOKEN_SECRET}")
    print(f"from here: kubectl -n {namespace} port-forward svc/keeper {KEEPER_PORT}, and then")
    print(f"  {TOKEN_VARIABLE}=$({secret} | base64 -d) envfarm farm status http://127.0.0.1:{KEEPER_PORT}")


class Kind(StrEnum):
    bubblewrap = "bubblewrap"
    docker = "docker"
    kubernetes = "kubernetes"


_FILE = typer.Argument(metavar="FARM.yaml", help="The farm's file.")
_ON = typer.Option("--on", help="Where, instead of the file's target.")
_NAME = typer.Argument(metavar="NAME|URL", help="A farm that is up on this machine, or its keeper's URL (with ENVFARM_TOKEN).")
_JSON = typer.Option("--json", help="Print as JSON.")
_EVERY_S = 1.0


@farm.command()
def up(
    file: Annotated[Path, _FILE],
    on: Annotated[Kind | None, _ON] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Of the keeper; default: any free port here.")] = None,
) -> None:
    """Bring a farm up: its keeper, its workers, its warm boxes. It stays until `down`."""
    from envfarm.farm.daemon import bring_up
    from envfarm.farm.file import read_farm

    kind: Any = on.value if on is not None else None
    described = read_farm(file, kind)
    if described.in_cluster:
        from envfarm.farm.cluster import bring_up as apply

        for what in asyncio.run(apply(described)):
            print(f"this cluster does not know {what}: left out")
        _say_cluster(described)
        return
    url = bring_up(file, described, kind, listen)
    print(f"farm {described.farm} is up on {described.kind}; its keeper is at {url}")
    print(f"play on it with `farm: {described.farm}` in a run file, or --farm {described.farm}")


@farm.command()
def render(file: Annotated[Path, _FILE]) -> None:
    """Print the farm as Kubernetes objects, for `kubectl apply -f -` or a repository. Its token is a Secret of your own."""
    from envfarm.farm.file import read_farm
    from envfarm.farm.manifests import render as objects
    from envfarm.farm.manifests import to_yaml

    print(to_yaml(objects(read_farm(file, "kubernetes"))), end="")


@farm.command()
def down(
    name: Annotated[str, typer.Argument(metavar="NAME|FARM.yaml", help="One of this machine; one of a cluster by its file.")],
    on: Annotated[Kind | None, _ON] = None,
) -> None:
    """Take a farm down: boxes, workers, keeper. Sessions that are being played end as infrastructure errors."""
    from envfarm.farm.daemon import take_down
    from envfarm.farm.file import read_farm

    kind: Any = on.value if on is not None else None
    described = read_farm(name, kind) if Path(name).is_file() else None
    if described is not None and described.in_cluster:
        from envfarm.farm.cluster import take_down as delete

        asyncio.run(delete(described))
    else:
        take_down(described.farm if described is not None else name)
    print(f"farm {name} is down")


@farm.command()
def scale(
    name: Annotated[str, _NAME],
    workers: Annotated[int | None, typer.Option(min=0, help="How many.")] = None,
    boxes_min: Annotated[int | None, typer.Option("--min", min=0, help="Boxes that are there at least.")] = None,
    boxes_max: Annotated[int | None, typer.Option("--max", min=2, help="Boxes at most; more sessions wait.")] = None,
    warm: Annotated[int | None, typer.Option(min=0, help="Free boxes kept ready.")] = None,
    pool: Annotated[int, typer.Option(min=0, help="Which pool of the file, counted from 0.")] = 0,
) -> None:
    """Change the sizes of one pool of a farm that is up. The file is not changed."""
    from envfarm.errors import UserError
    from envfarm.farm.client import KeeperClient
    from envfarm.farm.status import Scale

    asked = Scale(pool, workers, boxes_min, boxes_max, warm)
    if asked == Scale(pool):
        raise UserError("what is to change? Give --workers, --min, --max or --warm")

    async def ask() -> Status:
        async with KeeperClient.of(name) as keeper:
            return await keeper.scale(asked)

    _show(asyncio.run(ask()))


@farm.command()
def status(
    name: Annotated[str, _NAME],
    once: Annotated[bool, typer.Option("--once", help="Print it once, instead of a table that follows.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """What a farm is doing. On a terminal a table that follows it, until Ctrl-C."""
    import msgspec
    from rich.console import Console

    from envfarm.farm.client import KeeperClient

    async def look() -> None:
        async with KeeperClient.of(name) as keeper:
            if as_json:
                print(json.dumps(msgspec.to_builtins(await keeper.status())))
            elif once or not Console().is_terminal:
                _show(await keeper.status())
            else:
                await _follow(keeper.status)

    asyncio.run(look())


async def _follow(ask: Callable[[], Awaitable[Status]]) -> None:
    from rich.live import Live

    with Live(_table(await ask()), auto_refresh=False) as live:
        while True:
            live.update(_table(await ask()), refresh=True)
            await asyncio.sleep(_EVERY_S)


def _show(found: Status) -> None:
    from rich.console import Console

    Console().print(_table(found))


def _table(found: Status) -> Group:
    """80 columns wide; what pools say is below it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"farm {found.farm} on {found.kind}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = ("pool", "environments", "workers\nup", "boxes\nfree", "leased", "in the\nmaking", "at\nmost", "sessions\nwait")
    for column in columns:
        table.add_column(column, overflow="fold")
    said = []
    for number, pool in enumerate(found.pools):
        up = sum(worker.up for worker in pool.workers)
        said += [f"pool {number}, worker {w.name}: {w.said}" for w in pool.workers if w.said]
        boxes = ["-"] * 5
        if pool.boxes is not None:
            counts = pool.boxes
            boxes = [str(n) for n in (counts.free, counts.leased, counts.making, counts.max, counts.waiting)]
            said += [f"pool {number}, boxes: {counts.said}"] if counts.said else []
        table.add_row(str(number), "\n".join(pool.environments), f"{up} of {pool.wanted}", *boxes)
    return Group(table, *map(escape, said))
