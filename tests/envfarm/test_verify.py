"""Hidden inputs go into a fresh box, outputs come out, and the verdict is formed here."""

from __future__ import annotations

import asyncio

import pytest

from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.box import BoxSpec, ExecResult
from envfarm.verify import compare_artifacts, run_hidden, run_hidden_sync

PROGRAM = {"solve.sh": b'read a b; echo $((a + b)); echo "$a" >>seen; cat seen >&2\n'}


def run(artifacts: dict[str, bytes], command: str, inputs: list[bytes], **options: object) -> list[ExecResult]:
    async def main() -> list[ExecResult]:
        backend = BubblewrapBackend()
        try:
            return await run_hidden(backend, BoxSpec(exec_timeout_s=2), artifacts, command, inputs, **options)  # type: ignore[arg-type]
        finally:
            await backend.close()

    return asyncio.run(main())


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


@pytest.mark.box
def test_from_an_environments_thread() -> None:
    async def main() -> list[ExecResult]:
        backend = BubblewrapBackend()
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.to_thread(run_hidden_sync, loop, backend, BoxSpec(), {}, "cat", [b"x", b"y"])
        finally:
            await backend.close()

    assert [r.stdout for r in asyncio.run(main())] == [b"x", b"y"]


def test_differences_are_named_by_file_and_place() -> None:
    expected = {"a": b"1\n2\n", "b": b"same", "c": b""}
    got = {"a": b"1\n3\n", "b": b"same", "d": b"more"}
    assert compare_artifacts(expected, got) == [
        "a: differs from byte 2 (line 2); expected 4 bytes, got 4",
        "c: missing",
        "d: not expected",
    ]
    assert compare_artifacts(expected, dict(expected)) == []
