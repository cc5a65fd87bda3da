"""What `envfarm replay`, `store check`, `store info` and `export` do."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from envfarm.backends.local import backend_class
from envfarm.errors import StoreError
from envfarm.registry import default_registry
from envfarm.worker.pool import WorkerPool
from rollout import interrupt
from rollout.acting import console_for, progress_bar
from rollout.export import export, exporter
from rollout.export.base import played
from rollout.replay import ReplayReport, replay_all
from rollout.store import Store
from rollout.store.check import check_store
from rollout.store.repair import repair_store
from rollout.types import Episode


def store_path(path: Path) -> Path:
    """The store itself, or the one of a run directory (`store/`, or `rollouts/` of a plain rollout)."""
    if (path / "manifest.json").exists():
        return path
    return next((path / n for n in ("store", "rollouts") if (path / n / "manifest.json").exists()), path)


def open_store(path: Path, *, salvage: bool) -> Store:
    """For reading. Raises: StoreError."""
    return Store.open(store_path(path), salvage=salvage)


def run_replay(
    path: Path, *, stage: str | None, episode: str | None, limit: int | None, backend: str, workers: int, salvage: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Exit code 1 where an episode differs. Raises: StoreError, UnknownIdError for an environment that is not here."""
    console = console_for(as_json)
    backend_class(backend)  # an unknown one is refused, also where no episode needs a box
    store = open_store(path, salvage=salvage)
    filters = {} if stage is None else {"stage": stage}
    episodes = [store.get(episode)] if episode is not None else list(store.episodes(**filters))[:limit]
    if not episodes:
        raise StoreError(f"{store.path} holds no such episodes; stages: {', '.join(store.stats()['stages']) or 'none'}")
    with progress_bar(console, "replay", len(episodes)) as advance:
        report = interrupt.run(_replay(episodes, backend, workers, advance))
    if as_json:
        print(json.dumps(report.to_json() | {"store": str(store.path), "left_out": store.damages}))
    else:
        for damage in store.damages:
            console.print(f"left out: {damage}", markup=False)
        for difference in report.differences[:20]:
            console.print(f"DIFFERS  {difference}", markup=False, soft_wrap=True)
        partial = f", {report.partial} of them not ok and compared as far as they went" if report.partial else ""
        console.print(
            f"{report.episodes} episodes replayed{partial}; {len(report.differences)} differences; "
            f"{report.masked_chars} of {report.text_chars} characters masked ({report.masked_share:.3%})"
        )
    if not report.same:
        raise typer.Exit(1)


async def _replay(episodes: list[Episode], backend: str, workers: int, advance: object) -> ReplayReport:
    registry = default_registry()
    specs = {name: registry.get(name) for name in dict.fromkeys(e.env for e in episodes)}
    pool = WorkerPool(list(specs.values()), backend=backend, workers=workers)
    try:
        await pool.start()
        return await replay_all(episodes, pool, specs, at_once=8 * workers, progress=advance)  # type: ignore[arg-type]
    finally:
        await pool.close()


def run_store_check(path: Path, *, as_json: bool) -> None:
    """Exit code 1 where something is wrong."""
    found = store_path(path)
    findings, read = check_store(found)
    if as_json:
        print(json.dumps({"store": str(found), "episodes": read, "ok": not findings, "findings": [vars(f) for f in findings]}))
    else:
        console = console_for(False)
        for finding in findings:
            console.print(str(finding), markup=False, soft_wrap=True)
        console.print(f"{found}: {read} episodes read, {len(findings)} findings" + ("; all is well" if not findings else ""))
    if findings:
        raise typer.Exit(1)


def run_store_repair(path: Path, *, as_json: bool) -> None:
    """Set damaged parts aside and say which. Raises: StoreError."""
    found = store_path(path)
    moved = repair_store(found)
    if as_json:
        print(json.dumps({"store": str(found), "set_aside": moved}))
        return
    for what in moved:
        console_for(False).print(what, markup=False, soft_wrap=True)
    console_for(False).print(
        f"{found}: {len(moved)} damaged parts set aside in {found / 'damaged'}" if moved else f"{found}: no damage"
    )


def run_store_info(path: Path, *, sql: str | None, as_json: bool) -> None:
    """Counts, or rows of a query."""
    store = open_store(path, salvage=False)
    if sql is not None:
        rows = store.sql(sql)
        for row in rows if not as_json else ():
            console_for(False).print("  ".join(f"{k}={v}" for k, v in row.items()), markup=False)
        if as_json:
            print(json.dumps(rows, default=str))
        return
    stats = {"store": str(store.path), **store.stats()}
    if as_json:
        print(json.dumps(stats))
        return
    for name, value in stats.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console_for(False).print(f"{name:15} {shown}", markup=False)


def run_export(
    path: Path, out: Path, *, to: str, stage: str | None, env: str | None, policy: str | None, salvage: bool, as_json: bool
) -> None:  # fmt: skip
    """Raises: UserError for an unknown format, or one that finds nothing in the store; StoreError."""
    chosen = exporter(to)
    store = open_store(path, salvage=salvage)
    wanted = {k: v for k, v in {"stage": stage, "env": env}.items() if v is not None}
    if wanted and next(store.index.select(wanted), None) is None:
        known = store.stats()
        raise StoreError(
            f"{store.path} holds no such episodes; stages: {', '.join(known['stages']) or 'none'}; environments: "
            f"{', '.join(known['envs']) or 'none'}"
        )
    count = export(chosen, played(store.episodes(**wanted), policy=policy), out)
    if as_json:
        print(json.dumps({"folder": str(out), "format": to, "records": count, "left_out": store.damages}))
    else:
        console_for(False).print(f"{count} records in {out}" + "".join(f"\nleft out: {d}" for d in store.damages), markup=False)
