"""Trained tokens/s of asynchronous over synchronous training: an engine that is simulated, and code that is not.

Both sides are the loops of `envfarm train` (`trainer.online`, `trainer.asynchronous`) over scheduler, store, batches and
staleness as they are, with the same slots, groups, lengths and trainer. Engine, trainer and clock are models
(`rollout.engines.simulated`, `trainer.simulated`, `rollout.virtual_time`), so hours pass in seconds and every run gives
the same figures. Lengths are lognormal and capped at eight times the median; the trainer takes time per token. A token
that is older than two versions is withheld and does not count as trained.

Beside the ratios: the share withheld, ages, and the lengths that were dispatched and trained on, by power of two.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, finish, row
from rollout import virtual_time
from rollout.engines.simulated.engine import SimulatedEngine
from rollout.engines.simulated.models import Latency, Lengths
from rollout.store import Store
from trainer.asynchronous import improve_async
from trainer.freshness import summed_up
from trainer.metrics import read
from trainer.online import improve_online
from trainer.run import Online
from trainer.simulated import SimulatedClient, no_curve, simulated_run, simulated_trainee

BATCH, GROUP, STEPS, WARM_UP = 128, 8, 24, 4
MEDIAN, CAP = 128, 1024
STALEST = 2
TRAINER_TOKEN_S = 1 / 40_000
"""A step of the trainer takes about a third of the time that sampling its batch takes with all slots full."""


@dataclass
class Stage:
    """One run, without its first steps."""

    trained_per_s: float
    sampled_per_s: float
    told: dict[str, Any]  # ages, lengths, the share withheld


def stage(*, asynchronous: bool, sigma: float, slots: int) -> Stage:
    online: dict[str, Any] = {"group": GROUP, "batch": BATCH, "steps": STEPS}
    if asynchronous:
        online |= {"async": {"max_staleness": STALEST}}
    with tempfile.TemporaryDirectory(prefix="envfarm-bench-") as folder:
        return virtual_time.run(_stage(Path(folder), online, sigma, slots))


async def _stage(folder: Path, online: dict[str, Any], sigma: float, slots: int) -> Stage:
    run = simulated_run(online, slots=slots, max_tokens=CAP)
    settings = run.stages[0].settings
    assert isinstance(settings, Online)
    engine = SimulatedEngine({"learner": None}, max_in_flight=slots, lengths=Lengths(MEDIAN, sigma), latency=Latency())
    ends: list[tuple[float, int]] = []  # of the steps: when, and tokens sampled so far
    client = SimulatedClient(token_s=TRAINER_TOKEN_S, step_s=0.2)
    client.stepped = lambda: ends.append((asyncio.get_running_loop().time(), engine.tokens))
    with Store.create(folder / "store") as store:
        trainee = simulated_trainee(run, folder, engine, client, store)
        async with trainee.rollouts:
            await (improve_async if settings.asynchronous else improve_online)(trainee, "rl", settings, no_curve)
        trainee.metrics.close()
    rows = [r for r in read(folder) if r["kind"] == "train"][WARM_UP:]
    (began, before), (ended, after) = ends[WARM_UP - 1], ends[-1]
    assert max(r["staleness_max"] for r in rows) <= STALEST, "a token was too old"
    trained = sum(r["tokens"] for r in rows)
    return Stage(trained / (ended - began), (after - before) / (ended - began), summed_up(rows))


BINS = (32, 64, 128, 256, 512, 1024)
"""Lengths in the table; shorter ones count with the first."""


def compare(sigma: float, slots: int, goal: str = "") -> list[Row]:
    sync, late = (stage(asynchronous=a, sigma=sigma, slots=slots) for a in (False, True))
    told, name = late.told, f"sigma {sigma}, {slots} slots"
    ages = {age: tokens / sum(told["staleness"].values()) for age, tokens in told["staleness"].items()}
    trained, dispatched = (shares(told[k]) for k in ("lengths_trained", "lengths_dispatched"))
    return [
        row(f"{name}: trained tokens/s", late.trained_per_s, sync.trained_per_s, goal=goal, unit="1/s"),
        row("  sampled tokens/s", late.sampled_per_s, sync.sampled_per_s, unit="1/s"),
        row("  withheld as too old", told["wasted_share"], unit="of tokens"),
        *(row(f"  {age} versions old", share, unit="of trained tokens") for age, share in ages.items()),
        *(
            row(f"  lengths to {most}: trained on, dispatched", trained[most], dispatched[most], unit="of episodes")
            for most in BINS
        ),
    ]


def shares(counts: dict[str, int]) -> dict[int, float]:
    """Of episodes, by length."""
    found = dict.fromkeys(BINS, 0)
    for most, count in counts.items():
        found[max(int(most), BINS[0])] += count
    return {most: count / sum(found.values()) for most, count in found.items()}


def main() -> None:
    rows = [*compare(1.0, BATCH, goal=">=2"), *compare(0.5, BATCH), *compare(1.5, BATCH), *compare(1.0, BATCH // 2)]
    finish("async_training", rows)


if __name__ == "__main__":
    main()
