"""Dockerfiles of the subset: what is read, what is refused and where, what the digest depends on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from envfarm.backends import rootfs
from envfarm.errors import BoxUnavailableError
from envfarm.images.build import build, root_of
from envfarm.images.recipe import BASES, Copy, ImageError, Recipe, Run, base, read
from envfarm.spec import load_spec

TREE = Path(__file__).parents[1] / "toys" / "tree"


def recipe_of(folder: Path, text: str) -> Recipe:
    (folder / "Dockerfile").write_text(text)
    return read(folder, "envfarm/lab/x-v0")


def test_an_image_is_what_is_below_it_and_then_its_own() -> None:
    low, high = map(base, BASES)
    made = read(TREE / "image", "envfarm/lab/tree-v0")
    assert made.packages == (*low.packages, "tree") and "python3" in high.packages
    assert made.steps == (*low.steps, Copy((TREE / "image/motto.txt").resolve(), "/usr/share/motto.txt"))
    assert all(isinstance(step, Run) for step in low.steps) and high.steps[: len(low.steps)] == low.steps


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("RUN true\n", 1, "expected FROM first and once, found RUN"),
        ("FROM envfarm/base\nFROM envfarm/python\n", 2, "expected FROM first and once"),
        ("FROM ubuntu\n", 1, "FROM: expected envfarm/base or envfarm/python, found 'ubuntu'"),
        ("FROM debian:bookworm-slim\n", 1, "FROM: expected envfarm/base"),
        ("# only a remark\n", 1, "expected FROM envfarm/base"),
        ("FROM envfarm/base\n\nENV A=1\n", 3, "ENV: only FROM, RUN and COPY"),
        ("FROM envfarm/base\nRUN apt-get install tree\n", 2, "packages are installed by"),
        ("FROM envfarm/base\nRUN apt-get update && apt-get install -y --no-install-recommends tree; id\n", 2, "nothing else"),
        ("FROM envfarm/base\nRUN id\nRUN apt-get update && apt-get install -y --no-install-recommends tree\n", 3, "first"),
        ("FROM envfarm/base\nCOPY --chown=1 a /b\n", 2, "COPY: expected SOURCE DESTINATION"),
        ("FROM envfarm/base\nCOPY nothing /b\n", 2, "COPY: no file 'nothing'"),
        ("FROM envfarm/base\nCOPY ../../outside /b\n", 2, "COPY: no file"),
        ("FROM envfarm/base\nCOPY Dockerfile b\n", 2, "absolute path"),
        ("FROM envfarm/base\nRUN id \\\n", 2, "goes on"),
    ],
)
def test_the_rest_is_refused_at_its_line(text: str, line: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refused:
        recipe_of(tmp_path, text)
    assert said in str(refused.value) and f"Dockerfile:{line}:1" in str(refused.value)


def test_lines_go_on_and_remarks_are_none(tmp_path: Path) -> None:
    made = recipe_of(tmp_path, "FROM envfarm/base\nRUN one && \\\n# a remark\n    two\n")
    assert made.steps[-1] == Run("one && two")


def test_the_digest_names_the_image_and_is_in_the_hash_of_the_spec(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(TREE, tmp_path / name)
    same, other = load_spec(tmp_path / "a/tree.yaml"), load_spec(tmp_path / "b/tree.yaml")
    assert same.sandbox.image == other.sandbox.image and same.hash == other.hash and same.sandbox.build == "image"
    (tmp_path / "b/image/motto.txt").write_text("another\n")
    changed = load_spec(tmp_path / "b/tree.yaml")
    assert changed.sandbox.image != same.sandbox.image and changed.hash != same.hash
    assert changed.sandbox.image.startswith("envfarm/lab/tree-v0:")


def test_an_image_that_is_not_built_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFARM_CACHE", str(tmp_path))
    image = load_spec(TREE / "tree.yaml").sandbox.image
    with pytest.raises(BoxUnavailableError, match="or it is stale: run `envfarm image build lab/tree-v0`"):
        rootfs.resolve(image)
    (root_of(image) / "bin").mkdir(parents=True)
    (root_of(image) / "bin/sh").touch()
    assert rootfs.resolve(image).shell == "/bin/sh"


def test_what_is_mounted_names_neither_us_nor_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box's mounts show where on the host they are from. A tree that stands in another place is moved."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ENVFARM_CACHE", raising=False)
    recipe = read(TREE / "image", "envfarm/lab/tree-v0")
    (root_of(recipe.tag) / "bin").mkdir(parents=True)
    (root_of(recipe.tag) / "bin/sh").touch()
    for _ in range(2):
        assert not build(recipe), "it is there"
        mounted = [word.replace(str(tmp_path), "CACHE") for word in rootfs.resolve(recipe.tag).args]
        assert f"CACHE/box-roots/{recipe.digest}/bin" in mounted
        assert not [word for word in mounted if "envfarm" in word or "tree" in word]


def test_a_base_image_of_an_older_recipe_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "envfarm"
    for name in ("base@000000000000", root_of(base("envfarm/base").tag).name):
        (folder / name / "bin").mkdir(parents=True)
        (folder / name / "bin/sh").touch()
    (folder / "base").symlink_to("base@000000000000")
    with pytest.raises(BoxUnavailableError, match="is stale: run `envfarm image build`"):
        rootfs.resolve("envfarm/base", tmp_path)
    (folder / "base").unlink()
    (folder / "base").symlink_to(root_of(base("envfarm/base").tag).name)
    assert rootfs.resolve("envfarm/base", tmp_path).shell == "/bin/sh"
