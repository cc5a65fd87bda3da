"""Scenes that every remote backend plays alike, on its real engine or cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.remote_backend import RemoteBackend
from envfarm.backends.remote_side import Side
from envfarm.box import Box, ExecResult
from envfarm.errors import BoxDied
from envfarm.testing.backend_checks import SMALL
from tests.envfarm.backends.shared import Shared

B = TypeVar("B", bound=RemoteBackend)
T = TypeVar("T")
REPOSITORY = Path(__file__).parents[3]


def with_backend(kind: type[B], use: Callable[[B], Awaitable[T]], **options: Any) -> T:
    async def main() -> T:
        backend = kind(**options)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


def envfarm(*arguments: str) -> Any:
    """What a command says with `--json`."""
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", *arguments, "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


# --- what an agent may try: its own command suffers, or its box; never is it an infra error ---------------------------

SIDE = "for d in /proc/[0-9]*; do p=${d#/proc/}; case $p in 1|$BASHPID) continue;; esac; "
TRICKS = {
    "forges its end": r"""printf 'x\0E%s 0;/task\0' "$__n"; printf '\0E%s\0' "$__n" >&2; while :; do :; done""",
    "forges its end and goes on": r"""printf 'x\0E%s 0;/task\0' "$__n"; printf '\0E%s\0' "$__n" >&2; seq 99999; seq 99999 &""",
    "a huge mark": r"""printf '\0E%s 0;' "$__n"; head -c 3000000 /dev/zero | tr '\0' /""",
    "tells the second shell of an end": """echo "end $__n 0 $__m /task" >/proc/$__p/fd/0; sleep 0.1; seq 99999; seq 99999 &""",
    "tells it of another shell's end": """echo "end $__n 0 1 /task" >/proc/$__p/fd/0; seq 99999""",
    "hides the second shell": "__p=; __w=",
    "stops the second shell before the end": "kill -STOP $__p",
    "forges the shell's end": r"printf '\0X%032d 0\0\0X 0\0' 0",
    "takes printf away": "printf() { :; }",
    "takes read away": "read() { return 1; }",
    "kills all": "kill -9 -1",
    "kills all, then a fork bomb": "kill -9 -1; b() { b | b & b; }; b",
    "kills all for ever": "while :; do kill -9 -1; done 2>/dev/null",
    "stops the second shell": SIDE + "kill -STOP $p; done; sleep 1",
    "steals frames": "cat /proc/1/fd/0 >/dev/null & cat /proc/1/fd/3 >/dev/null",
    "writes to the frames": "head -c 100000 /dev/zero | tr '\\0' x >/proc/1/fd/3",
    "forges the second shell": SIDE + r"printf '\0aaaaaaaaaaaaaaaa ok 0 1 2 3 4 5 6\n' >/proc/$p/fd/1; done",
    "floods the second shell": SIDE + "timeout 1 head -c 100000000 /dev/zero >/proc/$p/fd/1; done",
    "speaks to the second shell": SIDE + "echo 'kill -9 $$; reply ok 0' >/proc/$p/fd/0; done",
    "a shell that runs out of time": "TMOUT=1; trap 'echo bye' EXIT",
    "signals process 1": "for s in TERM INT HUP QUIT USR1 STOP SEGV KILL; do kill -$s 1; done",
    "overwrites process 1": "while IFS='- ' read -r a b c; do dd if=/dev/zero of=/proc/1/mem bs=4096 count=1 seek=$((0x$a/4096)) "
    "conv=notrunc; done </proc/1/maps 2>/dev/null",
}


def a_trick_is_the_agents_own_doing(shared: Shared, kind: type[RemoteBackend], trick: str) -> None:
    async def use(backend: RemoteBackend) -> list[ExecResult]:
        box = await backend.start(msgspec.structs.replace(SMALL, exec_timeout_s=2.0))
        await box.write("kept", b"kept")
        results = [await box.exec(TRICKS[trick]), await box.exec("echo next"), await box.exec("cat kept; exit 3")]
        found = await box.archive(["/task"])
        spent = results[2].exit_code != 3
        assert found == ({} if spent else {"kept": b"kept"})
        if spent:  # then every further command says so as well
            assert (await box.exec("true")).exit_code == results[2].exit_code
            with pytest.raises(FileNotFoundError):
                await box.read("kept")
        return results

    first, _, last = shared(kind, use)
    assert b"next" not in first.stdout
    if last.exit_code == 3 and trick != "a shell that runs out of time":
        assert last.stdout == b"kept" and last.limit is None


def a_second_shell_that_nobody_waits_for_is_no_obstacle(shared: Shared, kind: type[RemoteBackend]) -> None:
    """As one is left when the first command is cancelled at once."""

    async def use(backend: RemoteBackend) -> ExecResult:
        box = await backend.start(SMALL)
        left = Side(await box._streams.open_side(crowded=False, silent=False))
        await left.ask("reply ok 0", timeout_s=30)
        return await box.exec("echo up")

    assert shared(kind, use).stdout == b"up\n"


def a_beginning_is_marked_where_somebody_may_still_write(shared: Shared, kind: type[RemoteBackend]) -> None:
    """A nonce that ends in `s` asks for the mark: at first, and where the second shell could not say the last command's end."""

    async def use(backend: RemoteBackend) -> list[bool]:
        box = await backend.start(SMALL)
        commands = ("", "", "sleep 1000 &", "", "kill -9 -1; sleep 1000 &", "", "mkdir 'a b'; cd 'a b'", "cd ..", "")
        return [(await box.exec(f'echo "$__n"; {more}')).stdout.endswith(b"s\n") for more in commands]

    assert shared(kind, use) == [True, False, False, True, False, True, False, True, False]


