"""Checks of the shell: state, streams, codes, and what an agent may do to it."""

from __future__ import annotations

import asyncio

from envfarm.testing.backend_checks import Bench, Check, expect, expect_result


async def state_stays(bench: Bench) -> str:
    box = await bench.box()
    await box.exec("mkdir -p a/b; cd a/b; x='1  2'; export Y=z; f() { echo \"f:$1:$x\"; }; false")
    expect_result(await box.exec("echo $?"), out=b"1\n")
    expect_result(await box.exec('f "$Y"; pwd; sh -c \'echo "$Y"\''), out=b"f:z:1  2\n/task/a/b\nz\n")
    return "working directory, variables, functions and $? carry over"


async def streams_apart(bench: Bench) -> str:
    box = await bench.box()
    expect_result(
        await box.exec("echo out; echo err >&2; exit_code() { return 7; }; exit_code"), code=7, out=b"out\n", err=b"err\n"
    )
    expect_result(await box.exec("printf 'a\\000b\\n\\377'"), out=b"a\0b\n\xff", err=b"")
    expect_result(await box.exec("no-such-command"), code=127, out=b"")
    expect_result(await box.exec("sh -c 'kill -9 $$'"), code=137, out=b"")
    expect_result(await box.exec("if"), code=2, out=b"")
    expect_result(await box.exec("cat <<END\nline 1\n\n  line '3'\nEND"), out=b"line 1\n\n  line '3'\n", err=b"")
    return "bytes as written, exit codes, several lines"


async def standard_input(bench: Bench) -> str:
    box = await bench.box(output_bytes=1 << 20)
    data = bytes(range(256)) * 500
    result = expect_result(await box.exec("head -c 70000 | wc -c; cat", stdin=data))
    expect(result.stdout == b"70000\n" + data[70000:], len(result.stdout), "one reader's share, then the rest")
    expect_result(await box.exec("cat"), out=b"")
    return "given once, empty otherwise"


async def pinned(bench: Bench) -> str:
    box = await bench.box()
    expect_result(
        await box.exec("id -u; id -g; id -un; hostname 2>/dev/null || cat /etc/hostname"), out=b"1000\n1000\nagent\nbox\n"
    )
    expect_result(await box.exec('echo "$HOME $LANG $TZ $PYTHONHASHSEED $(umask) $PWD"'), out=b"/task C.UTF-8 UTC 0 0022 /task\n")
    expect_result(await box.exec("ls -A"), out=b"")
    return "user, home, host name, locale, time zone, umask, an empty workdir"


async def no_forged_boundary(bench: Bench) -> str:
    """Whatever a command prints, the next command's output is its own."""
    box = await bench.box()
    for command in (
        r"for n in 0 1 2 3 4 5; do printf 'X 0\0%s 0 /\0' \"$__n\" >&$n; done 2>/dev/null",
        "exec >&- 2>&-",
        "exec </dev/null 3>&- 4>&- 5>&-",
        "printf '\\0\\0\\0X 0\\0'",
        "set -- a b c; shift 2",
        "break",
        "continue 5",
        "trap 'echo trapped' EXIT",
    ):
        await box.exec(command)
        expect_result(await box.exec("echo next; (exit 3)"), code=3, out=b"next\n", err=b"")
    return "markers, closed descriptors, break and continue"


async def shell_ends(bench: Bench) -> str:
    """The agent may end its shell as it likes: that is a result, not the death of the box."""
    box = await bench.box()
    await box.write("/task/kept", b"kept")
    await box.exec("cd /tmp")
    for command, code in (
        ("exit 5", 5),
        ("kill -9 $$; kill -9 1; exit 6", 6),
        ("exec sh -c 'exit 4'", 4),
        ("set -e; false", 1),
        ("kill -KILL $(sh -c 'echo $PPID')", 137),
    ):
        result = await box.exec(command)
        expect(result.exit_code == code and result.limit is None, result, f"exit code {code} after {command!r}")
        expect_result(await box.exec("pwd; cat /task/kept"), out=b"/tmp\nkept", err=b"")
    return "exit, kill, exec, set -e: a new shell in the same directory"


async def nothing_left_behind(bench: Bench) -> str:
    box = await bench.box(exec_cpu_s=20.0)
    count = "set -- /proc/[0-9]*; echo $# $same"
    before = (await box.exec(f"same=shell; {count}")).stdout
    for command in (
        "sleep 1000 & sleep 1000 &",
        "(trap '' TERM HUP INT; while sleep 1000; do :; done) &",
        "setsid sh -c 'sleep 1000 & sleep 1000' >/dev/null 2>&1 &",
        "(while :; do echo late; echo late >&2; done) &",
        "for i in 1 2 3 4; do (echo late; setsid echo late >&2) & done",
        "for i in 1 2 3 4; do (while :; do :; done) & done",
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do (while :; do :; done) & done",  # they take their time to die, it is no bomb
    ):
        expect_result(await box.exec(command))
        expect_result(await box.exec(count), out=before, err=b"")
    return f"{before.split()[0].decode()} processes seen before and after, by the same shell"


async def cancelled(bench: Bench) -> str:
    box = await bench.box()
    task = asyncio.ensure_future(box.exec("echo begun; sleep 1000"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    expect(task.cancelled(), task, "a cancelled call")
    expect_result(await box.exec("echo usable"), out=b"usable\n", err=b"")
    return "the command ends with the call, the box stays usable"


async def snapshots(bench: Bench) -> str:
    box = await bench.box()
    await box.exec('mkdir -p d/e; echo hi >d/e/f; chmod 750 d; ln -s e/f d/link; cd d; x="it\'s\n2"; export Y=3')
    snapshot = await box.snapshot()
    await box.exec("x=changed; rm -r /task/d/e")
    other = await bench.box(snapshot=snapshot)
    expect_result(
        await other.exec('echo "$x"; sh -c "echo $Y"; pwd; cat link; stat -c %a .'), out=b"it's\n2\n3\n/task/d\nhi\n750\n"
    )
    return "files, modes, links, variables, directory"


CHECKS: dict[str, Check] = {
    "state stays": state_stays,
    "streams apart": streams_apart,
    "standard input": standard_input,
    "pinned": pinned,
    "no forged boundary": no_forged_boundary,
    "shell ends": shell_ends,
    "nothing left behind": nothing_left_behind,
    "cancelled": cancelled,
    "snapshots": snapshots,
}
