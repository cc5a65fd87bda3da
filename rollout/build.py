"""From a run file's `policies` to policies that can act: scripts, model folders on one embedded engine, servers.

A policy's folder is what Hugging Face writes (`config.json`, `model.safetensors`, `tokenizer.json`) and, where our
trainer saved it, `envfarm.json`: renderer, version, seed, sampling, and what it was evaluated on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from envfarm.errors import CapabilityError, UserError, did_you_mean
from envfarm.seeding import stable_hash
from rollout.engines.base import ENGINES, Engine, engine_keys
from rollout.models import is_model, resolve_model
from rollout.policies import ChatPolicy, EnginePolicy, Policy
from rollout.renderers.base import RENDERERS, Renderer, Tokenizer
from rollout.run import RolloutFile
from rollout.run_policies import EngineEntry, PolicyEntry, script_of
from rollout.tokenizers import HFTokenizer, check_tokenizer
from rollout.types import PolicyVersion

ABOUT = "envfarm.json"


@dataclass(frozen=True)
class ModelFolder:
    """A policy on disk. Of a LoRA adapter, `path` is a folder in the cache with its base and the adapter in it."""

    path: Path
    home: Path  # where it was saved: what `about` says of other folders is relative to this
    about: Mapping[str, Any] = field(default_factory=dict)  # `envfarm.json`, empty where there is none

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Raises: UserError naming what is missing, or the nearest folder that is one."""
        home = Path(path) if Path(path).is_dir() or not is_model(str(path)) else resolve_model(str(path))
        folder = home
        if (home / "adapter_config.json").is_file():
            folder = import_module("rollout.engines.torch.adapter").merged_folder(home)
        missing = [n for n in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()]
        if missing:
            below = sorted(str(p.parent) for p in folder.glob("**/model.safetensors")) if folder.is_dir() else []
            hint = f"; below it are: {', '.join(below[:8])}" if below else ""
            raise UserError(
                f"{folder} is no model folder: it lacks {', '.join(missing)}{hint}. A folder that `envfarm train` or "
                "Hugging Face's `save_pretrained` wrote was expected"
            )
        return cls(folder, home, about_of(home))

    def version(self, policy: str, *, incarnation: int = 0) -> PolicyVersion | None:
        """What `envfarm.json` says the weights are, under the name that they act under here."""
        said = self.about.get("version")
        if said is None:
            return None
        return PolicyVersion(policy, incarnation, said.get("number", 0), said.get("checksum", ""))

    def tokenizer(self) -> HFTokenizer:
        """Raises: UserError where it is missing, damaged, or of another model."""
        return check_tokenizer(HFTokenizer(self.path), self.path)

    def renderer(self, name: str | None = None) -> Renderer:
        """The one named, else the one the policy was trained with, else the one that writes as its chat template does;
        without such a template ChatML.

        Raises: UserError where there is no such renderer, or none knows the template (what to do).
        """
        return renderer_for(name or self.about.get("renderer"), self.tokenizer(), self.path)


def about_of(folder: Path) -> dict[str, Any]:
    """`envfarm.json` of a policy's folder; empty where there is none. Raises: UserError where it is damaged."""
    about = folder / ABOUT
    try:
        return json.loads(about.read_text()) if about.is_file() else {}
    except ValueError as error:
        raise UserError(f"{about} is damaged: {error}") from error


def renderer_for(name: str | None, tokenizer: HFTokenizer, folder: Path) -> Renderer:
    """By name, or by the folder's chat template (`rollout.templates`). Raises: UserError."""
    from rollout.templates import native_renderer

    return make_renderer(name or native_renderer(folder, tokenizer), tokenizer)


def make_renderer(name: str, tokenizer: Tokenizer) -> Renderer:
    """A renderer by name, or by `module:Class`. Raises: UserError."""
    return _load(name, RENDERERS, "renderer")(tokenizer)


def engine_class(kind: str) -> Any:
    """An engine's class by name, or by `module:Class`. Raises: UserError."""
    return _load(kind, ENGINES, "engine")


def _load(name: str, table: Mapping[str, str], what: str) -> Any:
    target = table.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UserError(f"no {what} {name!r}{did_you_mean(name, table)}; there are: {', '.join(table)}, or module:Class")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the {what} {name!r} cannot be loaded: {error}") from error


UNTRAINED = "untrained"
"""The stage that every run begins with: its model before any update."""


def version_folder(version: str) -> Path:
    """Where in a run directory the weights lie that `version` names: of a stage, or at an update count."""
    what = version.partition("@")[2]
    if not what.isdigit():
        return Path("policies") / what
    return Path("snapshots") / str(int(what)) if int(what) else Path("policies") / UNTRAINED


def acting_folder(version: str, saved: Collection[str], number: int) -> Path:
    """The same during a run: the untrained weights act until the stage is among the `saved` ones, or until `number`
    updates are as many as it names."""
    what = version.partition("@")[2]
    there = int(what) <= number if what.isdigit() else what in saved
    return version_folder(version) if there else Path("policies") / UNTRAINED


