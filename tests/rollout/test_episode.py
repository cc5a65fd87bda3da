"""The loop: who acts, what is recorded, and every way for an episode to end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from envfarm.errors import EnvironmentFault, InfraError
from envfarm.session import LocalSession, Turn
from rollout.engines.base import Generation
from rollout.episode import Terms, run_episode
from rollout.inprocess import LocalAsyncSession
from rollout.plan import GroupRequest
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.renderers.chatml import ChatMLRenderer
from rollout.renderers.compact import CompactRenderer
from rollout.scheduler import blank_episode
from rollout.store.invariants import episode_findings
from rollout.types import Episode, PolicyVersion, SamplingParams, StopReason
from tests.rollout.scenes import COUNT, NIM, CharTokenizer, HashEngine, instance, make_session

TOKENIZER = CharTokenizer()


def learner(*replies: str, context: int = 0, name: str = "learner") -> EnginePolicy:
    engine = HashEngine(TOKENIZER, replies, context=context)
    return EnginePolicy(PolicyVersion(name), engine, CompactRenderer(TOKENIZER))


def play(
    policies: dict[str, Policy], *, spec: Any = COUNT, index: int = 0, session: Any = None, member: int = 0, **terms: Any
) -> Episode:
    chosen = instance(spec, index)
    request = GroupRequest(env=spec.id, instance=chosen, size=1, stage="s", step=3, index=5, seats={r: r for r in policies})
    episode = blank_episode("run", request, member, 0, {r: p.version for r, p in policies.items()})
    asked = Terms(**{"run_seed": 0, "seed_key": request.seeded_by, "sampling": SamplingParams(max_tokens=64)} | terms)
    session = session or LocalAsyncSession(make_session(spec.id))
    return asyncio.run(run_episode(episode, chosen, session, policies, asked))


def test_the_oracle_solves_and_leaves_steps_but_no_tokens() -> None:
    episode = play({"agent": ScriptedPolicy("expert", "oracle")})
    assert episode.stop is StopReason.TERMINATED and episode.ok and episode.terminated
    assert episode.reward == {"agent": 1.0} and episode.success == {"agent": True}
    assert episode.nodes == [] and [s.seat for s in episode.steps] == ["agent"] * len(episode.steps)
    assert episode.steps[0].observation.startswith("Reach") and episode.steps[-1].reward == {"agent": 1.0}
    assert [t["name"] for t in episode.tools] == ["add"]
    assert episode.error == "", "a blank episode reads as called off, one that came to its end does not"


def test_the_first_observation_and_every_later_one_are_in_the_tokens() -> None:
    episode = play({"agent": learner("add 1", "add 2")})
    heard = [n for n in episode.nodes if n.message.role == "user"]
    assert [n.message.content for n in heard] == [s.observation for s in episode.steps]
    assert [TOKENIZER.decode(n.token_ids) for n in heard] == [s.observation for s in episode.steps]
    assert list(episode_findings(episode)) == []


def test_a_malformed_reply_is_an_observation_and_a_counter() -> None:
    episode = play({"agent": learner("dance")})
    assert episode.stop is StopReason.TURN_LIMIT and episode.ok
    assert episode.malformed == len(episode.steps) == COUNT.limits.turns
    assert all(s.malformed for s in episode.steps) and "Unknown action 'dance'" in episode.steps[1].observation


def test_a_call_that_is_no_json_never_reaches_a_tool() -> None:
    engine = HashEngine(TOKENIZER, ['<tool_call>{"name": "add"'], end="<|im_end|>")
    episode = play({"agent": EnginePolicy(PolicyVersion("learner"), engine, ChatMLRenderer(TOKENIZER))})
    assert episode.malformed == len(episode.steps) and episode.stop is StopReason.TURN_LIMIT
    assert episode.steps[0].tool_calls[0].name == "malformed"


def test_native_calls_reach_their_tool_and_are_answered_as_tools() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"number": 1}}\n</tool_call>'
    engine = HashEngine(TOKENIZER, [call], end="<|im_end|>")
    policy = EnginePolicy(PolicyVersion("learner"), engine, ChatMLRenderer(TOKENIZER))
    episode = play({"agent": policy}, sampling=SamplingParams(max_tokens=200))
    assert episode.malformed == 0 and episode.steps[0].tool_calls[0].arguments == {"number": 1}
    assert [n.message.role for n in episode.nodes][:4] == ["user", "assistant", "tool", "assistant"]


def test_a_reply_without_an_end_stops_the_episode_with_its_verdict() -> None:
    episode = play({"agent": learner("add 1")}, sampling=SamplingParams(max_tokens=3))
    assert episode.stop is StopReason.TOKEN_LIMIT and episode.ok and episode.truncated
    assert episode.steps == [] and episode.reward == {"agent": 0.0}
    assert sum(episode.nodes[-1].mask) == 3


def test_the_context_ends_an_episode_when_the_next_prompt_does_not_fit() -> None:
    free = play({"agent": learner("dance")})
    full = sum(len(n.token_ids) for n in free.nodes[:3]) + 1
    tight = play({"agent": learner("dance", context=full)})
    assert tight.stop is StopReason.CONTEXT_LIMIT and len(tight.steps) == 1
    short = play({"agent": learner("dance", context=full + 2)})
    assert short.stop is StopReason.CONTEXT_LIMIT and sum(short.nodes[-1].mask) == 2


def test_the_token_budget_of_an_episode_is_kept() -> None:
    episode = play({"agent": learner("add 1")}, token_budget=15, index=1)
    assert episode.stop is StopReason.TOKEN_LIMIT
    assert sum(sum(n.mask) for n in episode.nodes) <= 15


def test_seeds_differ_by_member_seat_and_turn_and_not_by_attempt() -> None:
    seeds = [n.sampling.seed for n in play({"agent": learner("dance")}).nodes if n.sampling]
    other = [n.sampling.seed for n in play({"agent": learner("dance")}, member=1).nodes if n.sampling]
    assert len({*seeds, *other}) == 2 * len(seeds)
    assert seeds == [n.sampling.seed for n in play({"agent": learner("dance")}).nodes if n.sampling]


def test_two_roles_take_turns_and_keep_conversations_of_their_own() -> None:
    policies: dict[str, Policy] = {"first": learner("take 1", "take 2"), "second": ScriptedPolicy("rival", "oracle")}
    episode = play(policies, spec=NIM, index=4)
    assert [s.seat for s in episode.steps[:3]] == ["first", "second", "first"]
    assert {n.seat for n in episode.nodes} == {"first"}
    assert sorted(episode.reward.values()) == [0.0, 1.0] and sum(episode.success.values()) == 1
    assert all(s.observation.endswith(f"{s.seat}.") for s in episode.steps)


def test_self_play_records_both_seats() -> None:
    policy = learner("take 1", "take 2")
    episode = play({"first": policy, "second": policy}, spec=NIM, index=4)
    assert {b.seat for b in episode.branches} == {"first", "second"}
    assert list(episode_findings(episode)) == []


class Breaking(LocalAsyncSession):
    """Raises or hangs at the second step."""

    def __init__(self, session: LocalSession, what: Exception | None):
        super().__init__(session)
        self.what, self.steps = what, 0

    async def step(self, action: Any) -> Turn:
        self.steps += 1
        if self.steps == 2:
            if self.what is None:
                await asyncio.Event().wait()
            else:
                raise self.what
        return await super().step(action)


@pytest.mark.parametrize(
    ("what", "stop"),
    [(EnvironmentFault("boom"), StopReason.ENV_ERROR), (InfraError("gone"), StopReason.INFRA_ERROR)],
)
def test_an_error_is_a_status_and_never_a_reward(what: Exception, stop: StopReason) -> None:
    episode = play({"agent": learner("dance")}, session=Breaking(make_session(COUNT.id), what))
    assert episode.stop is stop and not episode.ok and episode.reward == {} and episode.success == {}
    assert str(what) in episode.error and len(episode.steps) == 1


def test_the_wall_clock_ends_what_hangs() -> None:
    session = Breaking(make_session(COUNT.id), None)
    episode = play({"agent": learner("dance")}, session=session, timeout_s=0.05)
    assert episode.stop is StopReason.TIMEOUT and not episode.ok and len(episode.steps) == 1


def test_a_timeout_of_somebody_else_is_not_the_episodes() -> None:
    with pytest.raises(TimeoutError):
        play({"agent": learner("x")}, session=Breaking(make_session(COUNT.id), TimeoutError()), timeout_s=5.0)


def test_the_share_of_random_actions_is_drawn_per_reply() -> None:
    mixed = [play({"agent": ScriptedPolicy("m", "oracle", 0.5)}, index=i).steps for i in range(30)]
    expert = [play({"agent": ScriptedPolicy("m", "oracle")}, index=i).steps for i in range(30)]
    assert 3 <= sum(a != b for a, b in zip(mixed, expert, strict=True)) <= 30
    assert mixed[3] == play({"agent": ScriptedPolicy("m", "oracle", 0.5)}, index=3).steps


def test_a_replayed_script_repeats_the_episode() -> None:
    first = play({"agent": learner("add 1", "add 3", "dance")}, index=2)
    actions = {"agent": [s.action for s in first.steps]}
    again = play({"agent": ScriptedPolicy("again", "replay", actions=actions)}, index=2)
    assert again.steps == first.steps and again.reward == first.reward


def test_an_aborted_generation_is_an_infra_matter() -> None:
    """An engine that gives up midway (`finish="abort"`) leaves no reply that anyone meant."""

    class Aborting(HashEngine):
        async def generate(self, *args: Any, **kwargs: Any) -> Generation:
            return Generation([], [], "abort", PolicyVersion("learner"))

    policy = EnginePolicy(PolicyVersion("learner"), Aborting(TOKENIZER, ["x"]), CompactRenderer(TOKENIZER))
    assert play({"agent": policy}).stop is StopReason.INFRA_ERROR
