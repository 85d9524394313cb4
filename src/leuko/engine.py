"""Runs independent jobs in processes of one thread each.

One thread per job for two reasons: small networks on small images use two cores better as two
jobs than as one; and the number of threads changes the rounding of sums, so that with it fixed
at one the result of a job is the same on a machine of any number of cores.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from leuko.errors import SettingsError, TrainingError

Job = TypeVar("Job")
Result = TypeVar("Result")
Send = Callable[[Any], None]

# Numbers that <malloc.h> of the GNU C library gives to these limits; see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

# Each is read by one library, when it is loaded or its threads are first needed.
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM",
)  # fmt: skip

RESULT, ERROR, MESSAGE = range(3)  # what a worker sends
PATIENCE = 10.0  # s that a worker has to end by itself, when its work is done


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_in_worker(what: str) -> None:
    """Refuses to start processes while this one is only being prepared as a worker.

    A worker imports the script that started it. A script without the usual guard would then begin
    the whole work once more in each worker.

    Raises:
        SettingsError: Called from such an import.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SettingsError(
            f"{what} starts worker processes, and each of them imports your script first. Put "
            "what the script does under: if __name__ == '__main__':"
        )


def keep_freed_memory() -> None:
    """Lets this process keep memory that it has freed, for its own next use.

    Each training step frees and takes the same tens of megabytes. The C library of Linux gives
    large blocks back, and the system clears each page before it hands it out again: for ResNet-18
    a tenth of the time. For the whole process, so it is only for one that does a single job.
    Results don't change. On other systems it does nothing.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows has no such library; macOS no mallopt
        return
    # Above the first limit blocks are always given back; older libraries refuse more than 32 MB.
    if adjust(_MMAP_THRESHOLD, 2**30) or adjust(_MMAP_THRESHOLD, 2**25):
        adjust(_TRIM_THRESHOLD, 2**31 - 1)


def map_jobs(
    work: Callable[[Job, Send], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_message: Callable[[Any], None],
    libraries: Sequence[str] = (),
) -> Iterator[tuple[Job, Result]]:
    """Runs ``work(job, send)`` for each job and yields results as they are ready.

    Args:
        work: A function at the top level of a module. What it passes to `send` reaches
            `on_message`. A worker ends when the process that started it is gone.
        jobs: Picklable; started in this order.
        workers: Processes at a time.
        on_message: Called in this process, in between.
        libraries: What the jobs import and what is slow to import; see `_choose_context`.

    Raises:
        TrainingError: A worker was killed, as happens when memory runs out.
    """
    messages: SimpleQueue[Any] = SimpleQueue()
    with _open_workers(work, max(1, min(workers, len(jobs))), libraries) as hand_out:
        pending = {hand_out(job, messages.put): job for job in jobs}
        while pending:
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while not messages.empty():  # all that the jobs that are done have sent, and more
                on_message(messages.get())
            # `done` is a set: of several that ended together the first given out comes first.
            for future in [future for future in pending if future in done]:
                yield pending.pop(future), future.result()


def stream_jobs(
    work: Callable[[Job, Send], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    ahead: int,
    libraries: Sequence[str] = (),
) -> Iterator[Result]:
    """Runs ``work(job, send)`` for each job and yields the results in the order of the jobs.

    Args:
        work, workers, libraries: As for `map_jobs`; what is sent is dropped.
        jobs: Picklable, and short: each worker has its next one while it is at another. They are
            taken as they are needed.
        ahead: So many are at work or wait to be taken, at most.

    Raises:
        TrainingError: As `map_jobs`.
    """
    with _open_workers(work, workers, libraries, jobs_each=2) as hand_out:
        pending: deque[Future[Result]] = deque()
        for job in jobs:
            pending.append(hand_out(job, lambda _: None))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class _Worker:
    """This end of the pipe of a process that does jobs one after the other."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._turn = threading.Condition()
        self._sent = self._told = 0

    def ask(self, job: Any, on_message: Send) -> Any:
        """Has a job done, after those that were asked before; called by several threads.

        Raises:
            TrainingError: The process is gone.
            Exception: What the job raised.
        """
        try:
            with self._turn:
                self._pipe.send(job)
                place, self._sent = self._sent, self._sent + 1
                self._turn.wait_for(lambda: self._told >= place)
            kind, value = self._pipe.recv()
            while kind == MESSAGE:
                on_message(value)
                kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise TrainingError(
                "A worker process ended before its work was done: it was killed, as happens when "
                "memory runs out, or it could not start. What a run had finished is kept: "
                "continue with --resume, and with fewer --workers if memory is short."
            ) from None
        finally:
            with self._turn:
                self._told += 1
                self._turn.notify_all()
        if kind == ERROR:
            raise value
        return value


@contextmanager
def _open_workers(
    work: Callable[[Any, Send], Any], workers: int, libraries: Sequence[str], *, jobs_each: int = 1
) -> Iterator[Callable[[Any, Send], Future[Any]]]:
    """Processes that do ``work(job, send)``; what is given hands a job to the next free one.

    Not the pool of the standard library: its workers write to one pipe, and if one is killed with
    half a result written, whoever reads waits for ever. A pipe of one worker ends with it.
    """
    context = _choose_context(libraries)
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    free: SimpleQueue[_Worker] = SimpleQueue()
    opened, processes = [], []

    def ask(job: Any, on_message: Send) -> Any:
        worker = free.get()
        try:
            return worker.ask(job, on_message)
        finally:
            free.put(worker)  # if it is gone, whoever takes it finds the same

    # Threads that wait for workers, and compute nothing.
    waiting = ThreadPoolExecutor(jobs_each * workers, "leuko-worker")
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            opened.append(ours)
            process = context.Process(target=_serve, args=(theirs, work, environment), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        for worker in [_Worker(pipe) for pipe in opened] * jobs_each:
            free.put(worker)
        yield lambda job, on_message: waiting.submit(ask, job, on_message)
        # Without work left. A worker whose pipe ends gives back what its libraries hold, and ends.
        for pipe in opened:
            pipe.close()
        for process in processes:
            process.join(PATIENCE)
    finally:
        # With work left after Ctrl-C or an error: don't wait for it. Whoever waits for a worker
        # that is gone sees the end of its pipe.
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        waiting.shutdown(cancel_futures=True)
        for pipe in opened:
            pipe.close()


def _serve(
    pipe: Connection, work: Callable[[Any, Send], Any], environment: Mapping[str, str]
) -> None:
    """What a worker does: one job after the other, until its pipe ends."""
    os.environ.update(environment)  # that of now: the copied process may be older
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches every process of a terminal; the one that gave out the jobs decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            told = RESULT, work(job, lambda message: pipe.send((MESSAGE, message)))
        except Exception as error:
            error.add_note(traceback.format_exc())  # a traceback doesn't travel
            told = ERROR, error
        pipe.send(told)


def _choose_context(libraries: Sequence[str]) -> Any:
    """How worker processes begin.

    On Linux a process that has imported the slow libraries once, and does nothing else, stays
    beside this one; workers are copies of it. PyTorch and what belongs to it take ten seconds to
    import, which every worker of every part of a study would need again. Elsewhere copies of a
    process that has imported so much aren't safe, and each worker imports for itself.
    """
    if not libraries or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(libraries))
    # Libraries of linear algebra start their threads when they are imported, unless told not to;
    # and a process of several threads can't be copied safely.
    former = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _end_with_parent() -> None:
    """Ends this worker when the process that gave it work is gone, at whatever it is.

    An orphan would go on writing into a run that somebody may have resumed by now, or wait for
    work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
