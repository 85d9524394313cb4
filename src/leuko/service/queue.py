"""The queue before the model: bounded, so that who is let in is answered soon, and others at once.

    ask → let in? → a thread per core: read, cut, network, answer

Each request is answered by one thread from end to end, and several requests side by side. That
costs less than one request on several threads, which wait for each other at each layer. Only a
request that is alone lends the idle cores: the views of its cells are then looked at side by side,
which gives the same bits. Cells of several requests aren't joined to one batch, because a larger
batch isn't faster, and because then an answer is the very one that the library gives, whoever else
asks at the time.

How many pictures may wait follows from how fast they go on this machine: as many as are begun
within the patience of the settings, and fewer as long as more than one in a hundred is late. Who is
turned away is told to come back when those who were turned away before have had their turn.

Knows work and time; knows nothing of HTTP.
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

from leuko.engine import count_cores
from leuko.service.refusals import Refusal
from leuko.service.settings import ServiceSettings
from leuko.use.answers import Answer, SetAside
from leuko.use.inputs import Item
from leuko.use.predictor import Predictor

Result = TypeVar("Result")
Told = list[list[Answer] | SetAside]

FIRST_GUESS = 0.05  # s for a picture, until some were measured
NEWEST = 0.1  # weight of the newest measurement
LATE, STEP, LEAST = 0.01, 0.1, 0.4  # share of late answers; how fast and far the queue is shortened
LONGEST_WAIT = 15.0  # s that anybody is told to wait


@dataclass
class _Job:
    """Work that was let in.

    Attributes:
        pictures: How many it stands for in the queue.
        size: Bytes it holds.
        run: Gives the result, in a thread of the queue.
        future: Where the result is waited for; cancelled if nobody waits any more.
        let_in: When.
    """

    pictures: int
    size: int
    run: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    let_in: float = field(default_factory=perf_counter)


class Queue:
    """Lets work in, or refuses it; made once per process.

    Args:
        predictor: That answers.
        settings: Its limits.
        on_answer: Called with the seconds from being let in to the answer, in any thread.

    Attributes:
        decoding: Held by whoever has decoded pictures in memory, in any thread: they are large.
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
        self._waiting = self._bytes = self._jobs = 0
        self._seconds = FIRST_GUESS  # of the whole way, per picture, when there is always another
        self._share = 1.0  # of the patience, so that few answers are late
        self._last = 0.0  # when the last job ended
        self._booked = 0.0  # when the last of those who were turned away should come
        self.decoding = threading.Semaphore(settings.decoders)
        self._workers = settings.workers or count_cores()
        self._pool = ThreadPoolExecutor(self._workers, "leuko-answer")
        self._network = predictor.bundle.network
        self._network.share(self._count_idle, self._workers)

    @property
    def waiting(self) -> int:
        """Pictures that were let in and aren't answered."""
        return self._waiting

    @property
    def limit(self) -> int:
        """Pictures that may wait at present."""
        s = self._settings
        fit = int(self._share * s.patience / self._seconds)
        return min(max(fit, s.shortest_queue), s.longest_queue)

    def check(self, pictures: int = 1, size: int = 0) -> None:
        """Refuses what `answer` would refuse now; for early refusals.

        Args:
            pictures: How many.
            size: Bytes of their files.

        Raises:
            Refusal: 503; says when to come back.
        """
        with self._lock:
            self._check(pictures, size)

    async def answer(self, items: Sequence[Item], *, scale: float | None = None) -> Told:
        """Answers the pictures of one request, as `Predictor.stream` does.

        Args:
            items: Their scale is measured over them alone.
            scale: Pixels per µm, where it is known.

        Raises:
            Refusal: 503, too much is waiting.
        """
        told: Told = await self._enter(
            _Job(
                len(items),
                sum(len(item.source) for item in items if isinstance(item.source, bytes)),
                lambda: self._predict(items, scale),
            )
        )
        return told

    async def run(self, function: Callable[[], Result], pictures: int = 1, size: int = 0) -> Result:
        """Runs other work with the model, in a thread of the queue.

        Args:
            function: The work.
            pictures: About how many pictures it is as much work as.
            size: Bytes of their files.

        Raises:
            Refusal: 503, too much is waiting.
        """
        result: Result = await self._enter(_Job(pictures, size, function))
        return result

    def close(self) -> None:
        """Ends the threads; what isn't begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
        self._network.stop_sharing()

    async def _enter(self, job: _Job) -> Any:
        with self._lock:
            self._check(job.pictures, job.size)
            self._jobs += 1
            self._waiting += job.pictures
            self._bytes += job.size
        job.future.add_done_callback(lambda _: self._leave(job))
        self._pool.submit(self._work, job)
        return await asyncio.wrap_future(job.future)

    def _check(self, pictures: int, size: int) -> None:
        if self._waiting == 0:  # whatever fits into a request is done when there is nothing else
            return
        full = self._waiting + pictures > self.limit
        if full or self._bytes + size > self._settings.queue_bytes:
            raise Refusal(
                503, "busy",
                f"{self._waiting} pictures are waiting already. Nothing was done; send the same "
                "request again after the time in Retry-After.",
                retry_after=ceil(self._book(pictures)),
            )  # fmt: skip

    def _book(self, pictures: int) -> float:
        """Seconds until there is room, with all who were turned away before; above 0."""
        now = perf_counter()
        room = now + self._waiting * self._seconds
        self._booked = max(self._booked, room) + pictures * self._seconds
        self._booked = min(self._booked, now + LONGEST_WAIT)
        return self._booked - now

    def _count_idle(self) -> int:
        """Cores that one job may use at present."""
        return max(1, self._workers // max(1, self._jobs))

    def _leave(self, job: _Job) -> None:
        with self._lock:
            self._jobs -= 1
            if self._jobs == 0:
                self._booked = 0.0  # there is room now
            self._waiting -= job.pictures
            self._bytes -= job.size

    def _predict(self, items: Sequence[Item], scale: float | None) -> Told:
        with self.decoding:
            prepared = self._predictor.prepare(items, scale=scale)
        return list(self._predictor.conclude(prepared))

    def _work(self, job: _Job) -> None:
        if job.future.cancelled():
            return
        try:
            result = job.run()
        except BaseException as error:
            _settle(job.future, error=error)
            return
        now = perf_counter()
        took = (now - max(self._last, job.let_in)) / max(1, job.pictures)
        self._last = now
        self._seconds += NEWEST * (took - self._seconds)
        if job.pictures == 1:  # in balance when as many are late as may be
            late = now - job.let_in > self._settings.goal
            share = self._share + STEP * (LATE - late)
            self._share = min(max(share, LEAST), 1.0)
        self._on_answer(now - job.let_in)
        _settle(job.future, result)


def _settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Ends a future that may have been cancelled meanwhile."""
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
