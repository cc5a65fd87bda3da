"""Suggestions: the nearest name, beside it only what is all but as near, and nothing where nothing is near."""

from __future__ import annotations

import pytest

from envfarm.errors import did_you_mean, near_matches

STAGES = ["untrained", "imitation", "offline", "rl"]


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("ofline", STAGES, ["offline"]),
        ("games/maze-v1", ["games/kuhn-v0", "games/maze-v0", "web/shop-v0"], ["games/maze-v0"]),
        ("grid", ["gride", "gird", "grids"], ["gride", "grids"]),
        ("size", ["site", "side", "length"], ["site", "side"]),
        ("zzz", STAGES, []),
        ("a", [], []),
    ],
)
def test_near_names(name: str, known: list[str], near: list[str]) -> None:
    assert near_matches(name, known) == near


def test_it_reads_as_a_question() -> None:
    assert did_you_mean("ofline", STAGES) == " (did you mean 'offline'?)"
    assert did_you_mean("zzz", STAGES) == ""
