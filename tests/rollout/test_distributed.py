"""Episodes in the actors of a real Ray cluster: three nodes on this host, killed one by one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from envfarm.errors import UserError
from envfarm.session import local_session
from envfarm.spec import EnvSpec, load_spec
from rollout.build import ModelFolder, chat_policy, embedded_engine
from rollout.engines.base import Capabilities
from rollout.inprocess import LocalPool
from rollout.plan import RunPlan
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.run import RayEntry
from rollout.run_policies import EngineEntry
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import Episode, Group, PolicyVersion, StopReason
from tests.faults import Counts, record, segments
from tests.rollout.ray_scenes import ENV, Gate, family, gone, model_folder, outside, plain, requests, three_nodes, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ENGINE = EngineEntry(kind="torch", threads=1, max_in_flight=12)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with three_nodes() as cluster:
        yield cluster


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def spec(tmp_path: Path, gate: Gate) -> EnvSpec:
    return outside(tmp_path / "outside", gate)


def plasma() -> set[str]:
    return {name for name in segments() if name.startswith("plasma")}


def plan(spec: EnvSpec, **more: Any) -> RunPlan:
    return RunPlan("run", 5, {spec.id: spec}, max_in_flight=12, **more)


@asynccontextmanager
async def fleet_on(cluster: Any, spec: EnvSpec, workers: int = 3, **more: Any) -> AsyncIterator[Any]:
    from rollout.distributed import Fleet

    entry = RayEntry(workers=workers, **{"address": cluster.address, **more})
    fleet = Fleet(entry, {spec.id: spec}, workers=1, max_in_flight=12)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.close()


def engine_policy(engine: Any, folder: ModelFolder) -> EnginePolicy:
    return EnginePolicy(PolicyVersion("learner"), engine, folder.renderer())


def episodes_of(groups: list[Group]) -> list[Episode]:
    return [e for g in groups for e in g.episodes]


async def in_this_process(spec: EnvSpec, folder: ModelFolder, stage: str, version: PolicyVersion, state: Any) -> list[Episode]:
    engine = embedded_engine(ENGINE, {"learner": folder})
    pool = LocalPool(lambda _: local_session(spec))
    async with Rollouts(plan(spec), pool, {"learner": engine_policy(engine, folder)}) as rollouts:
        await rollouts.publish(version, state)
        return episodes_of(await rollouts.run(requests(spec, 6, 4, stage=stage)))


def test_trajectories_are_those_of_one_process_bit_for_bit(cluster: Any, spec: EnvSpec, gate: Gate, tmp_path: Path) -> None:
    """With an environment that is nowhere but in its bundle, before and after new weights, and after a replica died."""
    from rollout.engines.torch.checkpoint import checksum, load_state

    gate.open()
    first, second = model_folder(tmp_path / "first", 1), model_folder(tmp_path / "second", 2)
    old, new = load_state(first.path), load_state(second.path)
    v0, v1 = PolicyVersion("learner", 0, 0, checksum(old)), PolicyVersion("learner", 0, 1, checksum(new))
    kept = load_spec(shutil.copytree(spec.folder, tmp_path / "kept") / "say.yaml")

    async def on_ray() -> list[list[Episode]]:
        played = []
        async with fleet_on(cluster, spec) as fleet:
            assert len({s.greeting.node for s in fleet.slots}) == 3, "the replicas are spread over the nodes"
            shutil.rmtree(spec.folder)
            engine = fleet.engine(ENGINE, {"learner": first})
            async with Rollouts(plan(spec), fleet, {"learner": engine_policy(engine, first)}) as rollouts:
                assert rollouts.policies["learner"].version == v0, "the replicas' engines said what they serve"
                assert engine.capabilities.batch_invariant and engine.capabilities.context == 256
                played.append(episodes_of(await rollouts.run(requests(spec, 6, 4, stage="old"))))
                assert all(s.played for s in fleet.slots)
                await rollouts.publish(v1, new)
                played.append(episodes_of(await rollouts.run(requests(spec, 6, 4, stage="new"))))
                victim = fleet.slots[1]
                died = victim.greeting.pid
                os.kill(died, signal.SIGKILL)
                played.append(episodes_of(await rollouts.run(requests(spec, 6, 4, stage="after"))))
                await until(lambda: victim.up and victim.greeting.pid != died, "the replica is started again")
                others = [s for s in fleet.slots if s is not victim]
                for slot in others:
                    slot.busy = fleet.room  # the new one plays alone
                played.append(episodes_of(await rollouts.run(requests(spec, 6, 4, stage="alone"))))
                for slot in others:
                    slot.busy = 0
        return played

    async def alone() -> list[list[Episode]]:
        stages = (("old", v0, old), ("new", v1, new), ("after", v1, new), ("alone", v1, new))
        return [await in_this_process(kept, first, stage, v, state) for stage, v, state in stages]

    there, here = asyncio.run(on_ray()), asyncio.run(alone())
    for stage, (far, near) in enumerate(zip(there, here, strict=True)):
        assert all(e.ok for e in far)
        if stage == 2:  # some were lost with the replica, and are another attempt of the same
            for e in far:
                e.id, e.attempt = f"{e.id.rpartition('.')[0]}.0", 0
        assert plain(far) == plain(near)
    assert any(n.logprobs for e in there[0] for n in e.nodes), "the model spoke"
    assert plain(there[1])[0]["nodes"] != plain(there[2])[0]["nodes"], "stages are sampled with seeds of their own"


def test_new_weights_reach_every_replica_while_it_plays(cluster: Any, spec: EnvSpec, gate: Gate, tmp_path: Path) -> None:
    from rollout.engines.torch.checkpoint import checksum, load_state

    first, second = model_folder(tmp_path / "first", 1), model_folder(tmp_path / "second", 2)
    new = load_state(second.path)
    v0, v1 = PolicyVersion("learner", 0, 0, checksum(load_state(first.path))), PolicyVersion("learner", 0, 1, checksum(new))

    async def go() -> list[Episode]:
        async with fleet_on(cluster, spec) as fleet:
            engine = fleet.engine(ENGINE, {"learner": first})
            async with Rollouts(plan(spec), fleet, {"learner": engine_policy(engine, first)}) as rollouts:
                playing = asyncio.create_task(rollouts.run(requests(spec, 6, 4)))
                await until(lambda: gate.waiting == 3, "each replica's worker is in the middle of an episode")
                assert [s.busy for s in fleet.slots] == [4, 4, 4], "a group each: its members share a prompt"
                await rollouts.publish(v1, new)
                with pytest.raises(ValueError, match="checksum"):
                    await rollouts.publish(PolicyVersion("learner", 0, 2, "0" * 64), new)
                gate.open()
                return episodes_of(await playing)

    episodes = asyncio.run(go())
    sampled = [[n.version for n in e.nodes if any(n.mask)] for e in episodes]
    under_way, later = sampled[:12], sampled[12:]
    assert any(v[0] == v0 and v[-1] == v1 for v in under_way), "begun with the old weights, ended with the new ones"
    assert all(v == sorted(v) and set(v) <= {v0, v1} for v in under_way)
    assert all(set(v) == {v1} for v in later)
    assert [e.seats["agent"] for e in episodes] == [v0] * 12 + [v1] * 12


def kill_actor(cluster: Any, slot: Any) -> None:
    os.kill(slot.greeting.pid, signal.SIGKILL)


def kill_node(cluster: Any, slot: Any) -> None:
    (node,) = [n for n in cluster.worker_nodes if n.node_id == slot.greeting.node]
    raylet = node.all_processes["raylet"][0].process
    raylet.kill()
    raylet.wait()  # its actors end when it is gone, not while it is a zombie


@pytest.mark.parametrize("kill", [kill_actor, kill_node])
def test_kill_9_loses_only_what_was_in_flight_there_which_is_run_again(
    cluster: Any, spec: EnvSpec, gate: Gate, tmp_path: Path, kill: Any
) -> None:
    before = plasma()

    async def go(store: Store) -> tuple[set[str], set[str], bool]:
        async with fleet_on(cluster, spec) as fleet:
            finished: set[str] = set()
            async with Rollouts(plan(spec), fleet, {"oracle": ScriptedPolicy("oracle", "oracle")}, store) as rollouts:
                gate.open()
                await rollouts.run(requests(spec, 3, 4, policy="oracle", stage="before"), lambda e: finished.add(e.id))
                (gate.folder / "open").unlink()
                playing = asyncio.create_task(rollouts.run(requests(spec, 6, 4, policy="oracle")))
                await until(lambda: gate.waiting == 3, "all replicas are at work")
                assert [s.busy for s in fleet.slots] == [4, 4, 4]
                victim = next(s for s in fleet.slots if s.greeting.node != cluster.head_node.node_id)
                children, died = family(victim.greeting.pid), victim.greeting.pid
                lost = {f"run/rollout/0/{victim.number}/{m}.0" for m in range(4)}
                kill(cluster, victim)
                await until(lambda: victim.greeting.pid != died and victim.up, "the replica is started again, elsewhere")
                gate.open()
                await playing
                return finished, lost, gone(children)

    with Store.create(tmp_path / "store") as store:
        finished, lost, ended = asyncio.run(go(store))
    assert ended, "the workers of a dead replica end with it"
    with Store.open(tmp_path / "store") as store:
        stored = list(store.episodes())
    good = [e for e in stored if e.ok]
    slots = Counter((e.stage, e.index, e.member) for e in good)
    wanted = [(stage, i, m) for stage, groups in (("before", 3), ("rollout", 6)) for i in range(groups) for m in range(4)]
    assert slots == Counter(wanted), "each slot was filled once, none is missing"
    assert {e.id for e in stored if not e.ok} == lost, "and nothing else"
    assert all(e.stop is StopReason.INFRA_ERROR and e.reward == {} for e in stored if not e.ok)
    assert {e.id for e in good if e.attempt} == {i.removesuffix(".0") + ".1" for i in lost}
    missing = finished - {e.id for e in stored}
    zeroed = sum(bool(e.reward) for e in stored if not e.ok)
    record(
        "Ray actor" if kill is kill_actor else "Ray node",
        Counts(len(good), len(missing), sum(n - 1 for n in slots.values()), zeroed, int(not ended), len(plasma() - before)),
    )


@pytest.mark.parametrize("through", ["address", "client_address"])
def test_what_is_called_off_is_called_off_there(cluster: Any, spec: EnvSpec, gate: Gate, through: str) -> None:
    """From a node of the cluster, and from outside through Ray's client."""

    async def go() -> None:
        policies, address = {"oracle": ScriptedPolicy("oracle", "oracle")}, getattr(cluster, through)
        async with (
            fleet_on(cluster, spec, workers=1, address=address) as fleet,
            Rollouts(plan(spec), fleet, policies) as rollouts,
        ):
            playing = asyncio.create_task(rollouts.run(requests(spec, 3, 4, policy="oracle")))
            await until(
                lambda: gate.waiting == 1 and [s.busy for s in fleet.slots] == [12],
                "all are dispatched, and the replica's worker is in the middle of an episode",
            )
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing
            assert [s.busy for s in fleet.slots] == [0]
            gate.open()
            again = episodes_of(await rollouts.run(requests(spec, 3, 4, policy="oracle")))
            assert all(e.ok for e in again) and fleet.slots[0].up

    asyncio.run(go())


