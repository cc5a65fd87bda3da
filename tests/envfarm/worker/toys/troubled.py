"""An environment in which everything can go wrong that a worker must survive, and a box where the spec has one."""

from __future__ import annotations

import os
import random
import signal

from envfarm.env import Env
from envfarm.tools import ToolCall, tool


class Troubled(Env):
    forkable = True

    def start(self) -> str:
        self.said = [self.params["word"]]
        return f"Say {self.params['word']}."

    @tool
    def say(self, word: str) -> str:
        """Say a word; the right one ends the episode."""
        self.said.append(word)
        if word == self.params["word"]:
            self.end(1.0)
        return " ".join(self.said)

    @tool
    def crash(self) -> str:
        """Raise."""
        raise ZeroDivisionError("the author's mistake")

    @tool
    def overpay(self) -> str:
        """Give a reward out of range."""
        self.end(7.0)
        return ""

    @tool
    def die(self) -> str:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    @tool
    def spin(self) -> str:
        """Never answer."""
        while True:
            pass

    @tool
    def roll(self) -> str:
        """Draw from the global random state, as third-party code does."""
        return str(random.random())

    @tool
    def run(self, command: str) -> str:
        """Run a command in the box."""
        assert self.box is not None
        return self.box.exec(command).text

    @tool
    def lose(self) -> str:
        """Read a file that is not there."""
        assert self.box is not None
        try:
            self.box.read("nothing")
        except FileNotFoundError as error:
            return f"lost: {type(error).__name__} {error.errno}"
        return "found"

    @tool
    def second(self) -> str:
        """Use a fresh box beside the agent's."""
        assert self.make_box is not None
        box = self.make_box()
        try:
            return box.exec("ls").text + f"[{','.join(e.path for e in box.list())}]"
        finally:
            box.stop()

    @tool
    def third(self) -> str:
        """Use a fresh box that begins with the files of the agent's."""
        assert self.box is not None
        with self.fresh_box(self.box.snapshot()) as box:
            return box.exec("cat /task/greeting").text

    def oracle(self) -> ToolCall:
        return ToolCall("say", {"word": self.params["word"]})


class Fixed(Troubled):
    forkable = False
