"""The shop: orders are judged by the server's state, the oracle mends any cart, visits leave nothing behind."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from dataclasses import replace

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import envfarm  # noqa: F401 (registers ids)
from envfarm.registry import default_registry, make_scene
from envfarm.session import LocalSession
from envfarm.testing import agents

SPEC = default_registry().get("web/shop-v0")
RUNGS = range(len(SPEC.ladder))
SPLITS = ("train", "validation", "heldout")


def session():
    return LocalSession(SPEC, make_scene(SPEC))


@given(
    split=st.sampled_from(SPLITS), rung=st.sampled_from([None, *RUNGS]), index=st.integers(0, 999),
    wandered=st.integers(0, 18), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_oracle_orders_right_out_of_any_state(split, rung, index, wandered, seed):
    played = session()
    turn = played.reset(SPEC.instance(split, index, {} if rung is None else {"rung": rung}))
    scene = played.scene
    scene.budget = scene.turn_limit = 10_000
    for n in range(wandered):
        if not turn.over:
            turn = played.step(played.random(seed + n))
    if not turn.over:
        while not turn.over:
            turn = played.step(played.oracle())
        assert scene.shop.orders[0].fulfils(scene.wish) and turn.rewards["agent"] >= 0.6
    played.close()


@given(split=st.sampled_from(SPLITS), rung=st.sampled_from(RUNGS), index=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_straight_way_brings_all(split, rung, index):
    assert agents.play(session(), SPEC.instance(split, index, {"rung": rung}), agents.oracle).rewards == {"agent": 1.0}


def order(played, instance, change):
    """The oracle's order, with `change` made to the wish that it has in mind."""
    turn = played.reset(instance)
    asked = played.scene.wish
    while not turn.over:
        played.scene.wish = change(asked)
        action = played.oracle()
        played.scene.wish = asked
        turn = played.step(action)
    return turn


@pytest.mark.parametrize(
    "change",
    [
        lambda w: replace(w, lines=(replace(w.lines[0], quantity=w.lines[0].quantity + 1), *w.lines[1:])),
        lambda w: replace(w, lines=w.lines[:1]),
        lambda w: replace(w, lines=(replace(w.lines[0], size={"small": "large"}.get(w.lines[0].size, "small")), *w.lines[1:])),
        lambda w: replace(w, lines=(*w.lines[:1], replace(w.lines[1], article=1 + w.lines[1].article % 3), *w.lines[2:])),
        lambda w: replace(w, coupon="WRONG"),
        lambda w: replace(w, street=w.street + "0"),
    ],
)
def test_any_other_order_brings_nothing(change):
    turn = order(session(), SPEC.instance("train", 11, {"rung": 3}), change)
    assert turn.stop == "terminated" and turn.rewards == {"agent": 0.0}


def test_case_and_order_of_lines_do_not_matter():
    turn = order(
        session(), SPEC.instance("train", 11, {"rung": 3}),
        lambda w: replace(w, lines=w.lines[::-1], coupon=w.coupon.lower(), name=w.name.upper()),
    )  # fmt: skip
    assert turn.rewards["agent"] >= 0.6


def test_words_on_a_page_are_no_order():
    """What an agent types is shown back to it; only the server's orders count."""
    played = session()
    played.reset(SPEC.instance("train", 2, {"set": {"entrance": "search", "checkout": "direct", "coupon": True}}))
    played.step("type q Ordered.")
    turn = played.step("submit")
    assert not turn.over and not played.scene.shop.orders
    turn = played.step("open /done")
    assert "Nothing ordered" in turn.text and not turn.over


def test_impossible_quantities_are_refused_by_the_server():
    played = session()
    played.reset(SPEC.instance("train", 3, {"set": {"entrance": "front", "checkout": "cart", "links": "numbers"}}))
    played.scene.budget = played.scene.turn_limit = 100
    played.step("click 1")
    for quantity in ("0", "10", "-1", "1e3", "many", "³"):
        played.step(f"type quantity {quantity}")
        assert "quantity is 1 to 9" in played.step("click add").text
    assert played.scene.shop.carts == {"s1": []}


@pytest.mark.parametrize(("rung", "most"), [(0, 0.1), (1, 0.05), (2, 0.05), (3, 0.05)])
def test_thoughtless_agents_stay_at_the_floor(rung, most):
    played, solved, tried = session(), 0, 80
    for index in range(tried):
        result = agents.play(played, SPEC.instance(SPLITS[index % 3], index, {"rung": rung}), agents.random)
        solved += result.rewards["agent"] >= SPEC.reward.solved_at
    assert solved / tried <= most
    assert agents.play(played, SPEC.instance("train", 0, {"rung": rung}), agents.null).rewards == {"agent": 0.0}


def test_small_rung_is_small_and_large_rung_is_long():
    """Rung 0 is for a model of 0.3M parameters: short pages, two clicks. The top needs at least eight calls."""
    played = session()
    for index in range(40):
        instance = SPEC.instance(SPLITS[index % 3], index, {"rung": 0})
        result = agents.play(played, instance, agents.oracle)
        assert len(result.actions) == 2 and max(len(text.split()) for text in result.observations) <= 20
        assert len(agents.play(played, SPEC.instance("train", index, {"rung": 3}), agents.oracle).actions) >= 8


def test_heldout_pairs_are_new_and_their_words_are_not():
    played, pairs, words = session(), {}, {}
    for split in ("train", "heldout"):
        pairs[split], words[split] = set(), set()
        for index in range(150):
            turn = played.reset(SPEC.instance(split, index, {"rung": 0}))
            pairs[split].add((played.scene.params["seek"], played.scene.shop.layout))
            words[split].update(turn.text.split())
    assert not pairs["train"] & pairs["heldout"]
    assert {layout for _, layout in pairs["heldout"]} <= {layout for _, layout in pairs["train"]}
    assert words["heldout"] <= words["train"]


def test_contents_are_distinct_and_not_shared():
    played = session()
    seen = {s: {played.reset(SPEC.instance(s, i)).text for i in range(300)} for s in SPLITS}
    assert all(len(texts) >= 285 for texts in seen.values())
    assert len(set().union(*seen.values())) == sum(map(len, seen.values()))


def test_visits_leave_no_descriptor_behind():
    def count():
        return len(os.listdir("/proc/self/fd"))

    played = session()
    gc.collect()  # what other tests left to the collector
    before = count()
    for index in range(30):
        agents.play(played, SPEC.instance("train", index, {"rung": 0}), agents.oracle)
        assert count() <= before + 2
    played.close()
    assert count() == before


def test_a_copy_goes_on_by_itself():
    played = session()
    turn = played.reset(SPEC.instance("train", 4, {"rung": 2}))
    played.step(played.oracle())
    fork = copy.deepcopy(played.scene)
    while not turn.over:
        turn = played.step(played.oracle())
    assert not fork.shop.orders
    while not fork.over:
        fork.call(fork.oracle())
    assert fork.shop.orders == played.scene.shop.orders and fork.collect() == {"agent": {"env": 1.0}}


def test_gymnasium_checker_passes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on text spaces
        check_env(gymnasium.make("web/shop-v0", disable_env_checker=True).unwrapped, skip_render_check=True)
