"""Every exporter: the same rows give as many trained tokens and the same sum of advantage x mask, read back from its files."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from envfarm.errors import MissingDependencyError, StoreError, UserError
from rollout.export import EXPORTERS, export, exporter
from rollout.export.base import Totals, package, played, totals
from rollout.export.jsonl import Jsonl
from rollout.store import Store
from tests.rollout.export.stores import chatty, groups_of, oracle, play, with_a_failure

PARTIAL = {"trl-dpo"}
"""Formats that keep some rows only: pairs need a better and a worse one."""

MARKERS = {"trl": "trl", "tinker": "trl", "ray": "ray", "verl": "verl"}
"""An exporter's extra -> whose environment its test runs in."""


def _parameter(name: str) -> Any:
    extra = exporter(name).extra
    return pytest.param(name, marks=[getattr(pytest.mark, MARKERS[extra])] if extra else [], id=name)


every_exporter = pytest.mark.parametrize("name", [_parameter(name) for name in EXPORTERS])


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve groups of six, one episode of which is not ok."""
    folder = tmp_path_factory.mktemp("sampled")
    return with_a_failure(play(folder / "played", chatty(), groups=12, size=6), folder / "store")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(tmp_path_factory.mktemp("logs") / "store", oracle(0.4), groups=4, size=3, stage="logs")


def same(found: Totals, expected: Totals) -> bool:
    return found.tokens == expected.tokens and found.advantage == pytest.approx(expected.advantage, rel=1e-5, abs=1e-5)


@every_exporter
def test_trained_tokens_and_advantages_survive(name: str, sampled: Path, tmp_path: Path) -> None:
    to, groups = exporter(name), groups_of(sampled)
    assert to.name == name
    assert export(to, groups, tmp_path / "out") > 0
    found, kept = to.totals(tmp_path / "out"), totals(row for g in groups for row in to.select(g))
    assert same(found, kept), f"{found} written, {kept} selected"
    if name not in PARTIAL:
        assert same(found, totals(row for g in groups for row in g.rows)), "every row is kept"


@every_exporter
def test_less_in_the_store_is_less_in_the_files(name: str, sampled: Path, tmp_path: Path) -> None:
    to, groups = exporter(name), groups_of(sampled)
    export(to, groups, tmp_path / "all")
    export(to, groups[: len(groups) // 2], tmp_path / "less")
    assert to.totals(tmp_path / "less").tokens < to.totals(tmp_path / "all").tokens


@every_exporter
def test_logs_are_written_or_refused_and_a_refusal_leaves_nothing(name: str, logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "below" / "out"
    try:
        count = export(exporter(name), groups_of(logs), out)
    except UserError as error:
        assert repr(name) in str(error) and "it needs" in str(error)
        assert not out.exists() and list(out.parent.iterdir()) == []
    else:
        assert count > 0 and exporter(name).totals(out) == Totals(), "scripts leave no tokens"


@every_exporter
def test_an_empty_store_is_refused(name: str, tmp_path: Path) -> None:
    if name == "jsonl":
        assert export(exporter(name), [], tmp_path / "out") == 0, "no episodes, no lines"
        return
    with pytest.raises(UserError, match="nothing to write"):
        export(exporter(name), [], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# The harness itself.


def test_the_store_under_test_has_what_makes_it_hard(sampled: Path) -> None:
    groups = groups_of(sampled)
    rows = [row for g in groups for row in g.rows]
    assert any(row.branch > 0 for row in rows), "branches"
    assert any(not e.ok for g in groups for e in g.group.episodes), "an episode that is not ok"
    assert any(e.malformed for g in groups for e in g.group.episodes), "replies that are no action"
    assert any(row.advantage < 0 for row in rows) and any(row.advantage > 0 for row in rows)
    assert abs(totals(rows).advantage) > 1.0


def test_an_exporter_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    class Breaks(Jsonl):
        def write(self, groups: Any, folder: Path) -> int:
            (folder / "half").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        export(Breaks(), [], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="folder of its own"):
        export(Jsonl(), [], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_extra_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"no_such_package_here.*pip install 'envfarm\[ray\]'"):
        package("no_such_package_here", extra="ray")


@pytest.mark.skipif(find_spec("msgpack_numpy") is not None, reason="the extra is installed here; elsewhere it is asked for")
def test_an_exporter_asks_for_its_extra_and_leaves_nothing(sampled: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[ray\]'"):
        export(exporter("rllib"), groups_of(sampled), tmp_path / "out")
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[ray\]'"):
        import_module("trainer.rllib")
    assert list(tmp_path.iterdir()) == []


def test_attempts_and_policies(sampled: Path) -> None:
    episodes = list(Store.open(sampled).episodes())
    assert [row for g in played(episodes, policy="learner") for row in g.rows]
    assert not [row for g in played(episodes, policy="rival") for row in g.rows]
    (group, *_) = played([*episodes[:6], episodes[5]])
    assert len(group.group.episodes) == 6, "of a member's attempts the last one"
