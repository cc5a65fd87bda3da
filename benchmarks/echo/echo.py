"""An environment that repeats what it is told, 200 characters long."""

from __future__ import annotations

from envfarm.env import Env
from envfarm.tools import tool

LENGTH = 200


class Echo(Env):
    forkable = True

    def start(self) -> str:
        return "Say something."

    @tool
    def say(self, text: str) -> str:
        """Say something; it comes back.

        text: what to say
        """
        return text.ljust(LENGTH, ".")
