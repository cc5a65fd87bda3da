"""Traces of verifiers 0.4: what our store says, in its shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.export import export
from rollout.export.base import Played, played
from rollout.export.verifiers import Verifiers, read_traces
from rollout.store import Store
from tests.rollout.export.stores import chatty, oracle, play, with_a_failure


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Played]:
    folder = tmp_path_factory.mktemp("traces")
    store = with_a_failure(play(folder / "played", chatty(), groups=4, size=4), folder / "store")
    return list(played(Store.open(store).episodes()))


def test_an_episode_that_broke_has_errors_and_no_reward(groups: list[Played], tmp_path: Path) -> None:
    assert export(Verifiers(), groups, tmp_path / "out") == 16
    broken = [t for t in read_traces(tmp_path / "out") if not t["ok"]]
    assert len(broken) == 1 and broken[0]["rewards"] == {} and broken[0]["errors"][0]["message"] == "WorkerDied: gone"
    assert not broken[0]["agent"]["trainable"] and all(n["advantages"] is None for n in broken[0]["nodes"])


@pytest.mark.verifiers1
def test_verifiers_reads_them(groups: list[Played], tmp_path: Path) -> None:
    """Branches, masks and logprobs by `WireTrace`'s own properties, against the episodes' branches."""
    import verifiers.v1 as vf

    export(Verifiers(), groups, tmp_path / "out")
    episodes = {e.id: e for g in groups for e in g.group.episodes}
    forked = 0
    for record in read_traces(tmp_path / "out"):
        trace = vf.WireTrace.model_validate(record)
        episode = episodes[trace.id.rpartition("/")[0]]
        assert trace.reward == pytest.approx(episode.reward["agent"] if episode.ok else 0.0)
        assert trace.task.key == episode.instance_hash and trace.num_turns == sum(n.version is not None for n in episode.nodes)
        paths = [[episode.nodes[n] for n in branch.nodes] for branch in episode.branches]
        ours = sorted([t for node in path for t in node.token_ids] for path in paths)
        leaves = sorted(branch.token_ids for branch in trace.branches)
        assert all(ids in ours for ids in leaves)
        forked += len(leaves) > 1
        for branch in trace.branches:
            assert len(branch.token_ids) == len(branch.sampled_mask) == len(branch.logprobs)
            assert all(p == 0.0 for p, m in zip(branch.logprobs, branch.sampled_mask, strict=True) if not m)
        again = vf.WireTrace.model_validate(trace.model_dump(mode="json"))
        assert [n.token_ids for n in again.nodes] == [n.token_ids for n in trace.nodes]
    assert forked > 2


@pytest.mark.verifiers1
def test_logs_are_messages(tmp_path: Path) -> None:
    import verifiers.v1 as vf

    store = play(tmp_path / "logs", oracle(0.2), groups=2, size=1, stage="logs")
    export(Verifiers(), played(Store.open(store).episodes()), tmp_path / "out")
    for record, episode in zip(read_traces(tmp_path / "out"), Store.open(store).episodes(), strict=True):
        trace = vf.WireTrace.model_validate(record)
        assert [m.content for m in trace.messages] == [t for s in episode.steps for t in (s.observation, s.action)]
        assert trace.branches[0].token_ids == [] and not trace.agent.trainable
