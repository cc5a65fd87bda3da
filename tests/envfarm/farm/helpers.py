"""Farms of tests: real keepers, in a state folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from envfarm.errors import UserError
from envfarm.farm.daemon import bring_up, take_down
from envfarm.farm.file import read_farm
from envfarm.farm.home import Home, Running

FARM = "envfarm: 1\nfarm: {name}\npools:\n{pools}target: {target}\n"
POOL = '  - {environments: ["toy/*", "worker/*", "lab/*"], workers: 1}\n'


def write_farm(folder: Path, *, name: str = "lab", pools: str = POOL, target: str = "{bubblewrap: {}}") -> Path:
    path = folder / "FARM.yaml"
    path.write_text(FARM.format(name=name, pools=pools, target=target))
    return path


@contextmanager
def up(file: Path, monkeypatch: pytest.MonkeyPatch, *, listen: str | None = None) -> Iterator[Running]:
    """The farm, up in a state folder beside its file, and taken down again whatever becomes of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(file.parent / "state"))
    farm = read_farm(file)
    bring_up(file, farm, None, listen)
    try:
        yield Home(farm.farm).running()
    finally:
        with suppress(UserError):  # the test did
            take_down(farm.farm)


def family(pid: int) -> list[int]:
    """A process and all that came from it."""
    process = psutil.Process(pid)
    return [pid, *(child.pid for child in process.children(recursive=True))]
