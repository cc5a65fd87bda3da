"""Gymnasium spaces for text: any string is an observation, and any string is an action (a malformed one is answered)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Space

if TYPE_CHECKING:
    from envfarm.env import Scene


class ObservationText(Space[str]):
    """Every string. `sample` draws printable ASCII."""

    def __init__(self, seed: int | None = None):
        super().__init__(None, None, seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        return "".join(chr(c) for c in self.np_random.integers(32, 127, size=16))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


class ActionText(ObservationText):
    """Every string; `sample` draws an action that the scene's tools understand, as text."""

    def __init__(self, scene: Scene, seed: int | None = None):
        super().__init__(seed)
        self._scene = scene

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        from envfarm.env import Scene
        from envfarm.tools import to_text

        rng = np.random.Generator(np.random.PCG64(int(self.np_random.integers(2**62))))
        action = Scene.random_action(self._scene, rng)
        if isinstance(action, str):
            return action
        return to_text(action, self._scene.tools, self._scene.text_tool)

    def __deepcopy__(self, memo: dict[int, Any]) -> ActionText:
        copied = ActionText(memo.get(id(self._scene), self._scene))
        copied._np_random = self._np_random
        return copied