def test_older_versions_and_served_models_act_beside_the_learner(cluster: Any, spec: EnvSpec, gate: Gate, tmp_path: Path) -> None:
    from rollout.engines.torch.checkpoint import checksum, load_state

    gate.open()
    first, second = model_folder(tmp_path / "first", 1), model_folder(tmp_path / "second", 2)
    older = PolicyVersion("older", 0, 7, checksum(load_state(second.path)))
    word = requests(spec, 1, 1, stage="served")[0].instance.params["word"]

    async def go() -> list[list[Episode]]:
        async with fleet_on(cluster, spec, workers=2) as fleet, answering(word) as url:
            engine = fleet.engine(ENGINE, {"learner": first})
            policies: dict[str, Policy] = {"learner": engine_policy(engine, first)}
            policies["served"] = chat_policy("served", EngineEntry(kind="openai", base_url=url, model="stub"))
            async with Rollouts(plan(spec), fleet, policies) as rollouts:
                await engine.add_policy(older, second.path)
                with pytest.raises(ValueError, match="update_weights"):
                    await engine.add_policy(older, second.path)
                rollouts.policies["older"] = EnginePolicy(older, engine, second.renderer())
                os.kill(fleet.slots[0].greeting.pid, signal.SIGKILL)  # the next one hears of both, too
                return [
                    episodes_of(await rollouts.run(requests(spec, 4, 4, stage=name, policy=name))) for name in ("older", "served")
                ]

    from_older, served = asyncio.run(go())
    assert all(e.ok and e.seats["agent"] == older for e in from_older)
    assert {n.version for e in from_older for n in e.nodes if any(n.mask)} == {older}
    assert all(e.ok and e.steps[0].action == word and not e.nodes for e in served)
    assert all((e.stop is StopReason.TERMINATED) == (e.instance["params"]["word"] == word) for e in served)
    assert served[0].reward == {"agent": 1.0}


