"""`envfarm report RUN`: everything that a run directory holds, on one page, `RUN/report.html`.

    path = build(Path("runs/demo"))

The page is a function of the run directory and of the installed versions: built again it is the same file.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.checkpoint import write_atomically
from trainer.report import curves, episodes, tables
from trainer.report.data import RunData, read_run_dir
from trainer.report.page import render
from trainer.report.sensitivity import findings, sensitivity
from trainer.report.transcripts import transcripts

FILE = "report.html"
PACKAGES = ("envfarm", "torch", "numpy", "tokenizers", "duckdb", "pyarrow")


def build(run_dir: Path) -> Path:
    """Write the page and return its path. A run under way is reported as far as it is.

    Raises: UserError where `run_dir` is no run directory, or its summary is damaged.
    """
    data = read_run_dir(run_dir)
    page = render(*contents(data))
    path = run_dir / FILE
    write_atomically(path, page.encode("utf-8"))
    return path


def contents(data: RunData) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template shows, and what the script draws."""
    found, shown = sensitivity(data), transcripts(data)
    last = data.evaluated[-1] if data.evaluated else ""
    rows, gaps, paired = tables.figures(data), tables.gaps(data), tables.paired_rows(data)
    logger, wall = tables.logger_row(data), episodes.wall_times(data)
    static = {
        "name": data.name, "finished": data.finished, "damage": data.damage, **tables.headline(data),
        "stages": data.evaluated, "splits": data.splits, "last": last, "real_measured": "real" in data.splits,
        "envs": [tables.OVERALL, *data.envs] if len(data.envs) > 1 else data.envs,
        "cells": {f"{r['stage']}\t{r['split']}\t{r['env']}": r for r in rows}, "logger": logger,
        "not_counted": tables.not_counted(data), "gaps": [g for g in gaps if g["stage"] == last], "paired": paired,
        "findings": findings(found, last), "has_sensitivity": any(e["factors"] for e in found),
        "timing": episodes.timing(data), "wall": wall, "errors": episodes.errors(data), "has_transcripts": bool(shown),
        "about": about(data), "policies": policies(data), "specs": specs(data), "run_file": data.run_file,
    }  # fmt: skip
    payload = {
        "stages": data.stages, "splits": data.splits, "figures": rows, "logger": logger, "gaps": gaps, "paired": paired,
        "curves": curves.learning_curves(data), "health": curves.health(data), "sensitivity": found,
        "episodes": episodes.lengths_and_stops(data), "wall": wall, "transcripts": shown,
    }  # fmt: skip
    return static, payload


def specs(data: RunData) -> list[dict[str, Any]]:
    """Environment, hash of its spec, episodes: more than one line where the spec changed during the run."""
    counted: dict[tuple[str, str], int] = {}
    for p in data.played:
        counted[p.env, p.spec_hash] = counted.get((p.env, p.spec_hash), 0) + 1
    return [{"env": env, "hash": spec_hash, "episodes": n} for (env, spec_hash), n in sorted(counted.items())]


def policies(data: RunData) -> list[dict[str, Any]]:
    ordered = sorted(data.policies, key=lambda s: data.stages.index(s) if s in data.stages else len(data.stages))
    return [
        {"stage": s, **{k: data.policies[s].get("version", {}).get(k, "") for k in ("policy", "number", "checksum")}}
        for s in ordered
    ]


def about(data: RunData) -> list[tuple[str, str]]:
    """Names and values for the last section."""
    rows = [("run directory", data.run_dir.name), ("seed", _first(data, "seed")), ("renderer", _first(data, "renderer"))]
    rows += [(k.replace("_", " "), f"{v:,.0f}") for k, v in data.summary.get("counters", {}).items()]
    rows += [(k, str(data.summary[k])) for k in ("incarnations", "threads") if k in data.summary]
    if data.store is not None:
        manifest = data.store.manifest
        rows += [("episodes stored", f"{len(data.store.index.by_id):,}"), ("store schema", str(manifest.schema_version))]
        rows += [("tokenizer", manifest.tokenizer_hash), ("template", manifest.template_hash)]
    rows += [("report written with", ", ".join([f"Python {platform.python_version()}", *_versions()]))]
    return [(name, value) for name, value in rows if value]


def _first(data: RunData, key: str) -> str:
    return next((str(p[key]) for p in data.policies.values() if key in p), "")


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
