"""`envfarm serve`: environments over OpenEnv's protocol, for any of its clients. A worker (`envfarm.worker`) for people."""

from __future__ import annotations

from typing import Annotated

import typer

from envfarm.cli.shared import complete_id


def serve(
    envs: Annotated[list[str], typer.Argument(metavar="ENV...", help="Ids or YAML files.", autocompletion=complete_id)],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any free one.")] = 8000,
    token: Annotated[str | None, typer.Option(envvar="ENVFARM_TOKEN", help="Clients must send it.")] = None,
    split: Annotated[str | None, typer.Option(help="For clients that name none; default: the first.")] = None,
    rung: Annotated[int | None, typer.Option(help="For clients that give no setting: rung of the ladder.")] = None,
    narrowed: Annotated[list[str] | None, typer.Option("--set", metavar="AXIS=VALUE", help="And narrowed axes.")] = None,
    perturb: Annotated[str | None, typer.Option(help="`off`: and no perturbations.")] = None,
    backend: Annotated[str, typer.Option(help="Where boxes come from.")] = "bubblewrap",
    max_sessions: Annotated[int, typer.Option(min=1, help="More episodes at once are refused.")] = 1024,
) -> None:
    """Serve environments over OpenEnv's WebSocket and HTTP protocol, and their tools over MCP, until told to stop."""
    import uvloop

    from envfarm.backends.local import backend_class
    from envfarm.cli.shared import registry, setting
    from envfarm.errors import UserError
    from envfarm.worker.catalogue import Served
    from envfarm.worker.serving import Listen, Worker
    from envfarm.worker.serving import serve as run

    listen = Listen(None, host, port, token)
    listen.check()
    backend_class(backend)  # an unknown name is refused, also where no box is needed
    known = registry()
    specs = [known.get(name) for name in envs]
    if twice := next((spec.id for spec in specs if sum(other.id == spec.id for other in specs) > 1), None):
        raise UserError(f"{twice} stands there twice; name each environment once")
    served = Served(split, setting(rung, narrowed or (), perturb))
    served.check(specs)

    def announce(address: str) -> None:
        print(f"serving {', '.join(spec.id for spec in specs)} at {address}", flush=True)
        print(f"OpenEnv clients: {address}    MCP clients: {address}/mcp    Ctrl-C stops", flush=True)

    worker = Worker(specs, backend=backend, max_sessions=max_sessions, served=served, tries=True)
    uvloop.run(run(worker, listen, announce))
