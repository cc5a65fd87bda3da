"""Two runs of one episode, compared to the byte; what commands printed, under `envfarm.masking`, and counted.

    compared = Comparison()
    pair = Pair("coding/shell-v0 train 7", compared)
    pair.same("after step 3, reward", {"agent": 1.0}, turn.rewards)
    pair.text("after step 3, observation", shown, spans, turn.text, turn.command_output, "ls -l")
    compared.same, compared.masked_share

Replay compares a stored episode with a fresh one, `envfarm check --backends` episodes on one backend with those on another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from envfarm.masking import mask, side_by_side

Spans = tuple[tuple[int, int], ...]
"""[start, end) of a text that a box's command printed."""


@dataclass(frozen=True)
class Difference:
    """One place where an episode did not repeat itself."""

    episode: str
    where: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"episode {self.episode}, {self.where}: recorded {_cut(self.recorded)}, replayed {_cut(self.replayed)}"


@dataclass
class Comparison:
    """What a comparison of many episodes found."""

    differences: list[Difference] = field(default_factory=list)
    text_chars: int = 0  # of all observations
    output_chars: int = 0  # of these, printed by commands in boxes
    masked_chars: int = 0  # of these, replaced by the mask

    @property
    def same(self) -> bool:
        return not self.differences

    @property
    def masked_share(self) -> float:
        """Of all compared characters."""
        return self.masked_chars / self.text_chars if self.text_chars else 0.0

    def add(self, other: Self) -> None:
        """Count another comparison's episodes as well."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        return {
            "text_chars": self.text_chars, "output_chars": self.output_chars, "masked_chars": self.masked_chars,
            "masked_share": self.masked_share, "differences": [vars(d) for d in self.differences],
        }  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two runs of the episode of that name; what is found is counted in `into`."""

    episode: str
    into: Comparison

    def same(self, where: str, recorded: Any, replayed: Any) -> bool:
        if recorded == replayed:
            return True
        self.into.differences.append(Difference(self.episode, where, *_apart(recorded, replayed)))
        return False

    def text(self, where: str, recorded: str, spans: Spans, replayed: str, other_spans: Spans, command: str) -> bool:
        """`command` is the action that both texts answer."""
        into = self.into
        into.text_chars += len(replayed)
        into.output_chars += sum(end - start for start, end in other_spans)
        left, _ = masked(recorded, spans, command)
        right, count = masked(replayed, other_spans, command)
        if left != right and side_by_side(command):  # their processes may have written at once: the same without its order?
            loose, _ = masked(recorded, spans, command, unordered=True)
            other, whole = masked(replayed, other_spans, command, unordered=True)
            if loose == other:
                left, right, count = loose, other, whole
        into.masked_chars += count
        return self.same(where, left, right)


def masked(text: str, spans: Spans, command: str, *, unordered: bool = False) -> tuple[str, int]:
    """`text` with the mask over its command output, and how many characters that replaced."""
    parts, count, at = [], 0, 0
    for start, end in spans:
        covered, replaced = mask(command, text[start:end], unordered=unordered)
        parts += [text[at:start], "\0" + covered + "\0"]  # so that a span's borders are compared, too
        count += replaced
        at = end
    return "".join([*parts, text[at:]]), count


def _apart(recorded: Any, replayed: Any) -> tuple[str, str]:
    """Both sides as text; of long texts what follows their common beginning."""
    if not (isinstance(recorded, str) and isinstance(replayed, str)):
        return repr(recorded), repr(replayed)
    same = next((i for i, (a, b) in enumerate(zip(recorded, replayed, strict=False)) if a != b), None)
    if same is None:
        same = min(len(recorded), len(replayed))
    start = max(0, same - 20)
    return repr(recorded[start:]) + f" (differs at character {same})", repr(replayed[start:])


def _cut(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
