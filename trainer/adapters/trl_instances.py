"""Data sets for trainers that ask for prompts: each row names an instance, and the environment says the rest.

A trainer repeats a row as often as a group is large, so that a group shares its instance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envfarm.errors import UserError
from envfarm.seeding import derive_seed
from envfarm.spec import EnvSpec, Instance
from rollout.export.base import package
from rollout.requests import EnvChoice, choose


@dataclass(frozen=True)
class Address:
    """One instance, as a line of text that survives any data set: `games/maze-v0 train 17`."""

    env: str
    split: str
    index: int

    def __str__(self) -> str:
        return f"{self.env} {self.split} {self.index}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises: UserError."""
        parts = text.split()
        if len(parts) != 3 or not parts[2].isdigit():
            raise UserError(
                f"the prompt {text[:80]!r} names no instance (expected ENV SPLIT INDEX): make the data set with `.dataset(...)` "
                "of what you pass to the trainer"
            )
        return cls(parts[0], parts[1], int(parts[2]))

    def instance(self, specs: Mapping[str, EnvSpec], setting: Mapping[str, Any]) -> Instance:
        """Raises: UserError where it is not there."""
        if self.env not in specs:
            raise UserError(f"the prompt names {self.env!r}, which is not among: {', '.join(specs)}")
        try:
            return specs[self.env].instance(self.split, self.index, dict(setting))
        except IndexError as error:
            raise UserError(str(error)) from None


def draw(choices: Sequence[EnvChoice], count: int, *, split: str, seed: int) -> list[Address]:
    """`count` instances, environments by their weights. The same arguments give the same list.

    Raises: UserError for a split that is not there, or `real`, which nothing is trained on.
    """
    if split == "real":
        raise UserError("split 'real' is for evaluation alone; train on another")
    found = []
    for number in range(count):
        spec = choose(choices, number).spec
        found.append(Address(spec.id, split, derive_seed("data set", seed, split, number, spec.id) % spec.size(split)))
    return found


def dataset(addresses: Sequence[Address], prompt: Callable[[Address], str]) -> Any:
    """A `datasets.Dataset` with `prompt` (one user message), `env`, `split`, `index`. Raises: MissingDependencyError."""
    rows: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": prompt(a)}] for a in addresses], "env": [a.env for a in addresses],
        "split": [a.split for a in addresses], "index": [a.index for a in addresses],
    }  # fmt: skip
    return package("datasets", extra="trl").Dataset.from_dict(rows)


@dataclass(frozen=True)
class Source:
    """Where a trainer's instances come from."""

    choices: Sequence[EnvChoice]
    seed: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def specs(self) -> dict[str, EnvSpec]:
        return {c.spec.id: c.spec for c in self.choices}

    def instance(self, address: Address) -> Instance:
        """Raises: UserError."""
        setting = next((c.setting for c in self.choices if c.spec.id == address.env), {})
        return address.instance(self.specs, setting)
