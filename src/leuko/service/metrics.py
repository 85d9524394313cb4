"""What Prometheus is told: requests, answers, pictures, the queue and the process.

Knows numbers; knows nothing of what they are about.
"""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One set of counters; an app has its own, so that several fit into a process.

    Attributes:
        requests: By method, route (its pattern, so that there are few) and status.
        request_seconds: From the head of a request to the end of its answer, by route.
        answer_seconds: From a picture being let into the queue to its answer.
        pictures: By outcome: answered, or the reason why not.
        waiting: Pictures in the queue.
        ready: 1 when the model was checked and the store is open.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "leuko_requests", "Answered requests.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "leuko_request_seconds", "From head to answer.", ["route"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.answer_seconds = Histogram(
            "leuko_answer_seconds", "From being let in to the answer.", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.pictures = Counter(
            "leuko_pictures", "Pictures by outcome.", ["outcome"], registry=registry
        )
        self.waiting = Gauge("leuko_waiting_pictures", "Pictures in the queue.", registry=registry)
        self.ready = Gauge("leuko_ready", "1: model checked, store open.", registry=registry)
        ProcessCollector(registry=registry)

    def render(self) -> bytes:
        """In Prometheus' text form."""
        return generate_latest(self._registry)
