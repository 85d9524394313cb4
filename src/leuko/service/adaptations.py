"""REST: what a reading's labels would give a model, and the bundle that comes of them.

Does what ``leuko adapt`` does with the set that the reading exports: every figure is of cells that
were held back. One at a time, in a thread; the last result is kept until the service ends.

Knows readings and `leuko.microscope`; knows nothing of tables.
"""

from __future__ import annotations

import io
import logging
import threading
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response

from leuko.errors import LeukoError
from leuko.service import reviews, shelf
from leuko.service.examples import Id, show_errors
from leuko.service.exports import list_reviewed, write_set
from leuko.service.records import Cell
from leuko.service.refusals import Refusal
from leuko.service.store import Store
from leuko.watcher import Watcher

if TYPE_CHECKING:
    from leuko.learning.bundle import Bundle

RUNNING, DONE, FAILED = "running", "done", "failed"
log = logging.getLogger("leuko.service")


@dataclass
class Job(Watcher):
    """One adaptation, as far as it is.

    Attributes:
        place: Slide and reading.
        state: ``running``, ``done`` or ``failed``.
        doing: What is being done.
        done, total: How much of it.
        notes: What was left out, in sentences.
        error: Why it failed, for a person.
        result: As of ``leuko adapt --json``.
        bundle: The new one, zipped.
    """

    place: tuple[int, int]
    state: str = RUNNING
    doing: str = "cutting out the reviewed cells"
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    result: dict[str, Any] | None = None
    bundle: bytes = b""

    def say(self, text: str) -> None:
        """Keeps the last sentence."""
        self.doing, self.done, self.total = text, 0, 0

    def count(self, what: str, done: int, total: int) -> None:
        """Keeps how far it is."""
        self.doing, self.done, self.total = what, done, total

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            "state": self.state, "doing": self.doing, "done": self.done, "total": self.total,
            "notes": self.notes, "error": self.error, "result": self.result,
        }  # fmt: skip


def add_adaptations(router: APIRouter, store: Store, bundle: Bundle) -> None:
    """Adds the routes of adaptations."""
    jobs = Jobs(store, bundle)
    place = "/slides/{sid}/readings/{rid}/adaptation"

    @router.post(
        place, status_code=202, summary="Adapt the model to the reviewed cells",
        responses=show_errors(404, 409, 410, 422),
    )  # fmt: skip
    def begin(sid: Id, rid: Id) -> dict[str, Any]:
        return jobs.begin(sid, rid).to_json()

    @router.get(
        place, summary="How far it is; before and after, on cells that were held back",
        responses=show_errors(404),
    )  # fmt: skip
    def read(sid: Id, rid: Id) -> dict[str, Any]:
        return jobs.find(sid, rid).to_json()

    @router.get(
        place + "/bundle.zip", response_class=Response, summary="The adapted bundle",
        responses=show_errors(404, 409),
    )  # fmt: skip
    def read_bundle(sid: Id, rid: Id) -> Response:
        job = jobs.find(sid, rid)
        if job.state != DONE:
            raise Refusal(409, "not_done", "There is no bundle yet. Ask again when it is done.")
        name = f"bundle-slide-{sid}-reading-{rid}.zip"
        head = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(job.bundle, media_type="application/zip", headers=head)


class Jobs:
    """The adaptations of one service: at most one, running or done.

    Args:
        store: Where readings are.
        bundle: That is adapted.
    """

    def __init__(self, store: Store, bundle: Bundle) -> None:
        self._store = store
        self._bundle = bundle
        self._lock = threading.Lock()
        self._job: Job | None = None

    def begin(self, slide: int, reading: int) -> Job:
        """Starts one in a thread of its own.

        Raises:
            Refusal: 404; 409 if one runs; 410 once the images are deleted; 422 without labels.
        """
        above = shelf.read_slide(self._store, slide)
        found = reviews.load_reading(self._store, slide, reading)
        job = Job((slide, reading))
        cells = self._choose(list_reviewed(found), job)
        with self._lock:
            if self._job is not None and self._job.state == RUNNING:
                raise Refusal(
                    409, "running", "Another adaptation is running. Wait until it is done."
                )
            packed = write_set(self._store, above, cells)
            self._job = job
        work = threading.Thread(target=self._run, args=(job, packed), daemon=True)
        work.start()
        return job

    def find(self, slide: int, reading: int) -> Job:
        """The one of a reading.

        Raises:
            Refusal: 404.
        """
        job = self._job
        if job is None or job.place != (slide, reading):
            raise Refusal(
                404, "no_adaptation",
                "No adaptation of this reading is kept. Start one; the last result is kept until "
                "the service ends.",
            )  # fmt: skip
        return job

    def _choose(self, cells: list[Cell], job: Job) -> list[Cell]:
        """Cells whose class the model has; the rest is noted."""
        known = set(self._bundle.facts.classes)
        odd = Counter(str(cell.label) for cell in cells if cell.label not in known)
        for label, n in sorted(odd.items()):
            job.notes.append(f"{n} cells labelled {label!r} take no part: the model has no such "
                             "class")  # fmt: skip
        return [cell for cell in cells if cell.label in known]

    def _run(self, job: Job, packed: bytes) -> None:
        from leuko.microscope import adapt

        try:
            with TemporaryDirectory(prefix="leuko-") as folder:
                out = Path(folder) / "bundle.zip"
                with zipfile.ZipFile(io.BytesIO(packed)) as package:
                    package.extractall(Path(folder) / "review")  # written by ourselves
                found = adapt(
                    self._bundle.path, Path(folder) / "review" / "labels.csv", out=out,
                    groups="given", workers=1, watcher=job,
                )  # fmt: skip
                job.bundle = out.read_bytes()
            job.result = {**found.facts, "bundle": found.bundle.id}
            job.state = DONE
        except LeukoError as error:
            job.error, job.state = str(error), FAILED
        except Exception:
            log.exception("an adaptation failed")
            job.error, job.state = "A fault in Leuko itself; the log tells more.", FAILED
