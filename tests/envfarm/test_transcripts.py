"""Transcript identity: one changed thing is found and placed, a cell that cannot be played fails, and real cells are equal."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from envfarm.comparison import Comparison
from envfarm.errors import UserError
from envfarm.registry import default_registry
from envfarm.session import Turn
from envfarm.spec import EnvSpec
from envfarm.testing import cells
from envfarm.testing.cells import CELLS, Cell, chosen
from envfarm.testing.identity import Finding, identity
from envfarm.testing.transcripts import POLICIES, Transcript, cases_of, compare, play
from envfarm.worker.client import AsyncSession
from envfarm.worker.local import LocalPool
from tests.testbed import require_gvisor

MAZE = default_registry().get("games/maze-v0")
CASE = next(cases_of(MAZE, 1))


def played() -> Transcript:
    async def one() -> Transcript:
        pool = LocalPool([MAZE])
        await pool.start()
        try:
            return await play(CASE, await pool.session(MAZE.id))
        finally:
            await pool.close()

    return asyncio.run(one())


def changed(index: int, **change: Any) -> Transcript:
    other = deepcopy(PLAYED)
    other.turns[index] = msgspec.structs.replace(other.turns[index], **change)
    return other


PLAYED = played()


def test_cases_go_over_splits_and_rungs_with_every_policy() -> None:
    cases = list(cases_of(MAZE, 12))
    assert {c.policy for c in cases} == set(POLICIES) and len({c.name for c in cases}) == len(cases) == 12 * len(POLICIES)
    kinds = {(c.instance.split, c.instance.setting["rung"]) for c in cases}
    assert len(kinds) == 3 * len(MAZE.ladder)


def test_the_same_episode_is_the_same() -> None:
    found = Comparison()
    compare(CASE, PLAYED, played(), found)
    assert found.same and found.text_chars == sum(len(turn.text) for turn in PLAYED.turns) > 100


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (changed(0, text=PLAYED.turns[0].text + " "), "first observation"),
        (changed(1, text="else"), "after action 1"),
        (changed(2, rewards={"agent": 0.5}), "after action 2, rewards"),
        (changed(1, virtual_time_s=0.25), "after action 1, virtual_time_s"),
        (changed(-1, stop="turn_limit"), "stop"),
        (Transcript(PLAYED.turns, ["wait", *PLAYED.actions[1:]]), "action 1"),
        (Transcript(PLAYED.turns[:-1], PLAYED.actions[:-1]), "actions"),
        (Transcript(PLAYED.turns, PLAYED.actions, "env_error: it broke"), "error"),
    ],
)
def test_one_change_is_found_and_placed(other: Transcript, where: str) -> None:
    found = Comparison()
    compare(CASE, PLAYED, other, found)
    assert len(found.differences) == 1 and where in found.differences[0].where
    assert found.differences[0].episode == CASE.name


class Muttering(LocalPool):
    """A place where the world adds a word to its third text."""

    async def session(self, env_id: str) -> AsyncSession:
        session, heard = await super().session(env_id), []
        step = session.step

        async def muttered(*arguments: Any) -> Turn:
            turn = await step(*arguments)
            heard.append(turn)
            return msgspec.structs.replace(turn, text=turn.text + " Hm.") if len(heard) == 2 else turn

        session.step = muttered  # type: ignore[method-assign]
        return session


class Closed(LocalPool):
    async def start(self) -> None:
        raise UserError("this place is closed: open it")


def found_in(monkeypatch: pytest.MonkeyPatch, place: type, specs: Sequence[EnvSpec] = (MAZE,)) -> list[Finding]:
    monkeypatch.setitem(cells.PLACES, "there", f"{__name__}:{place.__name__}")

    async def all_of() -> list[Finding]:
        return [finding async for finding in identity(specs, [Cell("odd", "there", "none")], 1)]

    return asyncio.run(all_of())


def test_a_place_where_the_world_says_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, odd = found_in(monkeypatch, Muttering)
    assert reference.ok and reference.episodes == len(POLICIES)
    assert not odd.ok and [d.where for d in odd.found.differences] == ["after action 2"] * len(POLICIES)


def test_a_place_that_cannot_be_had_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, odd = found_in(monkeypatch, Closed)
    assert reference.ok and not odd.ok and odd.reason == "this place is closed: open it" and odd.episodes == 0


def test_an_unknown_backend_is_refused() -> None:
    assert chosen("all") == list(CELLS) and {c.boxes for c in chosen("docker,kubernetes")} == {"docker", "kubernetes"}
    with pytest.raises(UserError, match=r"nothing compares 'dokcer' with bubblewrap \(did you mean 'docker'"):
        chosen("dokcer")


# --- the command ------------------------------------------------------------------------------------------------------


def check(*arguments: str, **variables: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Exit code, and findings by environment and cell."""
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", "check", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.stdout, done.stderr
    return done.returncode, {(f["env"], f["cell"]): f for f in json.loads(done.stdout)}


def test_a_cell_that_applies_and_cannot_run_fails_and_says_what_to_do(tmp_path: Path) -> None:
    """Neither its image nor an engine is here."""
    code, found = check(
        "games/maze-v0", "coding/shell-v0", "--backends", "docker", "--episodes", "1",
        ENVFARM_IMAGES=str(tmp_path), DOCKER_HOST="unix:///nowhere/engine.sock",
    )  # fmt: skip
    assert code == 1 and found["games/maze-v0", "bubblewrap"]["ok"] and ("games/maze-v0", "docker") not in found
    missing = found["coding/shell-v0", "bubblewrap"], found["coding/shell-v0", "docker"]
    assert all(not f["ok"] and "run `envfarm image build --engine`" in f["reason"] for f in missing)


@pytest.mark.parametrize(
    "backends",
    [
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("docker-runsc", marks=pytest.mark.docker),
        pytest.param("kubernetes", marks=pytest.mark.kubernetes),
    ],
)
@pytest.mark.slow
def test_every_shipped_environment_is_the_same_in_every_cell(backends: str) -> None:
    if backends == "docker-runsc":
        require_gvisor()
    code, found = check("--backends", backends, "--episodes", "2")
    wrong = [(*key, f["reason"] or f["differences"][:1]) for key, f in found.items() if not f["ok"]]
    assert (code, wrong) == (0, [])
    for cell in chosen(backends):
        applying = {name for name in default_registry().ids() if cell.applies(default_registry().get(name))}
        assert {env for env, name in found if name == cell.name} == applying
