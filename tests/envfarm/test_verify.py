"""Hidden inputs go into a fresh box, outputs come out, and the verdict is formed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from envfarm.backends.local import box_maker
from envfarm.backends.sync import SyncBox
from envfarm.box import BoxSpec, ExecResult
from envfarm.verify import run_hidden

PROGRAM = {"solve.sh": b'read a b; echo $((a + b)); echo "$a" >>seen; cat seen >&2\n'}


@contextmanager
def fresh_box() -> Iterator[SyncBox]:
    box = box_maker("bubblewrap", BoxSpec(exec_timeout_s=2))()
    try:
        yield box
    finally:
        box.stop()


def run(artifacts: dict[str, bytes], command: str, inputs: list[bytes], **options: object) -> list[ExecResult]:
    return run_hidden(fresh_box, artifacts, command, inputs, **options)  # type: ignore[arg-type]


@pytest.mark.box
def test_one_output_per_input_in_order() -> None:
    results = run(PROGRAM, "sh solve.sh", [b"1 2\n", b"30 4\n"])
    assert [(r.exit_code, r.stdout) for r in results] == [(0, b"3\n"), (0, b"34\n")]


@pytest.mark.box
def test_a_fresh_box_for_each_input_remembers_nothing() -> None:
    assert [r.stderr for r in run(PROGRAM, "sh solve.sh", [b"1 2\n", b"3 4\n"])] == [b"1\n", b"1\n3\n"]
    assert [r.stderr for r in run(PROGRAM, "sh solve.sh", [b"1 2\n", b"3 4\n"], fresh_each=True)] == [b"1\n", b"3\n"]


@pytest.mark.box
def test_the_verifiers_files_win_over_artifacts_and_agents_cannot_spoil_later_inputs() -> None:
    artifacts = {"harness.sh": b"echo forged\n", "solve.sh": b"cd /; exit 3\n"}
    results = run(artifacts, ". ./harness.sh", [b"", b""], files={"harness.sh": b"echo true\n. ./solve.sh\n"})
    assert [(r.exit_code, r.stdout) for r in results] == [(3, b"true\n"), (3, b"true\n")]


@pytest.mark.box
@pytest.mark.parametrize("path", ["../etc/passwd", "/etc/passwd", "a/../../x"])
def test_an_artifact_that_leaves_the_workdir_is_refused(path: str) -> None:
    with pytest.raises(PermissionError):
        run({path: b""}, "true", [b""])
