"""Any server with an OpenAI-compatible chat route: text in, text out, so it evaluates and never feeds training.

Such a server tokenizes by itself: it can neither be asked with exact ids nor say which it sampled. `generate` is
therefore refused, and whoever finds `capabilities.token_ids` false calls `chat` with messages. Native tool calls of a
reply come back inside `Generation.text`, as `rollout.renderers.pieces.read_calls` reads them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from envfarm.errors import CapabilityError, InfraError, UserError
from envfarm.seeding import stable_hash
from rollout.engines.base import Capabilities, Generation
from rollout.renderers.pieces import write_calls
from rollout.types import Message, PolicyVersion, SamplingParams, ToolCall

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # worth another try


class OpenAIEngine:
    """`base_url` ends before `/chat/completions`, e.g. `http://127.0.0.1:8000/v1`; the key is read from the
    environment variable `api_key_env` when the engine starts, and never stored."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        max_in_flight: int = 64,
        timeout_s: float = 120.0,
        retries: int = 4,
        retry_delay_s: float = 0.5,
        context: int = 0,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise UserError(f"engine.base_url is {base_url!r}; a URL such as http://127.0.0.1:8000/v1 was expected")
        self.base_url, self.model = base_url.rstrip("/"), model
        self._key_env, self._max_in_flight, self._timeout_s = api_key_env, max_in_flight, timeout_s
        self._retries, self._retry_delay_s = retries, retry_delay_s
        self._http: aiohttp.ClientSession | None = None
        self.capabilities = Capabilities(context=context)

    def __getstate__(self) -> dict[str, Any]:
        """It pickles as it was made, whatever it is doing, so that another process can have one like it."""
        return self.__dict__ | {"_http": None}

    async def start(self) -> None:
        """Open the connection pool and see that somebody answers. Raises: UserError where nobody does."""
        if self._http is not None:
            return
        key = os.environ.get(self._key_env, "")
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_in_flight),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        try:
            async with self._http.get(f"{self.base_url}/models"):
                pass  # any answer will do: not every server has this route
        except (aiohttp.ClientError, TimeoutError) as e:
            await self.close()
            raise UserError(f"no server answers at {self.base_url} ({e}); start it, or mend engine.base_url") from None

    async def generate(self, prompt_ids: list[int], params: SamplingParams, *, policy: str, session: str = "") -> Generation:
        raise CapabilityError(
            f"the server at {self.base_url} takes no token ids; it can evaluate by `chat`, not feed training: "
            "use `engine: {kind: torch}` there"
        )

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], params: SamplingParams, *, policy: str = ""
    ) -> Generation:
        """One reply to a conversation. `tools` as MCP lists them (`name`, `description`, `inputSchema`).

        `params.stop_ids` do not apply: the server's template knows where a reply ends. Raises: UserError where the
        server refuses (its words are passed on), InfraError where it fails or answers what is no chat completion.
        """
        body = {
            "model": self.model,
            "messages": _messages(messages),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": params.seed,
        }
        if tools:
            body["tools"] = [_tool(t) for t in tools]
        return self._generation(await self._post(body), policy or self.model)

    async def update_weights(self, version: PolicyVersion, state: Any) -> None:
        raise CapabilityError(f"the weights behind {self.base_url} cannot be replaced from here")

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _post(self, body: dict[str, Any]) -> Any:
        """The decoded answer; what passes is tried again, twice as patiently each time."""
        if self._http is None:
            raise InfraError("the engine is not running")
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(self._retry_delay_s * 2 ** (attempt - 1))
            try:
                async with self._http.post(f"{self.base_url}/chat/completions", json=body) as answer:
                    if answer.status == 200:
                        return await answer.json(content_type=None)
                    problem = f"status {answer.status}: {(await answer.text())[:500]}"
                    if answer.status not in _PASSING:
                        raise UserError(f"{self.base_url} refused the request for model {self.model!r}, {problem}")
            except (aiohttp.ClientError, TimeoutError) as e:
                problem = f"{type(e).__name__}: {e}"
            except ValueError as e:
                raise InfraError(f"{self.base_url} answered what is no JSON: {e}") from None
        raise InfraError(f"{self.base_url} failed {self._retries + 1} times; the last time: {problem}")

    def _generation(self, answer: Any, policy: str) -> Generation:
        try:
            choice = answer["choices"][0]
            said = choice["message"]
            text = said.get("content") or ""
            calls = [_call(c["function"]) for c in said.get("tool_calls") or ()]
            finish = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError) as e:
            raise InfraError(f"{self.base_url} answered what is no chat completion ({e!r}): {str(answer)[:300]}") from None
        if calls:
            text = "\n".join(filter(None, (text, *calls)))
        text = text.encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, which is no text
        version = PolicyVersion(policy=policy, checksum=stable_hash([self.base_url, self.model])[:16])
        return Generation([], [], "length" if finish == "length" else "stop", version, text=text)


def _call(function: dict[str, Any]) -> str:
    """A call in our tags; arguments that are no JSON object are passed on as they are, to be found malformed."""
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = None
    if isinstance(arguments, dict):
        return write_calls([ToolCall(function["name"], arguments)])
    return f"<tool_call>\n{function.get('arguments')}\n</tool_call>"


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    schema = tool.get("inputSchema") or {"type": "object", "properties": {}}
    function = {"name": tool["name"], "description": tool.get("description", ""), "parameters": schema}
    return {"type": "function", "function": function}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As the wire wants them: calls get ids, and results name the call that they answer, in order."""
    out: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            open_calls = [f"call_{index}_{n}" for n in range(len(message.tool_calls))]
            item["tool_calls"] = [
                {"id": i, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
                for i, c in zip(open_calls, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            item["tool_call_id"] = open_calls.pop(0) if open_calls else f"call_{index}"
        out.append(item)
    return out
