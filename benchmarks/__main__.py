"""Every benchmark, one after the other: `python -m benchmarks [--json FOLDER]`. Each also runs alone."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.harness import Row

NAMES = ("engine", "serving", "sessions", "boxes", "rollouts", "training", "async", "vllm", "ray_scaling")

MODULES = {"async": "async_training"}
"""Where a module is called otherwise: `async` is a word of the language."""


def main() -> None:
    """A process each, so that none warms another; exit code 1 where one fails to run. A goal that is missed is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="keep each benchmark's figures here")
    folder = parser.parse_args().json or Path(tempfile.mkdtemp(prefix="envfarm-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    console, failed, missed, skipped = Console(), [], [], []
    for name in NAMES:
        file = folder / f"{name}.json"
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{MODULES.get(name, name)}", "--json", str(file)], check=False)
        if done.returncode:
            failed.append(name)
            continue
        if not file.exists():  # it said why
            skipped.append(name)
            continue
        missed += [f"{name}: {row['name']}" for row in json.loads(file.read_text()) if Row(**row).met is False]
    console.print(f"figures in {folder}")
    for name in missed:
        console.print(f"[yellow]goal missed[/yellow] {name}")
    for name in skipped:
        console.print(f"[yellow]skipped[/yellow] {name}")
    for name in failed:
        console.print(f"[red]did not run[/red] {name}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
