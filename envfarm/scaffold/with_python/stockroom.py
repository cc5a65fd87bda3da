"""A room with shelves: look at each, then answer. Replace it by your own world; the shape stays."""

from __future__ import annotations

from collections.abc import Callable

from envfarm import Env, Fields, ToolCall, tool
from envfarm.blocks import Block
from envfarm.tools import Action, ToolError

ASKED: dict[str, tuple[str, Callable[[list[int]], int]]] = {
    "total": ("How many items are there in all?", sum),
    "largest": ("How many items lie on the fullest shelf?", max),
    "spread": ("How many more items lie on the fullest shelf than on the emptiest?", lambda n: max(n) - min(n)),
}


class Stockroom(Env):
    forkable = True

    def start(self) -> list[Block]:
        count, most = self.params["shelves"], self.params["most"]
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        self.labels: list[str] = []
        while len(self.labels) < count:
            label = "".join(letters[i] for i in self.rng.integers(len(letters), size=2)) + str(self.rng.integers(10, 100))
            if label not in self.labels:
                self.labels.append(label)
        self.items = [int(n) for n in self.rng.integers(11, most + 1, size=count)]
        self.items[0] += 11  # so that the spread is rarely small
        self.looked: set[str] = set()
        question, _ = ASKED[self.params["question"]]
        room = (("goods", f"up to {most + 11} {self.params['goods']} on a shelf"), ("shelves", " ".join(self.labels)))
        return [Fields((*room, ("question", question)))]

    @tool
    def look(self, shelf: str) -> str:
        """Count the items on one shelf.

        shelf: the shelf's label
        """
        if shelf not in self.labels:
            raise ToolError(f"There is no shelf {shelf}.")
        self.looked.add(shelf)
        return f"{self.items[self.labels.index(shelf)]} {self.params['goods']}"

    @tool
    def answer(self, number: int) -> str:
        """Answer the question; this ends the episode.

        number: your answer
        """
        self.end(1.0 if number == self._solution() else 0.0)
        return "Thank you."

    def _solution(self) -> int:
        return ASKED[self.params["question"]][1](self.items)

    def oracle(self) -> Action:
        """Looks at every shelf before it answers, as an honest agent must."""
        unseen = [label for label in self.labels if label not in self.looked]
        return ToolCall("look", {"shelf": unseen[0]}) if unseen else ToolCall("answer", {"number": self._solution()})
