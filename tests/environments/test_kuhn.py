"""Kuhn poker: the oracle is an equilibrium by exact expectation, nothing leaks, and leaving does not pay."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.registry import default_registry, make_scene
from envfarm.session import LocalSession
from envfarm.testing import agents
from environments.games.kuhn.rules import ENDINGS, boldness, options, payoff, to_act

SPEC = default_registry().get("games/kuhn-v0")
INFOSETS = [
    [(c, h) for c in range(3) for h in ((), ("check", "bet"))],
    [(c, h) for c in range(3) for h in (("check",), ("bet",))],
]


def session():
    return LocalSession(SPEC, make_scene(SPEC))


def value(opener, other, ante, bet):
    """The opener's exact expectation per hand; a strategy maps (card, history) to the chance of the bold move."""

    def of(cards, history):
        if history in ENDINGS:
            return Fraction(payoff(history, *cards, ante, bet))
        seat = to_act(history)
        bold = Fraction((opener, other)[seat](cards[seat], history))
        careful, bolder = options(history)
        branches = ((1 - bold, careful), (bold, bolder))
        return sum((p * of(cards, (*history, move)) for p, move in branches if p), Fraction(0))

    deals = list(permutations(range(3), 2))
    return sum((of(cards, ()) for cards in deals), Fraction(0)) / len(deals)


@pytest.mark.parametrize(
    ("ante", "bet", "known"), [(1, 1, Fraction(-1, 18)), (2, 2, Fraction(-1, 9)), (2, 1, None), (1, 2, None), (6, 3, None)]
)
def test_no_deviation_pays_against_the_oracle(ante, bet, known):
    def oracle(card, history):
        return boldness(card, history, ante, bet)

    def pure(seat):
        for choice in product((0, 1), repeat=6):
            table = dict(zip(INFOSETS[seat], choice, strict=True))
            yield lambda card, history, table=table: table[card, history]

    game = value(oracle, oracle, ante, bet)
    assert max(value(deviation, oracle, ante, bet) for deviation in pure(0)) == game
    assert min(value(oracle, deviation, ante, bet) for deviation in pure(1)) == game
    if known is not None:
        assert game == known


def test_oracle_mixes_as_the_equilibrium_says():
    """Over many matches the oracle's share of bluffs in the session is the equilibrium's."""
    played, bluffs, chances = session(), 0, 0
    for index in range(400):
        turn = played.reset(SPEC.instance("train", index, {"set": {"bet": "equal", "hands": 1}}))
        scene = played.scene
        if scene._card(scene.turn) == 0:
            chances += 1
            bluffs += played.oracle() == "play bet"
            assert played.oracle() == played.oracle()
        assert not turn.over
    assert abs(bluffs / chances - 1 / 6) < 0.09


@given(index=st.integers(0, 999), rung=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_matches_are_zero_sum_and_within_range(index, rung, seed):
    turn, total = None, {"first": 0.0, "second": 0.0}
    played = session()
    turn = played.reset(SPEC.instance("heldout", index, {"rung": rung}))
    while not turn.over:
        turn = played.step(played.random(seed + index))
        assert sum(turn.rewards.values()) == pytest.approx(0)
        total = {role: total[role] + turn.rewards.get(role, 0.0) for role in total}
    assert turn.stop == "terminated" and all(-1 - 1e-9 <= r <= 1 + 1e-9 for r in total.values())


@given(index=st.integers(0, 999), rung=st.integers(0, 3), moves=st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_a_role_sees_nothing_of_the_other_card(index, rung, moves):
    """With another card in the other's hand, and the same moves so far, a role on turn reads the same."""
    played = session()
    turn = played.reset(SPEC.instance("train", index, {"rung": rung}))
    for n in range(moves):
        if not turn.over:
            turn = played.step(played.random(n))
    scene = played.scene
    if turn.over:
        return
    role, other = turn.role, scene._other(turn.role)
    seen, unseen = scene.view(role), scene.deals[scene.hand]
    spare = next(c for c in range(3) if c not in unseen)
    unseen[scene.roles.index(other)] = spare
    assert scene.view(role) == seen


def test_folded_cards_are_not_shown():
    played = session()
    played.reset(SPEC.instance("train", 0, {"set": {"hands": 2, "opener": "first", "wording": "short"}}))
    played.step("play bet")
    played.step("play fold")
    assert all("had" not in str(played.scene.view(role)) for role in ("first", "second"))
    assert "they fold, you win" in str(played.scene.view("first"))


def test_illegal_moves_leave_the_turn():
    played = session()
    first = played.reset(SPEC.instance("train", 1, {"rung": 1}))
    for nonsense in ("play fold", "raise", "play", ""):
        turn = played.step(nonsense)
        assert turn.malformed and turn.role == first.role and not turn.rewards


def test_whoever_stalls_or_leaves_pays():
    played = session()
    instance = SPEC.instance("train", 2, {"rung": 2})
    turn = played.reset(instance)
    while not turn.over:
        turn = played.step("play nothing")
    assert turn.stop == "turn_limit" and turn.rewards[turn.role] == -1.0
    turn = played.reset(instance)
    left = played.finish("agent_stopped")
    assert left.rewards == {turn.role: -1.0, played.scene._other(turn.role): 1.0}


def test_oracle_beats_a_thoughtless_player():
    played, won = session(), 0.0
    for index in range(150):
        seat = ("first", "second")[index % 2]
        result = agents.play(
            played, SPEC.instance("train", index, {"rung": 3}),
            lambda s, t, n, seat=seat: s.oracle() if t.role == seat else s.random(n),
        )  # fmt: skip
        won += result.rewards[seat]
    assert won > 0
