"""The queue before the model: bounded, so that who is let in is answered soon, and others at once.

    ask → let in? → read and cut (a few threads) → network (one thread, cells of several requests)

How many pictures may wait follows from how long one takes on this machine: as many as are begun
within the patience of the settings. Knows work and time; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter
from typing import Any, TypeVar

from leuko.service.refusals import Refusal
from leuko.service.settings import ServiceSettings
from leuko.use.answers import Answer, SetAside
from leuko.use.inputs import Item
from leuko.use.predictor import Predictor

Result = TypeVar("Result")
Told = list[list[Answer] | SetAside]

FIRST_GUESS = 0.05  # s for a picture, until some were measured
MEMORY = 0.1  # weight of the newest measurement


@dataclass
class _Job:
    """Work that was let in.

    Attributes:
        pictures: How many it stands for in the queue.
        size: Bytes it holds.
        run: Gives the result, in the thread of the network.
        future: Where the result is waited for; cancelled if nobody waits any more.
    """

    pictures: int
    size: int
    future: Future[Any]
    run: Callable[[], Any]
    began: float = field(default_factory=perf_counter)


class Queue:
    """Lets work in, or refuses it; made once per process.

    Args:
        predictor: That answers.
        settings: Its limits.
        on_answer: Called with the seconds from being let in to the answer, in any thread.
    """

    def __init__(
        self,
        predictor: Predictor,
        settings: ServiceSettings,
        on_answer: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._predictor = predictor
        self._settings = settings
        self._on_answer = on_answer
        self._lock = threading.Lock()
        self._waiting = self._bytes = 0
        self._seconds = FIRST_GUESS
        self._readers = ThreadPoolExecutor(settings.decoders, "leuko-read")
        self._network = ThreadPoolExecutor(1, "leuko-network")

    @property
    def waiting(self) -> int:
        """Pictures that were let in and aren't answered."""
        return self._waiting

    @property
    def limit(self) -> int:
        """Pictures that may wait at present."""
        s = self._settings
        return min(max(int(s.patience / self._seconds), s.shortest_queue), s.longest_queue)

    def check(self, pictures: int = 1, size: int = 0) -> None:
        """Refuses what `answer` would refuse now; for early refusals.

        Raises:
            Refusal: 503; says when to come back.
        """
        with self._lock:
            self._check(pictures, size)

    def _check(self, pictures: int, size: int) -> None:
        if self._waiting == 0:  # whatever fits into a request is done when there is nothing else
            return
        full = self._waiting + pictures > self.limit
        if full or self._bytes + size > self._settings.queue_bytes:
            raise Refusal(
                503, "busy",
                f"{self._waiting} pictures are waiting already. Nothing was done; send the same "
                "request again after the time in Retry-After.",
                retry_after=max(1, ceil(self._waiting * self._seconds)),
            )  # fmt: skip

    async def answer(self, items: Sequence[Item], *, scale: float | None = None) -> Told:
        """Answers pictures, as `Predictor.stream` does.

        Args:
            items: Pictures of one request: their scale is measured over them alone.
            scale: Pixels per µm, where it is known.

        Raises:
            Refusal: 503, too much is waiting.
        """
        size = sum(len(item.source) for item in items if isinstance(item.source, bytes))
        told: Told = await self._wait(
            len(items), size, lambda: list(self._predictor.stream(items, scale=scale))
        )
        return told

    async def run(self, function: Callable[[], Result], pictures: int = 1) -> Result:
        """Runs other work with the model in its thread.

        Args:
            function: The work.
            pictures: How many pictures it is about as much work as.

        Raises:
            Refusal: 503, too much is waiting.
        """
        result: Result = await self._wait(pictures, 0, function)
        return result

    async def _wait(self, pictures: int, size: int, run: Callable[[], Any]) -> Any:
        job = _Job(pictures, size, Future(), run)
        with self._lock:
            self._check(pictures, size)
            self._waiting += pictures
            self._bytes += size
        self._network.submit(self._work, job)
        return await asyncio.wrap_future(job.future)

    def _work(self, job: _Job) -> None:
        try:
            if not job.future.set_running_or_notify_cancel():
                return
            began = perf_counter()
            try:
                result = job.run()
            except BaseException as error:
                job.future.set_exception(error)
                return
            now = perf_counter()
            self._seconds += MEMORY * ((now - began) / max(1, job.pictures) - self._seconds)
            self._on_answer(now - job.began)
            job.future.set_result(result)
        finally:
            with self._lock:
                self._waiting -= job.pictures
                self._bytes -= job.size

    def close(self) -> None:
        """Ends the threads after what was let in."""
        self._readers.shutdown(cancel_futures=True)
        self._network.shutdown(cancel_futures=True)
