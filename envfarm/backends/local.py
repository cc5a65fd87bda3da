"""Boxes for synchronous code: one event loop in a daemon thread per process, and the backends that run on it.

What `Env.reset`, `envfarm play` and `check` use. Workers have a loop of their own and do not need this.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from importlib import import_module

from envfarm.backends.sync import SyncBox
from envfarm.box import BACKENDS, Backend, BoxSpec, Snapshot
from envfarm.errors import UserError, did_you_mean


def backend_class(name: str) -> type[Backend]:
    """The class of a backend by name. Raises: UserError with near matches."""
    if name not in BACKENDS:
        raise UserError(f"no backend {name!r}{did_you_mean(name, BACKENDS)}; there are {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(import_module(module), attribute)


class _Loop:
    """The process's loop and backends; made anew after a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.backends: dict[str, Backend] = {}
        threading.Thread(target=self.loop.run_forever, name="envfarm boxes", daemon=True).start()

    def backend(self, name: str) -> Backend:
        if name not in self.backends:
            made = backend_class(name)()
            asyncio.run_coroutine_threadsafe(made.probe(), self.loop).result()
            self.backends[name] = made
        return self.backends[name]


_lock = threading.Lock()
_state: list[_Loop] = []


def _current() -> _Loop:
    with _lock:
        if not _state or _state[0].pid != os.getpid():
            _state[:] = [_Loop()]
        return _state[0]


def box_maker(backend: str, spec: BoxSpec) -> Callable[..., SyncBox]:
    """A function that starts a box (from a snapshot, where it is given one) with that backend and hands it out with blocking
    methods (and `stop`).

    Raises: BoxUnavailableError where the backend cannot make boxes here; UserError for an unknown backend.
    """
    current = _current()
    made = current.backend(backend)

    def make(snapshot: Snapshot | None = None) -> SyncBox:
        box = asyncio.run_coroutine_threadsafe(made.start(spec, snapshot=snapshot), current.loop).result()
        return SyncBox(box, current.loop)

    return make
