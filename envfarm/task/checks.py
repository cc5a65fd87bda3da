"""The three checks of an environment without Python. Each looks at artifacts that were copied out of the agent's box.

- `same_as_solution`: names, kinds, permission bits and contents below the artifacts equal those that the solution leaves
  in a fresh box of the same start. The solution and what it leaves never enter the agent's box. Databases of the tool
  `sql` are compared by schema and rows.
- `script`: a Python program of the environment's folder, run beside the worker in a directory that holds the artifacts.
  `ENVFARM_INSTANCE` is JSON with `params` and `row`. It passes with exit code 0 (a number on its last line is the
  reward), fails with exit code 1 or a failed `assert`; anything else is the check's own fault.
- `expr`: a sandboxed Jinja expression over `files` (`{path below the workdir: text}`, None for what is not there),
  `paths` (all entries), the axes and the row; with `sql`, `query("SELECT ...")` gives the rows that the database has;
  with `browser`, `sent` is a list of what forms sent. Truth or a number.

Artifacts that cannot be copied out (links, special files, more than 16 MiB) are the agent's doing and fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from envfarm.box import WORKDIR, SyncBox
from envfarm.errors import SpecError, VerifierFault
from envfarm.task.database import OverLimit, StatementError, canonical, run
from envfarm.task.forms import sent_forms, sent_path

SCRIPT_TIMEOUT_S = 60.0
MAX_ARTIFACT_BYTES = 16 << 20
MAX_QUERIED = 10_000
"""Rows that `query` gives at most."""


class State(msgspec.Struct, frozen=True):
    """Artifacts of one box. Paths are relative to the workdir; sizes and times are not compared, contents are."""

    files: dict[str, bytes]
    entries: dict[str, tuple[str, int, str]]  # path -> kind, permission bits, a link's target


def state_of(box: SyncBox, artifacts: Sequence[str]) -> State | None:
    """What is at and below the artifacts, or None where that cannot be copied out."""
    inside = [relative(path) for path in artifacts]
    try:
        files = box.archive([absolute(path) for path in inside], max_bytes=MAX_ARTIFACT_BYTES)
        listed = box.list(WORKDIR)
    except (PermissionError, ValueError):
        return None
    entries: dict[str, tuple[str, int, str]] = {
        e.path: (e.kind, e.mode, e.target) for e in listed if any(_below(e.path, root) for root in inside)
    }
    return State(files, entries)


def _below(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(root + "/")


def relative(path: str) -> str:
    """An artifact's path, relative to the workdir ("" is the workdir itself). Raises: SpecError outside of it."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if path.startswith("/"):
        root = WORKDIR.strip("/").split("/")
        if parts[: len(root)] != root:
            raise SpecError(f"task: artifact {path!r} is not below {WORKDIR}")
        parts = parts[len(root) :]
    if ".." in parts:
        raise SpecError(f"task: '..' in artifact {path!r}")
    return "/".join(parts)


def absolute(inside: str) -> str:
    return f"{WORKDIR}/{inside}" if inside else WORKDIR


class Texts(dict[str, str | None]):
    """Files as text; a missing one is None, so that an expression about it is false instead of an error."""

    def __missing__(self, key: str) -> None:
        return None


def same(state: State, expected: State, databases: Sequence[str]) -> bool:
    """Whether both are the same; files at `databases` hold the same, however they are laid out."""
    if state.entries != expected.entries or state.files.keys() != expected.files.keys():
        return False
    return all(
        state.files[path] == data or (path in databases and canonical(state.files[path]) == canonical(data))
        for path, data in expected.files.items()
    )


class Broken(Exception):
    """What an expression asks for is not there any more, by the agent's doing: the check fails."""


def expression_names(state: State, options: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """`options` are those of the task's tools, by name."""
    files = Texts({path: data.decode("utf-8", "replace") for path, data in state.files.items()})
    names: dict[str, Any] = {"files": files, "paths": sorted(state.entries)}
    if "sql" in options:
        names["query"] = partial(_query, state.files.get(relative(options["sql"]["database"])))
    if "browser" in options:
        names["sent"] = sent_forms(files[relative(sent_path(options["browser"]))] or "")
    return names


def _query(data: bytes | None, statement: str) -> list[tuple[Any, ...]]:
    """Raises: Broken, VerifierFault where the statement is none."""
    if data is None:
        raise Broken("the database is gone, or is no artifact")
    try:
        return run(data, statement, max_rows=MAX_QUERIED).rows
    except OverLimit as error:
        raise Broken(str(error)) from None
    except StatementError as error:
        if any(word in str(error) for word in ("syntax error", "one statement", "not authorized", "incomplete input")):
            raise VerifierFault(f"task.check.expr: query({statement!r}): {error}") from None
        raise Broken(str(error)) from None


def run_script(script: Path, state: State, instance: Mapping[str, Any]) -> bool | float:
    """The script's verdict on a copy of the artifacts. Raises: VerifierFault where it crashes, hangs or says nonsense."""
    with tempfile.TemporaryDirectory(prefix="envfarm-check-") as place:
        for path, data in state.files.items():
            target = Path(place, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        for path, (kind, _, _) in state.entries.items():
            if kind == "directory":
                Path(place, path).mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", str(script.resolve())],
                cwd=place,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LANG": "C.UTF-8",
                    "ENVFARM_INSTANCE": json.dumps(instance),
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SCRIPT_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise VerifierFault(f"check {script.name} took longer than {SCRIPT_TIMEOUT_S:.0f} s") from None
    return _judged(script.name, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def _judged(name: str, code: int, out: str, err: str) -> bool | float:
    last = (err.strip().splitlines() or [""])[-1]
    if code == 1 and (not last or last.startswith("AssertionError")):
        return False
    if code != 0:
        raise VerifierFault(f"check {name}: exit code {code}: {err.strip()[-500:]}")
    lines = out.strip().splitlines()
    if not lines:
        return True
    try:
        return float(lines[-1])
    except ValueError:
        raise VerifierFault(f"check {name}: the last line must be a number, not {lines[-1][:80]!r}") from None
