"""What must hold for every episode, whoever recorded it. Each finding says where."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rollout.types import Branch, Episode, Node


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


def episode_findings(episode: Episode) -> Iterator[Finding]:
    """Every broken invariant of one episode."""
    for index, node in enumerate(episode.nodes):
        for problem in _node_problems(episode.nodes, index, node):
            yield Finding(f"episode {episode.id}, node {index}", problem)
    earlier: dict[str, Branch] = {}
    for index, branch in enumerate(episode.branches):
        for problem in _branch_problems(episode.nodes, branch, earlier.get(branch.seat)):
            yield Finding(f"episode {episode.id}, branch {index}", problem)
        earlier[branch.seat] = branch
    unused = set(range(len(episode.nodes))) - {n for b in episode.branches for n in b.nodes}
    if unused:
        yield Finding(f"episode {episode.id}", f"nodes {sorted(unused)} are in no branch")
    for problem in _reward_problems(episode):
        yield Finding(f"episode {episode.id}", problem)


def _node_problems(nodes: list[Node], index: int, node: Node) -> Iterator[str]:
    lengths = {len(node.token_ids), len(node.mask), len(node.logprobs)}
    if len(lengths) > 1:
        yield f"{len(node.token_ids)} token ids, {len(node.mask)} mask bits, {len(node.logprobs)} logprobs"
        return
    for place, (sampled, logprob) in enumerate(zip(node.mask, node.logprobs, strict=True)):
        if not sampled and logprob != 0.0:
            yield f"token {place} was not sampled and has logprob {logprob}"
        if not math.isfinite(logprob) or logprob > 1e-6:
            yield f"token {place} has logprob {logprob}"
    if any(token < 0 for token in node.token_ids):
        yield "a token id is negative"
    if not -1 <= node.parent < index:
        yield f"parent {node.parent} does not come before it"
    elif node.parent >= 0 and nodes[node.parent].seat != node.seat:
        yield f"parent {node.parent} is of seat {nodes[node.parent].seat}, not {node.seat}"
    if node.sampling is not None and (node.version is None or not any(node.mask)):
        yield "it was sampled, and has no version or no sampled token"
    if node.versions and [v for _, v in node.versions] != sorted((v for _, v in node.versions), key=_age):
        yield "its versions grow older along the way"


def _branch_problems(nodes: list[Node], branch: Branch, before: Branch | None) -> Iterator[str]:
    if any(not 0 <= n < len(nodes) for n in branch.nodes):
        yield f"it names a node that is not there: {branch.nodes}"
        return
    for parent, child in zip([-1, *branch.nodes], branch.nodes, strict=False):
        if nodes[child].parent != parent:
            yield f"node {child} follows {parent}, its parent is {nodes[child].parent}"
        if nodes[child].seat != branch.seat:
            yield f"node {child} is of seat {nodes[child].seat}, not {branch.seat}"
    if (before is None) != (branch.forked_at < 0):
        yield f"forked_at is {branch.forked_at}"
    elif before is not None and branch.nodes[: branch.forked_at] != before.nodes[: branch.forked_at]:
        yield f"its first {branch.forked_at} nodes are not those of the branch before"
    ages = [_age(nodes[n].version) for n in branch.nodes if nodes[n].sampling is not None]
    if ages != sorted(ages):
        yield "its versions grow older along the way"


def _reward_problems(episode: Episode) -> Iterator[str]:
    if not episode.ok:
        return
    for seat, total in episode.reward.items():
        parts = math.fsum(r.value for r in episode.rewards if r.seat == seat and r.component == "env" and r.grader == "env")
        if not math.isfinite(total) or abs(total - parts) > 1e-6:
            yield f"the reward of {seat} is {total}, its parts add up to {parts}"
    for index, step in enumerate(episode.steps):
        if step.seat not in episode.seats:
            yield f"step {index} is of seat {step.seat}, which nobody sits in"


def _age(version: object) -> tuple[int, int]:
    return (getattr(version, "incarnation", -1), getattr(version, "number", -1))
