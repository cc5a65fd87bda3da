"""Numbers over time: one JSON object per line in `metrics.jsonl`, and the same as TensorBoard scalars.

Each row holds `stage`, `step` (within the stage) and `number` (optimizer steps since the weights were made). A resumed
run may make a step again: rows are written again then, and `read` keeps the last one of each (stage, step, kind).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Metrics:
    def __init__(self, run_dir: Path):
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "metrics.jsonl"
        torn = path.exists() and (data := path.read_bytes()) != b"" and not data.endswith(b"\n")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        if torn:  # a kill in the middle of a write; `read` skips the half line
            self._file.write("\n")
        # The writer that torch.utils.tensorboard wraps; that module takes seconds to import.
        self._board = EventFileWriter(str(run_dir / "tensorboard"), flush_secs=10)

    def write(self, stage: str, step: int, number: int, values: dict[str, Any], *, kind: str = "train") -> None:
        """Numbers that are not finite are left out of JSON (they are no JSON), not hidden: the key stays, as null."""
        row = {"stage": stage, "step": step, "number": number, "kind": kind}
        row |= {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        scalars = [
            Summary.Value(tag=f"{stage}/{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._board.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(run_dir: Path) -> list[dict[str, Any]]:
    """Rows in the order of their first appearance, each in its last version. A torn last line is left out."""
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    path = run_dir / "metrics.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a kill in the middle of a write: the step is made again and its row written again
            rows[(row["stage"], row["step"], row["kind"])] = row
    return list(rows.values())
