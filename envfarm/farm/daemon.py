"""A keeper as a process of its own on this machine: brought up, and taken down again."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from envfarm.errors import InfraError
from envfarm.farm.file import FarmFile, Kind
from envfarm.farm.home import Home
from envfarm.worker import protocol

_DOWN_S = 60.0


def bring_up(path: Path, farm: FarmFile, on: Kind | None, listen: str | None = None) -> str:
    """Start the keeper in a session of its own and wait until the farm is up; returns its URL.

    Raises: UserError (the farm is up already, a port in use, no place for its workers), InfraError.
    """
    home = Home(farm.farm)
    home.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "envfarm.farm", str(path.resolve())]
    command += ["--on", on] if on is not None else []
    command += ["--listen", listen] if listen is not None else []
    with open(home.log, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    except BaseException:
        process.terminate()
        raise
    said = msgspec.json.decode(line) if line else {}
    if "failed" in said:
        process.wait()
        raise protocol.as_exception(msgspec.convert(said["failed"], protocol.Failed))
    if "ready" not in said:
        raise InfraError(f"the keeper ended with exit code {process.wait()} before the farm was up; its log is {home.log}")
    return said["ready"]


def take_down(name: str) -> None:
    """Ask the keeper to end and wait until it has. Raises: UserError where none runs, InfraError where it does not end."""
    running = Home(name).running()
    process = os.pidfd_open(running.pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], _DOWN_S)[0]:
            raise InfraError(f"the keeper of farm {name!r} (pid {running.pid}) did not end within {_DOWN_S:.0f} s")
    finally:
        os.close(process)
