"""A match of Kuhn poker for two roles. What a role sees: its own card, what was said, and the results it may know.

Rewards come after each hand and are zero-sum: chips over the most that the match could cost, so the total is within
[-1, 1]. An illegal move is malformed: the same role stays on turn. Who is on turn when the episode ends before the
match does (out of turns or tokens, or the agent left) loses the hand with its bet, and the hands that were left.
The oracle plays the equilibrium, mixing by draws of its own that depend on nothing but the instance and the state.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from envfarm.aec import AECEnv
from envfarm.blocks import Block, Fields, Text
from envfarm.seeding import generator
from envfarm.tools import Action, Malformed, ToolCall, tool

from .rules import ENDINGS, FOLD, History, boldness, options, payoff, to_act

DECKS: dict[str, tuple[str, str, str]] = {
    "letters": ("J", "Q", "K"), "numbers": ("1", "2", "3"), "heights": ("low", "middle", "high"),
    "animals": ("mouse", "cat", "lion"), "metals": ("copper", "silver", "gold"),
}  # fmt: skip

WORDS: dict[str, dict[str, str]] = {
    "short": {"card": "card", "said": "said", "none": "nothing", "you": "you", "other": "they"},
    "plain": {"card": "your card", "said": "so far", "none": "you begin", "you": "you", "other": "your opponent"},
    "saloon": {"card": "in your hand", "said": "at the table", "none": "silence", "you": "you", "other": "the stranger"},
}


class Kuhn(AECEnv):
    forkable = True
    metadata = {**AECEnv.metadata, "name": "kuhn_v0"}

    def start(self) -> list[Block]:
        p = self.params
        self.words, self.names = WORDS[p["wording"]], DECKS[p["deck"]]
        self.ante = p["unit"] * (2 if p["bet"] == "half" else 1)
        self.bet_chips = p["unit"] * (2 if p["bet"] == "double" else 1)
        self.deals = [[int(c) for c in self.rng.permutation(3)[:2]] for _ in range(p["hands"])]
        """Each hand's cards, in the order of the roles."""
        self.news: dict[str, list[str]] = {role: [] for role in self.roles}
        self.acted: set[str] = set()
        self.hand = 0
        self._deal()
        return self.view(self.turn)

    @tool
    def play(self, move: Literal["check", "bet", "call", "fold"]) -> list[Block]:
        """Make a move.

        move: check or bet; after a bet: call or fold
        """
        if move not in options(self.history):
            raise Malformed(f"Not now. You may {' or '.join(options(self.history))}.")
        role = self.turn
        self.acted.add(role)
        self.news[role] = []
        self.history += (move,)
        if self.history not in ENDINGS:
            self.turn = self._other(role)
            return []
        self._settle()
        self.hand += 1
        if self.hand == len(self.deals):
            self.end()
            return [Text("\n".join(self.news[role]))]
        self._deal()
        return self.view(self.turn)

    def view(self, role: str) -> list[Block]:
        news, greeting = self.news[role], role not in self.acted
        blocks: list[Block] = [Text("\n".join(news))] if news else []
        if self.over:
            return blocks
        if greeting:
            blocks.insert(0, Text(self._greeting()))
        who = {role: self.words["you"], self._other(role): self.words["other"]}
        said = ", ".join(f"{who[self._seat(at)]} {move}" for at, move in enumerate(self.history))
        fields = [(self.words["card"], self.names[self._card(role)]), (self.words["said"], said or self.words["none"])]
        if len(self.deals) > 1:
            fields.insert(0, ("hand", f"{self.hand + 1} of {len(self.deals)}"))
        return [*blocks, Fields(tuple(fields))]

    def oracle(self) -> Action:
        card = self._card(self.turn)
        chance = boldness(card, self.history, self.ante, self.bet_chips)
        draw = generator("kuhn oracle", *self.instance.stream, self.hand, self.turn, *self.history).random()
        return ToolCall("play", {"move": options(self.history)[draw < chance]})

    def random_action(self, rng: np.random.Generator) -> Action:
        return ToolCall("play", {"move": options(self.history)[int(rng.integers(2))]})

    def verdict(self) -> dict[str, float] | None:
        """Nothing more after a whole match; else whoever was on turn pays for leaving."""
        left = len(self.deals) - self.hand
        if not left:
            return None
        lost = left * (self.ante + self.bet_chips) / self._most()
        return {self.turn: -lost, self._other(self.turn): lost}

    def _deal(self) -> None:
        """The next hand begins."""
        opener = self.params["opener"]
        self.opener = self.roles[self.hand % 2] if opener == "alternate" else opener
        self.history: History = ()
        self.turn = self.opener

    def _settle(self) -> None:
        """The hand is over: rewards for both, and to each the news that is fit for its eyes."""
        ours, theirs = self._card(self.opener), self._card(self._other(self.opener))
        chips = payoff(self.history, ours, theirs, self.ante, self.bet_chips)
        for role, gain in ((self.opener, chips), (self._other(self.opener), -chips)):
            self.reward(gain / self._most(), role=role)
            last = f"{self.words['other']} {self.history[-1]}" if role != self.turn else ""
            shown = f"{self.words['other']} had {self.names[self._card(self._other(role))]}" if self.history[-1] != FOLD else ""
            result = f"you {'win' if gain > 0 else 'lose'} {abs(gain)}"
            self.news[role].append(", ".join(part for part in (last, shown, result) if part))

    def _greeting(self) -> str:
        low, middle, high = self.names
        stakes = f"ante {self.ante}, bet {self.bet_chips}"
        if self.params["wording"] == "short":
            return stakes
        return f"Kuhn poker, {len(self.deals)} hands, {stakes}. Cards from low to high: {low}, {middle}, {high}."

    def _most(self) -> int:
        """The most chips that a role can lose in the match."""
        return len(self.deals) * (self.ante + self.bet_chips)

    def _other(self, role: str) -> str:
        return self.roles[1 - self.roles.index(role)]

    def _seat(self, at: int) -> str:
        """Who makes the `at`-th move of this hand."""
        return self.opener if to_act(self.history[:at]) == 0 else self._other(self.opener)

    def _card(self, role: str) -> int:
        return self.deals[self.hand][self.roles.index(role)]
