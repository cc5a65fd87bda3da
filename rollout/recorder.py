"""Messages in, exact token trees out: nodes and branches of one episode. Works without our loop.

    recorder = Recorder()
    talk = recorder.conversation("agent", renderer)
    talk.hear(Message(role="user", content="You stand in a maze."))
    ids = talk.prompt()                           # goes to an engine
    message, ok = talk.say(generation, sampling)  # exactly the sampled ids, never tokenized again
    recorder.nodes, recorder.branches, recorder.drift

Only suffixes are tokenized. Where the template would show an earlier message differently from now on
(`Renderer.rewrites`), the conversation forks: a new branch shares the nodes before that message, and those after it
are written again as history, untrained. Such forks are counted in `drift`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout.engines.base import Generation
from rollout.renderers.base import Renderer
from rollout.types import Branch, Message, Node, PolicyVersion, SamplingParams


class Recorder:
    """The token trees of one episode, one conversation per seat."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.branches: list[Branch] = []
        self.drift: dict[str, int] = {}
        self._conversations: dict[str, Conversation] = {}

    def conversation(self, seat: str, renderer: Renderer, tools: Sequence[dict[str, Any]] = ()) -> Conversation:
        """The seat's conversation; made on the first call. `tools` are written into its first message, if at all."""
        found = self._conversations.get(seat)
        if found is None:
            found = self._conversations[seat] = Conversation(self, seat, renderer, tools)
        return found


class Conversation:
    """What one seat has heard and said: the branch that grows now."""

    def __init__(self, recorder: Recorder, seat: str, renderer: Renderer, tools: Sequence[dict[str, Any]] = ()):
        self.seat, self.renderer, self.turn = seat, renderer, 0
        self._recorder, self._tools = recorder, tools
        self._branch: Branch | None = None
        self._ids: list[int] = []
        self._messages: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """As the template shows them now."""
        return self._messages

    @property
    def token_ids(self) -> list[int]:
        """Everything so far, without a generation prompt."""
        return self._ids

    def hear(self, message: Message) -> None:
        """Append a message that no policy sampled. Forks first, where its coming rewrites history."""
        rewritten = self.renderer.rewrites(self._messages) if message.role == "user" else []
        if rewritten:
            self._rewrite(rewritten)
        ids = self._render(message, len(self._messages))
        self._append(message, ids, [False] * len(ids), [0.0] * len(ids))

    def prompt(self) -> list[int]:
        """Token ids that an engine continues: the conversation and the opening of the seat's turn."""
        return [*self._ids, *self.renderer.generation_prompt()]

    def say(self, generation: Generation, sampling: SamplingParams) -> tuple[Message, bool]:
        """Append the reply that was sampled after `prompt()`. Returns its message and whether it is well formed."""
        opening = self.renderer.generation_prompt()
        sampled = generation.token_ids
        closing = self.renderer.close(sampled)
        message, well_formed = self.renderer.parse(sampled)
        before, after = len(opening), len(closing)
        node = self._append(
            message,
            [*opening, *sampled, *closing],
            [False] * before + [True] * len(sampled) + [False] * after,
            [0.0] * before + [float(p) for p in generation.logprobs] + [0.0] * after,
        )
        node.version, node.sampling = generation.version, sampling
        node.versions = [(start + before, version) for start, version in generation.versions]
        self.turn += 1
        return message, well_formed

    def demonstrate(self, message: Message, version: PolicyVersion | None = None) -> None:
        """Append a reply that was written, not sampled: its tokens are what the template makes of it, and it is
        masked as if it had been sampled, stop token included. Logprobs are 0.0 and `sampling` is None: they are unknown.

        Raises: ValueError where the template does not open an assistant's message with its generation prompt.
        """
        ids = self.renderer.render_message(message, len(self._messages))
        opening = self.renderer.generation_prompt()
        if ids[: len(opening)] != opening:
            raise ValueError(f"{self.renderer.name}: an assistant's message does not start with the generation prompt")
        end = max((i + 1 for i, token in enumerate(ids) if token in self.renderer.stop_ids), default=len(ids))
        mask = [len(opening) <= i < end for i in range(len(ids))]
        self._append(message, ids, mask, [0.0] * len(ids)).version = version
        self.turn += 1

    def fork(self, at: int, reason: str) -> None:
        """Start a new branch that shares the first `at` nodes of the current one. The branch before stays as it is."""
        assert self._branch is not None and 0 <= at <= len(self._branch.nodes)
        self._branch = Branch(seat=self.seat, nodes=self._branch.nodes[:at], forked_at=at, fork_reason=reason)
        self._recorder.branches.append(self._branch)
        self._recorder.drift[reason] = self._recorder.drift.get(reason, 0) + 1
        self._messages = self._messages[:at]
        self._ids = [t for n in self._branch.nodes for t in self._recorder.nodes[n].token_ids]

    def _rewrite(self, indices: list[int]) -> None:
        first = min(indices)
        renderer, later = self.renderer, list(enumerate(self._messages))[first:]
        assert self._branch is not None
        nodes = [self._recorder.nodes[n] for n in self._branch.nodes]
        self.fork(first, "template")
        for index, message in later:
            old = nodes[index]
            if index in indices:
                message = renderer.rewritten(message)
                ids = self._render(message, index)
            else:
                ids = old.token_ids
            self._append(message, list(ids), [False] * len(ids), [0.0] * len(ids), turn=old.turn)

    def _render(self, message: Message, index: int) -> list[int]:
        return self.renderer.render_message(message, index, tools=self._tools if index == 0 else ())

    def _append(self, message: Message, ids: list[int], mask: list[bool], logprobs: list[float], turn: int | None = None) -> Node:
        if self._branch is None:
            self._branch = Branch(seat=self.seat, nodes=[])
            self._recorder.branches.append(self._branch)
        path = self._branch.nodes
        node = Node(
            parent=path[-1] if path else -1, seat=self.seat, turn=self.turn if turn is None else turn,
            message=message, token_ids=ids, mask=mask, logprobs=logprobs,
        )  # fmt: skip
        path.append(len(self._recorder.nodes))
        self._recorder.nodes.append(node)
        self._messages.append(message)
        self._ids.extend(ids)
        return node
