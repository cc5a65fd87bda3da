"""Exporters by name, imported late. A new format costs one class (`rollout.export.base` says how) and one line here."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from envfarm.errors import StoreError, UserError, did_you_mean
from rollout.export.base import Exporter, Played

EXPORTERS: dict[str, str] = {
    "jsonl": "rollout.export.jsonl:Jsonl",
    "datasets": "rollout.export.datasets:Datasets",
    "rllib": "rollout.export.rllib:RLlib",
    "trl-sft": "rollout.export.trl:Sft",
    "trl-dpo": "rollout.export.trl:Dpo",
    "trl-kto": "rollout.export.trl:Kto",
    "tinker": "rollout.export.tinker:Tinker",
    "verifiers": "rollout.export.verifiers:Verifiers",
    "verl": "rollout.export.verl:Verl",
}


def exporter(name: str) -> Exporter:
    """Raises: UserError for an unknown format."""
    if name not in EXPORTERS:
        raise UserError(f"no export format {name!r}{did_you_mean(name, EXPORTERS)}; there are: {', '.join(EXPORTERS)}")
    module, _, attribute = EXPORTERS[name].partition(":")
    return getattr(import_module(module), attribute)()


def export(to: Exporter, groups: Iterable[Played], folder: Path) -> int:
    """Write `folder`, whole or not at all, and return the number of records.

    Raises: UserError where the folder holds something already, or where the format finds nothing to write (and what it
    needs); MissingDependencyError naming the extra; StoreError where the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: an export needs a folder of its own")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        partial.mkdir(parents=True)
        count = to.write(groups, partial)
        partial.replace(folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}; the store is untouched") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count
