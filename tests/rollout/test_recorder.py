"""Exact tokens: what was sampled stays as it was sampled, whatever the template does with history."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.engines.base import Generation
from rollout.recorder import Recorder
from rollout.renderers.chatml import ChatMLRenderer
from rollout.renderers.compact import CompactRenderer
from rollout.renderers.thinking import ThinkingRenderer
from rollout.store.invariants import episode_findings
from rollout.types import Episode, Message, PolicyVersion, SamplingParams
from tests.rollout.scenes import CharTokenizer

TOKENIZER = CharTokenizer()
V1 = PolicyVersion("learner", 0, 1, "one")
RENDERERS = (CompactRenderer(TOKENIZER), ChatMLRenderer(TOKENIZER), ThinkingRenderer(TOKENIZER))


def reply(renderer: Any, text: str, version: PolicyVersion = V1) -> Generation:
    ids = [*TOKENIZER.encode(text), renderer.stop_ids[0]]
    return Generation(ids, [-0.5] * len(ids), "stop", version)


def talk_through(renderer: Any, turns: list[tuple[str, str]]) -> tuple[Recorder, list[list[int]], list[list[int]]]:
    """The recorder, each prompt that an engine saw, and each sampled reply."""
    recorder = Recorder()
    talk = recorder.conversation("agent", renderer)
    prompts, sampled = [], []
    for shown, said in turns:
        talk.hear(Message(role="user", content=shown))
        prompts.append(talk.prompt())
        generation = reply(renderer, said)
        sampled.append(generation.token_ids)
        talk.say(generation, SamplingParams())
    return recorder, prompts, sampled


def path_ids(recorder: Recorder, branch: int) -> list[int]:
    return [t for n in recorder.branches[branch].nodes for t in recorder.nodes[n].token_ids]


def as_episode(recorder: Recorder) -> Episode:
    return Episode(
        id="e", run="r", stage="s", step=0, group="g", member=0, attempt=0, env="x", instance={}, instance_hash="h",
        split="train", seats={"agent": V1}, steps=[], nodes=recorder.nodes, branches=recorder.branches,
    )  # fmt: skip


TURNS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=5)


@given(TURNS, st.sampled_from(RENDERERS[:2]))
@settings(max_examples=40, deadline=None)
def test_each_prompt_continues_the_last_and_holds_the_sampled_ids(turns: list[tuple[str, str]], renderer: Any) -> None:
    recorder, prompts, sampled = talk_through(renderer, turns)
    for before, said, after in zip(prompts, sampled, prompts[1:], strict=False):
        assert after[: len(before) + len(said)] == before + said
    assert len(recorder.branches) == 1 and recorder.drift == {}
    row = path_ids(recorder, 0)
    mask = [m for n in recorder.branches[0].nodes for m in recorder.nodes[n].mask]
    assert [t for t, m in zip(row, mask, strict=True) if m] == [t for s in sampled for t in s]
    assert list(episode_findings(as_episode(recorder))) == []


def test_a_template_that_drops_thoughts_forks_where_it_rewrites() -> None:
    renderer = RENDERERS[2]
    turns = [("a", "<think>\nhm\n</think>\n\nb"), ("c", "<think>\nso\n</think>\n\nd"), ("e", "f")]
    recorder, prompts, sampled = talk_through(renderer, turns)
    assert recorder.drift == {"template": 2}
    assert [b.forked_at for b in recorder.branches] == [-1, 1, 3]
    assert [b.fork_reason for b in recorder.branches] == ["", "template", "template"]
    fresh = Recorder().conversation("agent", renderer)
    for message in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")):
        fresh.hear(Message(role=message[0], content=message[1]))  # type: ignore[arg-type]
    assert prompts[2] == fresh.prompt(), "the last prompt is what the template makes of the rewritten history"
    trained = [n for n in recorder.nodes if n.sampling is not None]
    assert [[t for t, m in zip(n.token_ids, n.mask, strict=True) if m] for n in trained] == sampled
    assert list(episode_findings(as_episode(recorder))) == []


def test_results_of_tools_do_not_rewrite_a_chain_of_calls() -> None:
    renderer, recorder = RENDERERS[2], Recorder()
    talk = recorder.conversation("agent", renderer)
    talk.hear(Message(role="user", content="go"))
    said = '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    message, well_formed = talk.say(reply(renderer, said), SamplingParams())
    assert well_formed and message.tool_calls[0].name == "look"
    talk.hear(Message(role="tool", content="a wall"))
    assert len(recorder.branches) == 1


def test_seats_have_trees_of_their_own() -> None:
    recorder = Recorder()
    for seat, text in (("first", "x"), ("second", "y"), ("first", "z")):
        talk = recorder.conversation(seat, RENDERERS[0])
        talk.hear(Message(role="user", content=text))
        talk.say(reply(RENDERERS[0], "ok"), SamplingParams())
    assert [b.seat for b in recorder.branches] == ["first", "second"]
    assert [len(b.nodes) for b in recorder.branches] == [4, 2]
    assert [n.turn for n in recorder.nodes if n.seat == "first"] == [0, 0, 1, 1]


@given(TURNS, st.sampled_from(RENDERERS[:2]))
@settings(max_examples=30, deadline=None)
def test_a_demonstration_has_the_tokens_and_mask_of_the_same_reply_sampled(turns: list[tuple[str, str]], renderer: Any) -> None:
    sampled, _, _ = talk_through(renderer, turns)
    shown = Recorder()
    talk = shown.conversation("agent", renderer)
    for heard, said in turns:
        talk.hear(Message(role="user", content=heard))
        talk.demonstrate(Message(role="assistant", content=said))
    assert [n.token_ids for n in shown.nodes] == [n.token_ids for n in sampled.nodes]
    assert [n.mask for n in shown.nodes] == [n.mask for n in sampled.nodes]
    assert all(p == 0.0 for n in shown.nodes for p in n.logprobs)


def test_versions_that_change_midway_are_labelled_from_their_token() -> None:
    renderer, recorder = RENDERERS[0], Recorder()
    talk = recorder.conversation("agent", renderer)
    talk.hear(Message(role="user", content="go"))
    v2 = PolicyVersion("learner", 0, 2, "two")
    ids = [*TOKENIZER.encode("north"), renderer.stop_ids[0]]
    talk.say(Generation(ids, [-1.0] * 6, "stop", V1, [(0, V1), (2, v2)]), SamplingParams())
    opening = len(renderer.generation_prompt())
    assert recorder.nodes[-1].versions == [(opening, V1), (opening + 2, v2)]
