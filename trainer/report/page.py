"""The page: one file, no network, nothing executed but our own script.

Data stands as JSON in an inert script element and is only ever written as text; tables are escaped by Jinja. A content
security policy that names our script's hash is the second wall: a transcript that found a way through the first one
could still neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rollout.evaluate import NO_FIGURE, shown

FOLDER = Path(__file__).resolve().parent / "assets"

_HIDDEN = (0x200E, 0x200F, 0xFEFF, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
_CONTROLS = {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | {0x7F: 0x2421} | dict.fromkeys(_HIDDEN, 0xFFFD)
"""Control and direction characters become visible ones: text can neither hide nor reorder what stands beside it."""


def render(static: dict[str, Any], payload: dict[str, Any]) -> str:
    """`static` fills the template; `payload` is what the script draws."""
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("charts.js", "page.js", "transcripts.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"share": share, "signed": signed, "seconds": seconds}
    return environment.get_template("page.html.j2").render(
        **visible(static), style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")), script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        payload=Markup(embedded(visible(payload))),
    )  # fmt: skip


def visible(value: Any) -> Any:
    """The same JSON-like value, with every string (keys, too) safe to be looked at."""
    if isinstance(value, str):
        return value.translate(_CONTROLS)
    if isinstance(value, dict):
        return {visible(k): visible(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [visible(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def embedded(payload: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, and holds nothing but ASCII."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def share(value: float | None) -> str:
    return shown(value, 3)


def signed(value: float | None) -> str:
    return NO_FIGURE if value is None else f"{value:+.3f}"


def seconds(value: float | None) -> str:
    if value is None:
        return NO_FIGURE
    return (
        f"{value:.3f} s" if value < 1 else f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60:02d} s"
    )
