"""Runs independent jobs in processes of one thread each.

One thread per job for two reasons: small networks on small images use two cores better as two
jobs than as one; and the number of threads changes the rounding of sums, so that with it fixed
at one the result of a job is the same on a machine of any number of cores.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
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

KILLED = (
    "A worker process ended before its work was done: it was killed, as happens when memory runs "
    "out, or it could not start."
)
JOBS = 2  # that a worker has: the one it is at, and the next
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# One per worker process, set by the pool's initialiser: a multiprocessing queue can't travel
# with a job, it can only be inherited.
_messages: Any = None


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
    with _open_pool(min(workers, len(jobs)), libraries) as (pool, messages):
        pending: dict[Future[Result], Job] = {pool.submit(_run, work, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(messages, on_message)
            # `done` is a set: of several that ended together the first given out comes first.
            for future in [future for future in pending if future in done]:
                yield pending.pop(future), future.result()
        pool.shutdown()  # workers send what they still hold before they end
        _drain(messages, on_message)


def stream_jobs(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    ahead: int,
    libraries: Sequence[str] = (),
) -> Iterator[Result]:
    """Runs ``work(job)`` for each job and yields the results in the order of the jobs.

    Args:
        work, workers, libraries: As for `map_jobs`.
        jobs: Picklable; taken as they are needed.
        ahead: So many are at work or wait to be taken, at most.

    Raises:
        TrainingError: As `map_jobs`.
    """
    with (
        _open_workers(work, workers, libraries) as free,
        # Threads that wait for workers, and compute nothing.
        ThreadPoolExecutor(JOBS * workers) as pool,
    ):
        pending: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(_ask, free, job))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Worker:
    """This end of the pipe of a process that does jobs one after the other.

    It may be given a job while it is at another, so that it needn't wait for the next.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._turn = threading.Condition()
        self._sent = self._told = 0

    def ask(self, job: Any) -> Any:
        """Has a job done; called by several threads."""
        with self._turn:
            self.pipe.send(job)
            place, self._sent = self._sent, self._sent + 1
            self._turn.wait_for(lambda: self._told == place)
        try:
            return self.pipe.recv()
        finally:
            with self._turn:
                self._told += 1
                self._turn.notify_all()


def _ask(free: SimpleQueue[_Worker], job: Any) -> Any:
    """Has the next free worker do a job, and waits for it."""
    worker = free.get()
    try:
        result, error = worker.ask(job)
    except (EOFError, OSError):
        raise TrainingError(
            f"{KILLED} Nothing was written. Close what needs memory, and begin again."
        ) from None
    finally:
        free.put(worker)  # if it is gone, whoever takes it finds the same
    if error is not None:
        raise error
    return result


@contextmanager
def _open_workers(
    work: Callable[[Any], Any], workers: int, libraries: Sequence[str]
) -> Iterator[SimpleQueue[_Worker]]:
    """Processes that wait for jobs at a pipe each, gone afterwards.

    Not the pool of the standard library: its workers write to one pipe, and if one is killed with
    half a result written, whoever reads waits for ever. A pipe of one worker ends with it.
    """
    context = _choose_context(libraries)
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    free: SimpleQueue[_Worker] = SimpleQueue()
    opened, processes = [], []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            opened.append(ours)
            process = context.Process(target=_serve, args=(theirs, work, environment), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        for worker in [_Worker(pipe) for pipe in opened] * JOBS:
            free.put(worker)
        yield free
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        for pipe in opened:
            pipe.close()


def _serve(pipe: Connection, work: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
    _begin(None, environment)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = work(job), None
        except Exception as error:
            answer = None, error
        pipe.send(answer)


@contextmanager
def _open_pool(workers: int, libraries: Sequence[str]) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Workers, and the queue of their messages; both are gone afterwards, whatever happened."""
    context = _choose_context(libraries)
    messages = context.Queue()
    pool = ProcessPoolExecutor(
        max_workers=max(1, workers),
        mp_context=context,
        initializer=_begin,
        initargs=(messages, {**os.environ, **dict.fromkeys(THREADS, "1")}),
    )
    try:
        yield pool, messages
    except BrokenProcessPool as error:
        raise TrainingError(
            f"{KILLED} What was finished is kept: continue with --resume, and with fewer "
            "--workers if memory is short."
        ) from error
    finally:
        # Reached with work left after Ctrl-C or an error: don't wait for it.
        processes = list((pool._processes or {}).values())
        manager: Any = pool._executor_manager_thread  # a thread; the types say otherwise
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        if manager is not None:
            # It closes the pool's pipes when it sees that the workers are gone. If this process
            # ended meanwhile, Python would write to one of them and print a traceback.
            manager.join()
        messages.close()
        messages.join_thread()


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


def _begin(messages: Any, environment: Mapping[str, str]) -> None:
    global _messages
    _messages = messages
    os.environ.update(environment)  # that of now: the copied process may be older
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches every process of a terminal; the one that gave out the jobs decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Ends this worker when the process that gave it work is gone, at whatever it is.

    An orphan would go on writing into a run that somebody may have resumed by now, or wait for
    work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Callable[[Job, Send], Result], job: Job) -> Result:
    return work(job, _send)


def _send(message: Any) -> None:
    _messages.put(message)


def _drain(messages: Any, on_message: Callable[[Any], None]) -> None:
    while True:
        try:
            on_message(messages.get_nowait())
        except queue.Empty:
            return