@asynccontextmanager
async def answering(text: str) -> AsyncIterator[str]:
    """A server that says the same to everybody."""

    async def chat(_: web.Request) -> web.Response:
        said = {"role": "assistant", "content": text}
        return web.json_response({"choices": [{"message": said, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    server = web.AppRunner(app)
    await server.setup()
    try:
        await web.TCPSite(server, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{server.addresses[0][1]}/v1"
    finally:
        await server.cleanup()


def test_an_environment_that_cannot_be_played_there_says_so(cluster: Any, spec: EnvSpec) -> None:
    (spec.folder / "words.py").write_text("import a_package_that_is_not_there\n")

    async def go() -> None:
        async with fleet_on(cluster, load_spec(spec.file), workers=1):
            pass

    with pytest.raises(UserError, match=f"{ENV} imports 'a_package_that_is_not_there', which is not installed"):
        asyncio.run(go())


def test_an_actor_that_finds_no_place_names_what_is_missing(cluster: Any, spec: EnvSpec) -> None:
    async def go() -> None:
        async with fleet_on(cluster, spec, workers=1, resources={"moonstone": 1.0}, start_timeout_s=3.0):
            pass

    with pytest.raises(UserError, match=r"replica 1 of 1 found no place .*CPU 1, moonstone 1, and the cluster has .*CPU "):
        asyncio.run(go())


def test_another_version_of_the_package_is_refused(cluster: Any, spec: EnvSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    import envfarm

    there = envfarm.__version__
    monkeypatch.setattr(envfarm, "__version__", "9.0.0")

    async def go() -> None:
        async with fleet_on(cluster, spec, workers=1):
            pass

    with pytest.raises(UserError, match=rf"has envfarm {there}, this process 9\.0\.0; install the same there"):
        asyncio.run(go())


WITHOUT = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "rollout":
            raise ModuleNotFoundError("No module named 'rollout'", name="rollout")

sys.meta_path.insert(0, Nowhere())
"""


def test_a_node_without_the_package_is_named_as_that(cluster: Any, spec: EnvSpec, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)

    async def go() -> None:
        async with fleet_on(cluster, spec, workers=1, env={"PYTHONPATH": str(tmp_path / "site")}):
            pass

    with pytest.raises(UserError, match=r"cannot import this package; install the same .*No module named 'rollout'"):
        asyncio.run(go())


def test_actors_on_a_cluster_of_others_end_with_a_driver_that_was_killed(
    cluster: Any, spec: EnvSpec, gate: Gate, tmp_path: Path
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        f"envfarm: 1\nrun: killed\nenvironments: [{{id: {ENV}}}]\npolicies: {{oracle: {{scripted: oracle}}}}\nworkers: 1\n"
        f"ray: {{workers: 2, address: '{cluster.address}'}}\n"
    )
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", "rollout", run, "--out", tmp_path / "out"]
    driver = subprocess.Popen(command, env=os.environ | {"ENVFARM_PATH": str(spec.folder)})

    def actors() -> list[psutil.Process]:
        raylets = [n.all_processes["raylet"][0].process.pid for n in cluster.list_all_nodes()]
        return [p for pid in raylets if psutil.pid_exists(pid) for p in family(pid) if "ray::Replica" in " ".join(p.cmdline())]

    try:
        asyncio.run(until(lambda: gate.waiting == 2 or driver.poll() is not None, "both replicas are in the middle of it"))
        assert driver.poll() is None
        ours = actors()
        ours += [child for actor in ours for child in actor.children(recursive=True)]
        assert len(ours) == 4, "two actors with a worker each"
    finally:
        driver.kill()
        driver.wait()
    assert gone(ours)


def test_nobody_at_the_address_is_told_within_seconds(spec: EnvSpec) -> None:
    from rollout.distributed import Fleet

    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        fleet = Fleet(RayEntry(workers=1, address=address), {spec.id: spec})
        with pytest.raises(UserError, match=rf"nobody answers at {address}.*ray start --head"):
            asyncio.run(fleet.start())


def test_an_engine_of_a_fleet_gives_no_tokens_here(spec: EnvSpec, tmp_path: Path) -> None:
    from rollout.distributed import Fleet

    engine = Fleet(RayEntry(workers=2), {spec.id: spec}).engine(ENGINE, {"learner": model_folder(tmp_path / "model", 1)})
    assert engine.capabilities == Capabilities(), "nothing is promised before it is started"
    with pytest.raises(UserError, match="episodes, not turns"):
        asyncio.run(engine.generate([1], None, policy="learner"))  # type: ignore[arg-type]
