"""FARM.yaml: which environments a farm serves, with how many workers and boxes, and on what.

    farm = read_farm("FARM.yaml", on="docker")
    farm.pools[0].environments, farm.kind

Which pool serves an environment: the first one with a pattern that its id matches.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import Field

from envfarm.errors import FarmFileError, UserError, did_you_mean
from envfarm.yaml_source import FileModel, parse_model, read_yaml

Kind = Literal["bubblewrap", "docker", "kubernetes"]
_LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"


class BoxesFile(FileModel):
    """`boxes:` of a pool. Where boxes are children of their worker (bubblewrap) there is nothing to keep."""

    min: int = Field(default=0, ge=0)  # at least so many live, leased ones included
    max: int = Field(default=64, ge=2)  # more sessions wait; one that verifies has two
    warm: int = Field(default=0, ge=0)  # free ones kept ready

    @pydantic.model_validator(mode="after")
    def _fits(self) -> BoxesFile:
        for name in ("min", "warm"):
            if getattr(self, name) > self.max:
                raise ValueError(f"`{name}: {getattr(self, name)}` is more than `max: {self.max}`")
        return self


class PoolFile(FileModel):
    environments: list[str] = Field(min_length=1)  # ids or globs
    workers: int = Field(default=1, ge=0)
    boxes: BoxesFile = BoxesFile()

    def serves(self, env_id: str) -> bool:
        return any(fnmatch.fnmatchcase(env_id, pattern) for pattern in self.environments)


class BubblewrapTarget(FileModel):
    """Workers are processes of this machine, boxes their children."""


class DockerTarget(FileModel):
    """Boxes are containers, and so are workers."""

    image: str = "envfarm/worker"
    workers: Literal["container", "process"] = "container"  # processes of this machine need no image
    runtime: str | None = None  # of boxes: one of the engine's, such as runsc


class KubernetesTarget(FileModel):
    """Workers are pods of a Deployment in `namespace`, boxes are pods in another namespace, which the farm has to itself."""

    namespace: str = Field(pattern=_LABEL, max_length=63)
    box_namespace: str | None = Field(default=None, pattern=_LABEL, max_length=63)  # default: `namespace`-boxes
    image: str = "envfarm/worker"
    workers: Literal["pod", "process"] = "pod"  # processes beside a keeper on this machine; boxes are pods all the same

    @property
    def boxes(self) -> str:
        return self.box_namespace or f"{self.namespace}-boxes"


class TargetFile(FileModel):
    """Exactly one of the three."""

    bubblewrap: BubblewrapTarget | None = None
    docker: DockerTarget | None = None
    kubernetes: KubernetesTarget | None = None

    @pydantic.model_validator(mode="after")
    def _one(self) -> TargetFile:
        given = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a target is exactly one of {', '.join(type(self).model_fields)}; found {' and '.join(given) or 'none'}"
            )
        return self


class FarmFile(FileModel):
    envfarm: Literal[1]
    farm: str = Field(pattern=_LABEL, max_length=40)  # its name
    pools: list[PoolFile] = Field(min_length=1)
    target: TargetFile = TargetFile(bubblewrap=BubblewrapTarget())

    @property
    def kind(self) -> Kind:
        kinds: tuple[Kind, ...] = ("bubblewrap", "docker", "kubernetes")
        return next(kind for kind in kinds if getattr(self.target, kind) is not None)

    def pool_of(self, env_id: str) -> int:
        """The number of the pool that serves it. Raises: UserError with near matches."""
        for number, pool in enumerate(self.pools):
            if pool.serves(env_id):
                return number
        patterns = [pattern for pool in self.pools for pattern in pool.environments]
        near = did_you_mean(env_id, patterns) or did_you_mean(f"{env_id.partition('/')[0]}/*", patterns)
        raise UserError(
            f"the farm {self.farm!r} does not serve {env_id!r}{near}; its pools serve "
            f"{', '.join(patterns)}. Add it to `environments` of a pool and bring the farm up again"
        )

    def on(self, kind: Kind | None) -> FarmFile:
        """This farm with its target of that kind; one that the file does not describe has its defaults."""
        if kind is None or kind == self.kind:
            return self
        made = {
            "bubblewrap": TargetFile(bubblewrap=BubblewrapTarget()),
            "docker": TargetFile(docker=DockerTarget()),
            "kubernetes": TargetFile(kubernetes=KubernetesTarget(namespace=self.farm)),
        }
        return self.model_copy(update={"target": made[kind]})


def read_farm(path: str | Path, on: Kind | None = None) -> FarmFile:
    """Raises: FarmFileError with file:line:column."""
    return parse_model(read_yaml(str(path), FarmFileError), FarmFile, FarmFileError).on(on)
