"""Kuhn poker's rules and its equilibrium, for any ante and a bet of at most twice the ante.

Three cards, 0 < 1 < 2, one for each player. Both pay the ante. The opener checks or bets; after a check the other may
check or bet; a bet is called or folded. After H. W. Kuhn, "A simplified two-person poker", 1950, which has ante and bet 1.
The general mixture below follows from making each hand that mixes indifferent (the test computes best responses).
"""

from __future__ import annotations

from fractions import Fraction

CHECK, BET, CALL, FOLD = "check", "bet", "call", "fold"

History = tuple[str, ...]

ENDINGS: frozenset[History] = frozenset({(CHECK, CHECK), (BET, CALL), (BET, FOLD), (CHECK, BET, CALL), (CHECK, BET, FOLD)})


def options(history: History) -> tuple[str, str]:
    """What may be done now: the careful move first, the bold one second."""
    return (FOLD, CALL) if history and history[-1] == BET else (CHECK, BET)


def to_act(history: History) -> int:
    """0 for the opener, 1 for the other."""
    return len(history) % 2


def payoff(history: History, opener: int, other: int, ante: int, bet: int) -> int:
    """What the opener gains by a finished hand with these cards; the other loses as much."""
    assert history in ENDINGS, f"the hand is not over: {history}"
    if history[-1] == FOLD:
        return -ante if to_act(history[:-1]) == 0 else ante
    stake = ante if history == (CHECK, CHECK) else ante + bet
    return stake if opener > other else -stake


def boldness(card: int, history: History, ante: int, bet: int) -> Fraction:
    """The equilibrium's probability of the bold move (bet or call) with `card` after `history`.

    With a pot-sized threat b = bet, p = 2 ante + bet: a call needs bluffs in the ratio b : p, and so on. A bet that is
    smaller than the ante is made with every high card, a greater one with none, at equality any share will do (a half).
    """
    pot = 2 * ante + bet
    high = Fraction(1) if bet < ante else Fraction(0) if bet > ante else Fraction(1, 2)
    if history == ():
        return (high * Fraction(bet, pot), Fraction(0), high)[card]
    if history == (CHECK,):
        return (Fraction(bet, pot), Fraction(0), Fraction(1))[card]
    if history == (BET,):
        return (Fraction(0), Fraction(2 * ante - bet, pot) if bet <= ante else Fraction(bet, pot), Fraction(1))[card]
    return (Fraction(0), (2 * ante - bet + high * bet) / pot, Fraction(1))[card]
