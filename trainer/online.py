"""The online loop: act, compare within groups, step; a page that reads top to bottom.

A step: draw instances, play each `group` times, drop the groups whose members agree (nothing to learn there; with
dynamic sampling others are drawn in their place, up to a bound), centre rewards within groups, one or several optimizer
steps, publish, commit. All that is drawn is a function of (seed, stage, step, place): a step that was interrupted is
drawn again, and what of it was finished comes out of the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rollout.requests import draw_groups
from rollout.staleness import histogram
from rollout.types import Group
from trainer.client import ForwardOutput, StepOutput
from trainer.context import Trainee, adam, done, timed
from trainer.groups import Batch, make_batch, with_old
from trainer.losses import LossConfig
from trainer.mismatch import alarm, percentile
from trainer.run import Online
from trainer.versions import keep_snapshots, seat_older_versions


async def improve_online(trainee: Trainee, name: str, settings: Online, curve: Any) -> None:
    """Go on from `state.step` to the end. `curve(step)` is awaited where a point of the learning curve is due."""
    state, run = trainee.state, trainee.run
    trainee.screen.begin(name, settings.steps, "steps", state.step)
    await trainee.publish()
    await seat_older_versions(trainee)
    while state.step < settings.steps:
        with timed(state.wall_s, "rollout"):
            batch = await collect(trainee, name, settings)
        with timed(state.wall_s, "train"):
            before = state.number
            numbers = await update(trainee, settings, batch)
            await trainee.publish()
            await keep_snapshots(trainee, before)
            await seat_older_versions(trainee)
        state.step += 1
        state.consumed[name] = state.consumed.get(name, 0) + batch.drawn
        numbers |= batch.statistics(trainee.trained_seats()) | {f"{k}_s": v for k, v in state.wall_s.items()}
        trainee.metrics.write(name, state.step, state.number, numbers)
        trainee.screen.advance(success=numbers["success"], signal=len(batch.data), kl=numbers.get("kl", 0.0))
        if run.evaluate.every and state.step % run.evaluate.every == 0 and state.step < settings.steps:
            await curve(state.step)
        trainee.commit()
    trainee.screen.end("all steps done")


async def collect(trainee: Trainee, name: str, settings: Online) -> Batch:
    """A step's groups that carry a signal, in dispatch order; at most as many as a batch holds."""
    wanted = settings.batch // settings.group
    run, step = trainee.run, trainee.state.step
    batch, count = Batch(), wanted
    for _ in range(settings.rounds):
        requests = draw_groups(
            run.choices(trainee.specs), seed=run.seed, stage=name, step=step, groups=count, size=settings.group,
            sampling=run.sampling.params(), split=settings.split, first=batch.drawn,
        )  # fmt: skip
        groups = await trainee.rollouts.run(requests)
        batch.extend(batches_of(trainee, settings, groups, trainee.state.number), wanted)
        batch.drawn += len(requests)
        if batch.kept >= wanted:
            break
        # As many more as should fill the batch at the rate seen so far; never more than one batch at a time.
        count = min(wanted, math.ceil((wanted - batch.kept) * batch.drawn / max(batch.kept, 1)))
    return batch


def batches_of(trainee: Trainee, settings: Online, groups: Sequence[Group], number: int | None) -> list[Batch]:
    """What each group has to train on when version `number` is updated: older tokens than `settings` allows are
    withheld, with None none are."""
    divisor = settings.batch * trainee.run.sampling.max_tokens
    return [
        make_batch(
            group, trainee.trained_seats()[group.env], discount=settings.discount, baseline=settings.baseline,
            divide_by_std=settings.divide_by_std, divisor=divisor, number=number,
            max_staleness=settings.oldest,
        )
        for group in groups
    ]  # fmt: skip


async def update(trainee: Trainee, settings: Online, batch: Batch) -> dict[str, float]:
    """One or several optimizer steps on a batch; nothing where no group carried a signal."""
    if not batch.data:
        return {"loss": 0.0, "grad_norm": 0.0, "tokens": 0.0}
    client, state, data = trainee.client, trainee.state, batch.data
    config = LossConfig(
        clip_low=settings.clip_low, clip_high=settings.clip_high, truncate=settings.truncate,
        decouple=settings.asynchronous is not None,
    )  # fmt: skip
    if settings.updates > 1:
        data = with_old(data, (await done(client.forward(data))).logprobs)
    loss = "ppo" if settings.algorithm == "grpo" else "importance_sampling"
    outputs: list[tuple[ForwardOutput, StepOutput]] = []
    for _ in range(settings.updates):
        passed = client.forward_backward(data, loss, config)
        stepped = client.optim_step(adam(settings, state.step, total=settings.steps, decay=settings.decay))
        outputs.append((await done(passed), await done(stepped)))
    state.number = outputs[-1][1].number
    for name, amount in (("trained_tokens", outputs[0][0].tokens), ("seen_tokens", sum(map(len, data)))):
        state.counters[name] = state.counters.get(name, 0) + amount * settings.updates
    numbers = _numbers(outputs, batch, state.number - settings.updates)
    numbers["mismatch_p99"] = percentile(data, outputs[0][0].logprobs)
    if settings.asynchronous is None:  # else tokens are of older weights, too
        alarm(trainee.screen.console, trainee.stage, state.step, numbers)
    return numbers


def _numbers(outputs: list[tuple[ForwardOutput, StepOutput]], batch: Batch, number: int) -> dict[str, float]:
    """Means per trained token of the first pass, which is the one that compares trainer and engine on equal weights."""
    first, (last, step) = outputs[0][0], outputs[-1]
    per_token = {k.removesuffix(":sum"): v / max(first.tokens, 1) for k, v in first.metrics.items() if k.endswith(":sum")}
    staleness = histogram(batch.rows, number)
    return {
        "loss": last.loss, "grad_norm": step.grad_norm, "tokens": float(first.tokens),
        "kl": per_token.get("kl_k3", 0.0), "mismatch_mean": per_token.get("mismatch", 0.0),
        "mismatch_max": first.metrics.get("mismatch_max", first.metrics.get("mismatch:max", 0.0)),
        "clipped": last.metrics.get("clipped:sum", 0.0) / max(last.tokens, 1),
        "staleness_max": float(max(staleness, default=0)),
        **{f"staleness/{age}": float(tokens) for age, tokens in staleness.items()},
    }  # fmt: skip
