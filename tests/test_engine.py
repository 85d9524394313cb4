"""Jobs in processes: results, messages, errors, and workers that are killed."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

from leuko.engine import count_cores, keep_freed_memory, map_jobs
from leuko.errors import SettingsError, TrainingError


def square(job, send):
    send(f"at {job}")
    send(None)
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


def test_an_error_of_a_job_arrives_as_it_was():
    with pytest.raises(SettingsError, match="job 0 can't be done"):
        list(map_jobs(fail, [0, 1], workers=1, on_message=print))


def test_a_killed_worker_is_one_clear_sentence():
    with pytest.raises(TrainingError, match=r"it was killed.*--resume"):
        list(map_jobs(die, [0], workers=1, on_message=print))


def test_there_is_at_least_one_core():
    assert count_cores() >= 1
