"""Which shell commands need a network, by their names: a box has none, and what fails for that must not look like an agent's
failure. A look at the text: it finds the usual programs where a command begins, not what a program does inside.
"""

from __future__ import annotations

import re

_BEGIN = r"(?:^|[;&|(!{]|\b(?:then|do|else|if|elif|while|until|exec|sudo|time)\s)\s*(?:\w+=\S*\s+)*"
_PROGRAMS = "|".join(
    (
        r"(?:apt-get|apt|apk|yum|dnf|conda|npx|uvx)\b",
        r"(?:python3?(?:\.\d+)?\s+-m\s+)?pip3?\s+install",
        r"uv\s+(?:pip|add|sync|tool|run)",
        r"(?:npm|yarn|pnpm)\s+(?:install|ci|add)",
        r"(?:gem|cargo|go)\s+(?:install|add|get|fetch)",
        r"git\s+(?:clone|pull|fetch)",
        r"(?:curl|wget)\s(?!.*(?:localhost|127\.0\.0\.1))",
    )
)
_COMMAND = re.compile(f"{_BEGIN}({_PROGRAMS})")


def needing(text: str) -> tuple[int, str] | None:
    """The first line (from 1) with a command that needs a network, and its name; None where there is none."""
    for number, line in enumerate(text.splitlines(), 1):
        found = None if line.lstrip().startswith("#") else _COMMAND.search(line)
        if found:
            return number, found[1].strip()
    return None
