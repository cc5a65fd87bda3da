"""A session: one live scene, serving one episode, behind five calls that any wrapper or wire can repeat.

`reset(instance)`, `step(action)`, `finish(reason)`, `oracle()`, `random(seed)`, then `close()`. Workers run sessions;
perturbation channels wrap them (`envfarm.perturbation.perturbed`); `envfarm.worker.client` is the same thing over a wire.
Everything that comes back is a `Turn`: what the world says to the role that acts next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from envfarm.blocks import Blocks, Text
from envfarm.box import SyncBox
from envfarm.errors import EnvironmentFault, EpisodeError, UserError, VerifierFault
from envfarm.seeding import generator
from envfarm.tools import Action, Malformed, ToolSpec, as_call, to_text

if TYPE_CHECKING:
    from envfarm.env import Scene
    from envfarm.spec import EnvSpec, Instance


class Turn(msgspec.Struct, kw_only=True):
    """What the world says after a reset or an action."""

    role: str  # who acts next; when the episode is over: who acted last
    blocks: Blocks = ()  # what that role sees, before it is written down
    text: str = ""  # the blocks, written in the instance's format
    rewards: dict[str, float] = {}  # per role, component "env", since the turn before
    components: dict[str, dict[str, float]] = {}  # per role and component, "env" included
    terminated: bool = False
    truncated: bool = False
    stop: str = ""  # a `rollout.types.StopReason` when over
    malformed: bool = False  # the action before was not one
    tools: tuple[ToolSpec, ...] = ()  # visible tools; on the first turn, and whenever they change
    text_tool: str | None = None  # with `tools`: where plain text goes
    command_output: tuple[tuple[int, int], ...] = ()  # [start, end) spans of `text` that a box's command printed
    events: tuple[dict[str, Any], ...] = ()  # what perturbation channels did since the turn before
    virtual_time_s: float = 0.0  # of the episode so far

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class Session(Protocol):
    """One episode's interface. Methods raise `EpisodeError`s (whose status is recorded) and nothing else."""

    env_spec: EnvSpec

    @property
    def turn_limit(self) -> int:
        """Actions of all roles together that end this episode."""
        ...

    def reset(self, instance: Instance) -> Turn: ...
    def step(self, action: Action) -> Turn: ...
    def finish(self, reason: str) -> Turn:
        """The agent stops for a reason of its own (`agent_stopped`, `token_limit`, ...): the verdict, as a last turn."""
        ...

    def oracle(self) -> str:
        """The expert's next action, as text in terms of the visible tools."""
        ...

    def random(self, seed: int) -> str:
        """A thoughtless action, as text."""
        ...

    def close(self) -> None: ...


class LocalSession:
    """A scene in this process. `write` turns blocks into text (and says where command output stands)."""

    def __init__(
        self,
        env_spec: EnvSpec,
        scene: Scene,
        *,
        make_box: Callable[..., Any] | None = None,
        write: Callable[[Blocks], tuple[str, tuple[tuple[int, int], ...]]] | None = None,
    ):
        from envfarm.formats import write_plain

        self.env_spec, self.scene = env_spec, scene
        self._make_box, self._write = make_box, write or write_plain
        self.box: SyncBox | None = None
        self._turns = 0

    def reset(self, instance: Instance) -> Turn:
        self._free_box()  # an episode never finds what another one left
        if self._make_box is not None:
            self.box = self._make_box()
        self.scene.make_box = self._make_box
        self._turns = 0
        blocks = self._guard(lambda: self.scene.begin(instance, self.box))
        turn = self._turn(blocks)
        turn.tools, turn.text_tool = tuple(self.scene.tools.values()), self.scene.text_tool
        return turn

    @property
    def turn_limit(self) -> int:
        own = self.scene.turn_limit
        return (self.env_spec.limits.turns if own is None else own) * len(self.scene.roles)

    def step(self, action: Action) -> Turn:
        scene, malformed = self.scene, False
        if scene.over:
            raise EnvironmentFault(f"{self.env_spec.id}: step after the episode was over; reset first")
        actor = scene.turn
        self._turns += 1
        try:
            call = as_call(action, scene.tools, scene.text_tool)
            blocks = self._guard(lambda: scene.call(call))
        except Malformed as error:
            blocks, malformed = (Text(str(error)),), True
        if not scene.over and self._turns >= self.turn_limit:
            scene.stop = "turn_limit"
            scene.over = True
        if not scene.over and scene.turn != actor:
            blocks = self._guard(lambda: scene.observe_blocks(scene.turn))
        return self._turn(blocks, malformed=malformed)

    def finish(self, reason: str) -> Turn:
        self.scene.over, self.scene.stop = True, reason
        return self._turn(())

    def oracle(self) -> str:
        return self._as_text(self._guard(self.scene.oracle))

    def random(self, seed: int) -> str:
        rng = generator("random agent", *self.scene.instance.stream, seed)
        return self._as_text(self._guard(lambda: self.scene.random_action(rng)))

    def close(self) -> None:
        self.scene.release()
        self._free_box()

    def _free_box(self) -> None:
        box, self.box = self.box, None
        if box is not None:
            stop = getattr(box, "stop", None)
            if stop is not None:
                stop()

    def _as_text(self, action: Action) -> str:
        return action if isinstance(action, str) else to_text(action, self.scene.tools, self.scene.text_tool)

    def _turn(self, blocks: Blocks, *, malformed: bool = False) -> Turn:
        scene = self.scene
        if scene.over:
            self._guard(scene.judge, fault=VerifierFault)
        components = scene.collect()
        rewards = {role: parts["env"] for role, parts in components.items() if "env" in parts}
        self._check_range(rewards)
        text, spans = self._write(blocks)
        terminated = scene.over and scene.stop in ("terminated", "agent_stopped", "agent_limit")
        return Turn(
            role=scene.turn, blocks=blocks, text=text, rewards=rewards, components=components, terminated=terminated,
            truncated=scene.over and not terminated, stop=scene.stop, malformed=malformed, command_output=spans,
        )  # fmt: skip

    def _check_range(self, rewards: dict[str, float]) -> None:
        low, high = self.env_spec.reward.range
        for role, value in rewards.items():
            if not (math.isfinite(value) and low <= value <= high):
                raise VerifierFault(f"{self.env_spec.id}: reward {value!r} of {role} lies outside reward.range [{low}, {high}]")

    def _guard(self, call: Callable[[], Any], fault: type[EpisodeError] = EnvironmentFault) -> Any:
        """The boundary of the author's code: what it raises becomes one recorded fault."""
        try:
            return call()
        except (EpisodeError, Malformed, UserError):
            raise
        except Exception as error:
            raise fault(f"{self.env_spec.id}: {type(error).__name__}: {error}") from error


def local_session(env_spec: EnvSpec, *, scene: Scene | None = None, backend: str = "bubblewrap", perturb: bool = True) -> Session:
    """A session in this process, boxes and perturbations included: what `Env.reset`, `envfarm play` and `check` use.

    Raises: BoxUnavailableError where the spec needs a box and none can be made; SpecError on a missing entry.
    """
    from envfarm.backends.local import box_maker
    from envfarm.perturbation import perturbed
    from envfarm.registry import make_scene

    made = scene if scene is not None else make_scene(env_spec)
    box_spec = env_spec.sandbox.box_spec(env_spec.limits) if env_spec.sandbox.box else None
    session = LocalSession(env_spec, made, make_box=box_maker(backend, box_spec) if box_spec else None)
    return perturbed(session) if perturb else session
