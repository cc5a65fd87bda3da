"""An OpenAI-compatible server, and vLLM's token route, whose models are the oracle, silence, or chance.

It knows the instances that may be asked about, finds the one whose first observation a conversation opens with, plays
the conversation again in a session of its own and answers with what comes next. Token ids are those of a character
tokenizer under ChatML; every reply carries them and made-up logprobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from envfarm.seeding import generator
from envfarm.session import local_session
from envfarm.spec import EnvSpec, Instance
from envfarm.tools import parse_text
from rollout.renderers.base import Tokenizer
from rollout.renderers.chatml import ChatMLRenderer
from rollout.types import Message
from tests.rollout.scenes import CharTokenizer
from trainer.adapters.chat import action_of

NATIVE = "oracle-native"


class ChatServer:
    """Models: `oracle`, `oracle-native` (as tool calls), `null` (a dot), `empty`,
    `mixed` (opens at random, or not), `broken`."""

    def __init__(self, spec: EnvSpec, instances: Sequence[Instance], tokenizer: Tokenizer | None = None):
        self.spec, self.requests = spec, list[dict[str, Any]]()
        self._known = {self._first(i): i for i in instances}
        self._tokenizer = tokenizer or CharTokenizer()
        self._renderer = ChatMLRenderer(self._tokenizer)
        self._asked: Counter[str] = Counter()
        self.url = ""

    def _first(self, instance: Instance) -> str:
        session = local_session(self.spec)
        try:
            return session.reset(instance).text
        finally:
            session.close()

    @contextmanager
    def serving(self) -> Iterator[ChatServer]:
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def start() -> web.AppRunner:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self._chat)
            app.router.add_post("/inference/v1/generate", self._generate)
            app.router.add_get("/v1/models", self._models)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            ready.set()
            return runner

        def run() -> None:
            runner = loop.run_until_complete(start())
            loop.run_forever()
            loop.run_until_complete(runner.cleanup())
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "oracle", "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        if body["model"] == "broken":
            return web.json_response({"error": {"message": "the engine is on fire"}}, status=400)
        content, calls = self._say(body["messages"], body["model"])
        ids, logprobs = self._sampled(content, body["messages"])
        prompt = [t for n, m in enumerate(body["messages"]) for t in self._renderer.render_message(_message(m), n)]
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [
                {"id": f"call_{len(body['messages'])}", "type": "function", "function": {"name": n, "arguments": a}}
                for n, a in calls
            ]
        choice = {
            "index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop", "token_ids": ids,
            "logprobs": {"content": [{"token": "", "logprob": p, "bytes": [], "top_logprobs": []} for p in logprobs]},
        }  # fmt: skip
        return web.json_response({
            "id": f"chat-{len(self.requests)}", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [choice], "prompt_token_ids": [*prompt, *self._renderer.generation_prompt()],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)},
        })  # fmt: skip

    async def _generate(self, request: web.Request) -> web.Response:
        """Token ids in, token ids out, as vLLM's `/inference/v1/generate`."""
        body = await request.json()
        self.requests.append(body)
        messages = self._read(body["token_ids"])
        content, _ = self._say(messages, body["model"])
        ids, logprobs = self._sampled(content, messages)
        choice = {
            "index": 0, "token_ids": ids, "finish_reason": "stop",
            "logprobs": {"content": [{"token": f"token_id:{t}", "logprob": p} for t, p in zip(ids, logprobs, strict=True)]},
        }  # fmt: skip
        return web.json_response({"request_id": f"gen-{len(self.requests)}", "choices": [choice]})

    def _read(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """The conversation that token ids spell: what stands between the start and end tokens of ChatML."""
        start, end = self._tokenizer.special("<|im_start|>"), self._tokenizer.special("<|im_end|>")
        messages, inside = [], list[int]()
        for token in ids:
            if token == start:
                inside = []
            elif token == end:
                role, _, content = self._tokenizer.decode(inside).partition("\n")
                messages.append({"role": role, "content": content})
            else:
                inside.append(token)
        return messages

    def _say(self, messages: Sequence[dict[str, Any]], model: str) -> tuple[str, list[tuple[str, str]]]:
        if model in ("null", "empty"):
            return "." if model == "null" else "", []
        opening = next(m["content"] for m in messages if m["role"] == "user")
        said = [m for m in messages if m["role"] == "assistant"]
        session = local_session(self.spec)
        try:
            first = turn = session.reset(self._known[opening])
            for message in said:
                calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
                turn = session.step(action_of(message.get("content") or "", calls))
            assert not turn.over, "asked for a reply after the end"
            self._asked[opening] += not said
            chance = hashlib.sha256(f"{opening}{self._asked[opening]}".encode()).digest()
            if model == "mixed" and not said and chance[0] % 2:
                return session.random(chance[1]), []
            text = session.oracle()
            if model != NATIVE:
                return text, []
            call = parse_text(text, {t.name: t for t in first.tools}, first.text_tool)
            return "", [(call.name, json.dumps(call.arguments))]
        finally:
            session.close()

    def _sampled(self, content: str, messages: Any) -> tuple[list[int], list[float]]:
        ids = [*self._tokenizer.encode(content), self._tokenizer.special("<|im_end|>")]
        seed = int.from_bytes(hashlib.sha256(json.dumps([messages, content]).encode()).digest()[:4], "little")
        return ids, [-float(x) for x in generator("logprobs", seed).random(len(ids))]


def _message(message: dict[str, Any]) -> Message:
    return Message(role=message["role"], content=message.get("content") or "")
