"""`python -m envfarm.farm FARM.yaml`: a farm's keeper, until it is told to stop (SIGTERM, SIGINT).

When the farm is up it prints one line of JSON, `{"ready": URL}`, or `{"failed": ...}` where it cannot be, and nothing more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from envfarm.backends.kubernetes_api import NAMESPACE_VARIABLE
from envfarm.errors import EnvfarmError, UserError
from envfarm.farm import TOKEN_VARIABLE
from envfarm.farm.file import FarmFile, read_farm
from envfarm.farm.home import Home, Running
from envfarm.farm.keeper import Keeper
from envfarm.farm.keeper_api import KeeperApi
from envfarm.worker import protocol
from envfarm.worker.lifetime import PrivateDir

_MAX_PORT = 65535


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m envfarm.farm", description="Keep a farm.")
    parser.add_argument("file", type=Path, metavar="FARM.yaml")
    parser.add_argument("--on", choices=("bubblewrap", "docker", "kubernetes"), help="instead of the file's target")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="(default: any free port of this machine)")
    return parser.parse_args(argv)


async def keep(farm: FarmFile, host: str, port: int, announce: Callable[[Running], None]) -> None:
    """Raises: UserError where the farm cannot be, InfraError."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    api, folder = KeeperApi(token), PrivateDir()
    keeper: Keeper | None = None
    try:
        url = await api.listen(host, port)
        keeper = Keeper(farm, token, folder.path, url)
        starting, stopping = asyncio.ensure_future(_start(keeper, api)), asyncio.ensure_future(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            announce(Running(farm.farm, farm.kind, url, token, os.getpid()))
            await stopping
        starting.cancel()
    finally:
        await api.close()
        if keeper is not None:
            await keeper.close()
        folder.remove()


async def _start(keeper: Keeper, api: KeeperApi) -> None:
    """Workers ask for boxes as they start, and those of a keeper before this one never ceased to."""
    await keeper.start_boxes()
    api.serve(keeper)
    await keeper.start_workers()


def main() -> int:
    options = arguments()
    out = os.dup(1)
    os.dup2(2, 1)

    def say(line: dict[str, object]) -> None:
        os.write(out, msgspec.json.encode(line) + b"\n")
        os.close(out)

    try:
        host, colon, port = options.listen.rpartition(":")
        if not colon or not port.isdigit() or int(port) > _MAX_PORT:
            raise UserError(f"--listen: expected HOST:PORT with a port up to {_MAX_PORT}, found {options.listen!r}")
        farm = read_farm(options.file, options.on)
        if farm.target.kubernetes is not None:
            os.environ[NAMESPACE_VARIABLE] = farm.target.kubernetes.boxes  # of this process and all that it starts
        home = Home(farm.farm)
        home.take()

        def announce(running: Running) -> None:
            home.announce(running)
            say({"ready": running.url})

        try:
            uvloop.run(keep(farm, host, int(port), announce))
        finally:
            home.leave()
    except EnvfarmError as error:
        print(f"error: {error}", file=sys.stderr)
        say({"failed": protocol.failed(error)})
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
