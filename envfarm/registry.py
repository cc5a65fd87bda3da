"""Environments by id: the shipped tree, installed packages' trees, and any folder or file that is named.

A look at the first lines of each YAML is enough to list ids; a spec is read when it is asked for, its code when a scene
is made. Nothing imports an environment by name.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from envfarm.errors import Location, SpecError, UnknownIdError, UserError, did_you_mean, near_matches
from envfarm.scenes import make_scene
from envfarm.spec import EnvSpec, load_spec
from envfarm.spec_hash import SPEC_ID, declared_id, folder_files

if TYPE_CHECKING:
    from envfarm.env import Env

__all__ = ["Registry", "default_registry", "make", "make_scene", "shipped_folder"]

ENTRY_POINTS = "envfarm.environments"
PATH_VARIABLE = "ENVFARM_PATH"
_YAML = (".yaml", ".yml")


class Registry:
    """Finds environments below the given folders (or in the given files), first named first."""

    def __init__(self, paths: Sequence[Path | str] = ()):
        self.paths = [Path(p) for p in paths]
        for path in self.paths:
            if not path.exists():
                raise UserError(f"no such folder or file of environments: {path}")
        self._loaded: dict[Path, EnvSpec] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Id -> YAML file. Raises: SpecError where two files declare one id."""
        found: dict[str, Path] = {}
        seen: set[Path] = set()
        for file in (file for path in self.paths for file in _yaml_files(path)):
            name, real = declared_id(file), file.resolve()
            if name is None or real in seen:
                continue
            seen.add(real)
            if name in found:
                raise SpecError(f"duplicate id {name!r}: {found[name]} declares it too", _id_place(file))
            found[name] = file
        return found

    def ids(self) -> list[str]:
        """All ids, sorted by name and then by version as a number."""
        return sorted(self.files, key=_order)

    def match(self, pattern: str) -> list[str]:
        """The ids that a glob ("coding/*") or an id, with or without version, stands for. Raises: UnknownIdError."""
        if any(c in pattern for c in "*?["):
            found = [i for i in self.ids() if fnmatch.fnmatchcase(i, pattern)]
            if not found:
                raise UnknownIdError(f"no environment matches {pattern!r}; known: {', '.join(self.ids()) or 'none'}")
            return found
        return [self._resolve(pattern)]

    def matching(self, patterns: Sequence[str]) -> list[EnvSpec]:
        """All that one of the ids or globs stands for; none is no error. Raises: SpecError."""
        return [self.get(i) for i in self.ids() if any(fnmatch.fnmatchcase(i, pattern) for pattern in patterns)]

    def get(self, id_or_file: str | Path) -> EnvSpec:
        """The spec of an id (without version: the highest), of a YAML file, or of a folder that holds one environment.

        Raises: UnknownIdError with near matches, SpecError.
        """
        text = str(id_or_file)
        path = Path(id_or_file)
        if path.suffix in _YAML or path.is_file():
            return self._load(path)
        if text in self.files or self._versions(text):
            return self._load(self.files[self._resolve(text)])
        if path.is_dir():
            return self._load(_only_yaml(path))
        return self._load(self.files[self._resolve(text)])

    def _load(self, file: Path) -> EnvSpec:
        if file not in self._loaded:
            self._loaded[file] = load_spec(file)
        return self._loaded[file]

    def _versions(self, name: str) -> list[str]:
        return [i for i in self.ids() if re.fullmatch(re.escape(name) + r"-v\d+", i)]

    def _same_last_part(self, name: str) -> str:
        """ "maze" is far from "games/maze-v0" by letters, and still what was meant."""
        lasts = {re.sub(r"-v\d+$", "", i).rpartition("/")[2]: i for i in self.ids()}
        near = near_matches(name.rpartition("/")[2], lasts)
        return f" (did you mean {' or '.join(repr(lasts[n]) for n in near)}?)" if near else ""

    def _resolve(self, name: str) -> str:
        if name in self.files:
            return name
        versions = self._versions(name)
        if versions:
            return versions[-1]
        base = re.sub(r"-v\d+$", "", name)
        other = self._versions(base) if base != name else []
        hint = f"; it has {', '.join(other)}" if other else did_you_mean(name, self.ids()) or self._same_last_part(base)
        raise UnknownIdError(
            f"no environment {name!r}{hint}. `envfarm list` shows all; --env-path DIR or {PATH_VARIABLE} adds a folder"
        )


def _order(name: str) -> tuple[str, int]:
    base, _, version = name.rpartition("-v")
    return (base, int(version)) if version.isdigit() else (name, 0)


def _yaml_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in folder_files(path) if file.suffix in _YAML)


def _only_yaml(folder: Path) -> Path:
    found = [p for p in sorted(folder.iterdir()) if p.suffix in _YAML and declared_id(p)]
    if len(found) != 1:
        what = ", ".join(p.name for p in found) if found else "no environment's YAML"
        raise UnknownIdError(f"{folder}: expected exactly one environment in the folder, found {what}; name the file")
    return found[0]


def _id_place(file: Path) -> Location:
    text = file.read_text("utf-8")
    found = SPEC_ID.search(text)
    assert found is not None, "only files that declare an id come here"
    return Location(str(file), text.count("\n", 0, found.start()) + 1, found.start(2) - found.start() + 1)


def shipped_folder() -> Path:
    """The tree of environments that comes with the package."""
    return Path(__file__).resolve().parent.parent / "environments"


def installed_folders() -> list[Path]:
    """Folders of packages that register under the entry-point group; found without running their code."""
    folders: list[Path] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        found = importlib.util.find_spec(point.module)
        if found is None:
            raise UserError(f"the entry point {point.name!r} of {ENTRY_POINTS} names {point.module}, which is not installed")
        places: Iterable[str] = found.submodule_search_locations or ([str(Path(found.origin).parent)] if found.origin else [])
        folders.extend(Path(place) for place in places)
    return folders


def default_registry(env_paths: Sequence[Path | str] = ()) -> Registry:
    """The shipped tree, installed packages, `ENVFARM_PATH` (separated like PATH) and `env_paths`."""
    from_variable = [p for p in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if p]
    shipped = [shipped_folder()] if shipped_folder().is_dir() else []
    return Registry([*shipped, *installed_folders(), *from_variable, *env_paths])


def make(id_or_file: str | Path, **options: object) -> Env:
    """A Gymnasium environment (text in, text out) of an id or a YAML file; `setting` and `render_mode` are options.

    Raises: UserError where the environment has several roles (see `envfarm.aec`).
    """
    from envfarm.env import Env

    spec = default_registry().get(id_or_file)
    scene = make_scene(spec, **options)
    if not isinstance(scene, Env):
        raise UserError(f"{spec.id} has the roles {', '.join(spec.roles)}: it follows PettingZoo's AEC API, not Gymnasium's")
    return scene
