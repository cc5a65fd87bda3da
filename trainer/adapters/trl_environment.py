"""`environment_factory` for TRL's GRPOTrainer: TRL plays, our tools answer.

    from trainer.adapters.trl import environment_factory

    maze = environment_factory("games/maze-v0", setting={"rung": 0})
    trainer = GRPOTrainer(model, environment_factory=maze, train_dataset=maze.dataset(512), args=GRPOConfig(...))
    trainer.train()
    maze.close()

The class that TRL gets has one documented method per tool of the environment, `reset(**columns)`, which says what is
first seen, and `get_reward()`. Tools are fixed when the trainer is made, so perturbations are off unless a setting says
otherwise, and one that renames tools is refused. TRL renders and tokenizes here, with a chat template that it knows;
where tokens must be exact, or an environment acts in text, use `make_rollout_func`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from envfarm.errors import EpisodeError, UserError
from envfarm.registry import default_registry, make_scene
from envfarm.session import Turn
from envfarm.settings import checked
from envfarm.spec import EnvSpec
from envfarm.tools import ToolCall, ToolSpec
from rollout.acting import specs_of
from rollout.requests import EnvChoice
from trainer.adapters.sessions import RemoteSession, Sessions
from trainer.adapters.trl_instances import Address, Source, dataset, draw

OVER = "The episode is over."
RESERVED = ("reset", "get_reward")


class Playing:
    """One live environment, as TRL uses it: reset, tools, reward; then reset again. Subclasses carry the tools."""

    _factory: EnvironmentFactory

    def __init__(self) -> None:
        self._address: Address | None = None
        self._session: RemoteSession | None = None
        self._turn: Turn | None = None
        self._reward = 0.0
        self._fault: EpisodeError | None = None

    def reset(self, **columns: Any) -> str:
        """Begin the row's instance. Raises: UserError where the row names none, or its tools are called otherwise."""
        address = self._address = self._factory.address(columns)
        self._close()
        self._session = self._wait(self._factory.sessions.open(self._factory.spec))
        self._reward, self._fault, self._turn = 0.0, None, None
        turn = self._ask(self._session.reset(self._factory.source.instance(address)))
        strange = [t.name for t in turn.tools if t.name not in self._factory.tools] if turn is not None else []
        if strange:  # an instance may well have fewer tools than its class
            raise UserError(
                f"{address}: this instance has a tool {strange[0]!r}, and the trainer knows {', '.join(self._factory.tools)}; "
                "leave `perturb` off, or use make_rollout_func"
            )
        return turn.text if turn is not None else OVER

    def get_reward(self) -> float | None:
        """The episode's total; None where it broke. An episode that is not over ends here, as the agent stopped."""
        if self._session is not None and self._fault is None and self._turn is not None and not self._turn.over:
            self._ask(self._session.finish("agent_stopped"))
        return self._reward if self._fault is None else None

    def _act(self, call: ToolCall) -> str:
        if self._session is None or self._fault is not None or self._turn is None or self._turn.over:
            return OVER
        turn = self._ask(self._session.step(call))
        return turn.text if turn is not None else OVER

    def _ask(self, work: Any) -> Turn | None:
        """What the session answers, its reward added; None where the episode broke."""
        try:
            turn: Turn = self._wait(work)
        except EpisodeError as fault:
            self._fault = fault
            return None
        self._turn = turn
        self._reward += turn.rewards.get(self._factory.role, 0.0)
        if turn.over:
            self._close()
        return turn

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._wait(session.close())

    def _wait(self, work: Any) -> Any:
        return self._factory.sessions.wait(work)


class EnvironmentFactory:
    """Called by TRL without arguments, as often as it needs one more live environment. Workers start with the first reset."""

    def __init__(self, spec: EnvSpec, *, setting: Mapping[str, Any], seed: int, sessions: Sessions):
        self.spec, self.seed, self.sessions = spec, seed, sessions
        self.role = next(iter(spec.roles))
        self.source = Source([EnvChoice(spec, {self.role: "learner"}, setting=setting)], seed)
        self.tools: dict[str, ToolSpec] = dict(make_scene(spec).tools)
        methods = {name: _method(tool) for name, tool in self.tools.items()}
        title = "".join(part.capitalize() for part in spec.id.partition("/")[2].rpartition("-v")[0].split("-"))
        self.environment: type[Playing] = type(title or "Environment", (Playing,), {**methods, "_factory": self})

    def __call__(self) -> Playing:
        return self.environment()

    def dataset(self, count: int, *, split: str = "train", prompt: str = "") -> Any:
        """`count` instances. `prompt` stands before what the environment shows first. Raises: UserError,
        MissingDependencyError."""
        return dataset(draw(self.source.choices, count, split=split, seed=self.seed), lambda _: prompt)

    def address(self, columns: Mapping[str, Any]) -> Address:
        """Raises: UserError where a row lacks a column."""
        missing = [name for name in ("env", "split", "index") if name not in columns]
        if missing:
            raise UserError(f"the data set lacks the column {missing[0]!r}; make it with `.dataset(...)` of this factory")
        return Address(columns["env"], columns["split"], int(columns["index"]))

    def close(self) -> None:
        """End the workers. Idempotent."""
        self.sessions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment_factory(
    environment: str, *, setting: Mapping[str, Any] | None = None, seed: int = 0, workers: int = 1, backend: str = "bubblewrap"
) -> EnvironmentFactory:
    """A factory over one environment, by id or by its YAML.

    Raises: UnknownIdError, SpecError; UserError for several roles (`make_rollout_func` seats them), or a tool whose name
    TRL keeps for itself.
    """
    specs = specs_of([environment], default_registry())
    if len(specs) != 1:
        raise UserError(f"{environment!r} stands for {', '.join(specs)}; one environment each: TRL takes a dict of factories")
    spec = next(iter(specs.values()))
    if len(spec.roles) > 1:
        raise UserError(f"{spec.id} has the roles {', '.join(spec.roles)}; make_rollout_func with a run file seats the others")
    narrowed = checked(spec, {"perturb": "off", **(setting or {})})
    factory = EnvironmentFactory(spec, setting=narrowed, seed=seed, sessions=Sessions(backend=backend, workers=workers))
    taken = [name for name in factory.tools if name in RESERVED or name.startswith("_")]
    if taken:
        raise UserError(f"{spec.id} has a tool {taken[0]!r}, a name that TRL keeps for itself; use make_rollout_func")
    return factory


# Tools as methods.

_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "object": dict}


def _method(tool: ToolSpec) -> Callable[..., str]:
    """A method with the signature and the docstring that Transformers reads a tool's schema from."""
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=_type(schema),
            default=inspect.Parameter.empty if name in tool.schema["required"] else schema.get("default"),
        )
        for name, schema in tool.parameters.items()
    ]  # fmt: skip
    signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters])

    def call(self: Playing, *args: Any, **named: Any) -> str:
        by_place = dict(zip(tool.parameters, args, strict=False))
        return self._act(ToolCall(tool.name, by_place | named))  # wrong arguments are the environment's to answer

    call.__name__ = call.__qualname__ = tool.name
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}  # of no result: it would be part of the schema
    said = "\n".join(f"    {n}: {s.get('description') or n}" for n, s in tool.parameters.items())
    call.__doc__ = tool.description + (f"\n\nArgs:\n{said}\n" if said else "")
    return call


def _type(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if schema["type"] == "array":
        return list[_type(schema["items"])]  # type: ignore[misc]
    return _TYPES[schema["type"]]
