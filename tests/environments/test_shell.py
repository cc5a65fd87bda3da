"""coding/shell: every kind of goal, the ladder, and what is held out."""

from __future__ import annotations

import re

import pytest

from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.task.env import Plan
from envfarm.task.templates import templates_of
from envfarm.testing import agents

pytestmark = pytest.mark.box

KINDS = {
    "handle": ("make", "copy", "move", "delete"),
    "edit": ("append", "replace", "sort", "keep"),
    "report": ("number of lines", "lines of", "sum", "largest"),
    "mixed": ("move", "rename", "replace", "lines of", "mode", "unpack", "into a new directory", "sum"),
}


@pytest.fixture(scope="module")
def spec():
    return default_registry().get("coding/shell-v0")


@pytest.fixture
def session(spec):
    made = local_session(spec)
    yield made
    made.close()


def plan(spec, instance):
    assert spec.task is not None
    return Plan(spec.task, templates_of(str(spec.folder)), instance)


@pytest.mark.parametrize("skills", KINDS)
def test_every_kind_of_goal_is_reached_by_the_oracle_and_not_by_doing_nothing(spec, session, skills):
    parts = len(KINDS[skills])
    setting = {"set": {"skills": skills, "parts": [parts, parts], "pairing": 1}}
    instance = spec.instance("train", 5, setting)
    played = agents.play(session, instance, agents.oracle)
    assert all(kind in played.observations[0] for kind in KINDS[skills])
    assert played.rewards == {"agent": 1.0} and parts < len(played.actions) <= spec.limits.turns
    solution = plan(spec, instance).solution
    for left_out in range(len(solution)):
        kept = [line for i, line in enumerate(solution) if i != left_out]
        assert agents.play(session, instance, agents.scripted(kept)).rewards == {"agent": 0.0}, solution[left_out]


@pytest.mark.parametrize("rung", range(4))
@pytest.mark.parametrize("split", ["train", "validation", "heldout"])
def test_the_ladder_rises_and_the_oracle_climbs_it(spec, session, split, rung):
    for index in range(2):
        played = agents.play(session, spec.instance(split, index, {"rung": rung}), agents.oracle)
        assert played.rewards == {"agent": 1.0}
        least, most = [(2, 3), (3, 4), (4, 8), (9, 15)][rung]
        assert least <= len(played.actions) <= most


def test_the_first_rung_is_short(spec):
    for index in range(50):
        text = plan(spec, spec.instance("train", index, {"rung": 0})).prompt
        assert len(re.findall(r"\w+", text)) <= 8


def test_what_is_held_out_are_pairs_of_names_and_orders_of_kinds_in_words_that_training_knows(spec):
    seen = {}
    for split in ("train", "validation", "heldout"):
        prompts = [plan(spec, spec.instance(split, i, {"rung": 0})).prompt.strip() for i in range(150)]
        pairs = {tuple(re.findall(r"\w+", goal)[1::2]) for p in prompts for goal in p.split("; ")}
        orders = {tuple(goal.split()[0] for goal in p.split("; ")) for p in prompts if ";" in p}
        seen[split] = pairs, orders, {word for p in prompts for word in re.findall(r"\w+", p)}
    for kind in (0, 1):
        assert seen["train"][kind] & seen["validation"][kind]
        assert not seen["heldout"][kind] & (seen["train"][kind] | seen["validation"][kind])
    assert seen["heldout"][2] <= seen["train"][2]


def test_pairs_of_names_are_held_out_on_every_rung(spec):
    animals = "cat dog fox owl bee ant cow pig hen bat elk eel".replace(" ", "|")

    def pairs(split, rung):
        made = [plan(spec, spec.instance(split, i, {"rung": rung})).solution for i in range(40)]
        return {pair for lines in made for line in lines for pair in re.findall(rf"\b([a-z]+)/({animals})\b", line)}

    trained = set().union(*(pairs("train", rung) for rung in range(4)))
    held_out = set().union(*(pairs("heldout", rung) for rung in range(4)))
    assert len(trained) > 30 and len(held_out) == 12 and not trained & held_out


def test_careless_agents_fail_and_middling_ones_do_not_always(spec, session):
    def solved(agent, rung, count):
        games = [agents.play(session, spec.instance("train", i, {"rung": rung}), agent(i)) for i in range(count)]
        return sum(game.rewards["agent"] for game in games)

    assert solved(lambda i: agents.random, 0, 20) <= 2
    assert solved(lambda i: agents.random, 1, 10) == 0
    assert 8 <= solved(lambda i: agents.mixed(0.35, seed=i), 0, 20) < 20


def test_contents_differ(spec):
    made = set()
    for split in ("train", "validation", "heldout"):
        for index in range(40):
            one = plan(spec, spec.instance(split, index))
            made.add((one.prompt, one.setup))
    assert len(made) == 120