def version_entry(run_dir: Path, entry: PolicyEntry) -> PolicyEntry:
    """The same policy, given by its folder. Raises: UserError where the run has not got that far."""
    assert entry.version is not None
    folder = run_dir / version_folder(entry.version)
    if not (folder / ABOUT).is_file():
        raise UserError(
            f"version {entry.version!r}: there is no {folder}; `envfarm train` saves it there when it has got so far "
            "(NAME@STAGE: a stage of the run file, or `untrained`; NAME@NUMBER: that many updates)"
        )
    return PolicyEntry(model=str(folder), renderer=entry.renderer)


def opponents(folder: ModelFolder) -> dict[str, PolicyEntry]:
    """Who sat beside a saved policy when its run evaluated it, by name; folders are written relative to its own, models
    from elsewhere by their names."""
    said = folder.about.get("evaluation", {}).get("policies", {})
    entries = {name: PolicyEntry.model_validate(entry) for name, entry in said.items()}

    def here(entry: PolicyEntry) -> PolicyEntry:
        path = folder.home / entry.model if isinstance(entry.model, str) else None
        return entry.model_copy(update={"model": os.path.normpath(path)}) if path is not None and path.is_dir() else entry

    return {name: here(entry) for name, entry in entries.items()}


def build_policies(
    entries: Mapping[str, PolicyEntry], engine: EngineEntry, run_dir: Path, make_engine: Callable[..., Engine] | None = None
) -> dict[str, Policy]:
    """Policies that can act, engines not started yet. Model folders, also those of older versions (in `run_dir`), share
    one embedded engine, as `engine` says; `make_engine` makes it (`embedded_engine`, or as `rollout.places` has it).

    Raises: UserError for a model that is no folder (fresh models are made by `envfarm train`) or a version that is not
    saved yet, CapabilityError for an engine that cannot serve a model folder.
    """
    policies: dict[str, Policy] = {}
    folders: dict[str, tuple[ModelFolder, PolicyEntry]] = {}
    for name, given in entries.items():
        entry = given if given.version is None else version_entry(run_dir, given)
        if entry.scripted is not None:
            policies[name] = script_of(name, entry.scripted)
        elif entry.served:
            assert entry.engine is not None
            policies[name] = chat_policy(name, entry.engine)
        elif isinstance(entry.model, str) and (Path(entry.model).is_dir() or (engine.kind != "openai" and is_model(entry.model))):
            folders[name] = (ModelFolder.open(entry.model), entry)
        elif engine.kind == "openai" and entry.model is not None and engine.base_url is not None:
            policies[name] = chat_policy(name, engine)
        else:
            raise UserError(
                f"policy {name!r}: model {entry.model!r} is no model here. A fresh model is made by `envfarm train`; to act, "
                "name the folder of a policy that it saved (RUN/policies/NAME)"
            )
    if folders:
        shared = (make_engine or embedded_engine)(engine, {name: folder for name, (folder, _) in folders.items()})
        for name, (folder, entry) in folders.items():
            version = folder.version(name) or PolicyVersion(policy=name)
            policies[name] = EnginePolicy(version, shared, folder.renderer(entry.renderer))
    return policies


def frozen_models(run: RolloutFile) -> dict[str, ModelFolder]:
    """The model folders among the policies that are not trained. Raises: UserError."""
    named = {n: e.model for n, e in run.policies.items() if isinstance(e.model, str) and not e.trainable}
    return {name: ModelFolder.open(folder) for name, folder in named.items()}


def served_policies(run: RolloutFile) -> dict[str, ChatPolicy]:
    """The policies behind servers of their own. Raises: UserError."""
    return {name: chat_policy(name, e.engine) for name, e in run.policies.items() if e.served and e.engine is not None}


def embedded_engine(
    entry: EngineEntry, folders: Mapping[str, ModelFolder], versions: Mapping[str, PolicyVersion] | None = None
) -> Engine:
    """One engine that serves all `folders`, by policy name; not started yet. Its arguments pickle: a process that is to
    have an engine of its own is handed them. `versions` says whose weights a folder holds where the run knows better than
    the folder (an incarnation).

    Raises: CapabilityError for a kind that serves no folders, UserError where there is no such kind, or its package is
    not installed.
    """
    if entry.kind == "openai":
        raise CapabilityError("an `openai` engine serves what its server has, no model folder: use `engine: {kind: torch}`")
    known = {name: v for name, f in folders.items() if (v := f.version(name)) is not None}
    paths = {name: str(folder.path) for name, folder in folders.items()}
    return engine_class(entry.kind)(paths, versions={**known, **(versions or {})}, **entry.arguments())


def chat_policy(name: str, entry: EngineEntry) -> ChatPolicy:
    """A policy behind a server. Raises: UserError where the entry does not say which."""
    if "model" not in engine_keys(entry.kind):
        raise UserError(f"policy {name!r}: an engine of kind {entry.kind!r} serves model folders: `{{model: FOLDER}}`")
    if entry.base_url is None or entry.model is None:
        raise UserError(f"policy {name!r}: an engine of kind {entry.kind!r} needs `base_url` and `model`")
    engine = engine_class(entry.kind)(
        entry.base_url, entry.model, api_key_env=entry.api_key_env, max_in_flight=entry.max_in_flight,
        context=entry.context or 0,
    )  # fmt: skip
    checksum = stable_hash([entry.base_url, entry.model])[:16]
    return ChatPolicy(PolicyVersion(policy=name, checksum=checksum), engine)
