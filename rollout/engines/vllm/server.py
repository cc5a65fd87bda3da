"""A vLLM API server, spoken to through its native routes: one that we start and watch, or one that is there already.

Needs of a server that was started by somebody else: see `FLAGS`. Ours listens on a socket file in a directory of this user's
alone, for the routes that take new weights are open to whoever can connect.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from envfarm.errors import CapabilityError, InfraError, UserError
from rollout.engines.vllm.processes import Family
from rollout.engines.vllm.replica import EngineDied, HalfLoaded, Lora, Reply, UpdateRefused, sampling
from rollout.engines.vllm.settings import EXTENSION, SOCKETS, Settings, need_vllm
from rollout.types import SamplingParams

FLAGS = (
    "VLLM_SERVER_DEV_MODE=1, --enable-scale-out, --logprobs-mode processed_logprobs, "
    f'--worker-extension-cls {EXTENSION} and --weight-transfer-config \'{{"backend": "envfarm"}}\''
)
PATIENCE_S = 20.0
START_S = 600.0
"""Until a server answers: large models take minutes to load."""


class ServerReplica:
    """`base_url` None: a server of our own."""

    def __init__(self, settings: Settings, *, base_url: str | None = None, api_key_env: str = ""):
        self.settings, self.base_url, self._api_key_env = settings, base_url, api_key_env
        self._folder: TemporaryDirectory[str] | None = None
        self._http: aiohttp.ClientSession | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._family: Family | None = None
        self._reader: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=60)  # the server's last lines

    async def start(self) -> None:
        if self.base_url is None:
            await self._launch()
        else:
            key = os.environ.get(self._api_key_env, "")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            self._http = aiohttp.ClientSession(self.base_url, headers=headers, connector=aiohttp.TCPConnector(limit=0))
            try:
                async with self._http.get("/health") as answer:
                    healthy = answer.status == 200
            except (aiohttp.ClientError, TimeoutError) as error:
                raise UserError(f"no server answers at {self.base_url} ({error}); start it, or mend engine.base_url") from None
            if not healthy:
                raise EngineDied(f"the server at {self.base_url} says that it is not healthy")
        await self._examine()

    async def _launch(self) -> None:
        need_vllm()
        self._folder = TemporaryDirectory(prefix="envfarm-vllm-", ignore_cleanup_errors=True)
        socket = Path(self._folder.name) / "http"
        variables = {**self.settings.environment(), "VLLM_SERVER_DEV_MODE": "1", SOCKETS: self._folder.name}
        env = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--uds", str(socket), "--enable-scale-out",
            "--disable-uvicorn-access-log", "--enable-prompt-tokens-details", *command_line(self.settings.arguments(on_cpu())),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=env,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._listen(self._process))
        self._http = aiohttp.ClientSession("http://vllm", connector=aiohttp.UnixConnector(str(socket), limit=0))
        async with asyncio.timeout(START_S):
            while not await self._healthy():
                if self._process.returncode is not None:
                    await self._reader
                    raise EngineDied(f"vLLM's server ended while it started, with:\n{''.join(self._said).strip()}")
                await asyncio.sleep(0.1)
        self._family = Family.below(self._process.pid)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._said.append(line.decode(errors="replace"))
        await process.wait()

    async def _healthy(self) -> bool:
        assert self._http is not None
        try:
            async with self._http.get("/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def _examine(self) -> None:
        """Does it give what training needs? Raises: CapabilityError saying what it lacks."""
        body = {"token_ids": [1, 2], "sampling_params": sampling(SamplingParams(temperature=2.0, max_tokens=1))}
        try:
            answer = await self._post("/inference/v1/generate", body)
        except Refused as error:
            raise self._lacks(f"returns no token ids ({error})") from None
        choice = answer["choices"][0] if answer.get("choices") else {}
        if not choice.get("token_ids"):
            raise self._lacks("returns no token ids")
        if not (choice.get("logprobs") or {}).get("content"):
            raise self._lacks("returns no logprobs")
        if not choice.get("weight_versions"):
            raise self._lacks("does not say which weights made a token")
        raw = (await self.score([1, 2, choice["token_ids"][0]], None))[-1]
        if abs(choice["logprobs"]["content"][0]["logprob"] - raw) < 1e-7:
            raise self._lacks("returns logprobs that were not sampled from (temperature is left out)")

    def _lacks(self, what: str) -> CapabilityError:
        return CapabilityError(
            f"the server at {self.base_url or 'a socket of ours'} cannot feed training: it {what}. It needs vLLM 0.32 or later, "
            f"started with {FLAGS}. To evaluate only, any server will do: `engine: {{kind: openai}}`"
        )

    @property
    def pids(self) -> list[int]:
        """Of the server, first, and what is below it; none where it is not ours."""
        return self._family.pids if self._family is not None else []

    async def generate(self, prompt: list[int], params: SamplingParams, salt: str, lora: Lora | None) -> Reply:
        body = {"token_ids": prompt, "sampling_params": sampling(params), "cache_salt": salt}
        answer = await self._ask("/inference/v1/generate", body)
        choice = answer["choices"][0]
        content = (choice.get("logprobs") or {}).get("content") or []
        spans = [(span["start"], span["version"]) for span in choice.get("weight_versions") or ()]
        cached = ((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Reply(choice["token_ids"] or [], [c["logprob"] for c in content], choice["finish_reason"], spans, cached)

    async def score(self, token_ids: list[int], lora: Lora | None) -> list[float]:
        fields = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        answer = await self._ask("/inference/v1/generate", {"token_ids": token_ids, "sampling_params": fields})
        positions = answer["prompt_logprobs"][1:]
        return [at[str(token)]["logprob"] for at, token in zip(positions, token_ids[1:], strict=True)]

    async def name(self, label: str) -> None:
        await self._ask("/update_weight_version", {"new_version": label})

    async def pause(self) -> None:
        await self._ask("/pause?mode=keep&clear_cache=true", None)

    async def resume(self) -> None:
        await self._ask("/resume", None)

    async def abort_all(self) -> None:
        await self._ask("/abort_requests", {})

    async def init_transfer(self, info: dict[str, Any]) -> None:
        await self._control("/init_weight_transfer_engine", {"init_info": info})

    async def start_update(self) -> None:
        await self._control("/start_weight_update", None)

    async def send_update(self, info: dict[str, Any]) -> None:
        await self._control("/update_weights", {"update_info": info})

    async def finish_update(self, label: str) -> None:
        try:
            await self._control("/finish_weight_update", {"weight_version": label})
        except UpdateRefused as error:
            raise HalfLoaded(str(error)) from error

    async def add_lora(self, lora: Lora) -> None:
        raise CapabilityError("adapters are published to an engine in this process; leave out `serve` and `base_url`")

    async def remove_lora(self, lora: Lora) -> None:
        raise AssertionError("none was added")

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()
        process, self._process = self._process, None
        if process is not None:
            family = self._family or Family.below(process.pid)
            if process.returncode is None:
                process.terminate()
            else:
                family.kill()  # what it left behind waits for nobody
            await family.gone(PATIENCE_S)
            await process.wait()
        self._family = None
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    async def _ask(self, path: str, body: Any) -> Any:
        """A refusal of what was asked is our mistake, or the server is not what it was when it was examined."""
        try:
            return await self._post(path, body)
        except Refused as error:
            raise InfraError(f"vLLM's server refused {path}: {error}") from error

    async def _control(self, path: str, body: Any) -> Any:
        try:
            return await self._post(path, body)
        except Refused as error:
            raise UpdateRefused(str(error)) from error

    async def _post(self, path: str, body: Any) -> Any:
        """Raises: EngineDied where nobody answers, or somebody who is not healthy; Refused, with the server's words."""
        if self._http is None:
            raise EngineDied("vLLM's server is not running")
        try:
            async with self._http.post(path, json=body, timeout=aiohttp.ClientTimeout(total=None, sock_connect=30)) as answer:
                text = await answer.text()
                if answer.status == 200:
                    return json.loads(text)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineDied(f"vLLM's server died: {error}") from error
        if answer.status >= 500 and not await self._healthy():
            raise EngineDied(f"vLLM's server died: status {answer.status}: {text[:300]}")
        raise Refused(f"status {answer.status}: {text[:300]}")


class Refused(Exception):
    """The server answers, but not this."""


def on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def command_line(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as flags."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag[2:])
        else:
            said = map(str, value) if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else str(value)]
            flags += [flag, *said]
    return flags
