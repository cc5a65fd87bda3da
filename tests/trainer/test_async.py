"""Asynchronous training on a virtual clock: nothing lost, nothing trained on twice, nothing trained on that is too old."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rollout import virtual_time
from rollout.engines.simulated.engine import SimulatedEngine
from rollout.engines.simulated.models import Faults, Latency, Lengths
from rollout.store import Store
from rollout.store.invariants import episode_findings
from rollout.types import Episode, PolicyVersion, StopReason
from trainer.asynchronous import improve_async
from trainer.batch import Datum
from trainer.checkpoint import Checkpoints
from trainer.client import ForwardOutput
from trainer.freshness import sampled_tokens
from trainer.losses import LossConfig, clipped
from trainer.metrics import read
from trainer.online import improve_online
from trainer.run import Online, RunFile
from trainer.simulated import SimulatedClient, no_curve, simulated_run, simulated_trainee

QUICK = Latency(base_s=0.01, request_s=0.0, prefill_s=0.0, update_s=0.05)


class WatchedClient(SimulatedClient):
    """Remembers which version each pass was made with."""

    def __init__(self, **more: Any):
        super().__init__(**more)
        self.passes: list[tuple[int, list[Datum]]] = []

    def forward_backward(self, data: list[Datum], loss: str, config: LossConfig | None = None) -> Future[ForwardOutput]:
        self.passes.append((self.number, data))
        return super().forward_backward(data, loss, config)


class WatchedEngine(SimulatedEngine):
    """Remembers which weights were committed when it was given new ones."""

    committed: Callable[[], int]

    def __init__(self, models: Any, **more: Any):
        super().__init__(models, **more)
        self.published: list[tuple[int, int]] = []

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        self.published.append((version.number, self.committed()))
        await super().update_weights(version, state)


@dataclass
class Played:
    """What a run left behind."""

    run: RunFile
    episodes: list[Episode]
    rows: list[dict[str, Any]]
    passes: list[tuple[int, list[Datum]]]
    consumed: int
    engine: WatchedEngine
    seconds: float

    @property
    def ok(self) -> list[Episode]:
        return [e for e in self.episodes if e.ok]

    def total(self, key: str) -> float:
        return sum(r.get(key, 0.0) for r in self.rows)

    def histogram(self, name: str) -> Counter[int]:
        found: Counter[int] = Counter()
        for row in self.rows:
            found.update({int(k.rpartition("/")[2]): int(v) for k, v in row.items() if k.startswith(name + "/")})
        return found


def play(
    online: dict[str, Any], folder: Path, *, slots: int = 16, sigma: float = 1.0, faults: Faults | None = None,
    token_s: float = 0.0005, copy_at_s: float | None = None, max_tokens: int = 400,
) -> Played:  # fmt: skip
    """A stage, from where `folder` says it is. With `copy_at_s` the folder is copied then, as a kill would leave it."""
    run = simulated_run(online, slots=slots, max_tokens=max_tokens)
    stage = run.stages[0].settings
    assert isinstance(stage, Online)
    engine = WatchedEngine(
        {"learner": None}, max_in_flight=slots, lengths=Lengths(median=20, sigma=sigma), latency=QUICK, faults=faults
    )
    engine.committed = lambda: found[0].number if (found := Checkpoints(folder).latest()) else 0
    client = WatchedClient(token_s=token_s, step_s=0.1)

    async def main() -> Played:
        with Store.open_or_create(folder / "store") as store:
            trainee = simulated_trainee(run, folder, engine, client, store)
            if copy_at_s is not None:
                copied = folder.with_name(folder.name + "-killed")
                asyncio.get_running_loop().call_later(copy_at_s, shutil.copytree, folder, copied)
            async with trainee.rollouts:
                loop = improve_async if stage.asynchronous else improve_online
                await loop(trainee, "rl", stage, no_curve)
            trainee.metrics.close()
            rows = [r for r in read(folder) if r["kind"] == "train"]
            consumed = trainee.state.consumed["rl"]
            return Played(run, list(store.episodes()), rows, client.passes, consumed, engine, asyncio.get_running_loop().time())

    return virtual_time.run(main())


def versions_of(episode: Episode) -> Iterator[tuple[int, int]]:
    """(token, number of the version that sampled it) over an episode, told from its nodes alone."""
    for node in episode.nodes:
        spans = dict(node.versions) or ({0: node.version} if node.version is not None else {})
        current = None
        for place, (token, sampled) in enumerate(zip(node.token_ids, node.mask, strict=True)):
            current = spans.get(place, current)
            if sampled:
                assert current is not None
                yield token, current.number


def oldest_trained(played: Played) -> int:
    """The age of the oldest token that any pass gave a weight, by the passes' own data and the stored episodes. Of episodes
    that say the same, a row may be of any that was there by then."""
    by_tokens: dict[tuple[int, ...], list[Episode]] = defaultdict(list)
    for episode in played.ok:
        by_tokens[tuple(t for n in episode.nodes for t in n.token_ids)].append(episode)
    oldest = 0
    for number, data in played.passes:
        for row in data:
            weighed = {i + 1 for i in row.weights.nonzero()[0].tolist()}
            ages = [ages_of(e, weighed, number) for e in by_tokens[(*row.tokens.tolist(), int(row.targets[-1]))]]
            oldest = max(oldest, min(max(found) for found in ages if min(found) >= 0))
    return oldest


def ages_of(episode: Episode, places: set[int], number: int) -> list[int]:
    """Of the sampled tokens at these places, when version `number` is trained."""
    sampled = [i for i, m in enumerate(m for n in episode.nodes for m in n.mask) if m]
    assert places <= set(sampled)
    return [number - v for (_, v), place in zip(versions_of(episode), sampled, strict=True) if place in places]


SMALL = {"group": 4, "batch": 16, "steps": 6}


def test_a_run_trains_on_every_group_once_and_on_nothing_too_old(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True}, tmp_path)
    assert played.consumed == 24 == played.total("groups_drawn") and len(played.rows) == 6
    assert len(played.episodes) == len(played.ok) == 96, "what is dispatched is what is needed"
    assert oldest_trained(played) == max(r["staleness_max"] for r in played.rows) == 2
    assert sum(len(data) for _, data in played.passes) == sum(played.histogram("lengths/trained").values())
    assert played.total("tokens") == sum(played.histogram("staleness").values())
    assert not [f for e in played.episodes for f in episode_findings(e)]


def test_episodes_carry_over_and_requests_in_flight_go_on_with_new_weights(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True}, tmp_path)
    changed = [e for e in played.ok if len({v for _, v in versions_of(e)}) > 1]
    assert changed, "some reply was sampled by more than one version"
    for episode in played.ok:
        numbers = [v for _, v in versions_of(episode)]
        assert numbers == sorted(numbers), "versions never go back"


def test_weights_are_committed_before_any_token_is_sampled_with_them(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True}, tmp_path)
    assert [n for n, _ in played.engine.published] == list(range(7))
    assert all(number == committed for number, committed in played.engine.published)


def test_it_is_quicker_than_waiting_for_the_slowest_each_time(tmp_path: Path) -> None:
    sync = play(SMALL | {"steps": 12}, tmp_path / "sync")
    late = play(SMALL | {"steps": 12, "async": True}, tmp_path / "async")
    assert sync.total("tokens") / sync.seconds < late.total("tokens") / late.seconds
    assert {r["staleness_max"] for r in sync.rows} == {0.0} and "wasted_share" not in sync.rows[0]


def test_the_same_instances_as_a_synchronous_run(tmp_path: Path) -> None:
    sync, late = play(SMALL, tmp_path / "sync"), play(SMALL | {"async": True}, tmp_path / "async")
    slots = [{(e.step, e.index, e.member): e.instance_hash for e in p.ok} for p in (sync, late)]
    assert slots[0] == slots[1]


def test_dynamic_sampling_fills_batches_with_groups_that_disagree(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True, "dynamic_sampling": True}, tmp_path)
    assert played.total("groups_kept") <= 24 < played.total("groups_drawn") == played.consumed
    assert all(r["groups_kept"] <= 4 and r["groups_drawn"] <= 12 for r in played.rows)
    called_off = [e for e in played.episodes if e.stop is StopReason.ABORTED]
    assert len(played.ok) + len(called_off) == len(played.episodes), "what was not needed any more says so"


def test_a_trainer_that_is_slower_than_the_actors_finds_fresh_groups(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True, "steps": 12}, tmp_path, token_s=0.02)
    assert played.total("withheld_tokens") < 0.1 * played.total("tokens"), "actors wait, instead of working for nothing"
    assert oldest_trained(played) == 2


def test_a_death_of_the_engine_costs_what_was_in_flight(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True}, tmp_path, faults=Faults(deaths_s=(0.5, 1.5), restart_s=1.0))
    failed = [e for e in played.episodes if e.stop is StopReason.INFRA_ERROR]
    assert played.engine.deaths == 2 and failed and len(played.ok) == 96
    assert not {(e.step, e.index, e.member) for e in failed} - {(e.step, e.index, e.member) for e in played.ok}


@given(
    sigma=st.sampled_from([0.0, 0.5, 1.0, 1.5]), slots=st.integers(4, 40), group=st.sampled_from([2, 4]),
    wanted=st.integers(1, 4), bound=st.integers(1, 3), dynamic=st.booleans(), window=st.integers(0, 6),
    token_s=st.sampled_from([0.0, 0.0005, 0.01]), deaths=st.lists(st.floats(0.1, 5.0), max_size=2),
)  # fmt: skip
@example(sigma=1.5, slots=4, group=2, wanted=4, bound=1, dynamic=True, window=0, token_s=0.0, deaths=[])  # twins in one group
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_run_it_accounts_for_every_episode(
    sigma: float, slots: int, group: int, wanted: int, bound: int, dynamic: bool, window: int, token_s: float, deaths: list[float]
) -> None:
    terms = {"max_staleness": bound} | ({"window": wanted + window} if window else {})
    online = {"group": group, "batch": group * wanted, "steps": 5, "dynamic_sampling": dynamic, "async": terms}
    with tempfile.TemporaryDirectory() as folder:
        played = play(
            online, Path(folder), slots=slots, sigma=sigma, token_s=token_s, faults=Faults(deaths_s=tuple(deaths), restart_s=0.5)
        )
    assert len({e.id for e in played.episodes}) == len(played.episodes), "each attempt is emitted once"
    slots_ok = Counter((e.step, e.index, e.member) for e in played.ok)
    assert set(slots_ok.values()) == {1}
    assert oldest_trained(played) <= bound
    assert played.consumed == played.total("groups_drawn")
    assert not [f for e in played.episodes for f in episode_findings(e)]
    finished = Counter(1 << max(sampled_tokens(e, "learner") - 1, 0).bit_length() for e in played.ok)
    consumed = {(e.step, e.index) for e in played.ok}
    if not dynamic:
        assert len(consumed) == 5 * wanted and len(played.ok) == 5 * wanted * group
        assert played.histogram("lengths/dispatched") == finished, "trained on is what was dispatched, long or short"
    else:
        assert not played.histogram("lengths/trained") - finished


@pytest.mark.parametrize("at_s", [0.05, 0.7, 1.3, 2.9])
def test_killed_anywhere_it_goes_on_without_losing_or_repeating(tmp_path: Path, at_s: float) -> None:
    online = SMALL | {"async": True, "dynamic_sampling": True}
    play(online, tmp_path / "run", copy_at_s=at_s)
    left = tmp_path / "run-killed"
    with Store.open(left / "store") as store:
        before = {e.id: e for e in store.episodes(ok=True)}
    resumed = play(online, left)
    assert set(before) <= {e.id for e in resumed.ok}
    slots = Counter((e.step, e.index, e.member) for e in resumed.ok)
    assert set(slots.values()) == {1}, "what had finished was found, not played again"
    assert [r["step"] for r in resumed.rows] == list(range(1, 7))
    assert resumed.consumed == resumed.total("groups_drawn"), "no group was consumed twice, and none is missing"
    assert oldest_trained(resumed) <= 2


def test_lengths_are_counted_by_powers_of_two(tmp_path: Path) -> None:
    played = play(SMALL | {"async": True}, tmp_path, sigma=0.0)
    assert {sampled_tokens(e, "learner") for e in played.ok} == {20} and played.histogram("lengths/dispatched") == {32: 96}


def test_tokens_of_older_weights_are_corrected_and_not_clipped_for_being_old() -> None:
    now = torch.log(torch.tensor([0.5, 0.5, 0.2, 0.9]))
    sampled, advantages = torch.log(torch.tensor([0.5, 0.1, 0.4, 0.3])), torch.tensor([1.0, 1.0, -1.0, 1.0])

    def gradient(old: torch.Tensor | None, decouple: bool) -> list[float]:
        logprobs = now.clone().requires_grad_()
        terms = clipped(
            logprobs, sampled_N=sampled, advantages_N=advantages, weights_N=torch.ones(4), old_N=old,
            config=LossConfig(truncate=2.0, decouple=decouple),
        )  # fmt: skip
        return torch.autograd.grad(terms.loss_N.sum(), logprobs)[0].tolist()

    assert gradient(None, True) == pytest.approx([-1.0, -2.0, 0.5, -2.0]), "the weight pi/mu, at most 2, times the advantage"
    assert gradient(None, True) == gradient(now, True) == gradient(now, False)
    assert gradient(None, False) == pytest.approx([-1.0, 0.0, 0.0, 0.0]), "one ratio for both: what moved is clipped"


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="window of 3 groups of 8 holds no batch of 64"):
        Online.model_validate({"async": {"window": 3}})
    with pytest.raises(ValidationError, match=r"`async: \{max_staleness: N\}`"):
        Online.model_validate({"async": True, "max_staleness": 1})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Online.model_validate({"async": {"max_staleness": 0}})
    assert Online.model_validate({"async": True}).oldest == 2 and Online.model_validate({}).oldest == 0
