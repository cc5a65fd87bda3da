"""From a farm's file to what stands there: the place of its workers and the boxes that they lease, by the kind of its target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from envfarm.backends.docker import DockerBackend, GvisorBackend
from envfarm.backends.docker_config import RUNSC
from envfarm.backends.kubernetes import KubernetesBackend
from envfarm.box import BoxSpec
from envfarm.farm import KEEPER_VARIABLE
from envfarm.farm.boxes import Boxes
from envfarm.farm.file import FarmFile
from envfarm.farm.folder_book import FolderBook
from envfarm.farm.object_book import ObjectBook
from envfarm.farm.places import Place
from envfarm.farm.places.containers import Containers
from envfarm.farm.places.pods import Pods
from envfarm.farm.places.processes import Processes
from envfarm.registry import default_registry
from envfarm.spec import EnvSpec

_PATIENCE_S = 20.0
"""How long one box may wait for a quota, a node or the API server before that is said in the status, and tried again."""


class Site:
    """`url`: of the keeper, for workers. `changed`: called whenever a worker is up, or is not any more."""

    def __init__(self, farm: FarmFile, token: str, folder: Path, url: str, changed: Callable[[], None]):
        self._farm, self._token, self._folder, self._url, self._changed = farm, token, folder, url, changed
        self._specs = [self._specs_of(number) for number in range(len(farm.pools))]

    def _specs_of(self, pool: int) -> list[EnvSpec]:
        """The known environments that a pool serves; others may be brought."""
        found = default_registry().matching(self._farm.pools[pool].environments)
        return [spec for spec in found if self._farm.pool_of(spec.id) == pool]

    @property
    def backend_name(self) -> str:
        """Of boxes."""
        docker = self._farm.target.docker
        return GvisorBackend.name if docker is not None and docker.runtime == RUNSC else self._farm.kind

    def boxes(self) -> Boxes | None:
        """None where they are children of their worker."""
        if self._farm.kind == "bubblewrap":
            return None
        pools = [(pool.boxes, _kinds(specs)) for pool, specs in zip(self._farm.pools, self._specs, strict=True)]
        if self._farm.target.docker is not None:
            runtime = self._farm.target.docker.runtime
            return Boxes(DockerBackend(runtime=runtime), FolderBook(self._folder / "leases"), pools)
        name, in_cluster = self._farm.farm, self._farm.in_cluster
        backend = KubernetesBackend(patience_s=_PATIENCE_S, outage_s=_PATIENCE_S, owner=f"farm.{name}" if in_cluster else "")
        return Boxes(backend, ObjectBook(backend, name), pools, inherited=in_cluster)

    def place(self) -> Place:
        kubernetes = self._farm.target.kubernetes
        if kubernetes is not None and kubernetes.workers == "pod":
            return Pods(self._farm.farm, kubernetes.namespace, self._changed)
        docker, counts = self._farm.target.docker, [pool.workers for pool in self._farm.pools]
        if docker is not None and docker.workers == "container":
            patterns = [pool.environments for pool in self._farm.pools]
            return Containers(
                self._farm.farm, docker.image, patterns, counts, token=self._token, variables=self._variables,
                changed=self._changed,
            )  # fmt: skip
        backend = "bubblewrap" if self._farm.kind == "bubblewrap" else "farm"
        return Processes(
            self._specs, counts, self._folder, backend=backend, token=self._token, variables=self._variables,
            changed=self._changed,
        )  # fmt: skip

    def _variables(self, pool: int) -> dict[str, str]:
        return {KEEPER_VARIABLE: f"{self._url}/pools/{pool}"}


def _kinds(specs: list[EnvSpec]) -> list[BoxSpec]:
    """The kinds of box that environments ask for, each once."""
    return list(dict.fromkeys(spec.sandbox.box_spec(spec.limits) for spec in specs if spec.sandbox.box))
