"""`envfarm check --hostile`: the hostile panel as a table, or as JSON for scripts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from envfarm.hostile.panel import Finding

_COLOURS = {"stopped": "green", "not enforced here": "yellow", "SUCCEEDED": "bold red"}


def hostile(backend: str, only: list[str] | None, as_json: bool) -> int:
    """Play the panel on that backend; how many attempts succeeded. Raises: UserError."""
    import msgspec
    from rich.console import Console

    from envfarm.hostile.attempt import Outcome

    console = Console(stderr=as_json)
    findings = asyncio.run(_play(backend, only, console))
    if as_json:
        print(msgspec.json.encode(findings).decode())
    else:
        _show(findings, console)
    counts = {outcome: sum(f.outcome == outcome for f in findings) for outcome in Outcome}
    console.print(f"{backend}: {len(findings)} attempts, " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    return counts[Outcome.SUCCEEDED]


async def _play(name: str, only: list[str] | None, console: Console) -> list[Finding]:
    from envfarm.backends.local import backend_class
    from envfarm.hostile.panel import ATTEMPTS, panel

    backend = backend_class(name)()
    findings = []
    try:
        with console.status("") as status:
            async for finding in panel(backend, only):
                findings.append(finding)
                status.update(f"{name}: {len(findings)} of {len(only or ATTEMPTS)}, {finding.attempt}: {finding.outcome}")
    finally:
        await backend.close()
    return findings


def _show(findings: list[Finding], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "attempt", "what was tried", "outcome", "stopped by", "recorded as"):
        table.add_column(column)
    for f in findings:
        outcome = Text(f.outcome, style=_COLOURS[f.outcome])
        table.add_row(f.group, Text(f.attempt), Text(f.tried), outcome, Text(f.by), Text(f.recorded))
    console.print(table)
