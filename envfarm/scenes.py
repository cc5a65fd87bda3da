"""From a spec to the object that plays it: imports the author's class, and says what is missing where it cannot.

The folder of a YAML is imported as a package with a name of its own, so files beside the entry are reached by relative
imports (`from .words import WORDS`) and two environments never share a module by accident. The name holds the hash of
the folder's content: changed code is another module.
"""

from __future__ import annotations

import errno
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from envfarm.errors import EnvfarmError, Location, MissingDependencyError, SpecError, did_you_mean, raised_at
from envfarm.seeding import stable_hash
from envfarm.spec_file import KINDS
from envfarm.yaml_source import read_yaml

if TYPE_CHECKING:
    from envfarm.env import Scene
    from envfarm.spec import EnvSpec


def make_scene(spec: EnvSpec, **options: Any) -> Scene:
    """A scene of that environment; `options` go to its class.

    Raises: SpecError at the `entry` where file or class is missing, at the author's line where the class cannot be made
    (a tool without types or docstring, a constructor that raises); MissingDependencyError naming the pip command.
    """
    found = scene_class(spec)
    try:
        return found(spec, **options)
    except Exception as problem:
        _tell(spec, f"{found.__name__} cannot be made", problem)


def scene_class(spec: EnvSpec) -> type[Scene]:
    """The class that plays the environment. Raises: as `make_scene`."""
    from envfarm.env import Scene

    check_requires(spec)
    if spec.kind != "entry":
        module, _, name = KINDS[spec.kind].partition(":")
        return getattr(importlib.import_module(module), name)
    target, _, name = spec.entry.partition(":")
    module_ = _import_file(spec, target) if target.endswith(".py") else _import_package(spec, target)
    found = getattr(module_, name, None)
    if found is None:
        classes = [n for n, v in vars(module_).items() if isinstance(v, type) and issubclass(v, Scene)]
        raise SpecError(f"entry: {target} has no class {name!r}{did_you_mean(name, classes)}", _place(spec, "entry"))
    if not (isinstance(found, type) and issubclass(found, Scene)):
        raise SpecError(f"entry: {name!r} is no envfarm.env.Env, but {found!r}", _place(spec, "entry"))
    return found


def check_requires(spec: EnvSpec) -> None:
    """Raises: MissingDependencyError for the first package of `requires` that is missing or of another version."""
    if not spec.requires:
        return
    from packaging.requirements import Requirement

    for i, text in enumerate(spec.requires):
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            problem = "which is not installed"
        else:
            if wanted.specifier.contains(version, prereleases=True):
                continue
            problem = f"but {wanted.name} {version} is installed"
        message = f"{spec.id} requires {text!r}, {problem}. Install it: pip install {text!r}"
        raise MissingDependencyError(message, _place(spec, "requires", i))


def _place(spec: EnvSpec, *keys: Any) -> Location | None:
    """Where that key stands in the spec's YAML, if the file is there (a spec may have travelled without it)."""
    return read_yaml(spec.path).at(*keys) if spec.file.is_file() else None


def _import_package(spec: EnvSpec, target: str) -> ModuleType:
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as problem:
        if problem.name is None or not (target == problem.name or target.startswith(problem.name + ".")):
            raise _missing(spec, problem) from problem
        raise SpecError(f"entry: there is no module {problem.name!r}", _place(spec, "entry")) from None
    except Exception as problem:
        _tell(spec, f"entry: {target} cannot be imported", problem)


def _import_file(spec: EnvSpec, target: str) -> ModuleType:
    """The module of a file of the spec's folder, imported once per content."""
    file = (spec.folder / target).resolve()
    if not file.is_file():
        raise SpecError(f"entry: no such file: {file}", _place(spec, "entry"))
    package = _package(spec, file.parent)
    name = f"{package}.{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None and found.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except ModuleNotFoundError as problem:
        del sys.modules[name]
        raise _missing(spec, problem) from problem
    except SyntaxError as problem:
        del sys.modules[name]
        place = Location(problem.filename or str(file), problem.lineno or 1, problem.offset or 1)
        raise SpecError(f"not valid Python: {problem.msg}", place) from None
    except Exception as problem:
        del sys.modules[name]
        _tell(spec, f"entry: {target} cannot be imported", problem)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package(spec: EnvSpec, folder: Path) -> str:
    """A package, made up for the folder, that relative imports of its files resolve in."""
    name = "envfarm_folder_" + stable_hash([str(folder), spec.files_hash])[:16]
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        package.__spec__.submodule_search_locations = [str(folder)]
        sys.modules[name] = package
    return name


def _tell(spec: EnvSpec, what: str, problem: Exception) -> NoReturn:
    """The boundary of the author's code, as in a session: what it raises becomes an error at the author's line,
    else at the `entry`. Errors of ours stay as they are, and so does a full disk, which is no mistake of the author's."""
    if isinstance(problem, EnvfarmError) or (isinstance(problem, OSError) and problem.errno == errno.ENOSPC):
        raise problem
    place = raised_at(problem, spec.folder) or _place(spec, "entry")
    raise SpecError(f"{what}: {type(problem).__name__}: {problem}", place) from problem


def _missing(spec: EnvSpec, problem: ModuleNotFoundError) -> MissingDependencyError:
    message = (
        f"{spec.id} imports {problem.name!r}, which is not installed. "
        f"Install it (pip install {(problem.name or '').split('.')[0]}) and name it under `requires:`"
    )
    return MissingDependencyError(message, _place(spec, "entry"))
