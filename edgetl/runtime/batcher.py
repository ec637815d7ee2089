"""Requests of many threads, answered in batches that form by themselves while the engine is busy."""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from edgetl import host
from edgetl.errors import DeadlineExceeded, EngineError, Overloaded
from edgetl.preprocess import Picture
from edgetl.runtime.batching import Batching
from edgetl.runtime.meters import Meters
from edgetl.runtime.prediction import Prediction

__all__ = ["Batcher"]

_MOST_WORKERS = 4
# A batch that forms is begun this long before it would be too late for one in it, or a quarter of that one's deadline.
_MARGIN_S = 0.05
_NEWEST = 0.2  # weight of the last batch in what the next one is expected to take


@dataclass(eq=False)
class _Request:
    picture: Picture
    future: Future[Prediction]
    since: float
    until: float | None

    @property
    def half(self) -> float:
        """Half of the deadline, seconds: the longest that a batch with it should take."""
        return math.inf if self.until is None else (self.until - self.since) / 2

    def latest_start(self, takes: float) -> float:
        """Returns when it has to be begun to be answered in time, if a batch takes so many seconds.

        What takes longer than half of the deadline is begun within the first half, if at all: whoever is in too much
        of a hurry still gets answers from an engine that is idle.
        """
        return math.inf if self.until is None else self.until - min(takes, self.half)

    def waits_until(self, takes: float) -> float:
        """Returns when it no longer waits for others."""
        if self.until is None:
            return math.inf
        return self.latest_start(takes) - min(_MARGIN_S, self.half / 2)

    def is_over(self, takes: float) -> bool:
        """Whether nobody waits for it any more, or not for as long as it would take."""
        return self.future.cancelled() or time.perf_counter() > self.latest_start(takes)


class _Pace:
    """What a picture of a batch takes, seconds: a moving average. The first batch is slow, the second replaces it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._batches = 0

    def learn(self, seconds: float, pictures: int) -> None:
        self._batches += 1
        self.seconds += (1.0 if self._batches <= 2 else _NEWEST) * (seconds / pictures - self.seconds)


class Batcher:
    """Threads that answer what `submit` is given.

    Args:
        answer: Called with up to ``max_batch`` pictures; returns an answer or an exception for each.
        batching: Settings.
        meters: Where it is counted.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Picture]], Sequence[Prediction | Exception]],
        batching: Batching,
        meters: Meters,
    ) -> None:
        self._answer = answer
        self._settings = batching
        self._meters = meters
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._collecting = threading.Lock()
        self._closed = False
        self._pace = _Pace()
        self._process = os.getpid()
        count = batching.workers or min(host.usable_cores(), _MOST_WORKERS)
        self._threads = [
            threading.Thread(target=self._work, name=f"edgetl-batch-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # a daemon thread that is in the engine when Python ends would crash it

    def submit(self, picture: Picture, deadline_ms: float | None) -> Future[Prediction]:
        """Puts a request into the queue.

        Raises:
            Overloaded: The queue is full.
            EngineError: The batcher is closed.
        """
        now = time.perf_counter()
        until = None if deadline_ms is None else now + deadline_ms / 1e3
        request = _Request(picture, Future(), now, until)
        over: set[_Request] = set()
        with self._changed:
            if self._closed:
                raise EngineError("this classifier is closed; call edgetl.load again")
            if len(self._waiting) >= self._settings.max_queue:
                takes = self._takes
                over = {r for r in self._waiting if r.is_over(takes)}
                self._waiting = deque(r for r in self._waiting if r not in over)
            taken = len(self._waiting) < self._settings.max_queue
            if taken:
                self._waiting.append(request)
                self._changed.notify()
        self._refuse(over)
        if taken:
            return request.future
        self._meters.count("overloaded")
        raise Overloaded(f"{self._settings.max_queue} requests wait already; try again later, or raise max_queue")

    @property
    def _takes(self) -> float:
        """Seconds that the next batch is expected to take."""
        return self._pace.seconds * max(1, min(len(self._waiting), self._settings.max_batch))

    def _batch(self) -> tuple[list[_Request], list[_Request]]:
        """Takes from the queue what makes a batch, and what is before it and no longer wanted.

        A batch has no more pictures than are expected to take half of the shortest deadline in it.
        """
        wanted: list[_Request] = []
        over: list[_Request] = []
        shortest, takes = math.inf, self._takes
        while self._waiting and len(wanted) < self._settings.max_batch:
            request = self._waiting[0]
            if request.is_over(takes):
                over.append(self._waiting.popleft())
                continue
            shortest = min(shortest, request.half)
            if wanted and self._pace.seconds * (len(wanted) + 1) > shortest:
                break
            wanted.append(self._waiting.popleft())
        return wanted, over

    def _refuse(self, over: Iterable[_Request]) -> None:
        """Tells whoever waits for them; without a lock, since they may do anything then."""
        for request in over:
            if not self._begins(request):
                continue
            self._meters.count("deadlines_exceeded")
            waited, deadline = (time.perf_counter() - request.since) * 1e3, 2e3 * request.half
            request.future.set_exception(
                DeadlineExceeded(f"waited for {waited:.0f} of {deadline:.0f} ms: an answer would come too late")
            )

    def _begins(self, request: _Request) -> bool:
        """Marks a request as begun, unless it was cancelled."""
        begins = request.future.set_running_or_notify_cancel()
        if not begins:
            self._meters.count("cancelled")
        return begins

    @property
    def max_batch(self) -> int:
        """Most pictures in one call of the engine."""
        return self._settings.max_batch

    def owns(self, thread: threading.Thread) -> bool:
        """Tells whether it is one of these threads."""
        return thread in self._threads

    def close(self, *, drain: bool = True) -> None:
        """Ends the threads.

        Args:
            drain: Whether those that wait are answered first; else they are cancelled.
        """
        atexit.unregister(self.close)
        if os.getpid() != self._process:  # forked: the threads, and whoever held the lock, are in the other process
            return
        with self._changed:
            self._closed = True
            left = [] if drain else list(self._waiting)
            if not drain:
                self._waiting.clear()
            self._changed.notify_all()
        for request in left:
            request.future.cancel()
        self._meters.count("cancelled", len(left))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self) -> None:
        while True:
            with self._collecting:  # one at a time, or two would share what makes one good batch
                taken = self._take()
            if taken is None:
                return
            wanted, over = taken
            self._refuse(over)
            if batch := [request for request in wanted if self._begins(request)]:
                self._run(batch)

    def _take(self) -> tuple[list[_Request], list[_Request]] | None:
        """Waits for a batch, and returns it as `_batch` does; None when there will be no more."""
        settings = self._settings
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            while len(self._waiting) < settings.max_batch and not self._closed:
                takes = self._takes
                until = min(
                    self._waiting[0].since + settings.max_wait_ms / 1e3,
                    *(r.waits_until(takes) for r in self._waiting),
                )
                left = until - time.perf_counter()
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._batch()

    def _run(self, batch: list[_Request]) -> None:
        begun = time.perf_counter()
        try:
            answers = self._answer([request.picture for request in batch])
        except Exception as error:
            answers = [error] * len(batch)
        now = time.perf_counter()
        if any(isinstance(answer, Prediction) for answer in answers):
            with self._changed:
                self._pace.learn(now - begun, len(batch))
                self._changed.notify_all()  # a batch that forms may have to begin earlier
        self._meters.observe("batch_pictures", len(batch))
        for request, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Prediction):
                self._meters.observe("submit_seconds", now - request.since, 1, int(answer.label is None))
                request.future.set_result(answer)
            else:
                request.future.set_exception(answer)
