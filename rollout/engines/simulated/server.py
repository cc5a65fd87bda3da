"""The simulated engine behind vLLM's routes, for clients of those: real sockets, real time.

    async with SimulatedServer(engine) as server:
        server.url                               # http://127.0.0.1:PORT

    python -m rollout.engines.simulated.server --port 8000 --speed 100

Shapes are those of vLLM 0.32 with `--enable-scale-out` and `VLLM_SERVER_DEV_MODE=1`: tokens in and out
(`/inference/v1/generate`), pauses, the three calls of a weight update, labels of weights per token, aborts. What is refused
is answered with vLLM's status codes; a dead engine with 500, and `/health` with 503. Prompts can be scored, with
logprobs that depend on tokens and weights alone.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import pairwise
from typing import Any, Self

from aiohttp import web

from envfarm.errors import InfraError
from envfarm.seeding import derive_seed
from rollout.engines.base import Generation
from rollout.engines.simulated.engine import SimulatedEngine
from rollout.engines.simulated.models import Latency, Lengths
from rollout.types import PolicyVersion, SamplingParams

POLICY = "served"


class SimulatedServer:
    """Serves `engine`, whose only policy is named `POLICY` (`served_engine` makes one). Starts and closes it."""

    def __init__(self, engine: SimulatedEngine, *, host: str = "127.0.0.1", port: int = 0, model: str = "simulated"):
        self.engine, self.model, self.url = engine, model, ""
        self._host, self._port = host, port
        self._updating, self._paused, self._labels = False, False, 0
        app = web.Application(client_max_size=1 << 30, middlewares=[_told])
        app.add_routes([
            web.get("/health", self._health), web.get("/v1/models", self._models), web.get("/is_paused", self._is_paused),
            web.get("/weight_info", self._weight_info), web.post("/inference/v1/generate", self._generate),
            web.post("/pause", self._pause), web.post("/resume", self._resume), web.post("/reset_prefix_cache", self._nothing),
            web.post("/abort_requests", self._abort), web.post("/inference/v1/abort_requests", self._abort),
            web.post("/init_weight_transfer_engine", self._init), web.post("/start_weight_update", self._start_update),
            web.post("/update_weights", self._update), web.post("/finish_weight_update", self._finish_update),
            web.post("/update_weight_version", self._name),
        ])  # fmt: skip
        self._runner = web.AppRunner(app, handler_cancellation=True)  # who hangs up aborts

    async def __aenter__(self) -> Self:
        await self.engine.start()
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self.url = f"http://{self._host}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()
        await self._runner.cleanup()

    @property
    def label(self) -> str:
        """Of the weights that sample now."""
        return self.engine.version(POLICY).checksum

    # Tokens in, tokens out.

    async def _generate(self, request: web.Request) -> web.Response:
        body = await _json(request)
        prompt, said = body.get("token_ids"), body.get("sampling_params")
        if not isinstance(prompt, list) or not prompt or not isinstance(said, dict) or min(prompt) < 0:
            return _error(400, "token_ids (at least one, none negative) and sampling_params were expected")
        params = SamplingParams(
            temperature=said.get("temperature", 1.0), top_p=said.get("top_p", 1.0), max_tokens=said.get("max_tokens") or 16,
            stop_ids=tuple(said.get("stop_token_ids") or ()), seed=said.get("seed") or 0,
        )  # fmt: skip
        name = body.get("request_id") or f"{derive_seed(id(request)):x}"
        reply = await self.engine.generate(prompt, params, policy=POLICY, name=name)
        answer = {
            "request_id": name, "model": self.model, "choices": [choice_of(reply, params, said.get("logprobs"))],
            "usage": {
                "prompt_tokens": len(prompt), "completion_tokens": len(reply.token_ids),
                "total_tokens": len(prompt) + len(reply.token_ids), "prompt_tokens_details": {"cached_tokens": 0},
            },
            "prompt_logprobs": None if said.get("prompt_logprobs") is None else prompt_logprobs(prompt, self.label),
            "output_mode": "tokens",
        }  # fmt: skip
        return web.json_response(answer)

    async def _abort(self, request: web.Request) -> web.Response:
        count = self.engine.abort((await _json(request)).get("request_ids") or None)
        return web.json_response({"status": "aborted", "aborted": count})

    # Weights.

    async def _pause(self, request: web.Request) -> web.Response:
        mode = request.query.get("mode", "abort")
        if mode not in ("abort", "wait", "keep"):
            return _error(422, f"mode is {mode!r}; 'abort', 'wait' or 'keep' was expected")
        if not self._paused:
            self._paused = True
            if mode == "abort":
                self.engine.abort()
            await (self.engine.drain() if mode == "wait" else self.engine.pause())
        return web.json_response({"status": "paused"})

    async def _resume(self, request: web.Request) -> web.Response:
        if self._paused:
            self._paused = False
            self.engine.resume()
        return web.json_response({"status": "resumed"})

    async def _init(self, request: web.Request) -> web.Response:
        await _json(request)
        return web.json_response({"message": "Weight transfer initialized"})

    async def _start_update(self, request: web.Request) -> web.Response:
        if self._updating:
            return _error(500, "a weight update is under way already")
        self._updating = True
        return web.json_response({"message": "Weight update started"})

    async def _update(self, request: web.Request) -> web.Response:
        if "update_info" not in await _json(request):
            return _error(422, "update_info was expected")
        if not self._updating:
            return _error(500, "no weight update was started")
        try:
            await self.engine.receive()
        except ValueError as error:
            self._updating = False
            return _error(500, str(error))
        return web.json_response({"message": "Weights updated"})

    async def _finish_update(self, request: web.Request) -> web.Response:
        if not self._updating:
            return _error(500, "no weight update was started")
        self._updating = False
        await self._adopt((await _json(request)).get("weight_version"))
        return web.json_response({"message": "Weight update finished"})

    async def _name(self, request: web.Request) -> web.Response:
        new = (await _json(request)).get("new_version")
        await self._adopt(new)
        return web.json_response({"success": True, "new_version": new})

    async def _adopt(self, label: str | None) -> None:
        self._labels += 1
        await self.engine.adopt(PolicyVersion(POLICY, 0, self._labels, label or f"update {self._labels}"))

    # What there is.

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.engine.alive else 503)

    async def _models(self, request: web.Request) -> web.Response:
        context = self.engine.capabilities.context or None
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model", "max_model_len": context}]})

    async def _is_paused(self, request: web.Request) -> web.Response:
        return web.json_response({"is_paused": self._paused})

    async def _weight_info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.label})

    async def _nothing(self, request: web.Request) -> web.Response:
        return web.Response(status=200)


def choice_of(reply: Generation, params: SamplingParams, logprobs: int | None) -> dict[str, Any]:
    """One entry of `choices`."""
    starts = reply.versions or [(0, reply.version)]
    ends = [start for start, _ in starts[1:]] + [len(reply.token_ids)]
    content = [
        {"token_id": t, "logprob": p, "rank": 1, "top_logprobs": []} for t, p in zip(reply.token_ids, reply.logprobs, strict=True)
    ]
    return {
        "index": 0, "finish_reason": reply.finish, "token_ids": reply.token_ids,
        "stop_reason": reply.token_ids[-1] if reply.finish == "stop" and params.stop_ids else None,
        "logprobs": None if logprobs is None else {"content": content},
        "weight_versions": [
            {"version": v.checksum, "start": start, "end": end} for (start, v), end in zip(starts, ends, strict=True)
        ],
    }  # fmt: skip


def prompt_logprobs(ids: Sequence[int], label: str) -> list[dict[str, Any] | None]:
    """Made up of the tokens so far and the weights: others tell other figures."""
    drawn = [derive_seed("simulated score", label, i, a, b) / 2**63 for i, (a, b) in enumerate(pairwise(ids))]
    return [None, *({str(t): {"logprob": math.log(1e-6 + d), "rank": 1}} for t, d in zip(ids[1:], drawn, strict=True))]


def served_engine(**more: Any) -> SimulatedEngine:
    """An engine whose first weights are labelled as vLLM labels its own."""
    return SimulatedEngine({POLICY: None}, versions={POLICY: PolicyVersion(POLICY, checksum="default")}, **more)


@web.middleware
async def _told(request: web.Request, handler: Any) -> web.StreamResponse:
    """Errors as vLLM words them."""
    try:
        return await handler(request)
    except InfraError as error:
        return _error(500, str(error))
    except ValueError as error:
        return _error(400, str(error))


async def _json(request: web.Request) -> Mapping[str, Any]:
    """Raises: ValueError where the body is no JSON object."""
    found = await request.json() if request.can_read_body else {}
    if not isinstance(found, dict):
        raise ValueError("a JSON object was expected")
    return found


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "simulated", "param": None, "code": status}}, status=status)


async def _serve(options: argparse.Namespace) -> None:
    latency = Latency(*(plain_s / options.speed for plain_s in astuple(Latency())))
    lengths = Lengths(options.median, options.sigma)
    engine = served_engine(lengths=lengths, latency=latency, max_in_flight=options.slots, context=options.context)
    async with SimulatedServer(engine, port=options.port) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rollout.engines.simulated.server", description="vLLM's routes, no model")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free; the address is printed")
    parser.add_argument("--speed", type=float, default=1.0, help="times as quick as a model of a few billion weights")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--median", type=float, default=32.0, help="tokens of a reply")
    parser.add_argument("--sigma", type=float, default=1.0, help="spread of their logarithm")
    parser.add_argument("--context", type=int, default=None)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
