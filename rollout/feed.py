"""Groups without end: dispatched all the time, handed out in batches.

    async with Feed(rollouts, draw, window, signal) as feed:
        groups = await feed.take()     # meanwhile, and while they are trained on, others are played

Episodes carry over from one batch to the next; weights may be published at any moment. Order and bounds are the
window's (`rollout.window`), the number of slots is the plan's `max_in_flight`. What is dispatched is a function of its
number alone, so a run that was killed asks for the same again, except for what its cursor says was consumed; what was
finished then is found in the store, whatever weights played it (`GroupRequest.any_version`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, Self

from rollout.plan import GroupRequest
from rollout.types import Group
from rollout.window import Window


class Player(Protocol):
    """What a feed needs of `rollout.scheduler.Rollouts`."""

    async def begin(self, request: GroupRequest) -> asyncio.Task[Group]: ...


class Feed:
    """`draw(number)` says what is played, `signal(group)` whether there is something to learn from what was."""

    def __init__(
        self, player: Player, draw: Callable[[int], GroupRequest], window: Window, signal: Callable[[Group], bool],
        *, finished: Callable[[Group], None] | None = None,
    ):  # fmt: skip
        self.window = window
        self._player, self._draw, self._signal, self._finished = player, draw, signal, finished
        self._groups: dict[int, asyncio.Task[Group]] = {}
        self._changed = asyncio.Event()  # something finished, or was taken
        self._failure: BaseException | None = None
        self._dispatcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._dispatcher = asyncio.create_task(self._dispatch())
        self._dispatcher.add_done_callback(self._note)
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is still being played is called off, and recorded as that."""
        tasks = [t for t in (self._dispatcher, *self._groups.values()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self) -> list[Group]:
        """The next batch, as soon as there is one; what was taken before is done with.

        Raises: RunHaltedError where too many episodes failed.
        """
        self.window.training = False
        self._changed.set()
        while not self.window.enough():
            await self._change()
        self._raise()
        groups, self.window.training = self.window.take(), True
        self._changed.set()
        return groups

    async def _dispatch(self) -> None:
        while True:
            number = self.window.next()
            if number is None:
                await self._change()
                continue
            self.window.dispatch(number)
            task = await self._player.begin(self._draw(number))
            self._groups[number] = task
            task.add_done_callback(lambda t, n=number: self._ended(n, t))  # type: ignore[misc]

    def _ended(self, number: int, task: asyncio.Task[Group]) -> None:
        del self._groups[number]
        self._note(task)
        if not task.cancelled() and task.exception() is None:
            group = task.result()
            self.window.complete(number, group, signal=self._signal(group))
            if self._finished is not None:
                self._finished(group)
        self._changed.set()

    def _note(self, task: asyncio.Task[object]) -> None:
        """Keep what broke a task, for whoever takes next."""
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
        self._changed.set()

    async def _change(self) -> None:
        self._raise()
        self._changed.clear()
        await self._changed.wait()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
