"""Tests of one group run in one process: those of a live farm have it up once, and change what is there for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import os
from pathlib import Path
import pytest
pytestmark = pytest.mark.xdist_group("of one farm")
@pytest.mark.parametrize("number", range(4))
def test_it(number):
    Path({folder!r}, f"process-{{os.getpid()}}").touch()
"""


def test_a_group_runs_in_one_process(tmp_path: Path) -> None:
    """Not so with pytest 9.2 and xdist 3.8: one does not read what the other writes."""
    for name in ("test_one.py", "test_other.py"):
        (tmp_path / name).write_text(TESTS.format(folder=str(tmp_path)))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", str(tmp_path)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # those of this very run
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout + done.stderr
    assert len(list(tmp_path.glob("process-*"))) == 1
