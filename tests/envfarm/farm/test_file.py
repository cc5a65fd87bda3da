"""FARM.yaml: what it may say, which pool serves what, and errors at their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from envfarm.errors import FarmFileError, UserError
from envfarm.farm.file import FarmFile, read_farm

FARM = """\
envfarm: 1
farm: lab
pools:
  - {environments: ["coding/*"], workers: 2, boxes: {min: 4, max: 64, warm: 8}}
  - {environments: ["toy/lamp-v0", "*/maze-v0"]}
target: {kubernetes: {namespace: lab, image: envfarm/worker}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "FARM.yaml"
    path.write_text(text)
    return path


def test_a_farm_file_is_read_and_survives_json(tmp_path: Path) -> None:
    farm = read_farm(write(tmp_path, FARM))
    assert farm.kind == "kubernetes" and farm.target.kubernetes is not None and farm.target.kubernetes.boxes == "lab-boxes"
    assert farm.pools[0].boxes.warm == 8 and farm.pools[1].workers == 1
    assert FarmFile.model_validate_json(farm.model_dump_json()) == farm


def test_the_first_pool_that_matches_serves(tmp_path: Path) -> None:
    farm = read_farm(write(tmp_path, FARM))
    assert [farm.pool_of(i) for i in ("coding/shell-v0", "toy/lamp-v0", "games/maze-v0", "coding/maze-v0")] == [0, 1, 1, 0]
    with pytest.raises(
        UserError, match=r"does not serve 'toy/lamp-v1' \(did you mean 'toy/lamp-v0'\?\); its pools serve coding/"
    ):
        farm.pool_of("toy/lamp-v1")


def test_on_overrides_the_kind_and_keeps_what_the_file_says_of_it(tmp_path: Path) -> None:
    path = write(tmp_path, FARM.replace("kubernetes: {namespace: lab, image: envfarm/worker}", "docker: {workers: process}"))
    assert read_farm(path, "bubblewrap").kind == "bubblewrap"
    assert read_farm(path, "docker") == read_farm(path)
    made = read_farm(path, "kubernetes").target.kubernetes
    assert made is not None and (made.namespace, made.boxes) == ("lab", "lab-boxes")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("warm: 8", "warm: 80", r":4:\d+: .*`warm: 80` is more than `max: 64`"),
        ("pools:", "pool:", r":3:1: unknown key .pool. \(did you mean .pools.\?\)"),
        ("workers: 2", "worker: 2", r":4:\d+: .*'worker'.*did you mean 'workers'"),
        ("farm: lab", "farm: Lab_1", r":2:\d+: "),
        ("kubernetes: {namespace: lab, image: envfarm/worker}", "docker: {}, bubblewrap: {}", r":6:\d+: .*exactly one of"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(FarmFileError, match=r"FARM.yaml" + said):
        read_farm(write(tmp_path, FARM.replace(old, new)))
