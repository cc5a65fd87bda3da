"""Environments of packages that cannot share one: what `make test-vllm`, `make test-ray` and `make test-trainers` run in.

    python -m tests.venvs vllm                        # makes `.venvs/vllm` where needed; prints its interpreter
    python -m tests.venvs vllm -c "import vllm"       # the same, then runs its interpreter with these arguments
    python -m tests.venvs vllm pytest                 # the same, then runs the tests that carry its marker

Each is made by uv, out of uv's cache after the first time (seconds), and holds envfarm itself as an editable install.
`docs/trainers/README.md` says why they cannot share one. Where a package has no build for the platform, this says so and does
nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "requirements"


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
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
    uv = Path(sys.executable).with_name("uv")
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if os.environ.get("PIP_FIND_LINKS") else {}
    print(f"making the environment of {name} in {folder}", file=sys.stderr)

    def run(*args: str | Path) -> None:
        subprocess.run([uv, *args], check=True, env={**os.environ, **links}, cwd=ROOT)

    run("venv", "-q", "--clear", "--python", sys.executable, folder)
    # Compiled now, once: an engine or a cluster starts many interpreters, which may be forbidden to keep what they compile.
    install = ("pip", "install", "-q", "--compile-bytecode", "--python", python)
    if venv.pinned is not None:
        run(*install, "--no-deps", "-r", venv.pinned)
    run(*install, *(("-c", venv.constraints) if venv.constraints else ()), *venv.packages)
    stamp.write_text(venv.digest)
    return python


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
