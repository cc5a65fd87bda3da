"""Who keeps a farm of this machine, and who only looks."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envfarm.errors import UserError
from envfarm.farm.home import Home, Running

FOUND = Running("lab", "bubblewrap", "http://127.0.0.1:1", "secret", 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    home = Home("lab")
    home.folder.mkdir(parents=True)
    return home


def looking(home: Home) -> int:
    """As `running` does; closing it is the end."""
    file = os.open(home.folder / "keeper.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def test_who_only_looks_keeps_nobody_from_keeping(home: Home) -> None:
    file = looking(home)
    with ThreadPoolExecutor(1) as threads:
        taking = threads.submit(home.take)
        try:
            with pytest.raises(TimeoutError):
                taking.result(0.2)
        finally:
            os.close(file)
        taking.result(10)
    with pytest.raises(UserError, match="'lab' is already up"):
        Home("lab").take()


def test_of_two_that_look_none_takes_the_other_for_a_keeper(home: Home) -> None:
    home.announce(FOUND)
    file = looking(home)
    with pytest.raises(UserError, match="is gone without having taken the farm down"):
        home.running()
    os.close(file)
    home.take()
    home.announce(FOUND)
    assert Home("lab").running() == FOUND
