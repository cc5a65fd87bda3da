"""observation.format: blocks are written as plain text, Markdown, JSON or XML (see `envfarm.formats`)."""

from __future__ import annotations

from typing import Any, ClassVar

from envfarm.formats import FORMATS
from envfarm.perturbation.base import Channel


class Format(Channel):
    """The wrapper reads `value` when it writes the blocks; nothing else to do."""

    key: ClassVar[str] = "observation.format"

    @classmethod
    def check(cls, value: Any) -> str | None:
        return None if value in FORMATS else f"one of {', '.join(FORMATS)}, not {value!r}"
