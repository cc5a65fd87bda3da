"""Checks of files: what goes in and out and where, and that no link of the agent's leads the worker astray."""

from __future__ import annotations

from collections.abc import Awaitable

from envfarm.box import Entry
from envfarm.testing.backend_checks import Bench, Check, Failed, expect, expect_result


async def _raises(kind: type[Exception] | tuple[type[Exception], ...], call: Awaitable[object], what: str) -> None:
    try:
        value = await call
    except kind:
        return
    raise Failed(f"{what}: saw {value!r}, expected {kind}")


async def files(bench: Bench) -> str:
    box = await bench.box()
    data = bytes(range(256)) * 100
    await box.write("a/b/c.bin", data)
    await box.write("/tmp/run.sh", b"#!/bin/sh\necho ran\n", mode=0o755)
    expect(await box.read("/task/a/b/c.bin") == data, "other bytes", "the bytes written")
    expect_result(await box.exec("stat -c '%U %a' a a/b/c.bin; /tmp/run.sh"), out=b"agent 755\nagent 644\nran\n")
    await box.exec("echo changed >a/b/c.bin; ln -s b a/to-b")
    expect(await box.read("a/to-b/c.bin") == b"changed\n", "another file", "a link inside the workdir is followed")
    wanted = [
        Entry(path="a", kind="directory", size=0, mode=0o755),
        Entry(path="a/b", kind="directory", size=0, mode=0o755),
        Entry(path="a/b/c.bin", kind="file", size=8, mode=0o644),
        Entry(path="a/to-b", kind="link", size=0, mode=0o777, target="b"),
    ]
    expect(await box.list() == wanted, await box.list(), str(wanted))
    await _raises(FileNotFoundError, box.read("none"), "a missing file")
    await _raises(FileNotFoundError, box.list("/task/none"), "a missing directory")
    await _raises(IsADirectoryError, box.read("a"), "a directory")
    await _raises(ValueError, box.read("a/b/c.bin", max_bytes=3), "a file that is too large")
    await _raises(ValueError, box.list(max_entries=3), "too many entries")
    await _raises(OSError, box.write("big", bytes(20_000_000)), "a file beyond the disk limit")
    await _raises(FileNotFoundError, box.read("big"), "what is left of it")
    return "read, write, list and their errors"


async def hostile_links(bench: Bench) -> str:
    box = await bench.box()
    await box.exec(
        "ln -s /etc/passwd out; ln -s /proc/1/root/etc rootdir; ln -s ../etc up; ln -s loop loop; mkfifo pipe; "
        "ln -s /proc/self/environ env; ln -s /dev/zero zero; "
        "mkdir real; ln -s /usr real/usr; ln -s ../../../etc/passwd real/climb"
    )
    for path in (
        "out",
        "rootdir/passwd",
        "up/passwd",
        "env",
        "zero",
        "real/usr/bin/env",
        "real/climb",
        "../etc/passwd",
        "/etc/passwd",
        "/proc/self/environ",
        "pipe",
    ):
        await _raises(PermissionError, box.read(path), f"read {path}")
    await _raises(OSError, box.read("loop"), "read a loop")
    for path in ("real/usr/x", "rootdir/x", "/etc/x", "../x", "/usr/bin/x"):
        await _raises(OSError, box.write(path, b"x"), f"write {path}")
    await box.exec("ln -s /tmp/target link")
    await box.write("link", b"new")
    expect_result(await box.exec("cat link; test -e /tmp/target"), code=1, out=b"new")
    return "read and write never leave the workdir"


async def artifacts(bench: Bench) -> str:
    box = await bench.box()
    await box.exec(
        "mkdir -p good/sub bad special; echo 1 >good/a; echo 2 >good/sub/b; "
        "ln -s /etc/passwd bad/link; mkfifo special/pipe; ln -s good alias"
    )
    found = await box.archive(["/task/good", "/task/none"])
    expect(found == {"good/a": b"1\n", "good/sub/b": b"2\n"}, found, "two files by their path below the workdir")
    for path in ("/task/bad", "/task/special", "/task/alias", "/task/alias/a", "/task/bad/link", "/etc", "/task/../etc"):
        await _raises(PermissionError, box.archive([path]), f"archive {path}")
    await box.exec("head -c 100000 /dev/zero >good/big")
    await _raises(ValueError, box.archive(["/task/good"], max_bytes=5000), "too large")
    return "regular files only, links and special files refused by name"


async def writable(bench: Bench) -> str:
    """Directories that the spec names are the agent's as well, each of its own size, and travel in snapshots."""
    box = await bench.box()
    await _raises(PermissionError, box.write("/app/x", b""), "a directory that the spec does not name")
    expect_result(await box.exec("mkdir /app 2>/dev/null"), code=1, out=b"")
    box = await bench.box(writable=("/app", "/logs"))
    await box.write("/app/bin/run", b"#!/bin/sh\necho ran\n", mode=0o755)
    expect_result(await box.exec("/app/bin/run; echo x >/logs/x; cat /logs/*; echo /task/*"), out=b"ran\nx\n/task/*\n")
    await box.exec("ln -s bin /app/link; ln -s /etc /app/out; ln -s /app/bin /logs/other; echo kept >/logs/kept")
    expect(await box.read("/app/link/run") != b"", "nothing", "a link inside is followed")
    for path in ("/app/out/passwd", "/logs/other/run", "/app/../etc/passwd"):
        await _raises(PermissionError, box.read(path), f"read {path}")
    expect([e.path for e in await box.list("/app")] == ["bin", "bin/run", "link", "out"], await box.list("/app"), "four entries")
    await _raises(PermissionError, box.archive(["/app"]), "artifacts are below the workdir")
    expect((await box.exec("head -c 5000000 /dev/zero >/app/big")).limit == "disk", "no limit", "a third of the disk")
    await box.exec("rm /app/big")
    other = await bench.box(writable=("/app", "/logs"), snapshot=await box.snapshot())
    expect_result(await other.exec("cat /logs/kept; /app/bin/run; readlink /app/link"), out=b"kept\nran\nbin\n")
    return "written, listed, limited, kept in snapshots"


CHECKS: dict[str, Check] = {"files": files, "hostile links": hostile_links, "artifacts": artifacts, "writable": writable}
