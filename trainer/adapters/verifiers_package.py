"""Write a package that verifiers finds by its name, as it finds those of its hub: one environment, both interfaces.

python -m trainer.adapters.verifiers_package games/maze-v0 --output packages/games-maze
pip install --no-deps packages/games-maze
vf-eval games-maze ...                             # 0.1
eval games-maze ...                                # 0.4
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import envfarm
from envfarm.errors import UserError
from envfarm.registry import default_registry
from envfarm.spec import EnvSpec

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
description = "{title}"
requires-python = ">=3.11"
dependencies = ["envfarm", "verifiers>=0.1.14"]
tags = {tags}

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""

MODULE = '''\
"""{title}: {id} of envfarm, for both interfaces of verifiers."""

from trainer.adapters import verifiers

if hasattr(verifiers, "load_environment"):

    def load_environment(**options):
        return verifiers.load_environment("{id}", **options)

    __all__ = ["load_environment"]
else:
    from trainer.adapters.verifiers import EnvfarmEnv, EnvfarmHarness

    Instances = verifiers.taskset_for("{id}")

    __all__ = ["EnvfarmEnv", "EnvfarmHarness", "Instances"]
'''


def package_name(spec: EnvSpec) -> str:
    """`games/maze-v0` is `games-maze`, version 0."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"-v\d+$", "", spec.id.lower())).strip("-")


def write_package(spec: EnvSpec, folder: Path, *, named: str | None = None) -> str:
    """Write the package and return its name. `named` is how the environment is found (default: its id).

    Raises: UserError where the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: a package needs a folder of its own")
    name = package_name(spec)
    module, version = name.replace("-", "_"), spec.id.rpartition("-v")[2]
    title = (spec.title or spec.id).replace('"', "'").replace("\\", "/")
    folder.mkdir(parents=True, exist_ok=True)
    values = {"name": name, "module": module, "title": title, "id": named or spec.id, "tags": [f"envfarm-{envfarm.__version__}"]}
    values["version"] = f"{version}.0" if version.isdigit() else "0.0"
    (folder / "pyproject.toml").write_text(PYPROJECT.replace("tags = {tags}\n", "").format(**values), encoding="utf-8")
    (folder / f"{module}.py").write_text(MODULE.format(**values), encoding="utf-8")
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.adapters.verifiers_package", description=__doc__.splitlines()[0])
    parser.add_argument("env", help="id, YAML file or folder")
    parser.add_argument("--output", "-o", type=Path, required=True)
    given = parser.parse_args(arguments)
    spec = default_registry().get(given.env)
    own = str(Path(given.env).resolve()) if Path(given.env).exists() else spec.id
    name = write_package(spec, given.output, named=own)
    print(f"{name} in {given.output}: pip install --no-deps {given.output}")


if __name__ == "__main__":
    main()
