"""Threads that compute one micro-batch each, and give their results in the order of the micro-batches.

On small models this is faster than sharing one operation between threads. A thread's operations run on one core and results come
in order: so every result, and every sum of them, has the same bits whatever the count of threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """`threads` 0 is torch's count. Of `large` results no more are in memory than are being computed."""

    def __init__(self, threads: int, *, large: bool):
        count = threads or torch.get_num_threads()
        self._ahead = count - 1 if large else 2 * count
        self._pool = single_threaded_pool(count)

    def spread(self, items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """In the order of the items, with few results in memory at a time."""
        running: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            running.append((item, self._pool.submit(work, item)))
            if len(running) > self._ahead:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()

    def close(self) -> None:
        self._pool.shutdown()


def single_threaded_pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which each torch operation runs on one core; the caller's own setting stays as it was."""
    ready = threading.Barrier(workers + 1)

    def initialise() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes over the process's setting on its first use of torch, and keeps it
        ready.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="trainer-worker", initializer=initialise)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(before)  # also what threads made later begin with
    return pool
