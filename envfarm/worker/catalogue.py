"""What a worker serves: the environments that it was started with, those that its clients bring, and what is played where a
client does not say which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envfarm.errors import UnknownIdError, did_you_mean
from envfarm.worker.brought import Brought

if TYPE_CHECKING:
    from envfarm.bundle import Bundle
    from envfarm.spec import EnvSpec


@dataclass(frozen=True)
class Served:
    """Which instances a client plays that does not say which."""

    split: str | None = None
    """None: an environment's first."""
    setting: dict[str, Any] = field(default_factory=dict)

    def split_of(self, spec: EnvSpec) -> str:
        return self.split or next(iter(spec.splits))

    def check(self, specs: list[EnvSpec]) -> None:
        """Raises: UserError where an environment has no such split or setting."""
        for spec in specs:
            spec.instance(self.split_of(spec), 0, self.setting)


class Catalogue:
    def __init__(self, specs: list[EnvSpec], brought: Brought, served: Served | None = None):
        self.specs = {spec.id: spec for spec in specs}
        self.brought = brought
        self.served = served or Served()

    @property
    def default(self) -> EnvSpec:
        """What a client plays that names no environment. Raises: UnknownIdError."""
        for spec in self.specs.values():
            return spec
        raise UnknownIdError("this worker serves only what clients bring")

    def spec(self, env_id: str, spec_hash: str | None = None) -> EnvSpec:
        """The one that was brought with that hash, else that of the id. Raises: UnknownIdError."""
        if spec_hash is not None and (brought := self.brought.get(spec_hash)) is not None:
            return brought
        if env_id not in self.specs:
            raise UnknownIdError(
                f"this worker does not serve {env_id!r}{did_you_mean(env_id, self.specs)}; it serves {', '.join(self.specs)}"
            )
        return self.specs[env_id]

    async def bring(self, spec_hash: str, bundle: Bundle | None) -> str:
        """Serve it from now on; returns its id, or nothing where it is not there and did not come. Raises: as `Brought.take`."""
        known = next((spec for spec in self.specs.values() if spec.hash == spec_hash), self.brought.get(spec_hash))
        if known is None and bundle is not None:
            known = await self.brought.take(bundle, spec_hash)
        return known.id if known is not None else ""
