"""The public suite over every shipped environment: each check of each environment is a test of its own."""

from __future__ import annotations

import pytest

from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.testing import agents
from envfarm.testing.check_env import CHECKS, NOT_FOR_GAMES, check_env

SHIPPED = default_registry().ids()

KNOWN_FAILURES: dict[tuple[str, str], str] = {}
"""(environment, check) -> why. An entry that passes fails the test, so that none outlives its reason."""

CASES = [
    pytest.param(name, check, marks=[pytest.mark.box] if name.startswith("coding/") else [])
    for name in SHIPPED
    for check in CHECKS
    if not (name.startswith("games/kuhn") and check in NOT_FOR_GAMES)
]


def test_five_families_are_shipped() -> None:
    assert {"coding/repair-v0", "coding/shell-v0", "games/kuhn-v0", "games/maze-v0", "web/shop-v0"} <= set(SHIPPED)


@pytest.mark.parametrize(("name", "check"), CASES)
def test_a_shipped_environment_conforms(name: str, check: str) -> None:
    spec = default_registry().get(name)
    [finding] = check_env(spec, episodes=8, contents=1000, only=(check,))
    known = KNOWN_FAILURES.get((name, check))
    assert finding.ok == (known is None), finding.detail if known is None else f"no longer fails: {known}"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_environment_is_rich_enough(name: str) -> None:
    spec = default_registry().get(name)
    assert len(spec.axes) >= 3 and len(spec.ladder) >= 3
    assert {"train", "validation", "heldout"} <= set(spec.splits)
    assert spec.splits["heldout"].where != spec.splits["train"].where, "held-out instances differ in kind"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.box] if n.startswith("coding/") else []) for n in SHIPPED if "kuhn" not in n]
)
def test_the_top_of_the_ladder_takes_the_oracle_eight_calls(name: str) -> None:
    spec = default_registry().get(name)
    session, top = local_session(spec), {"rung": len(spec.ladder) - 1}
    instances = [spec.instance(split, i, top) for split in ("train", "heldout") for i in range(3)]
    calls = [len(agents.play(session, instance, agents.oracle).actions) for instance in instances]
    session.close()
    assert min(calls) >= 8, calls
