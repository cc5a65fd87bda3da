"""What commands share: policies by name, a pool around a run, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from envfarm.errors import UserError, did_you_mean
from envfarm.registry import Registry
from envfarm.spec import EnvSpec
from rollout.build import ABOUT, ModelFolder, about_of, build_policies, chat_policy, embedded_engine
from rollout.models import CATALOG, is_model
from rollout.places import EngineMaker, Place
from rollout.plan import RunPlan
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.run_policies import EngineEntry, PolicyEntry
from rollout.scheduler import Rollouts
from rollout.store import Store
from rollout.types import PolicyVersion

SCRIPTS = ("oracle", "null", "random")


def console_for(as_json: bool) -> Console:
    return Console(stderr=as_json, highlight=False)


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, nothing elsewhere; gives the function to call after each item."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=36), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda *_: progress.advance(task)


def named_policy(text: str, name: str, *, engine: EngineEntry, renderer: str | None = None) -> Policy:
    """What `--policy` names: a script, `oracle:SHARE`, a model folder or a run directory, a served model.

    Raises: UserError.
    """
    script, _, share = text.partition(":")
    if engine.kind == "openai":
        return chat_policy(name, engine.model_copy(update={"model": text}))
    if text in SCRIPTS:
        return ScriptedPolicy(name, text)  # type: ignore[arg-type]
    if script == "oracle" and share:
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise UserError(f"--policy {text}: the share of random actions is {share!r}; expected a number from 0 to 1")
        return ScriptedPolicy(name, "oracle", value)
    if not Path(text).exists() and not is_model(text):
        raise UserError(
            f"no policy {text!r}{did_you_mean(text, [*SCRIPTS, *CATALOG])}: expected {', '.join(SCRIPTS)}, oracle:SHARE, a model "
            "folder or a run directory, or a model by name (`envfarm models list`)"
        )
    folder = policy_folder(text)
    version = folder.version(name) or PolicyVersion(policy=name)
    return EnginePolicy(version, embedded_engine(engine, {name: folder}), folder.renderer(renderer))


def named_policies(
    text: str, name: str, others: Mapping[str, PolicyEntry], *, engine: EngineEntry, renderer: str | None = None,
    run_dir: Path = Path(), make_engine: EngineMaker = embedded_engine,
) -> dict[str, Policy]:  # fmt: skip
    """What `--policy` names as `name`, and `others` beside it, all model folders on one engine. Raises: UserError."""
    if engine.kind != "openai" and text not in SCRIPTS and (Path(text).exists() or is_model(text)):
        own = PolicyEntry(model=str(policy_folder(text).home), renderer=renderer)
        return build_policies({name: own, **others}, engine, run_dir, make_engine)
    alone = named_policy(text, name, engine=engine, renderer=renderer)
    return {name: alone, **build_policies(others, engine, run_dir, make_engine)}


def policy_folder(text: str | Path) -> ModelFolder:
    """A model folder or a model by name, or the newest policy that a run saved below `policies/`. Raises: UserError."""
    saved = sorted(p for p in Path(text).glob("policies/*") if (p / ABOUT).is_file())
    if not saved:
        return ModelFolder.open(text)
    return ModelFolder.open(max(saved, key=lambda folder: about_of(folder).get("version", {}).get("number", 0)))


async def with_rollouts(
    plan: RunPlan, policies: dict[str, Policy], store: Store | None, place: Place, play: Callable[[Rollouts], Any]
) -> Any:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(place.close)
        await place.start()
        rollouts = await stack.enter_async_context(Rollouts(plan, place, policies, store))
        return await play(rollouts)


def specs_of(patterns: Sequence[str], registry: Registry) -> dict[str, EnvSpec]:
    """Raises: UnknownIdError, SpecError."""
    found = [registry.get(p) if Path(p).exists() else registry.get(i) for p in patterns for i in _ids(p, registry)]
    return {spec.id: spec for spec in found}


def _ids(pattern: str, registry: Registry) -> list[str]:
    return [pattern] if Path(pattern).exists() else registry.match(pattern)
