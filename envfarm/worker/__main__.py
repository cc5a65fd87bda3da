"""`python -m envfarm.worker`: serve environments on a Unix or TCP socket until told to stop.

    python -m envfarm.worker --env games/maze-v0 --port 8000
    python -m envfarm.worker --env ./lamp.yaml --unix /run/lamp.sock

When it listens it prints one line of JSON, `{"ready": ADDRESS, "pid": ..., "environments": [...]}`, and nothing more on
standard output. SIGTERM, SIGINT or (with `--owned`) the end of standard input stop it; boxes and sessions go with it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec
import uvloop

from envfarm.errors import EnvfarmError, UserError
from envfarm.farm import TOKEN_VARIABLE
from envfarm.spec import EnvSpec
from envfarm.worker import lifetime, protocol
from envfarm.worker.serving import Listen, Worker, serve


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m envfarm.worker", description="Serve environments over OpenEnv's protocol.")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="ID|FILE",
        help="an environment; may be repeated; with --bundles also a glob",
    )
    parser.add_argument("--env-path", action="append", default=[], metavar="DIR", help="a folder to look for environments in")
    parser.add_argument("--backend", default="bubblewrap", help="where boxes come from (default: %(default)s)")
    parser.add_argument("--unix", metavar="PATH", help="listen on a Unix socket")
    parser.add_argument("--host", default="127.0.0.1", help="or on TCP (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="(default: any free one)")
    parser.add_argument(
        "--token", help=f"clients must send it; needed on any address but loopback (default over TCP: {TOKEN_VARIABLE})"
    )
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="take environments that clients bring, and unpack them here")
    parser.add_argument("--max-sessions", type=int, default=1024, help="more are refused (default: %(default)s)")
    parser.add_argument("--owned", action="store_true", help=argparse.SUPPRESS)  # specs come on stdin, whose end is ours
    return parser.parse_args(argv)


def read_specs(options: argparse.Namespace) -> list[EnvSpec]:
    """Raises: UserError."""
    if options.owned:
        # Unbuffered: what follows the line is the owner's silence, which another thread waits on.
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(0, 1 << 20)
            if not piece:
                raise UserError("--owned expects a line with a JSON list of specs on standard input")
            line += piece
        return msgspec.json.decode(line, type=list[EnvSpec])
    from envfarm.registry import default_registry

    if not options.env and options.bundles is None:
        raise UserError("name what to serve: --env ID or --env FILE")
    registry = default_registry(options.env_path)
    return registry.matching(options.env) if options.bundles is not None else [registry.get(name) for name in options.env]


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    out = os.dup(1)
    os.dup2(2, 1)  # whatever an environment prints goes to the log
    try:
        specs = read_specs(options)
        token = options.token or (None if options.unix else os.environ.get(TOKEN_VARIABLE))
        listen = Listen(options.unix, options.host, options.port, token)
        worker = Worker(specs, backend=options.backend, max_sessions=options.max_sessions, bundles=options.bundles)

        def announce(address: str) -> None:
            ready = {"ready": address, "pid": os.getpid(), "environments": [s.id for s in worker.specs]}
            os.write(out, msgspec.json.encode(ready) + b"\n")

        uvloop.run(serve(worker, listen, announce, owned=options.owned))
    except EnvfarmError as error:
        if options.owned:
            os.write(out, msgspec.json.encode({"failed": protocol.failed(error)}) + b"\n")
        else:
            print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    finally:
        if options.owned:
            lifetime.sweep()  # the owner's directory too, where the owner died
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a session's thread may still be in an environment's code; its box is gone already
