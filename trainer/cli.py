"""`envfarm train` and `envfarm report`. Light: torch and the rest are imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="What to train, on which environments, by which stages.")],
    output: Annotated[Path | None, typer.Option(help="Run directory, in place of the file's `output`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else on stdout.")] = False,
    report: Annotated[bool, typer.Option(help="Write the HTML report at the end.")] = True,
) -> None:
    """Train a policy. Interrupted at any moment, the same command goes on where it was."""
    import json

    from rich.console import Console

    from envfarm.registry import default_registry
    from rollout.run import read_run
    from trainer.run import RunFile
    from trainer.run_check import check
    from trainer.summary import show

    run, source = read_run(run_file, RunFile)
    specs = check(run, source, default_registry())
    if output is not None:
        run = run.model_copy(update={"output": str(output)})

    from trainer.stages import train as start

    console = Console(stderr=as_json)
    try:
        summary = start(run, specs, console, report=report)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on from the last checkpoint in {run.folder}")
        raise
    if report:
        from trainer.report.build import build

        summary["report"] = str(build(run.folder))
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    show(console, summary)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as `envfarm train` made it.")],
) -> None:
    """Write one self-contained HTML page about a run."""
    from trainer.report.build import build

    print(build(run_dir))
