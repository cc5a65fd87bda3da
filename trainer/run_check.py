"""What pydantic cannot know of a run file: whether its parts fit together, and whether what it names is there.

Each problem is a message and the path of the value that it is about; the first one is reported, at its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from envfarm.errors import RunFileError, UserError, did_you_mean
from envfarm.registry import Registry
from envfarm.spec import EnvSpec
from envfarm.yaml_source import Source
from rollout.build import UNTRAINED, ModelFolder, chat_policy
from rollout.engines.base import ENGINES, NEEDS_FOR_TRAINING
from rollout.models import CATALOG, is_model
from rollout.renderers.base import RENDERERS
from rollout.run import SELF
from rollout.run_check import resolve
from rollout.run_policies import PolicyEntry
from trainer.run import LogsEntry, Online, RunFile

At = tuple[str | int, ...]
Problems = Iterator[tuple[str, At]]

EVALUATION_ENGINES = frozenset({"openai"})
"""Engines that give neither exact token ids nor logprobs: `rollout.engines.base.require` refuses them for training."""


def check(run: RunFile, source: Source, registry: Registry) -> dict[str, EnvSpec]:
    """The specs of the run. Raises: RunFileError with the place of what does not fit."""
    _refuse(_engine_problems(run), source)
    specs = resolve(run, source, registry)
    _refuse(_problems(run, specs), source)
    return specs


def _refuse(problems: Problems, source: Source) -> None:
    for message, path in problems:
        raise RunFileError(message, source.at(*path))


def _problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Problems:
    yield from _learner_problems(run, specs)
    yield from _stage_problems(run, specs)
    yield from _evaluation_problems(run, specs)


def _learner_problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Problems:
    trainable = [n for n, p in run.policies.items() if p.trainable]
    if len(trainable) != 1:
        found = ", ".join(trainable) or "none"
        yield f"training needs exactly one policy with `trainable: true`; found {found}", ("policies",)
        return
    yield from _model_problems(run.policies[run.learner], ("policies", run.learner, "model"))
    for name, entry in run.policies.items():
        if entry.renderer is not None:
            yield from _known("renderer", entry.renderer, RENDERERS, ("policies", name, "renderer"))
        if name != run.learner:
            yield from _opponent_problems(run, entry, ("policies", name))
    for spec in specs.values():
        if run.learner not in run.seats_of(spec).values():
            yield f"the learner {run.learner!r} sits in no seat of {spec.id}", ("seats", spec.id)


def _opponent_problems(run: RunFile, entry: PolicyEntry, at: At) -> Problems:
    """A policy beside the learner: a script, a version of the learner, a frozen model folder, or a server."""
    if entry.version is not None:
        yield from _version_problems(run, entry.version, (*at, "version"))
    if entry.model is not None:
        if entry.engine is not None:
            yield "a frozen model plays on the run's own engine; a server's policy says `engine` alone", (*at, "engine")
        try:
            ModelFolder.open(str(entry.model))
        except UserError as error:
            yield f"a model that is not trained is a folder: {error}", (*at, "model")
    if entry.served and entry.engine is not None:
        try:
            chat_policy("", entry.engine)
        except UserError as error:
            yield str(error), (*at, "engine")


def _version_problems(run: RunFile, version: str, at: At) -> Problems:
    what = version.partition("@")[2]
    stages = [UNTRAINED, *(name for name, _ in run.named_stages())]
    if not what.isdigit():
        yield from _known("stage", what, stages, at)
        return
    most = sum(e.settings.steps * (e.online.updates if e.online else 1) for e in run.stages)
    if int(what) > most:
        yield f"{version!r} would never act: all stages together make at most {most} updates", at


def _model_problems(entry: PolicyEntry, at: At) -> Problems:
    from rollout.engines.torch.checkpoint import load_config
    from trainer.models import MODELS, fresh_config, is_fresh, load_tokenizer, model_folder, renderer_of

    if is_fresh(entry):
        try:
            fresh_config(entry)
        except (UserError, msgspec.ValidationError) as error:
            yield str(error), at
    elif entry.model not in CATALOG and not is_model(str(entry.model)):
        names = [*MODELS, *CATALOG]
        hint = did_you_mean(str(entry.model), names)
        yield f"no model {entry.model!r}{hint}; known: {', '.join(names)}, a model folder, or a hub's org/name", at
    else:
        try:
            load_config(model_folder(entry))
            renderer_of(entry, load_tokenizer(model_folder(entry)))
        except UserError as error:
            yield str(error), at
    if entry.engine is not None:
        yield "the trainable policy plays on the run's own engine", (*at[:-1], "engine")


def _engine_problems(run: RunFile) -> Problems:
    yield from _known("engine", run.engine.kind, ENGINES, ("engine", "kind"))
    if run.engine.kind in EVALUATION_ENGINES:
        needs = ", ".join(NEEDS_FOR_TRAINING)
        yield (
            f"training needs an engine with {needs}; {run.engine.kind!r} can only evaluate: use `torch` or `vllm`",
            ("engine", "kind"),
        )


def _stage_problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Problems:
    known, logged = [UNTRAINED], False
    for index, (name, entry) in enumerate(run.named_stages()):
        at = ("stages", index, entry.kind)
        logs = entry.imitation.logs if entry.imitation else None
        if logs is not None:
            if logged:
                yield "the run has logs already; one set of logs serves all stages", (*at, "logs")
            yield from _logs_problems(run, logs, specs, (*at, "logs"))
            logged = True
        if entry.kind in ("imitation", "offline") and not logged:
            yield f"{entry.kind} needs logs: say `logs: {{policy: ..., episodes: ...}}` in the first imitation stage", at
        if entry.online is not None:
            yield from _online_problems(run, entry.online, specs, known, at)
        known.append(name)
    if not logged and isinstance(run.policies[run.learner].model, str) and run.policies[run.learner].model == "tiny":
        yield "a `tiny` model gets its tokenizer from logs: the first stage must be an imitation with `logs`", ("stages",)


def _logs_problems(run: RunFile, logs: LogsEntry, specs: Mapping[str, EnvSpec], at: At) -> Problems:
    if isinstance(logs.policy, str):
        yield from _known("policy", logs.policy, run.policies, (*at, "policy"))
    if run.logging_policy(logs).scripted is None:
        yield "logs are played by a scripted policy, for example `{scripted: {oracle: {random: 0.35}}}`", (*at, "policy")
    yield from _trained_on(logs.split, specs, (*at, "split"))


def _online_problems(run: RunFile, online: Online, specs: Mapping[str, EnvSpec], known: list[str], at: At) -> Problems:
    if online.from_ is not None:
        yield from _known("stage", online.from_, known, (*at, "from"))
    if online.batch % online.group:
        yield f"batch ({online.batch} episodes) must be a multiple of group ({online.group})", (*at, "batch")
    if online.group > run.engine.max_in_flight:
        yield f"a group of {online.group} does not fit into max_in_flight: {run.engine.max_in_flight}", (*at, "group")
    if run.sampling.top_p < 1 or run.sampling.temperature == 0:
        yield (
            (
                "online training samples from the whole distribution: with `top_p` below 1 or temperature 0 the recorded "
                "logprobs are not those of the policy that is trained"
            ),
            ("sampling",),
        )
    yield from _trained_on(online.split, specs, (*at, "split"))


def _evaluation_problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Problems:
    evaluation = run.evaluate
    for index, split in enumerate(evaluation.splits):
        if split != "real":  # where an environment has none, its gap is "not measured"
            yield from _splits(split, specs, ("evaluate", "splits", index))
        if not evaluation.count(split):
            yield f"evaluate.episodes says nothing of the split {split!r}", ("evaluate", "episodes")
    yield from _seating_problems(run, specs)
    for split in evaluation.curve:
        yield from _splits(split, specs, ("evaluate", "curve", split))


def _seating_problems(run: RunFile, specs: Mapping[str, EnvSpec]) -> Problems:
    for env_id, seatings in run.evaluate.seats.items():
        at: At = ("evaluate", "seats", env_id)
        if env_id not in specs:
            yield f"{env_id!r} is none of this run's environments{did_you_mean(env_id, specs)}", at
            continue
        for index, seating in enumerate(seatings):
            for role, name in seating.items():
                yield from _known("role", role, specs[env_id].roles, (*at, index, role))
                yield from _known("policy", name, [SELF, *run.policies], (*at, index, role))
            if not {SELF, run.learner} & {seating.get(role, SELF) for role in specs[env_id].roles}:
                yield f"the learner {run.learner!r} sits in no seat here", (*at, index)


def _trained_on(split: str, specs: Mapping[str, EnvSpec], at: At) -> Problems:
    if split == "real":
        yield "the split 'real' measures the gap and is never trained on; use 'train'", at
    yield from _splits(split, specs, at)


def _splits(split: str, specs: Mapping[str, EnvSpec], at: At) -> Problems:
    for spec in specs.values():
        if split not in spec.splits:
            hint = did_you_mean(split, spec.splits)
            yield f"{spec.id} has no split {split!r}{hint}; it has: {', '.join(spec.splits)}", at


def _known(what: str, name: str, known: Iterable[str], at: At) -> Problems:
    names = list(known)
    if name not in names:
        yield f"no {what} {name!r}{did_you_mean(name, names)}; there are: {', '.join(names)}", at
