"""An API server that does what a test says: a real server with real streams, and no node behind it.

For what a real cluster does seldom or slowly: refusing, running out of a quota, finding no node, losing one. Pods become what
`becomes` says; a stream of one sends back what it gets, on standard output and standard error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

Pod = dict[str, Any]
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: u, user: {{token: secret}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u, namespace: lab}}}}]
current-context: x
"""


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": status}, status=status)


class ScriptedCluster:
    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.becomes: list[dict[str, Any]] = []  # statuses that every new pod goes through
        self.may: Callable[[dict[str, Any]], bool] = lambda asked: True
        self.refuse: Callable[[str], web.Response | None] = lambda what: None  # of "create", "delete", "attach", "exec", "review"
        self.lingers = False  # whether a deleted pod is there until somebody asks for no grace, as where its node is slow
        self.seen: list[str] = []
        self._events: list[tuple[str, Pod]] = []  # a resourceVersion is how many there have been
        self._watchers: set[asyncio.Queue[tuple[str, Pod]]] = set()

    @asynccontextmanager
    async def serving(self, folder: Path) -> AsyncIterator[Path]:
        """Gives the path of a kubeconfig."""
        app = web.Application()
        pods = "/api/v1/namespaces/lab/pods"
        app.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review)
        app.router.add_post(pods, self._create)
        app.router.add_get(pods, self._list)
        app.router.add_delete(pods + "/{name}", self._delete)
        for what in ("attach", "exec"):
            app.router.add_get(f"{pods}/{{name}}/{{what:{what}}}", self._stream)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        file = folder / "kubeconfig"
        file.write_text(KUBECONFIG.format(port=runner.addresses[0][1]))
        try:
            yield file
        finally:
            await runner.cleanup()

    def set_status(self, name: str, status: dict[str, Any]) -> None:
        self.pods[name]["status"] = status
        self._tell("MODIFIED", self.pods[name])

    def _tell(self, kind: str, pod: Pod) -> None:
        self._events.append((kind, json.loads(json.dumps(pod))))
        for watcher in self._watchers:
            watcher.put_nowait(self._events[-1])

    def _refused(self, what: str) -> web.Response | None:
        self.seen.append(what)
        return self.refuse(what)

    async def _review(self, request: web.Request) -> web.Response:
        if (no := self._refused("review")) is not None:
            return no
        body = await request.json()
        return web.json_response({**body, "status": {"allowed": self.may(body["spec"]["resourceAttributes"])}}, status=201)

    async def _create(self, request: web.Request) -> web.Response:
        if (no := self._refused("create")) is not None:
            return no
        pod = await request.json()
        if pod["metadata"]["name"] in self.pods:
            return refusal(409, "it already exists")
        pod = self.pods[pod["metadata"]["name"]] = {**pod, "status": {"phase": "Pending"}}
        self._tell("ADDED", pod)
        for status in self.becomes:
            self.set_status(pod["metadata"]["name"], status)
        return web.json_response(pod, status=201)

    async def _delete(self, request: web.Request) -> web.Response:
        if (no := self._refused("delete")) is not None:
            return no
        pod = self.pods.get(request.match_info["name"])
        if pod is None:
            return refusal(404, "not found")
        if self.lingers and request.query.get("gracePeriodSeconds") != "0":
            pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
            self._tell("MODIFIED", pod)
        else:
            self._tell("DELETED", self.pods.pop(request.match_info["name"]))
        return web.json_response(pod)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            version = {"resourceVersion": str(len(self._events))}
            return web.json_response({"kind": "PodList", "metadata": version, "items": list(self.pods.values())})
        queue: asyncio.Queue[tuple[str, Pod]] = asyncio.Queue()
        for event in self._events[int(request.query["resourceVersion"]) :]:  # nothing is lost between list and watch
            queue.put_nowait(event)
        self._watchers.add(queue)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                kind, pod = await queue.get()
                await response.write(json.dumps({"type": kind, "object": pod}).encode() + b"\n")
        finally:
            self._watchers.discard(queue)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if (no := self._refused(request.match_info["what"])) is not None:
            return no
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                if message.data[1:] == b"end":
                    await socket.send_bytes(b'\3{"status":"Success"}')
                    break
                await socket.send_bytes(b"\1" + message.data[1:])
                await socket.send_bytes(b"\2" + message.data[1:])
        await socket.close()
        return socket
