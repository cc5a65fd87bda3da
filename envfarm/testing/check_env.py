"""The conformance suite for environments: what must hold before anyone trains on one. Public; our tests run it over all.

Each check is a function from a `Probe` to a line of detail, and fails by raising `Failed`. `check_env(spec)` runs all
that apply and gives one `Finding` each. A new check costs one function and one line of `CHECKS`.
"""

from __future__ import annotations

import random as global_random
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from gymnasium.error import Error as GymnasiumError

from envfarm.errors import EnvfarmError, UserError, raised_at
from envfarm.session import Session
from envfarm.testing import agents
from envfarm.testing.probe import Failed, Probe

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance

FLOOR = 0.05
"""Success that a null and a random agent may reach; on the easiest rung twice as much."""

LOOKED_AT = 150
"""Instances of a rung that a rate above the floor is looked at again on: one lucky hit in six is no rate."""


@dataclass(frozen=True)
class Finding:
    """One check of one environment."""

    env: str
    check: str
    ok: bool
    detail: str


def schema(probe: Probe) -> str:
    """The spec survives JSON, its splits can be indexed, and sampling is a pure function."""
    spec = probe.spec
    if type(spec).from_json(spec.to_json()) != spec:
        raise Failed("from_json(to_json(spec)) is not the spec")
    for split in probe.splits:
        first, again = spec.instance(split, 0), spec.instance(split, 0)
        if first != again or first.hash != again.hash:
            raise Failed(f"instance({split!r}, 0) differs between two calls")
    return f"{len(spec.axes)} axes, {len(spec.ladder)} rungs, splits " + ", ".join(f"{s} {spec.size(s):,}" for s in probe.splits)


def api(probe: Probe) -> str:
    """Gymnasium's or PettingZoo's own checker passes."""
    from envfarm.registry import make_scene

    scene = make_scene(probe.spec)
    if len(probe.spec.roles) == 1:
        from gymnasium.utils.env_checker import check_env as gymnasium_check

        try:
            gymnasium_check(scene, skip_render_check=True)  # type: ignore[arg-type]
        finally:
            scene.close()  # type: ignore[attr-defined]
        return "gymnasium.utils.env_checker.check_env"
    from pettingzoo.test import api_test, seed_test

    with redirect_stdout(sys.stderr):  # they print; what we print may be read by a script
        api_test(scene, num_cycles=50, verbose_progress=False)
        seed_test(lambda: make_scene(probe.spec), num_cycles=20)
    return "pettingzoo api_test and seed_test"


def seeds(probe: Probe) -> str:
    """Same instance, same episode; each axis alone changes the content."""
    instances = list(probe.instances(probe.first_split, None, 24))
    if probe.content(instances[0]) != probe.content(instances[0]):
        raise Failed("the same instance gave two contents")
    stuck = [name for name in _axes_that_vary(instances) if not _axis_matters(probe, name, instances)]
    if stuck:
        raise Failed(f"changing {', '.join(stuck)} alone changes neither the first observation nor the box's files")
    return f"{len(_axes_that_vary(instances))} axes change the content, each alone"


def _axes_that_vary(instances: list[Instance]) -> list[str]:
    names = sorted({name for i in instances for name in i.params})
    return [n for n in names if len({msgspec.json.encode(i.params.get(n)) for i in instances}) > 1]


def _axis_matters(probe: Probe, name: str, instances: list[Instance]) -> bool:
    """Whether some instance reads differently with another instance's value of this one axis."""
    values = [i.params[name] for i in instances if name in i.params]
    for instance in [i for i in instances if name in i.params][:6]:
        here = probe.content(instance)
        others = [v for v in values if v != instance.params[name]][:4]
        for value in others:
            changed = msgspec.structs.replace(instance, params={**instance.params, name: value})
            if probe.content(changed) != here:
                return True
    return False


def isolation(probe: Probe) -> str:
    """Global random state stays untouched, and an episode interleaved with another is the episode alone."""
    made = list(probe.instances(probe.first_split, None, 3))
    before = (global_random.getstate(), _numpy_state())
    agents.play(probe.session(), made[0], agents.oracle)
    alone = [agents.play(probe.session(), instance, agents.mixed(0.5)).observations for instance in made]
    if (global_random.getstate(), _numpy_state()) != before:
        raise Failed("the environment drew from or seeded a global random generator")
    turns = 0
    for instance, other, expected in zip(made, made[1:] + made[:1], alone, strict=True):
        seen = _interleaved(probe, instance, other)
        if seen != expected:
            at = next((k for k, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b), len(seen))
            raise Failed(f"interleaved with another episode, observation {at} differs from the episode alone")
        turns += len(seen) - 1
    return f"{turns} turns interleaved, equal to the episodes alone"


