"""Groups are consumed in dispatch order within a bounded window, each of them once, whatever order they finish in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout.types import Group
from rollout.window import Cursor, Window, WindowTerms


def group(number: int) -> Group:
    return Group(id=str(number), env="e-v0", instance_hash="", episodes=[])


def terms(wanted: int = 2, most: int = 2, size: int = 6, training: int = 6, last: int | None = None) -> WindowTerms:
    return WindowTerms(wanted, most, size, training, last)


def fill(window: Window) -> list[int]:
    """Dispatch all that may be."""
    numbers = []
    while (number := window.next()) is not None:
        window.dispatch(number)
        numbers.append(number)
    return numbers


def ids(groups: list[Group]) -> list[int]:
    return [int(g.id) for g in groups]


def test_a_cursor_forgets_what_lies_below_the_oldest_that_is_missing() -> None:
    cursor = Cursor()
    cursor.consume([2, 1])
    assert (cursor.low, cursor.ahead, cursor.count) == (0, {1, 2}, 2)
    cursor.consume([0])
    assert (cursor.low, cursor.ahead, cursor.count) == (3, set(), 3)
    assert 2 in cursor and 3 not in cursor


def test_what_a_killed_run_consumed_is_not_dispatched_again() -> None:
    window = Window(Cursor(3, {4, 7}), terms(size=6))
    assert fill(window) == [3, 5, 6, 8], "from the oldest that is missing, no further than six places"


def test_the_oldest_group_holds_the_window_and_others_pass_it() -> None:
    window = Window(Cursor(), terms(size=4))
    assert fill(window) == [0, 1, 2, 3]
    for number in (3, 1):
        window.complete(number, group(number), signal=True)
    assert window.enough() and ids(window.take()) == [1, 3], "oldest first"
    assert fill(window) == [], "nothing beyond the fourth place from group 0"
    window.complete(2, group(2), signal=True)
    assert not window.enough()
    window.complete(0, group(0), signal=True)
    assert fill(window) == [4, 5, 6, 7], "what is complete holds nobody up"
    assert ids(window.take()) == [0, 2]


def test_while_a_batch_is_trained_on_fewer_may_be_out() -> None:
    window = Window(Cursor(), terms(size=6, training=3))
    assert len(fill(window)) == 6
    for number in range(4):
        window.complete(number, group(number), signal=True)
    window.take()
    window.training = True
    assert fill(window) == [], "two run and two wait"
    window.training = False
    assert fill(window) == [6, 7, 8, 9], "six places from group 4"


def test_groups_without_a_signal_are_consumed_and_do_not_fill_a_batch() -> None:
    window = Window(Cursor(), terms(wanted=2, most=4, size=4))
    fill(window)
    for number in range(3):
        window.complete(number, group(number), signal=number != 1)
    assert ids(window.take()) == [0, 1, 2]
    window.complete(3, group(3), signal=False)
    assert fill(window)[:3] == [4, 5, 6], "the window grows as fewer of its groups count"
    for number in (4, 5, 6):
        window.complete(number, group(number), signal=False)
    assert window.enough() and ids(window.take()) == [3, 4, 5, 6], "no more than that many for one batch"


def test_where_nothing_more_comes_a_batch_is_what_there_is() -> None:
    window = Window(Cursor(), terms(wanted=2, last=3))
    fill(window)
    for number in (0, 1):
        window.complete(number, group(number), signal=True)
    window.take()
    assert not window.enough()
    window.complete(2, group(2), signal=True)
    assert window.enough() and ids(window.take()) == [2]


@given(
    wanted=st.integers(1, 4), rounds=st.integers(1, 3), factor=st.integers(1, 4), training=st.integers(1, 12),
    batches=st.integers(1, 12), choices=st.lists(st.integers(0, 1000), min_size=200, max_size=200),
    shares=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_every_group_is_consumed_once_in_order_and_none_beyond_the_window(
    wanted: int, rounds: int, factor: int, training: int, batches: int, choices: list[int], shares: float
) -> None:
    most = wanted * rounds
    window = Window(Cursor(), WindowTerms(wanted, most, wanted * factor, training, last=batches * most))
    consumed: list[int] = []
    dispatched: list[int] = []
    draw = iter(choices * 50)
    while True:
        new = fill(window)
        dispatched += new
        assert all(n - min(window.running) < wanted * factor * rounds for n in new)
        if window.enough():
            complete = set(dispatched) - window.running - set(consumed)
            taken = ids(window.take())
            window.training = bool(next(draw) % 2)
            assert taken == sorted(taken) and len(taken) <= most
            assert taken == sorted(complete)[: len(taken)], "none that was complete is passed over"
            consumed += taken
            if not taken:
                break
        elif window.running:
            number = sorted(window.running)[next(draw) % len(window.running)]
            window.complete(number, group(number), signal=next(draw) / 1000 < shares)
            window.training = window.training and bool(next(draw) % 3)
    assert sorted(consumed) == dispatched == list(range(batches * most)), "each once, and none is forgotten"
    assert window.cursor == Cursor(batches * most)
