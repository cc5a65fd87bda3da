"""`envfarm check`: what must hold before anyone trains on an environment."""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    ids: Annotated[list[str] | None, typer.Argument(help="Environment ids (globs allowed) or YAML files.")] = None,
    episodes: Annotated[int, typer.Option(help="Instances per split and rung for each agent; with --backends, in all.")] = 10,
    contents: Annotated[int, typer.Option(help="Seeds per split whose contents are compared.")] = 1000,
    only: Annotated[list[str] | None, typer.Option(help="Run only these checks (repeatable).")] = None,
    backend: Annotated[str, typer.Option(help="Where boxes come from.")] = "bubblewrap",
    hostile: Annotated[
        bool, typer.Option("--hostile", help="Instead: what an agent may try against a box, on --backend.")
    ] = False,
    backends: Annotated[
        str | None, typer.Option(help="Instead: the same episodes in all kinds of boxes and workers, or some: docker,kubernetes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Check environments: schema, Gymnasium or PettingZoo, seeds, isolation, oracle, floors, distinct contents.

    Exit code 2 where a check fails or a file cannot be read. With --hostile, 1 where an attempt succeeds; with --backends, of all
    environments where none is named, 1 where an episode differs or cannot be played.
    """
    import msgspec
    from rich.console import Console

    from envfarm.cli.shared import registry
    from envfarm.errors import UserError, did_you_mean
    from envfarm.testing.check_env import CHECKS, check_env

    if hostile:
        from envfarm.cli.hostile import hostile as panel

        if ids:
            raise UserError(f"--hostile tries a backend, not an environment: found {ids[0]!r}")
        raise typer.Exit(bool(panel(backend, only, as_json)))
    if not ids and backends is None:
        raise UserError("which environments? Name ids (globs allowed) or YAML files, or --hostile or --backends")
    unknown = [name for name in only or [] if name not in CHECKS]
    if unknown:
        raise UserError(f"no check {unknown[0]!r}{did_you_mean(unknown[0], CHECKS)}; there are {', '.join(CHECKS)}")
    console = Console(stderr=as_json)
    known = registry()
    names = [name for pattern in ids or ["*"] for name in (known.match(pattern) if "*" in pattern else [pattern])]
    specs = [known.get(name) for name in names]
    if backends is not None:
        from envfarm.cli.cells import cells

        raise typer.Exit(bool(cells(specs, backends, episodes, as_json)))
    findings = []
    for spec in specs:
        console.print(f"[bold]{spec.id}[/bold]  {spec.title}  [dim]{spec.path}[/dim]", soft_wrap=True)
        for finding in check_env(spec, backend=backend, episodes=episodes, contents=contents, only=tuple(only or ())):
            mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
            console.print(f"  {mark} {finding.check:<10} ", end="")
            console.print(finding.detail, markup=False, highlight=False, soft_wrap=True)
            findings.append(finding)
    failed = sum(not f.ok for f in findings)
    if as_json:
        print(msgspec.json.encode(findings).decode())
    console.print(f"{len(findings) - failed} checks passed, {failed} failed, {len(specs)} environments")
    if failed:
        raise typer.Exit(2)
