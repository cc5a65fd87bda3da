"""Environments of packages that cannot share one: what `make test-vllm`, `make test-ray` and `make test-trainers` run in.

    python -m tests.venvs vllm                        # makes `.venvs/vllm` where needed; prints its interpreter
    python -m tests.venvs vllm -c "import vllm"       # the same, then runs its interpreter with these arguments
    python -m tests.venvs vllm pytest                 # the same, then runs the tests that carry its marker

Each holds envfarm itself as an editable install. What it needs beside is installed once, into `CACHE`, and linked from there.
`docs/trainers/README.md` says why they cannot share one. Where a package has no build for the platform, this says so and does
nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from envfarm.caches import cache_dir

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "requirements"
CACHE = cache_dir() / "venvs"


@dataclass(frozen=True)
class Venv:
    """`packages` are resolved under `constraints`; `pinned` is a whole list that is installed first, as it is."""

    packages: tuple[str, ...]
    constraints: Path | None = None
    pinned: Path | None = None
    platforms: tuple[str, ...] = ()  # `system-machine`; empty is any

    @property
    def digest(self) -> str:
        """Of all that decides what is installed."""
        files = [ROOT / "pyproject.toml", *(p for p in (self.constraints, self.pinned) if p)]
        parts = [sys.version, *self.packages, *(p.read_text() for p in files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


VENVS = {
    # vLLM's own build for CPUs, without torchvision and triton, which break or burden it (a list without dependencies).
    "vllm": Venv(
        ("-e", ".[test]", "ray[rllib]==2.60.0", "tensorboard>=2.18", "gguf>=0.17"),
        PINS / "vllm.txt",
        PINS / "vllm.txt",
        ("Linux-x86_64",),
    ),
    "ray": Venv(("-e", ".[test,torch,ray]"), ROOT / "constraints.txt"),
    "trl": Venv(("-e", ".[test,torch,trl,tinker]"), ROOT / "constraints.txt"),
    "verl": Venv(("-e", ".[test]", "torch==2.13.0", "verl[verl-core]==0.9.1"), PINS / "verl.txt"),
    "verifiers0": Venv(("-e", ".[test]", "verifiers==0.1.14"), PINS / "verifiers0.txt"),
    "verifiers1": Venv(("-e", ".[test]", "verifiers==0.4.0"), PINS / "verifiers1.txt"),
}


def make(name: str) -> Path:
    """The interpreter of the environment `name`; an interrupted installation is made anew."""
    venv, folder = VENVS[name], ROOT / ".venvs" / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if python.exists() and stamp.exists() and stamp.read_text() == venv.digest:
        return python
    print(f"making the environment of {name} in {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_packages(name), folder, symlinks=True, copy_function=_link)
    _uv("pip", "install", "-q", "--python", python, "--no-deps", "-e", ".")
    stamp.write_text(venv.digest)
    return python


def _packages(name: str) -> Path:
    """What a clone's environment is made from: all but envfarm, installed and compiled once, outside of every clone."""
    venv = VENVS[name]
    folder = CACHE / f"{name}-{venv.digest}"
    if folder.exists():
        return folder
    draft = CACHE / f".{name}-{os.getpid()}"
    python = draft / "bin" / "python"
    _uv("venv", "-q", "--clear", "--relocatable", "--python", sys.executable, draft)
    # Compiled now: an engine or a cluster starts many interpreters, which may be forbidden to keep what they compile.
    install = ("pip", "install", "-q", "--compile-bytecode", "--python", python)
    if venv.pinned is not None:
        _uv(*install, "--no-deps", "-r", venv.pinned)
    _uv(*install, *(("-c", venv.constraints) if venv.constraints else ()), *venv.packages)
    _uv("pip", "uninstall", "-q", "--python", python, "envfarm")
    for older in sorted(CACHE.glob(f"{name}-*"), key=lambda made: made.stat().st_mtime)[:-1]:  # the newest may be in use
        shutil.rmtree(older)
    with suppress(OSError):  # another clone was faster
        draft.rename(folder)
    shutil.rmtree(draft, ignore_errors=True)
    return folder


def _link(source: str, target: str) -> None:
    """A second name of the same file, where one file system has both."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _uv(*arguments: str | Path) -> None:
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if os.environ.get("PIP_FIND_LINKS") else {}
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, *arguments], check=True, env={**os.environ, **links}, cwd=ROOT)


def unsupported(name: str) -> str:
    """Why an environment cannot be made here; empty where it can."""
    here = f"{platform.system()}-{platform.machine()}"
    wanted = VENVS[name].platforms
    return f"it has a build for {', '.join(wanted)}, this is {here}" if wanted and here not in wanted else ""


def tests_of(*names: str) -> list[str]:
    """The files with tests that carry one of these markers: others may import what an environment lacks."""
    texts = ((p, p.read_text(encoding="utf-8")) for p in (ROOT / "tests").rglob("test_*.py"))
    return sorted(str(p.relative_to(ROOT)) for p, text in texts if any(f"mark.{name}" in text for name in names))


def main(name: str, arguments: list[str]) -> None:
    if reason := unsupported(name):
        print(f"SKIPPED: {name}: {reason}")
        return
    interpreter = make(name)
    if arguments[:1] == ["pytest"]:
        arguments = ["-m", "pytest", "-m", name, *tests_of(name), *arguments[1:]]
    if arguments:
        os.chdir(ROOT)
        os.execv(interpreter, [str(interpreter), *arguments])
    print(interpreter)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
