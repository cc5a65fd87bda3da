"""`envfarm check --backends`: the same episodes in every kind of box and of worker, as a table or as JSON for scripts."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text

    from envfarm.spec import EnvSpec
    from envfarm.testing.identity import Finding

SHOWN = 5
"""Differences of one cell; `--json` has all."""


def cells(specs: Sequence[EnvSpec], backends: str, count: int, as_json: bool) -> int:
    """Play and compare; how many cells failed. Raises: UserError."""
    import msgspec
    from rich.console import Console

    from envfarm.images.build import cache
    from envfarm.testing.cells import chosen
    from envfarm.testing.identity import IMAGES

    wanted = chosen(backends)
    os.environ.setdefault(IMAGES, str(cache()))  # in the process's environment, as its workers have it
    console = Console(stderr=as_json)
    findings = asyncio.run(_play(specs, wanted, count, console))
    if as_json:
        print(msgspec.json.encode([f.to_json() for f in findings]).decode())
    else:
        _show(findings, console)
    failed = sum(not f.ok for f in findings)
    console.print(f"{len(findings) - failed} cells equal, {failed} failed, {len(specs)} environments; {_share(findings)}")
    return failed


async def _play(specs: Sequence[EnvSpec], wanted: Sequence, count: int, console: Console) -> list[Finding]:
    from envfarm.testing.identity import identity

    findings = []
    with console.status("bubblewrap") as status:
        async for finding in identity(specs, wanted, count):
            findings.append(finding)
            status.update(f"{len(findings)} done, {finding.cell.name}, {finding.env}")
    return findings


def _share(findings: Sequence[Finding]) -> str:
    from envfarm.comparison import Comparison

    total = Comparison()
    for finding in findings:
        total.add(finding.found)
    return f"{total.masked_chars:,} of {total.text_chars:,} characters masked ({total.masked_share:.3%})"


def _show(findings: Sequence[Finding], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    columns = list(dict.fromkeys(f.cell for f in findings))
    table.add_column("environment", no_wrap=True)
    for cell in columns:
        table.add_column(cell.name)
    for env in dict.fromkeys(f.env for f in findings):
        found = {f.cell: f for f in findings if f.env == env}
        table.add_row(Text(env), *(_mark(found.get(cell)) for cell in columns))
    console.print(table)
    for finding in (f for f in findings if not f.ok):
        where = f"{finding.env}, {finding.cell.name}: "
        for said in [finding.reason] if finding.reason else finding.found.differences[:SHOWN]:
            console.print(f"{where}{said}", markup=False, highlight=False, soft_wrap=True)


def _mark(finding: Finding | None) -> Text:
    from rich.text import Text

    from envfarm.testing.cells import REFERENCE

    if finding is None:
        return Text("no box", style="dim")
    if finding.reason:
        return Text("MISSING", style="bold red")
    if not finding.ok:
        return Text(f"{len(finding.found.differences)} DIFFER", style="bold red")
    if finding.cell is REFERENCE:
        return Text(f"{finding.episodes} played")
    masked = f", {finding.found.masked_share:.2%} masked" if finding.found.masked_chars else ""
    return Text("equal", style="green").append(masked, style="dim")
