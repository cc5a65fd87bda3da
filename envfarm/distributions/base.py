"""What every distribution can do."""

from __future__ import annotations

import math
from typing import Any

import msgspec


class Impossible(ValueError):
    """A narrowing that leaves nothing, or that this kind of distribution does not understand. The text says which."""


def same(a: Any, b: Any) -> bool:
    """Equality without Python's `True == 1`."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Distribution(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    """Base of all. Values are JSON values."""

    def draw(self, u: float) -> Any:
        raise NotImplementedError

    def narrow(self, condition: Any) -> Distribution:
        """The distribution under the condition. Raises: Impossible."""
        raise NotImplementedError

    def meets(self, value: Any, condition: Any) -> bool:
        """Whether a drawn value satisfies what narrows this distribution."""
        raise NotImplementedError

    def allows(self, value: Any) -> bool:
        """Whether the value could be drawn."""
        raise NotImplementedError

    def examples(self) -> tuple[Any, ...]:
        """Values that show whether a user of the distribution can do with all of them: members, or the ends and a middle."""
        return tuple(self.draw(u) for u in (0.0, 0.5, 1.0 - 2.0**-53))

    def describe(self) -> str:
        raise NotImplementedError