def _interleaved(probe: Probe, instance: Instance, other: Instance) -> list[str]:
    """What is observed in an episode of `instance` while another session plays `other`, turn by turn."""
    one, two, agent = probe.session(), probe.session(), agents.mixed(0.5)
    turn, elsewhere, n = one.reset(instance), two.reset(other), 0
    seen = [turn.text]
    while not turn.over:
        if not elsewhere.over:
            elsewhere = two.step(two.random(n))
        action = agent(one, turn, n)
        assert action is not None
        turn, n = one.step(action), n + 1
        seen.append(turn.text)
    return seen


def _numpy_state() -> str:
    return repr(np.random.get_state())


def solved_by_oracle(probe: Probe) -> str:
    """The oracle reaches `solved_at` on every instance tried, of every split and rung."""
    longest: dict[int | None, int] = {}
    session, count = probe.session(), 0
    for split in probe.splits:
        for rung in probe.rungs:
            for instance in probe.instances(split, rung, probe.episodes):
                played = agents.play(session, instance, agents.oracle)
                worst = min(played.rewards.values())
                if not probe.judged_by_value and worst < probe.spec.reward.solved_at:
                    raise Failed(
                        f"oracle reached {worst} < {probe.spec.reward.solved_at} on {split} seed {instance.seed} rung {rung} "
                        f"({instance.params}), stop {played.stop}, last: {played.actions[-3:]} {played.observations[-1][:200]!r}"
                    )
                longest[rung] = max(longest.get(rung, 0), len(played.actions))
                count += 1
    return f"{count} instances; most calls per rung {list(longest.values())}"


def floor(probe: Probe) -> str:
    """Null and random agents stay at the floor on every split and rung."""
    session = probe.session()
    seen: list[str] = []
    for name, agent in (("null", agents.null), ("random", agents.random)):
        for rung in probe.rungs:
            allowed = FLOOR if rung else 2 * FLOOR
            solved, tried = _solved(probe, session, agent, rung, probe.episodes)
            if solved > allowed * tried and tried < LOOKED_AT:
                solved, tried = _solved(probe, session, agent, rung, -(-LOOKED_AT // len(probe.splits)))
            if solved > allowed * tried:
                where = "" if rung is None else f" on rung {rung}"
                raise Failed(f"{name} agent solved {solved} of {tried}{where}; at most {allowed:.0%} is allowed")
            seen.append(f"{name}{'' if rung is None else f'@{rung}'} {solved}/{tried}")
    return ", ".join(seen)


def _solved(probe: Probe, session: Session, agent: agents.Agent, rung: int | None, count: int) -> tuple[int, int]:
    """How many instances the agent solved, and of how many: `count` per split."""
    solved = tried = 0
    for split in probe.splits:
        for instance in probe.instances(split, rung, count):
            played = agents.play(session, instance, agent)
            solved += min(played.rewards.values()) >= probe.spec.reward.solved_at
            tried += 1
    return solved, tried


def distinct(probe: Probe) -> str:
    """At least 95 % distinct contents on the default setting, none shared between splits."""
    by_split: dict[str, set[int]] = {}
    for split in probe.splits:
        contents = [hash(probe.content(i)) for i in probe.instances(split, None, probe.contents)]
        by_split[split] = set(contents)
        if len(by_split[split]) < 0.95 * len(contents):
            raise Failed(f"{len(by_split[split])} distinct contents of {len(contents)} in {split}; 95 % are expected")
    for a in by_split:
        for b in by_split:
            shared = by_split[a] & by_split[b]
            if a < b and shared:
                raise Failed(f"{len(shared)} contents stand in both {a} and {b}")
    return ", ".join(f"{s} {len(c)}" for s, c in by_split.items()) + " distinct"


CHECKS: dict[str, Callable[[Probe], str]] = {
    "schema": schema,
    "api": api,
    "seeds": seeds,
    "isolation": isolation,
    "oracle": solved_by_oracle,
    "floor": floor,
    "distinct": distinct,
}
NOT_FOR_GAMES = ("floor", "distinct")


def check_env(
    spec: EnvSpec, *, backend: str = "bubblewrap", episodes: int = 10, contents: int = 1000, only: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """All checks that apply to `spec`, as they finish.

    `episodes` per split and rung for each agent; `contents` seeds per split for distinctness; `only` names checks.
    Raises nothing of the environment's: what it raises is a finding. What keeps it from being made at all (a missing
    class, package or box) is the last finding: no later check would say anything else.
    """
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        probe = Probe(spec, backend, episodes, contents)
        if probe.judged_by_value and name in NOT_FOR_GAMES:
            continue
        try:
            yield Finding(spec.id, name, True, check(probe))
        except Failed as failed:
            yield Finding(spec.id, name, False, str(failed))
        except UserError as error:
            yield Finding(spec.id, name, False, str(error))
            return
        except (EnvfarmError, AssertionError, GymnasiumError) as error:
            place = raised_at(error.__cause__, spec.folder)
            yield Finding(spec.id, name, False, f"{type(error).__name__}: {error}" + (f" (at {place})" if place else ""))
        finally:
            probe.close()
