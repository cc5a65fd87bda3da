"""What an image is made of: a folder with a Dockerfile of a small subset, so that one text serves an engine with a registry and
us without one.

    FROM envfarm/base | envfarm/python            first; `debian:bookworm-slim` is for our own two
    RUN apt-get update && apt-get install -y --no-install-recommends PACKAGE... [&& rm -rf /var/lib/apt/lists/*]
    RUN COMMAND                                   as root in the image, `sh -ec`, without network
    COPY SOURCE DESTINATION                       a file of the folder to an absolute path

Packages come first, as they are installed together; any other instruction or option is refused at its line. The digest is over
what goes in - the folder, and that of the image below it - and so is known without building anything.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from envfarm.errors import Location, UserError
from envfarm.spec_hash import folder_files

DEBIAN = "debian:bookworm-slim"
SUITE = "bookworm"
BASES = ("envfarm/base", "envfarm/python")
WORKER = "envfarm/worker"
"""No image of a box: see `worker`."""
FILE = "Dockerfile"
LABEL = "envfarm.image"
"""What an engine's image carries: its recipe's digest."""
_APT = re.compile(
    r"apt-get update && apt-get install -y --no-install-recommends (?P<packages>[a-z0-9][a-z0-9+.\- ]*?)"
    r"(?: && rm -rf /var/lib/apt/lists/\*)?"
)


class ImageError(UserError):
    pass


@dataclass(frozen=True)
class Run:
    command: str


@dataclass(frozen=True)
class Copy:
    source: Path
    destination: str


@dataclass(frozen=True)
class Recipe:
    name: str
    digest: str
    """12 hex digits over all that goes in."""
    packages: tuple[str, ...]
    steps: tuple[Run | Copy, ...]
    """In order, after the packages; those of the image below come first."""

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.digest}"


def base(name: str) -> Recipe:
    """One of `BASES`."""
    return read(Path(__file__).with_name(name.partition("/")[2]), name)


def name_of(env_id: str) -> str:
    """Of the image that an environment builds."""
    return f"envfarm/{env_id}"


def read(folder: Path, name: str) -> Recipe:
    """The folder as a recipe. Raises: ImageError with file:line:column."""
    file = folder / FILE
    if not file.is_file():
        raise ImageError(f"the image of {name.removeprefix('envfarm/')} is built from a folder with a {FILE}; there is no {file}")
    below: Recipe | None = None
    packages: tuple[str, ...] = ()
    steps: list[Run | Copy] = []
    started = False
    for place, word, rest in instructions(file):
        if (word == "FROM") == started:
            raise ImageError(f"expected FROM first and once, found {word}", place)
        started = True
        if word == "FROM":
            below = _below(rest, name, place)
        elif word == "RUN" and "apt-get" in rest:
            packages += _packages(rest, bool(steps), place)
        elif word == "RUN":
            steps.append(Run(rest))
        elif word == "COPY":
            steps.append(_copy(rest, folder, place))
        else:
            raise ImageError(f"{word}: only FROM, RUN and COPY are understood here", place)
    if not started:
        raise ImageError(f"expected FROM {' or '.join(BASES)}", Location(str(file), 1, 1))
    above = () if below is None else below.packages
    before = () if below is None else below.steps
    return Recipe(name, _digest(folder, below), above + packages, before + tuple(steps))


def _below(rest: str, name: str, place: Location) -> Recipe | None:
    if rest == DEBIAN and name in BASES:
        return None
    if rest not in BASES:
        raise ImageError(f"FROM: expected {' or '.join(BASES)}, found {rest!r}; there is no registry to get others from", place)
    return base(rest)


def _packages(rest: str, late: bool, place: Location) -> tuple[str, ...]:
    found = _APT.fullmatch(rest)
    if found is None:
        form = "RUN apt-get update && apt-get install -y --no-install-recommends PACKAGE..."
        raise ImageError(f"packages are installed by `{form}` and nothing else on that line", place)
    if late:
        raise ImageError("packages are installed first: put this line above every other RUN and COPY", place)
    return tuple(found["packages"].split())


def _copy(rest: str, folder: Path, place: Location) -> Copy:
    words = rest.split()
    if len(words) != 2 or rest.startswith("-"):
        raise ImageError(f"COPY: expected SOURCE DESTINATION without options, found {rest!r}", place)
    source = (folder / words[0]).resolve()
    if not source.is_file() or not source.is_relative_to(folder.resolve()):
        raise ImageError(f"COPY: no file {words[0]!r} in {folder}", place)
    target = PurePosixPath(words[1])
    if not target.is_absolute() or ".." in target.parts or words[1].endswith("/"):
        raise ImageError(f"COPY: expected the absolute path of a file as destination, found {words[1]!r}", place)
    return Copy(source, words[1])


def instructions(file: Path) -> list[tuple[Location, str, str]]:
    """Of a Dockerfile: place, word and the rest, on one line; comments are gone. Raises: ImageError."""
    found: list[tuple[Location, str, str]] = []
    line, text = 0, ""
    for number, raw in enumerate(file.read_text("utf-8").splitlines(), 1):
        if raw.lstrip().startswith("#"):
            continue
        line = line or number
        text += raw.strip()
        if text.endswith("\\"):
            text = text[:-1].rstrip() + " "
            continue
        if text:
            word, _, rest = text.partition(" ")
            found.append((Location(str(file), line, 1), word.upper(), rest.strip()))
        line, text = 0, ""
    if text:
        raise ImageError("the last line goes on after its end", Location(str(file), line, 1))
    return found


def _digest(folder: Path, below: Recipe | None) -> str:
    digest = hashlib.sha256((below.digest if below else SUITE).encode())
    for path in folder_files(folder):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_mode & 0o100:o}\0{content}\n".encode())
    return digest.hexdigest()[:12]
