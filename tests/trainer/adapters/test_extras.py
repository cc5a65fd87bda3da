"""An extra that is not installed is one clear error that names the command."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from envfarm.errors import MissingDependencyError
from rollout.export import export, exporter
from rollout.export.base import played
from rollout.store import Store
from tests.trainer.adapters.conftest import Farm


@pytest.mark.skipif(find_spec("datasets") is not None, reason="datasets is installed here")
def test_data_sets_without_the_package() -> None:
    from trainer.adapters.trl import environment_factory, make_rollout_func

    with make_rollout_func(["games/maze-v0"]) as rollout, pytest.raises(MissingDependencyError, match=r"'envfarm\[trl\]'"):
        rollout.dataset(3)
    with environment_factory("games/maze-v0") as maze, pytest.raises(MissingDependencyError, match=r"'envfarm\[trl\]'"):
        maze.dataset(3)


@pytest.mark.skipif(find_spec("tinker") is not None, reason="tinker is installed here")
def test_datums_without_the_sdk(farm: Farm, tmp_path: Path) -> None:
    from rollout.export.tinker import datums

    export(exporter("tinker"), played(Store.open(farm.store).episodes()), tmp_path / "out")  # needs nothing
    with pytest.raises(MissingDependencyError, match=r"'envfarm\[tinker\]'"):
        datums(tmp_path / "out")
