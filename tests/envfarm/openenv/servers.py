"""Servers to play against: unmodified ones of the `openenv` package, and ones that say what a test tells them to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from envfarm.spec import EnvSpec, load_spec

STEP_SCHEMA = {"title": "Say", "type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


def spec_of(folder: Path, url: str, more: str = "", *, turns: int = 20, answers_within_s: float = 200) -> EnvSpec:
    limits = f"{{turns: {turns}, exec_timeout_s: {answers_within_s}}}"
    path = folder / "remote.yaml"
    path.write_text(f"envfarm: 1\nid: local/remote-v0\nopenenv: {url}\nlimits: {limits}\n{more}")
    return load_spec(path)


@contextmanager
def official(*command: str, cwd: Path | None = None) -> Iterator[str]:
    """A server of uvicorn in a process of its own; its address."""
    server = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, cwd=cwd)
    try:
        assert server.stderr is not None
        lines = []
        for line in server.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://[\d.:]+)", line):
                Thread(target=server.stderr.read, daemon=True).start()  # so that the pipe never fills
                yield found[1]
                return
        raise AssertionError("".join(lines))
    finally:
        server.terminate()
        server.wait()


@contextmanager
def scripted(*answers: Any, schema: Any = None, unasked: Any = None) -> Iterator[str]:
    """A server that answers message after message with these (text as it is), then hangs up; None is silence until it
    is hung up on. `schema` is what `/schema` gives; `unasked` is said first, to nobody's question."""

    def speak(socket: ServerConnection) -> None:
        try:
            if unasked is not None:
                socket.send(json.dumps(unasked))
            for answer in answers:
                socket.recv()
                if answer is None:
                    socket.recv()
                socket.send(answer if isinstance(answer, str | bytes) else json.dumps(answer))
        except ConnectionClosed:
            pass

    def http(socket: ServerConnection, request: Request) -> Response | None:
        if request.path != "/schema":
            return None
        body = json.dumps({"action": schema or STEP_SCHEMA}).encode()
        return Response(HTTPStatus.OK, "OK", Headers({"Content-Length": str(len(body))}), body)

    with serve(speak, "127.0.0.1", 0, process_request=http) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()
