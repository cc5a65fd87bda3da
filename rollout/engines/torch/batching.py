"""Continuous batching of one policy's requests over the lanes of its cache.

A step admits what waits while lanes are free, then makes one forward: the last token of every lane that is ready
(decode), and pieces of the prompts of those that are not (prefill); a prompt that fits one piece is sampled from in
the same step. The last prompt token always goes through decode, so that prefill needs no logits and a prefix-cache
hit takes the same path as a miss.

Where a request shares a longer prefix with a prompt of this step than with any lane that is ready, it waits for the
next step and copies. So the eight members of a group compute their prompt once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rollout.engines.base import Generation
from rollout.engines.torch.cache import Lanes
from rollout.engines.torch.checkpoint import fit
from rollout.engines.torch.config import ModelConfig
from rollout.engines.torch.kernels import Weights, forward
from rollout.engines.torch.planning import Part, decode, plan, prefill
from rollout.engines.torch.request import Request
from rollout.engines.torch.sampling import Rows, sample
from rollout.types import PolicyVersion

WORTH_WAITING = 16  # tokens of shared prefix for which a request waits one wave


class LaneRunner:
    """Serves one of our decoders. Life of a lane: idle -> (admit) active -> (finish) idle, its tokens still resident."""

    def __init__(
        self,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        version: PolicyVersion,
        *,
        lanes: int,
        context: int,
        prefill_chunk: int = 128,
        prefill_rows: int = 2048,
    ):
        self.config, self.version, self.context, self.vocab = config, version, context, config.vocab
        self.weight_count = config.parameters()
        self.prefill_chunk, self.prefill_rows = prefill_chunk, prefill_rows
        self.batch_invariant = False  # until `probe.batch_invariant` has measured it
        self.cache = Lanes(config, lanes, context)
        self.weights = Weights(config, state, self.cache.capacity)
        self.waiting: deque[Request] = deque()
        self.requests: list[Request | None] = [None] * lanes
        self.session_of = [""] * lanes
        self.lane_of: dict[str, int] = {}
        self.clock, self.used = 0, np.zeros(lanes, dtype=np.int64)
        self.active = np.zeros(lanes, dtype=bool)
        self.length = np.ones(lanes, dtype=np.int64)  # tokens of the lane, the one to be fed next included
        self.sampled = np.zeros(lanes, dtype=np.int64)
        self.limit = np.zeros(lanes, dtype=np.int64)
        self.temperature, self.top_p = np.ones(lanes, dtype=np.float32), np.ones(lanes, dtype=np.float32)
        self.seed = np.zeros(lanes, dtype=np.uint64)
        self.stops = np.zeros((lanes, config.vocab), dtype=bool)
        self.logprobs = np.zeros((lanes, self.cache.capacity), dtype=np.float32)

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        if request.lane >= 0 and self.requests[request.lane] is request:
            self._release(request.lane)
        elif request in self.waiting:
            self.waiting.remove(request)

    def busy(self) -> bool:
        return bool(self.waiting) or bool(self.active.any())

    def update(self, version: PolicyVersion, state: Mapping[str, Tensor]) -> None:
        self.weights = Weights(self.config, fit(state, self.config), self.cache.capacity)
        self.version = version
        self.cache.clear()
        for lane in np.flatnonzero(self.active):
            request = self.requests[lane]
            assert request is not None
            request.relabel(int(self.sampled[lane]), version)

    def step(self) -> list[tuple[Request, Generation]]:
        while self.waiting and not self.active.all():
            self._admit(self.waiting.popleft())
        resident = self.cache.resident
        lanes, counts = self._wave()
        reached = resident.copy()
        reached[lanes] += counts
        ready = np.flatnonzero(self.active & (reached >= self.length - 1))
        parts = [decode(self.cache, ready, self.length[ready])] if len(ready) else []
        if len(lanes):
            parts += prefill(self.cache, lanes, resident[lanes], counts)
        if not parts:
            return []
        logits = forward(self.weights, self.cache, plan(parts, wanted=min(1, len(ready))))
        resident[lanes] = reached[lanes]
        return self._sample(ready, parts[0], logits) if len(ready) else []

    def score(self, token_ids: list[int]) -> list[float]:
        alone = Lanes(self.config, 1, len(token_ids))
        alone.tokens[0, : len(token_ids)] = token_ids
        out: list[float] = []
        lane, n = np.zeros(1, dtype=np.int64), len(token_ids) - 1
        for start in range(0, n, self.prefill_chunk):
            count = min(self.prefill_chunk, n - start)
            parts = prefill(alone, lane, np.array([start]), np.array([count]))
            logits = forward(self.weights, alone, plan(parts, wanted=len(parts)))
            logits = torch.cat([logits[p.attend.start :][: len(p.rows)] for p in parts])
            targets = torch.tensor(token_ids[start + 1 : start + 1 + count])[:, None]
            out += torch.log_softmax(logits, dim=-1).gather(-1, targets)[:, 0].tolist()
        return out

    def _admit(self, request: Request) -> None:
        lane, params, n = self._choose_lane(request.session), request.params, len(request.prompt)
        shared = _shared(self.cache.tokens[lane], request.prompt, int(self.cache.resident[lane]))
        self.cache.tokens[lane, :n] = request.prompt
        self.cache.resident[lane] = request.cached = min(shared, n - 1)
        request.lane = lane
        request.relabel(0, self.version)
        self.requests[lane], self.active[lane] = request, True
        self.length[lane], self.sampled[lane] = n, 0
        self.limit[lane] = min(params.max_tokens, self.context - n)
        self.temperature[lane], self.top_p[lane] = params.temperature, params.top_p
        self.seed[lane] = params.seed & 0xFFFF_FFFF_FFFF_FFFF
        self.stops[lane] = False
        self.stops[lane, list(params.stop_ids)] = True

    def _choose_lane(self, session: str) -> int:
        """The conversation's own lane where it is idle, else the idle lane that was unused for longest."""
        lane = self.lane_of.get(session, -1) if session else -1
        if lane < 0 or self.active[lane]:
            lane = int(np.where(self.active, np.iinfo(np.int64).max, self.used).argmin())
            if self.lane_of.get(self.session_of[lane]) == lane:
                del self.lane_of[self.session_of[lane]]
            self.session_of[lane] = session
            if session:
                self.lane_of[session] = lane
        self.clock += 1
        self.used[lane] = self.clock
        return lane

    def _release(self, lane: int) -> None:
        self.requests[lane], self.active[lane] = None, False

    def _wave(self) -> tuple[np.ndarray, np.ndarray]:
        """The lanes whose prompts are computed in this step, and how many tokens of each. Prefixes are copied first.

        A lane that shares a longer prefix with one of this wave than with any that is ready waits for it.
        """
        resident, lanes, counts, room = self.cache.resident, [], [], self.prefill_rows
        planned = resident.copy()
        for lane in np.flatnonzero(self.active & (resident < self.length - 1)).tolist():
            wanted = self.cache.tokens[lane, : self.length[lane] - 1]
            if 2 * resident[lane] < len(wanted) and not self._share(lane, wanted, planned):  # else it goes on in its own
                continue
            planned[lane] = len(wanted)
            count = min(len(wanted) - int(resident[lane]), self.prefill_chunk, room)
            if count > 0:
                lanes.append(lane)
                counts.append(count)
                room -= count
        return np.array(lanes, dtype=np.int64), np.array(counts, dtype=np.int64)

    def _share(self, lane: int, wanted: np.ndarray, planned: np.ndarray) -> bool:
        """Copy the longest prefix that another lane has ready; False where waiting for one of this wave saves more."""
        resident, request = self.cache.resident, self.requests[lane]
        matches = self.cache.matches(wanted, planned)
        matches[lane] = resident[lane]
        ready = np.minimum(matches, resident)
        source = int(ready.argmax())
        if matches.max() >= ready[source] + WORTH_WAITING:
            return False
        if ready[source] > resident[lane]:
            self.cache.copy(source, lane, int(resident[lane]), int(ready[source]))
            resident[lane] = ready[source]
            if request is not None and self.sampled[lane] == 0:
                request.cached = int(ready[source])
        return True

    def _sample(self, lanes: np.ndarray, part: Part, logits: Tensor) -> list[tuple[Request, Generation]]:
        if len(part.rows) != len(logits):
            logits = logits.index_select(0, torch.from_numpy(part.rows))
        rows = Rows(self.temperature[lanes], self.top_p[lanes], self.seed[lanes], self.sampled[lanes])
        ids, logprobs = sample(logits, rows)
        tokens = ids.numpy()
        self.cache.resident[lanes] = self.length[lanes]
        self.cache.tokens[lanes, self.length[lanes]] = tokens
        self.logprobs[lanes, self.sampled[lanes]] = logprobs.numpy()
        self.length[lanes] += 1
        self.sampled[lanes] += 1
        stopped = self.stops[lanes, tokens]
        ended = stopped | (self.sampled[lanes] >= self.limit[lanes])
        return [self._finish(int(lanes[i]), bool(stopped[i])) for i in np.flatnonzero(ended)]

    def _finish(self, lane: int, stopped: bool) -> tuple[Request, Generation]:
        request = self.requests[lane]
        assert request is not None
        ids = self.cache.tokens[lane, len(request.prompt) : self.length[lane]].tolist()
        logprobs = self.logprobs[lane, : self.sampled[lane]].tolist()
        self._release(lane)
        return request, request.generation(ids, logprobs, "stop" if stopped else "length")


def _shared(tokens: np.ndarray, prompt: np.ndarray, resident: int) -> int:
    """How many leading tokens are the same, at most `resident`."""
    n = min(resident, len(prompt))
    differs = tokens[:n] != prompt[:n]
    return int(differs.argmax()) if differs.any() else n
