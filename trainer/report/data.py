"""What a run directory holds, read once. Nothing here changes the run, and a run under way can be read as well.

    data = read_run_dir(Path("runs/demo"))

Episodes come without their tokens (`Played`), by SQL over the store: there may be tens of thousands. Transcripts load
the few that they show through `data.store`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from envfarm.errors import StoreError, UserError
from rollout.store import Store
from rollout.types import StopReason
from trainer.metrics import read as read_metrics
from trainer.summary import load_evaluation, summarize

SPLIT_ORDER = ("train", "validation", "heldout", "real")


@dataclass(frozen=True)
class Played:
    """One seat of one stored episode, without its tokens."""

    id: str
    stage: str  # "logs", "rl", "eval/rl/heldout", "curve/rl/validation", ...
    step: int  # optimizer steps of the stage that were done when it was dispatched
    group: str
    env: str
    split: str
    seat: str
    policy: str
    stop: StopReason
    success: bool
    reward: float
    turns: int
    tokens: int  # sampled
    malformed: int
    error: str
    spec_hash: str
    params: dict[str, Any]  # axis -> value
    perturbation: dict[str, Any]  # channel -> value
    timings: dict[str, float]

    @property
    def ok(self) -> bool:
        return self.stop.ok

    @property
    def phase(self) -> tuple[str, str]:
        """Kind ("logs", "training", "eval", "curve", "other") and the stage whose policy acted."""
        kind, _, rest = self.stage.partition("/")
        if kind in ("eval", "curve"):
            return kind, rest.rpartition("/")[0]
        return ("logs", "") if kind == "logs" else ("training", self.stage)


@dataclass
class RunData:
    run_dir: Path
    summary: dict[str, Any]  # as in summary.json; made from the evaluations where the run is still under way
    finished: bool
    metrics: list[dict[str, Any]]
    stages: list[str]  # in order, "untrained" first
    played: list[Played] = field(default_factory=list)
    store: Store | None = None
    learner: str = ""
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> its envfarm.json
    run_file: str = ""  # text, where the directory has it
    damage: str = ""  # of the store; nothing of it is shown then

    @property
    def name(self) -> str:
        return str(self.summary.get("run") or self.run_dir.resolve().name)

    @property
    def envs(self) -> list[str]:
        by_summary = [e for row in self.summary["stages"].values() for part in row.values() for e in part["by_env"]]
        return list(dict.fromkeys([*by_summary, *(p.env for p in self.played)]))

    @property
    def splits(self) -> list[str]:
        """Evaluated ones, the known ones first and in their order."""
        found = list(dict.fromkeys(s for row in self.summary["stages"].values() for s in row))
        return sorted(found, key=lambda s: SPLIT_ORDER.index(s) if s in SPLIT_ORDER else len(SPLIT_ORDER))

    @property
    def evaluated(self) -> list[str]:
        return [s for s in self.stages if self.summary["stages"].get(s)]


def read_run_dir(run_dir: Path) -> RunData:
    """Raises: UserError where it is no run directory, or its summary is damaged. A damaged store is left out (`damage`)."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such directory; expected a run directory, as `envfarm train` makes it (runs/NAME)")
    if not (run_dir / "metrics.jsonl").exists() and not (run_dir / "summary.json").exists():
        raise UserError(
            f"{run_dir} is no run directory: it holds neither summary.json nor metrics.jsonl; give the `output` of an "
            "`envfarm train` (runs/NAME unless the run file says otherwise)"
        )
    metrics = read_metrics(run_dir)
    summary = _json(run_dir / "summary.json")
    policies = {p.parent.name: _json(p) or {} for p in sorted(run_dir.glob("policies/*/envfarm.json"))}
    stages = _stages(summary, metrics, policies)
    if summary is None:
        found = {s: e for s in stages if (e := load_evaluation(run_dir, s)) is not None}
        data = RunData(run_dir, summarize(found, {}), False, metrics, stages, policies=policies)
    else:
        data = RunData(run_dir, summary, True, metrics, stages, policies=policies)
    data.run_file = _run_file(run_dir)
    data.learner = next((p["version"]["policy"] for p in policies.values() if "version" in p), "")
    if (run_dir / "store" / "manifest.json").exists():
        try:
            data.store = Store.open(run_dir / "store")
            data.played = list(_played(data.store, data.learner))
        except StoreError as error:
            data.store, data.damage = None, str(error)
    return data


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); `envfarm train` with the same run file writes it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _stages(summary: dict[str, Any] | None, metrics: list[dict[str, Any]], policies: Iterable[str]) -> list[str]:
    named = [*(summary or {}).get("stages", {}), *(row["stage"] for row in metrics), *policies]
    return list(dict.fromkeys(["untrained", *named])) if "untrained" in named else list(dict.fromkeys(named))


def _run_file(run_dir: Path) -> str:
    """As YAML, whichever way the run kept it; empty where it did not."""
    if (run_dir / "run.yaml").exists():
        return (run_dir / "run.yaml").read_text(encoding="utf-8", errors="replace")
    kept = _json(run_dir / "run.json")
    return "" if kept is None else yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)


_EPISODES = """
SELECT e.id, e.stage, e.step, e."group", e.env, e.split, e.seats, e.stop, e.success, e.reward, e.malformed, e.error,
  e.instance, e.timings, t.turns, n.tokens
FROM episodes e
LEFT JOIN (
  SELECT episode_id, map(list(seat), list(turns)) AS turns
  FROM (SELECT episode_id, seat, count(*) AS turns FROM steps GROUP BY ALL) GROUP BY episode_id
) t ON t.episode_id = e.id
LEFT JOIN (
  SELECT episode_id, map(list(seat), list(tokens)) AS tokens
  FROM (SELECT episode_id, seat, sum(list_sum(CAST(mask AS INTEGER[]))) AS tokens FROM nodes GROUP BY ALL) GROUP BY episode_id
) n ON n.episode_id = e.id
ORDER BY e.stage, e.step, e."index", e.member, e.attempt, e.id
"""
"""One query, since each one reads what is not sealed yet anew."""


def _played(store: Store, learner: str) -> Iterable[Played]:
    """The seats that the learner sat in; all seats of episodes without it, such as logs."""
    for row in store.sql(_EPISODES):
        instance = json.loads(row["instance"])
        sitting = {role: version["policy"] for role, version in row["seats"].items()}
        seats = [role for role, policy in sitting.items() if policy == learner] or list(sitting)
        for seat in seats:
            yield Played(
                id=row["id"], stage=row["stage"], step=row["step"], group=row["group"], env=row["env"], split=row["split"],
                seat=seat, policy=sitting[seat], stop=StopReason(row["stop"]),
                success=bool(row["success"].get(seat, False)), reward=float(row["reward"].get(seat, 0.0)),
                turns=(row["turns"] or {}).get(seat, 0), tokens=int((row["tokens"] or {}).get(seat) or 0),
                malformed=row["malformed"], error=row["error"], spec_hash=instance.get("spec_hash", ""),
                params=instance.get("params", {}), perturbation=instance.get("perturbation", {}), timings=row["timings"],
            )  # fmt: skip
