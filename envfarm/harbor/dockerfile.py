"""`environment/Dockerfile` as the way a box begins: there is no registry to build from, and what lies in a box's own directories
must be put there anyway.

`FROM` a Debian, an Ubuntu or a Python becomes `envfarm/base` or `envfarm/python`. `WORKDIR`, `ENV`, `COPY` and `RUN` are done at
the start of every episode, in the box, as the agent's user: what they leave lies in directories that are writable there
(`BoxSpec.writable`). What needs a network, or leads elsewhere, only an image can hold: such a line is refused, unless
`sandbox.image` names an image, which then is trusted to hold it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from envfarm.box import WORKDIR, WRITABLE
from envfarm.errors import Location, SpecError
from envfarm.harbor.files import files_below
from envfarm.harbor.network import needing
from envfarm.images.recipe import ImageError, instructions

IMAGES = {"debian": "envfarm/base", "ubuntu": "envfarm/base", "python": "envfarm/python"}
"""Known images, whatever their tag -> ours."""
_IGNORED = {"CMD", "ENTRYPOINT", "EXPOSE", "LABEL", "MAINTAINER", "STOPSIGNAL"}
"""They change nothing for commands that are run in the container."""
_NAMES_ONE = "name an image that holds it as `sandbox.image` of the YAML"


@dataclass(frozen=True)
class Run:
    place: Location
    command: str
    workdir: str
    env: dict[str, str]


@dataclass(frozen=True)
class Copy:
    files: dict[str, Path]
    """Absolute path in the box -> file."""


@dataclass(frozen=True)
class Start:
    """How a box begins."""

    image: str | None = None
    """Of ours; None where the Dockerfile begins with one that is not known."""
    workdir: str = WORKDIR
    env: dict[str, str] = field(default_factory=dict)
    steps: tuple[Run | Copy, ...] = ()
    refused: SpecError | None = None
    """The first line that only an image can hold."""


def read_start(file: Path) -> Start:
    """Raises: SpecError with file:line for an instruction that is malformed or never understood."""
    return _Reading(file).start()


def top_of(path: str) -> str:
    """The directory below `/` that holds it."""
    return "/" + path.strip("/").partition("/")[0]


class _Reading:
    def __init__(self, file: Path):
        self.file = file
        self.image: str | None = None
        self.workdir, self.env = WORKDIR, dict[str, str]()
        self.steps: list[Run | Copy] = []
        self.refused: SpecError | None = None
        self.known: dict[str, Callable[[Location, str], None]] = {
            "FROM": self._from, "WORKDIR": self._workdir, "ENV": self._env, "RUN": self._run, "COPY": self._copy,
        }  # fmt: skip

    def start(self) -> Start:
        try:
            lines = instructions(self.file)
        except ImageError as error:
            raise SpecError(error.message, error.location) from None
        if not lines or lines[0][1] != "FROM":
            raise SpecError("expected FROM first", lines[0][0] if lines else Location(str(self.file), 1, 1))
        for place, word, rest in lines:
            if word in _IGNORED:
                continue
            if word == "FROM" and place != lines[0][0]:
                raise SpecError(f"FROM: a second stage is not understood here; {_NAMES_ONE}, and leave one stage", place)
            if word not in self.known:
                raise SpecError(f"{word}: not understood here; {_NAMES_ONE}, and take the line out", place)
            self.known[word](place, rest)
        return Start(self.image, self.workdir, dict(self.env), tuple(self.steps), self.refused)

    def _only_an_image(self, place: Location, why: str) -> None:
        self.refused = self.refused or SpecError(f"{why}; {_NAMES_ONE}", place)

    def _from(self, place: Location, rest: str) -> None:
        name = rest.split()[0].rpartition("/")[2].partition(":")[0].partition("@")[0] if rest else ""
        self.image = IMAGES.get(name)
        if self.image is None:
            known = ", ".join(IMAGES)
            self._only_an_image(place, f"FROM {rest}: there is no registry to get it from (known without one: {known})")

    def _workdir(self, place: Location, rest: str) -> None:
        self.workdir = self._path(place, "WORKDIR", rest)
        if not may_be_there(self.workdir):
            raise SpecError(
                f"WORKDIR {rest}: not a directory that boxes can have writable; take one such as /app, not one of the system's",
                place,
            )

    def _env(self, place: Location, rest: str) -> None:
        try:
            words = shlex.split(rest) if re.match(r"\w+=", rest) else ["=".join(rest.split(None, 1))]
        except ValueError as problem:
            raise SpecError(f"ENV: {problem}", place) from None
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or not name.isidentifier():
                raise SpecError(f"ENV: expected NAME=VALUE, found {word!r}", place)
            self.env[name] = value

    def _run(self, place: Location, rest: str) -> None:
        if "<<" in rest or rest.startswith("--"):
            raise SpecError(
                f"RUN: here-documents and options are not understood here; {_NAMES_ONE}, and take the line out", place
            )
        command = shlex.join(_words(place, rest)) if rest.startswith("[") else rest
        if found := needing(command):
            self._only_an_image(place, f"RUN: `{found[1]}` needs a network, and boxes have none")
        else:
            self.steps.append(Run(place, command, self.workdir, dict(self.env)))

    def _copy(self, place: Location, rest: str) -> None:
        words = _words(place, rest)
        if rest.startswith("--"):
            self._only_an_image(place, f"COPY {rest}: options are not understood here")
            return
        if len(words) < 2:
            raise SpecError(f"COPY: expected SOURCE... DESTINATION, found {rest!r}", place)
        *sources, last = words
        target = self._path(place, "COPY", last)
        into = last.endswith("/") or len(sources) > 1
        files: dict[str, Path] = {}
        for name in sources:
            files |= self._copied(place, name, target, into)
        if all(may_be_there(path) for path in files):
            self.steps.append(Copy(files))
        else:
            self._only_an_image(place, f"COPY to {last}: not a directory that boxes can have writable")

    def _copied(self, place: Location, name: str, target: str, into: bool) -> dict[str, Path]:
        context = self.file.parent
        source = (context / name).resolve()
        if not source.exists() or not source.is_relative_to(context.resolve()):
            raise SpecError(f"COPY: there is no {name!r} in {context}", place)
        if source.is_dir():
            return {f"{target}/{path}": file for path, file in files_below(source).items()}
        return {f"{target}/{source.name}" if into or target == self.workdir else target: source}

    def _path(self, place: Location, word: str, given: str) -> str:
        """Absolute and without `.`; relative paths are below the workdir."""
        path = PurePosixPath(self.workdir, given)
        if not given or "$" in given or ".." in path.parts:
            raise SpecError(f"{word}: expected a path without variables and '..', found {given!r}", place)
        return str(path)


def _words(place: Location, rest: str) -> list[str]:
    """Both ways to write them: `a b` and `["a", "b"]`."""
    if not rest.startswith("["):
        return rest.split()
    try:
        return [str(word) for word in json.loads(rest)]
    except json.JSONDecodeError as problem:
        raise SpecError(f"not a list of words: {problem.msg}", place) from None


def may_be_there(path: str) -> bool:
    """Whether boxes can have it in a directory that is writable."""
    top = top_of(path)
    return top == WORKDIR or WRITABLE.fullmatch(top) is not None
