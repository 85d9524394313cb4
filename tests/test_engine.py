"""Jobs in processes: results, messages, errors, and workers that are killed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leuko.engine import count_cores, keep_freed_memory, map_jobs, stream_jobs
from leuko.errors import SettingsError, TrainingError
from leuko.learning.models import LIBRARIES


def square(job, send):
    send(f"at {job}")
    return job * job


def fail(job, send):
    raise SettingsError(f"job {job} can't be done")


def die(job, send):
    os.kill(os.getpid(), signal.SIGKILL)


def count_threads(job, send):
    return os.environ["OMP_NUM_THREADS"]


def count_faults_of_reuse(keep, send):
    """Pages that the system had to hand out anew for memory that was in use just before."""
    import resource

    if keep:
        keep_freed_memory()

    def use() -> None:
        blocks = [b"x" * (20 << 20) for _ in range(5)]
        assert len(blocks) == 5

    use()
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def die_in_the_middle_of_a_message(job, send):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        send(bytes(5 << 20))


def test_a_worker_that_is_killed_while_it_sends_is_noticed():
    jobs = map_jobs(die_in_the_middle_of_a_message, [1], workers=1, on_message=len)
    with pytest.raises(TrainingError, match="was killed"):
        list(jobs)


def halve(job, send):
    if job == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if job % 2:
        raise SettingsError(f"{job} is odd")
    time.sleep(0.02 * (job % 3))  # so that they end in another order
    return job // 2


def test_a_stream_keeps_the_order_and_takes_no_more_jobs_than_it_may():
    taken: list[int] = []

    def give():
        for job in range(0, 40, 2):
            taken.append(job)
            yield job

    found = []
    for number, half in enumerate(stream_jobs(halve, give(), workers=2, ahead=4)):
        found.append(half)
        assert len(taken) <= number + 4
    assert found == list(range(20))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("jobs", "error", "words"),
    [((2, 4, 5, 6), SettingsError, "5 is odd"), ((2, 4, 7, 6), TrainingError, "was killed")],
)
def test_what_fails_in_a_stream_is_told_and_ends_it(jobs, error, words):
    with pytest.raises(error, match=words):
        list(stream_jobs(halve, jobs, workers=2, ahead=4))
    assert multiprocessing.active_children() == []


def test_a_stream_that_nobody_reads_on_ends_its_workers():
    stream = stream_jobs(halve, range(0, 400, 2), workers=2, ahead=4)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the GNU C library")
def test_a_worker_that_keeps_its_memory_is_not_handed_it_again():
    faults = dict(map_jobs(count_faults_of_reuse, [False, True], workers=1, on_message=print))
    assert faults[False] > 1000
    assert faults[True] < 100


def test_every_job_gives_its_result_and_its_messages():
    messages: list[str] = []
    done = dict(map_jobs(square, list(range(5)), workers=2, on_message=messages.append))
    assert done == {i: i * i for i in range(5)}
    assert sorted(messages) == [f"at {i}" for i in range(5)]


def test_a_worker_has_one_thread():
    assert dict(map_jobs(count_threads, [0], workers=1, on_message=print)) == {0: "1"}


def tell_about_itself(job, send):
    return os.getpid(), os.getppid(), os.environ.get("LEUKO_TRIED")


def test_workers_share_what_is_slow_to_import_and_know_the_environment_of_now(monkeypatch):
    """The process that is copied stays; what was set since it began still reaches the workers."""
    found = []
    for value in ("first", "second"):
        monkeypatch.setenv("LEUKO_TRIED", value)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        done = map_jobs(tell_about_itself, [0], workers=1, on_message=print, libraries=LIBRARIES)
        found.append(dict(done)[0])
        assert "OMP_NUM_THREADS" not in os.environ
    (first, above, told), (second, same, now) = found
    assert (told, now) == ("first", "second")
    assert first != second
    if sys.platform == "linux":
        assert above == same != os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="workers are copies on Linux only")
def test_the_process_that_is_copied_has_one_thread():
    """A copy of a process of several threads can wait for ever."""
    done = map_jobs(tell_about_itself, [0], workers=1, on_message=print, libraries=LIBRARIES)
    _, above, *_ = dict(done)[0]
    assert len(list(Path(f"/proc/{above}/task").iterdir())) == 1


def test_an_error_of_a_job_arrives_as_it_was():
    with pytest.raises(SettingsError, match="job 0 can't be done"):
        list(map_jobs(fail, [0, 1], workers=1, on_message=print))


def test_a_killed_worker_is_one_clear_sentence():
    with pytest.raises(TrainingError, match=r"it was killed.*--resume"):
        list(map_jobs(die, [0], workers=1, on_message=print))


def wait_long(path, send):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.parametrize("libraries", [(), LIBRARIES], ids=["fresh", "copied"])
def test_a_worker_ends_with_the_process_that_started_it(libraries, tmp_path: Path):
    """kill -9 leaves the main process no time to end anybody."""
    script = tmp_path / "main.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_engine import map_jobs, wait_long\n"
        "if __name__ == '__main__':\n"
        f"    list(map_jobs(wait_long, [{str(tmp_path / 'pid')!r}], workers=1, on_message=print,"
        f" libraries={libraries!r}))\n"
    )
    main = subprocess.Popen([sys.executable, str(script)])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    main.kill()
    main.wait()
    wait_for(lambda: not is_alive(worker))


def wait_for(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # one that nobody waited for is dead too
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_there_is_at_least_one_core():
    assert count_cores() >= 1


def hold_a_semaphore(job, send):
    held.append(multiprocessing.get_context("spawn").Lock())


held: list[object] = []


def test_workers_give_back_what_their_libraries_hold():
    """Else Python warns of leaked semaphores when the program is over."""
    code = (
        "from test_engine import *; list(map_jobs(hold_a_semaphore, [1, 2], workers=2, "
        "on_message=print, libraries=['polars']))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stderr == ""
