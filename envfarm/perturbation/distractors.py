"""observation.distractors: sentences that have nothing to do with the task, between the blocks of an observation."""

from __future__ import annotations

from typing import Any, ClassVar

from envfarm.blocks import Block, Blocks, Text
from envfarm.perturbation.base import Channel, check_rate

SENTENCES = (
    "Reminder: the quarterly survey closes on Friday.",
    "Tip: drink enough water.",
    "The elevator on the north side is being serviced.",
    "Your last sign-in was from a known device.",
    "Coffee is available in the kitchen.",
    "A colleague has shared a calendar with you.",
    "The weather station reports light wind.",
    "Maintenance is planned for next month.",
    "The newsletter has a new design.",
    "Lost and found: one grey umbrella.",
)


class Distractors(Channel):
    """`value` is the chance of a sentence in each gap: before the first block, between blocks and after the last."""

    key: ClassVar[str] = "observation.distractors"

    @classmethod
    def check(cls, value: Any) -> str | None:
        return check_rate(value)

    def observe(self, blocks: Blocks, turn: int) -> Blocks:
        rng = self.draws.at(turn)
        shown: list[Block] = []
        for gap in range(len(blocks) + 1):
            # One draw of each kind per gap, used or not: a different rate leaves the sentences as they are.
            hit, which = rng.random() < self.value, int(rng.integers(len(SENTENCES)))
            if hit:
                shown.append(Text(SENTENCES[which]))
                self.record(turn=turn, gap=gap, sentence=which)
            if gap < len(blocks):
                shown.append(blocks[gap])
        return tuple(shown)
