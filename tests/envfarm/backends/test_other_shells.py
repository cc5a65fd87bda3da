"""An unpacked image as the root, with a shell that is not bash: the loop is plain POSIX."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.box import BoxSpec, ExecResult

pytestmark = pytest.mark.box


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of a few files: dash, `cat`, `sleep`, `sed`, `id` and the libraries that they need."""
    root = tmp_path_factory.mktemp("images") / "lab" / "tiny"
    for program in ("dash", "cat", "sleep", "sed", "id"):
        found = shutil.which(program, path="/usr/bin:/bin")
        if found is None:
            pytest.skip(f"no {program} on this machine to make an image from")
        libraries = re.findall(r"(/\S+) \(", subprocess.run(["ldd", found], capture_output=True, text=True).stdout)
        for path in (found, *libraries):
            target = root / ("bin/sh" if program == "dash" and path == found else path.lstrip("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("agent:x:1000:1000::/task:/bin/sh\n")
    return root


def run(image: str, commands: list[str], images_dir: Path | None = None) -> list[ExecResult]:
    async def main() -> list[ExecResult]:
        backend = BubblewrapBackend(images_dir=images_dir)
        try:
            box = await backend.start(BoxSpec(image=image, exec_timeout_s=5))
            return [await box.exec(c, stdin=b"given" if c == "cat" else b"") for c in commands]
        finally:
            await backend.close()

    return asyncio.run(main())


def test_dash_keeps_state_streams_codes_and_comes_back(image: Path) -> None:
    commands = {
        "cd /tmp; x='a  b'; f() { echo \"f:$x\"; }; false": (1, b"", b""),
        'echo $?; f; echo "$PWD $HOME $SHELL" >&2': (0, b"1\nf:a  b\n", b"/tmp /task /bin/sh\n"),
        "cat": (0, b"given", b""),
        "break": (0, b"", b""),
        "sleep 1000 & echo left": (0, b"left\n", b""),
        "set -- /proc/[0-9]*; echo $#": (0, b"2\n", b""),
        "exec 1>&- 2>&- 3>&-": (0, b"", b""),
        "exit 9": (9, b"", b""),
        'pwd; id -un; echo "[$x]"': (0, b"/tmp\nagent\n[]\n", b""),
        "kill -9 $$; (exit 4)": (4, b"", b""),
        "echo 'two\nlines'": (0, b"two\nlines\n", b""),
    }
    results = run(str(image), list(commands))
    for command, result in zip(commands, results, strict=True):
        assert (result.exit_code, result.stdout, result.stderr) == commands[command], command
        assert result.limit is None


def test_an_image_is_found_by_its_name_below_the_images_directory(image: Path) -> None:
    (result,) = run("lab/tiny", ["[ -e /usr/bin/bash ] || echo nothing of the host"], images_dir=image.parents[1])
    assert result.stdout == b"nothing of the host\n"


def test_a_syntax_error_ends_dash_and_is_the_agents_doing(image: Path) -> None:
    first, second = run(str(image), ["if", "echo usable"])
    assert first.exit_code == 2 and b"yntax error" in first.stderr
    assert second.stdout == b"usable\n"


def test_an_unpacked_image_comes_before_a_built_in_one(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a container and a sandbox have the same root."""
    (image.parents[1] / "envfarm").symlink_to(image.parent)
    (image.parent / "base").symlink_to(image)
    monkeypatch.setenv("ENVFARM_IMAGES", str(image.parents[1]))
    (result,) = run("envfarm/base", ["echo $SHELL; ls"])
    assert (result.exit_code, result.stdout) == (127, b"/bin/sh\n")
