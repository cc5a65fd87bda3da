"""Environments for tests of specs: the architecture's example, and what it takes to vary it."""

from __future__ import annotations

from pathlib import Path

from envfarm.spec import EnvSpec, load_spec

REPAIR = """\
envfarm: 1
id: coding/repair-v0
title: Repair a small Python program until it behaves as specified
tags: [coding, python, tools]
entry: ./repair.py:Repair
requires: ["numpy>=2"]
randomize:
  modules:  {uniform_int: [1, 4]}
  bug:      {choice: [off_by_one, wrong_operator, swapped_arguments, missing_case]}
  naming:   {weighted: {snake_case: 3, camelCase: 1}}
  domain:   {choice: [inventory, payroll, weather, library]}
  decoys:   {uniform_int: [0, 3], if: {modules: [2, 4]}}
perturb:
  observation: {distractors: {uniform: [0.0, 0.3]}, format: {choice: [plain, markdown, json, xml]}}
  action:      {tool_aliases: {bernoulli: 0.3}, argument_order: {bernoulli: 0.5}}
  transition:  {tool_error: {uniform: [0.0, 0.1]}, latency_s: {lognormal: {mu: 0.0, sigma: 0.5}}}
  reward:      {delay_turns: 0}
ladder:
  - {modules: [1, 1]}
  - {modules: [1, 2]}
  - {modules: [3, 4]}
splits:
  train:      {seeds: {start: 0, count: 1000000}, where: {bug: [off_by_one, wrong_operator]}}
  validation: {seeds: {start: 1000000, count: 1000}, where: {bug: [off_by_one, wrong_operator]}}
  heldout:    {seeds: {start: 2000000, count: 1000}, where: {bug: [swapped_arguments, missing_case]}}
  real:       {rows: real.jsonl, key: id}
roles:   {agent: {}}
sandbox: {box: true, image: envfarm/python, cpu: 1, memory: 512MiB, pids: 64, disk: 256MiB, network: none}
limits:  {turns: 12, exec_cpu_s: 5, exec_timeout_s: 20, episode_timeout_s: 300}
reward:  {range: [0, 1], solved_at: 1.0, verify: outputs}
"""

ENTRY = '''\
from envfarm import Env, ToolCall, tool

from .words import WORD


class Repair(Env):
    def start(self):
        return f"{WORD} {self.params['modules']} {self.params['bug']}"

    @tool
    def guess(self, number: int) -> str:
        """Guess how many modules there are."""
        self.end(1.0 if number == self.params["modules"] else 0.0)
        return "Thank you."

    def oracle(self):
        return ToolCall("guess", {"number": self.params["modules"]})
'''

ROWS = '{"id": "r1", "bug": "off_by_one", "modules": 3, "note": "seen in the wild"}\n{"id": 2, "decoys": null}\n'


def write(folder: Path, text: str = REPAIR, name: str = "repair.yaml") -> Path:
    """A folder with an environment; returns the YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "repair.py").write_text(ENTRY)
    (folder / "words.py").write_text("WORD = 'modules:'\n")
    (folder / "real.jsonl").write_text(ROWS)
    (folder / name).write_text(text)
    return folder / name


def small(folder: Path, body: str) -> EnvSpec:
    """A spec of the few lines that a test is about."""
    return load_spec(write(folder, "envfarm: 1\nid: t/small-v0\nentry: ./repair.py:Repair\n" + body, "small.yaml"))
