"""The online loop, asynchronous: episodes go on while the trainer steps, and carry over from batch to batch.

Groups are dispatched all the time, in the order of their numbers, as slots become free. A batch is made when enough of
them are complete, oldest first, within a bounded window (`rollout.window`); the age of every token is taken then, and
what is older than `max_staleness` updates is withheld, its reward kept in the baseline. New weights reach requests in
flight.

Which group is played is a function of its number; which weights play it is a matter of time, so two runs are not the
same bit for bit. The accounting is exact all the same: a step commits weights and cursor first and publishes the
weights after that, so no token is ever labelled with a version that a kill takes back. What was finished and not
consumed is found in the store, what was consumed is never asked for again, what was in flight is played again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rollout.feed import Feed
from rollout.plan import GroupRequest
from rollout.requests import draw_groups
from rollout.types import Group
from rollout.window import Cursor, Window, WindowTerms
from trainer.context import Trainee, timed
from trainer.freshness import LengthCounts
from trainer.groups import Batch
from trainer.online import batches_of, update
from trainer.run import Online
from trainer.versions import keep_snapshots, seat_older_versions


async def improve_async(trainee: Trainee, name: str, settings: Online, curve: Any) -> None:
    """Go on from `state.step` to the end. `curve(step)` is awaited where a point of the learning curve is due."""
    state = trainee.state
    trainee.screen.begin(name, settings.steps, "steps", state.step)
    await trainee.publish()
    await seat_older_versions(trainee)
    if state.step < settings.steps:
        cursor = Cursor(state.consumed.get(name, 0), set(state.ahead))
        lengths = LengthCounts(trainee.run.learner)
        async with feed_of(trainee, name, settings, cursor, lengths) as feed:
            while state.step < settings.steps:
                await _step(trainee, name, settings, feed, lengths, curve)
    state.consumed[name], state.ahead = state.consumed.get(name, 0) + len(state.ahead), []  # from here on only counted
    trainee.screen.end("all steps done")


async def _step(trainee: Trainee, name: str, settings: Online, feed: Feed, lengths: LengthCounts, curve: Any) -> None:
    state, every = trainee.state, trainee.run.evaluate.every
    if every and state.step and state.step % every == 0:
        await curve(state.step)  # before the step after it, so that a resumed run makes up for it
    with timed(state.wall_s, "rollout"):
        groups = await feed.take()
    with timed(state.wall_s, "train"):
        before = state.number
        batch = Batch(drawn=len(groups))
        batch.extend(batches_of(trainee, settings, groups, before), settings.batch // settings.group)
        numbers = await update(trainee, settings, batch)
        await keep_snapshots(trainee, before)
    state.step += 1
    state.consumed[name], state.ahead = feed.window.cursor.low, sorted(feed.window.cursor.ahead)
    numbers |= lengths.of(batch) | {"waiting": float(feed.window.waiting)}
    numbers |= batch.statistics(trainee.trained_seats()) | {f"{k}_s": v for k, v in state.wall_s.items()}
    trainee.metrics.write(name, state.step, state.number, numbers)
    trainee.screen.advance(success=numbers["success"], signal=len(batch.data), stale=numbers.get("staleness_max", 0.0))
    await asyncio.to_thread(trainee.commit)
    if state.number != before:
        await trainee.publish()
        await seat_older_versions(trainee)


def feed_of(trainee: Trainee, name: str, settings: Online, cursor: Cursor, lengths: LengthCounts) -> Feed:
    """The stage's groups, from where its cursor is."""

    def signal(group: Group) -> bool:
        return not settings.dynamic_sampling or any(b.data for b in batches_of(trainee, settings, [group], None))

    return Feed(
        trainee.rollouts, drawing(trainee, name, settings), Window(cursor, terms_of(settings)), signal,
        finished=lengths.finished,
    )  # fmt: skip


def terms_of(settings: Online) -> WindowTerms:
    """As wide as batches may be old, unless said otherwise."""
    terms, wanted = settings.asynchronous, settings.batch // settings.group
    assert terms is not None
    most = wanted * settings.rounds
    return WindowTerms(
        wanted=wanted, most=most, size=terms.window or (terms.max_staleness + 1) * wanted,
        training=terms.max_staleness * wanted, last=settings.steps * most,
    )  # fmt: skip


def drawing(trainee: Trainee, name: str, settings: Online) -> Callable[[int], GroupRequest]:
    """Number -> request. The numbers of a synchronous step's first draw get the same instances as there."""
    run, wanted = trainee.run, settings.batch // settings.group
    choices = run.choices(trainee.specs)
    block: dict[int, list[GroupRequest]] = {}

    def draw(number: int) -> GroupRequest:
        step, index = divmod(number, wanted)
        if step not in block:
            block.clear()
            block[step] = draw_groups(
                choices, seed=run.seed, stage=name, step=step, groups=wanted, size=settings.group,
                sampling=run.sampling.params(), split=settings.split, any_version=True,
            )  # fmt: skip
        return block[step][index]

    return draw
