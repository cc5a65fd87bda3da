"""A task's folder, read and checked as a whole: which part is missing, and which line cannot be done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from envfarm.box import WORKDIR
from envfarm.errors import Location, SpecError
from envfarm.harbor.dockerfile import Copy, Run, Start, may_be_there, read_start, top_of
from envfarm.harbor.files import files_below
from envfarm.harbor.network import needing
from envfarm.harbor.settings import Settings, line_of, read_settings

TOML, INSTRUCTION, DOCKERFILE = "task.toml", "instruction.md", "environment/Dockerfile"
TEST, SOLVE = "tests/test.sh", "solution/solve.sh"
LOGS, TESTS, SOLUTION = "/logs", "/tests", "/solution"
"""Directories of a box that the format names."""

_CANARY = re.compile(r"(?:<!--.*canary.*-->|#.*canary.*)", re.IGNORECASE)
"""Lines at the beginning of an instruction that are for whoever collects training data, not for agents."""
_OLDER = ("task.yaml", "run-tests.sh")


@dataclass(frozen=True)
class HarborTask:
    folder: Path
    settings: Settings
    instruction: str
    start: Start
    tests: dict[str, Path]
    """Path below `/tests` -> file."""
    solution: dict[str, Path]
    """Path below `/solution` -> file; empty where the task has none."""
    refused: SpecError | None = None
    """The first line that only an image can make work, of the Dockerfile or of a script."""

    @property
    def workdir(self) -> str:
        return self.settings.environment.workdir or self.start.workdir

    @property
    def env(self) -> dict[str, str]:
        return self.start.env | self.settings.environment.env

    @property
    def writable(self) -> set[str]:
        """Directories that its box must have, beside those that every box has."""
        copied = (path for step in self.start.steps if isinstance(step, Copy) for path in step.files)
        entered = (step.workdir for step in self.start.steps if isinstance(step, Run))
        return {LOGS, TESTS, SOLUTION, *map(top_of, (self.workdir, *copied, *entered))} - {WORKDIR}


def is_task(folder: Path) -> bool:
    """Whether the folder is one task, or wants to be; else it is a folder of them."""
    return any((folder / part).exists() for part in (TOML, INSTRUCTION, "tests", "environment", *_OLDER))


@lru_cache(1024)
def cached_task(folder: Path, files_hash: str) -> HarborTask:
    """What sessions use: `files_hash` is the spec's, so that an edited folder is read anew."""
    return read_task(folder)


def read_task(folder: Path) -> HarborTask:
    """Raises: SpecError naming the part that is missing, with file:line for what stands in one."""
    _require(folder, TOML)
    settings = read_settings(folder / TOML)
    _require(folder, INSTRUCTION, TEST)
    workdir = settings.environment.workdir
    if workdir is not None and not (workdir.startswith("/") and may_be_there(workdir)):
        place = line_of(folder / TOML, "environment", "workdir")
        raise SpecError(f"environment.workdir: {workdir!r} is not a directory that boxes can have writable, such as /app", place)
    instruction = _instruction(folder / INSTRUCTION)
    tests = files_below(folder / "tests")
    solution = files_below(folder / "solution") if (folder / SOLVE).is_file() else {}
    start = _start(folder, settings)
    wrong = (start.refused, *map(_online, (*tests.values(), *solution.values())))
    return HarborTask(folder, settings, instruction, start, tests, solution, next(filter(None, wrong), None))


def _require(folder: Path, *parts: str) -> None:
    for part in parts:
        if not (folder / part).is_file():
            raise SpecError(_missing(folder, part))


def _missing(folder: Path, part: str) -> str:
    if any((folder / name).exists() for name in _OLDER):
        return f"{folder} is a task of Terminal-Bench's first format ({', '.join(_OLDER)}); Harbor's is read here, with a {TOML}"
    other = {TEST: "tests/test.bat"}.get(part)
    if other and (folder / other).exists():
        return f"{folder} has no {part}, only {other}: boxes are Linux"
    return f"{folder} has no {part}: a Harbor task has {TOML}, {INSTRUCTION}, {DOCKERFILE}, {TEST} and {SOLVE}"


def _instruction(file: Path) -> str:
    lines = file.read_text("utf-8").split("\n")
    while lines and (not lines[0].strip() or _CANARY.fullmatch(lines[0].strip())):
        lines.pop(0)
    text = "\n".join(lines).strip("\n")
    if not text:
        raise SpecError("the instruction is empty", Location(str(file), 1, 1))
    return text


def _start(folder: Path, settings: Settings) -> Start:
    compose = folder / "environment/docker-compose.yaml"
    if compose.exists():
        raise SpecError("a task of several containers is not played", Location(str(compose), 1, 1))
    if (folder / DOCKERFILE).is_file():
        return read_start(folder / DOCKERFILE)
    if settings.environment.docker_image is None:
        raise SpecError(_missing(folder, DOCKERFILE))
    named = f"docker_image {settings.environment.docker_image!r}: there is no registry to get it from"
    place = line_of(folder / TOML, "environment", "docker_image")
    return Start(refused=SpecError(f"{named}; name an image that you have as `sandbox.image` of the YAML", place))


def _online(file: Path) -> SpecError | None:
    """What is wrong with a script that gets something from a network."""
    found = needing(file.read_text("utf-8", "replace")) if file.suffix in (".sh", ".bash") else None
    if found is None:
        return None
    line, program = found
    return SpecError(
        f"`{program}` needs a network, and boxes have none: put what it gets into the folder and take the line out, or name "
        "an image that has it as `sandbox.image` of the YAML",
        Location(str(file), line, 1),
    )
