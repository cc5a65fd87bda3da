"""What forms of a static site send: one JSON line each, in a file of the box. Written by the browser, read by checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from envfarm.box import WORKDIR

SENT = f"{WORKDIR}/sent.jsonl"
"""Where the lines stand, unless the tool's option `sent` says otherwise."""


def sent_path(options: Mapping[str, str]) -> str:
    return options.get("sent", SENT)


def sent_line(to: str, fields: Mapping[str, str]) -> str:
    """`{"to": "/order.html", "fields": {"name": "Ada"}}` and a newline; fields in the form's order."""
    return json.dumps({"to": to, "fields": dict(fields)}, ensure_ascii=False) + "\n"


def sent_forms(text: str) -> list[dict[str, Any]]:
    """The lines of a file; what is no such line (an agent with other tools can write there) is left out."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("to"), str) and isinstance(value.get("fields"), dict):
            found.append(value)
    return found
