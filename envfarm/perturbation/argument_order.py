"""action.argument_order: tools list their parameters in another order, which is the order of text actions too."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from envfarm.perturbation.base import Channel, Tools, check_flag
from envfarm.tools import ToolSpec


class ArgumentOrder(Channel):
    """With `value` true the parameters of each tool are permuted. Calls by name do not change meaning.

    In text, only the last argument may hold spaces, so a last parameter of free text keeps its place.
    Required parameters stay before optional ones.
    """

    key: ClassVar[str] = "action.argument_order"

    @classmethod
    def check(cls, value: Any) -> str | None:
        return check_flag(value)

    def show_tools(self, tools: Tools) -> Tools:
        return {name: self._permuted(spec) for name, spec in tools.items()} if self.value else tools

    def _permuted(self, spec: ToolSpec) -> ToolSpec:
        names = list(spec.parameters)
        free = bool(names) and spec.parameters[names[-1]]["type"] == "string" and "enum" not in spec.parameters[names[-1]]
        movable = names[:-1] if free else names
        rng = self.draws.at(spec.name)
        order: list[str] = []
        for group in (
            [n for n in movable if n in spec.schema["required"]],
            [n for n in movable if n not in spec.schema["required"]],
        ):
            order += [group[i] for i in rng.permutation(len(group))]
        order += names[len(movable) :]
        if order == names:
            return spec
        self.record(tool=spec.name, order=order)
        schema = {
            **spec.schema,
            "properties": {n: spec.parameters[n] for n in order},
            "required": [n for n in order if n in spec.schema["required"]],
        }
        return msgspec.structs.replace(spec, schema=schema)