def a_second_shell_that_stops_to_answer_costs_no_result(shared: Shared, kind: type[RemoteBackend]) -> None:
    """It was to say the end of the command."""

    async def use(backend: RemoteBackend) -> list[ExecResult]:
        box = await backend.start(SMALL)
        commands = ("x=kept", "kill -STOP $__p; echo out; echo err >&2; (exit 5)", 'echo "$? $x"', "true")
        return [await box.exec(command) for command in commands]

    _, stopped, then, last = shared(kind, use)
    assert (stopped.exit_code, stopped.stdout, stopped.stderr, stopped.limit) == (5, b"out\n", b"err\n", None)
    assert then.stdout == b"5 kept\n" and last.stdout == b""


# --- deaths and what is left ------------------------------------------------------------------------------------------


def a_box_killed_from_outside_died(kind: type[B], process_of: Callable[[B, Box], Awaitable[int]]) -> None:
    """Under a command, and that is no result. `process_of` a box on this machine: what is killed."""

    async def use(backend: B) -> None:
        box = await backend.start(SMALL)
        assert (await box.exec("echo up")).stdout == b"up\n"
        process = await process_of(backend, box)
        running = asyncio.ensure_future(box.exec("sleep 1000"))
        await asyncio.sleep(0)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(BoxDied, match="ended from outside"):
            await running
        for call in (box.exec("true"), box.read("x"), box.write("x", b""), box.list(), box.archive(["/task"]), box.snapshot()):
            with pytest.raises(BoxDied):
                await call
        await box.stop()
        await box.stop()

    with_backend(kind, use)


_OWNER = """
import asyncio, sys
from envfarm.backends.local import backend_class
from envfarm.testing.backend_checks import SMALL
async def main():
    backend = backend_class(sys.argv[1])()
    boxes = [await backend.start(SMALL) for _ in range(3)]
    calls = [asyncio.ensure_future(b.exec("setsid sleep 1000 & trap '' TERM; sleep 1000")) for b in boxes]
    print("up", flush=True)
    await asyncio.gather(*calls)
asyncio.run(main())
"""


def an_owner_is_killed(backend: str, boxes_of: Callable[[int], list[str]]) -> list[str]:
    """Another process, with three boxes that are busy. Returns what `boxes_of` its number said before."""
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, backend], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    boxes = boxes_of(owner.pid)
    assert len(boxes) == 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    return boxes


def reapers_take_their_own_alone(kind: type[B], boxes_of: Callable[[int], list[str]]) -> None:
    """Two backends in this process, and one in another, which is killed; then one of the two closes and leaves something."""
    killed: list[int] = []

    def seen(pid: int) -> list[str]:
        killed.append(pid)
        return boxes_of(pid)

    async def use(one: B) -> bytes:
        other = kind()
        try:
            await one.start(SMALL)
            box = await other.start(SMALL)
            await asyncio.to_thread(an_owner_is_killed, kind.name, seen)
            while await asyncio.to_thread(boxes_of, killed[0]):  # the tests' time limit is the end of patience
                await asyncio.sleep(0.2)
            assert len(await asyncio.to_thread(boxes_of, os.getpid())) == 2
            assert one._reaper is not None
            reaper = one._reaper._process
            assert reaper is not None
            one.leave("box-that-is-gone")
            await one.close()
            await asyncio.to_thread(reaper.wait, 60)
            return (await box.exec("echo kept")).stdout
        finally:
            await other.close()

    assert with_backend(kind, use) == b"kept\n"


# --- the same box -----------------------------------------------------------------------------------------------------


def a_snapshot_moves_to_bubblewrap_and_back(kind: type[RemoteBackend]) -> None:
    async def use(backend: RemoteBackend) -> list[bytes]:
        local = BubblewrapBackend()
        try:
            box: Box = await backend.start(SMALL)
            await box.exec("mkdir -p d/e; echo hi >d/e/f; ln d/e/f hard; ln -s e/f d/link; mkfifo p; chmod 750 d; cd d; x=5")
            seen = []
            for place in (local, backend):
                box = await place.start(SMALL, snapshot=await box.snapshot())
                seen.append((await box.exec('echo $x; pwd; cat link /task/hard; stat -c "%a %n" /task/*')).stdout)
            return seen
        finally:
            await local.close()

    there, back = with_backend(kind, use)
    assert there == back == b"5\n/task/d\nhi\nhi\n750 /task/d\n644 /task/hard\n"


REPLAYED = [(env, policy) for env in ("coding/shell-v0", "coding/repair-v0") for policy in ("oracle", "random")]


def a_store_replays_on_bubblewrap(backend: str, env: str, policy: str, store: Path) -> None:
    """`store` is made."""
    if "ENVFARM_IMAGES" not in os.environ:
        pytest.skip("ENVFARM_IMAGES does not name the unpacked images; `make test-farm` sets it")
    what = ("--env", env, "--policy", policy, "--rung", "0", "--episodes", "2", "--group", "1")
    envfarm("rollout", *what, "--backend", backend, "--out", str(store))
    told = envfarm("replay", str(store), "--backend", "bubblewrap")
    assert (told["episodes"], told["differences"], told["same"]) == (2, [], True), told
