"""How long a reaper goes on after its owner has ended."""

from __future__ import annotations

from collections.abc import Iterator, Set

import pytest

from envfarm.backends import reaper

OWNER, ENDED = "lab_1_2", -1  # no process has this number


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "_AGAIN_S", 0.01)
    monkeypatch.setattr(reaper, "_SLOWLY_S", 0.02)
    monkeypatch.setattr(reaper, "_PATIENCE_S", 0.3)


def looks(found: Iterator[int]) -> int:
    """How often it looked, at an engine that answers so."""
    asked: list[str | None] = []

    def remove_left_over(owner: str | None, names: Set[str]) -> int:
        asked.append(owner)
        return next(found)

    reaper.main(remove_left_over, OWNER, ENDED)
    assert set(asked) == {OWNER}
    return len(asked)


def forever(count: int) -> Iterator[int]:
    while True:
        yield count


def test_it_ends_when_nothing_came_in_two_looks() -> None:
    assert looks(iter([3, 0, 1, 0, 0])) == 5


def test_as_long_as_boxes_become_fewer_it_goes_on() -> None:
    """For longer than its patience, which is some thirty looks."""
    assert looks(iter([*range(100, 0, -1), 0, 0])) == 102


@pytest.mark.parametrize("answer", [-1, 2], ids=["nobody answers", "a box cannot be removed"])
def test_where_it_does_not_get_on_it_gives_up(answer: int) -> None:
    assert 1 < looks(forever(answer)) < 100
