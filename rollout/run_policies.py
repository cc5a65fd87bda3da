"""What acts in a run, as its file says it under `policies:`: models, scripts, older versions of the learner, and by which engine.

Shapes are checked here, one entry at a time; whether they fit together is `rollout.run_check`'s, and what they become
`rollout.build`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from envfarm.spec_file import Size
from envfarm.yaml_source import FileModel
from rollout.engines.base import engine_keys
from rollout.policies import ScriptedPolicy


class EngineEntry(FileModel):
    """`engine:`, of the run or of one policy. Which keys belong to which kind: `rollout.engines.base.ENGINE_KEYS`."""

    kind: str = "torch"
    max_in_flight: int = Field(default=64, ge=1)
    threads: int | None = Field(default=None, ge=1)
    context: int | None = Field(default=None, ge=1)  # tokens
    base_url: str | None = None  # of a server: `openai` up to before `/chat/completions`, `vllm` its root
    model: str | None = None  # as the server calls it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the server's key
    serve: bool = False  # vllm: a server of its own that we start and watch, instead of in this process
    device: Literal["cpu", "cuda"] | None = None  # default: what the installed package is built for
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # default: as the model folder says
    kv_cache: Size | None = None  # memory for keys and values
    compile: bool = False  # slower to start, faster to sample
    restarts: int = Field(default=3, ge=0)  # how often an engine that died is started again, with the weights that it had
    transport: Literal["file", "nccl", "ipc"] | None = None  # how new weights reach it; default: as the device allows

    def arguments(self) -> dict[str, Any]:
        """What the engine's class is told besides models and versions."""
        return {key: getattr(self, key) for key in engine_keys(self.kind)}

    def unfitting(self) -> list[str]:
        """Keys that were said and that this kind of engine does not know."""
        return sorted(self.model_fields_set - {"kind", *engine_keys(self.kind)})


class OracleOptions(FileModel):
    """`scripted: {oracle: {random: 0.35}}`."""

    random: float = Field(default=0.0, ge=0, le=1)


class OracleScript(FileModel):
    oracle: OracleOptions


class ModelInit(FileModel):
    """`model: {init: {...}}`: a fresh model; the trainer reads what is inside."""

    init: dict[str, Any]


class LoraEntry(FileModel):
    """`lora:`, small factors beside some projections of every layer, in place of all weights."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)  # the change counts alpha / rank
    targets: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


class TrainEntry(FileModel):
    """`train:` of the trainable policy: which weights, and in which type its forward and backward compute."""

    dtype: Literal["float32", "bf16"] = "float32"  # the optimizer's weights are float32 either way
    lora: LoraEntry | None = None  # `{}` takes the defaults; left out, all weights are trained


def _named_or_spelled(value: Any) -> str:
    """Which member of a union a value is meant to be, so that errors are about that one."""
    return "spelled" if isinstance(value, (dict, pydantic.BaseModel)) else "named"


Model = Annotated[
    Annotated[str, pydantic.Tag("named")] | Annotated[ModelInit, pydantic.Tag("spelled")],
    pydantic.Discriminator(_named_or_spelled),
]
Scripted = Annotated[
    Annotated[Literal["oracle", "null", "random"], pydantic.Tag("named")] | Annotated[OracleScript, pydantic.Tag("spelled")],
    pydantic.Discriminator(_named_or_spelled),
]


class PolicyEntry(FileModel):
    """Exactly one of `model`, `scripted`, `version`, `engine` says what acts."""

    model: Model | None = None
    trainable: bool = False
    train: TrainEntry = TrainEntry()
    scripted: Scripted | None = None
    version: str | None = Field(default=None, pattern=r"^[^@]+@[A-Za-z0-9][A-Za-z0-9_-]*$")  # learner@STAGE or learner@NUMBER
    engine: EngineEntry | None = None
    renderer: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> PolicyEntry:
        given = [n for n in ("model", "scripted", "version", "engine") if getattr(self, n) is not None]
        if len(given) != 1 and given != ["model", "engine"]:
            said = " and ".join(given) or "none"
            raise ValueError(f"a policy is exactly one of `model`, `scripted`, `version`, `engine`; found {said}")
        if self.trainable and self.model is None:
            raise ValueError(f"only a `model` can be trainable; this policy is given by `{given[0]}`")
        if "train" in self.model_fields_set and not self.trainable:
            raise ValueError("`train` says how a policy is trained; this one is not `trainable: true`")
        return self

    @property
    def served(self) -> bool:
        """Whether it acts through a server of its own."""
        return self.engine is not None and self.model is None


def script_of(name: str, scripted: str | OracleScript) -> ScriptedPolicy:
    if isinstance(scripted, OracleScript):
        return ScriptedPolicy(name, "oracle", scripted.oracle.random)
    assert scripted in ("oracle", "null", "random")
    return ScriptedPolicy(name, scripted)  # type: ignore[arg-type]
