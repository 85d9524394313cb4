"""REST: what a reading's labels would give a model, and the bundle that comes of them.

    reviewed cells → enough? → a thread: leuko.adapt, told how far it is → kept in the store

Does what ``leuko adapt`` does with the set that the reading exports: every figure is of cells that
were held back. One at a time; what came of it stays with the reading, because its images may not.

Knows readings and `leuko.microscope`; knows nothing of tables.
"""

from __future__ import annotations

import io
import logging
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from leuko.errors import LeukoError
from leuko.service import reviews, shelf
from leuko.service.adapted import Kept, find_adaptation, keep_adaptation, read_bundle
from leuko.service.examples import Id, show_errors
from leuko.service.exports import list_reviewed, write_set
from leuko.service.records import Cell
from leuko.service.refusals import Refusal
from leuko.service.store import Store
from leuko.watcher import Watcher

if TYPE_CHECKING:
    from leuko.learning.bundle import Bundle

NONE, RUNNING, DONE, FAILED, CANCELLED = "none", "running", "done", "failed", "cancelled"
log = logging.getLogger("leuko.service")


class AdaptationWish(BaseModel):
    """Who asks for it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"by": "A. Meyer"}})
    by: str = Field("", max_length=1000, description="For the trail.")


class _Cancelled(Exception):  # noqa: N818 - an end as good as another
    """Nobody wants it any more."""


@dataclass
class Job(Watcher):
    """One adaptation, as far as it is.

    Attributes:
        place: Slide and reading.
        state: ``running``, ``done``, ``failed`` or ``cancelled``.
        doing: What is being done.
        done, total: How much of it; 0 of 0 where nobody can tell.
        error: Why it failed, for a person.
        unwanted: Set once somebody cancels it.
    """

    place: tuple[int, int]
    state: str = RUNNING
    doing: str = "cutting out the reviewed cells"
    done: int = 0
    total: int = 0
    error: str | None = None
    unwanted: bool = False

    @property
    def ending(self) -> bool:
        """Whether it was cancelled and hasn't come to its next step yet."""
        return self.unwanted and self.state == RUNNING

    def say(self, text: str) -> None:
        """Keeps the last sentence."""
        self.count(text, 0, 0)

    def count(self, what: str, done: int, total: int) -> None:
        """Keeps how far it is; the place where a cancelled one ends."""
        if self.unwanted:
            raise _Cancelled
        self.doing, self.done, self.total = what, done, total


@dataclass(frozen=True)
class Labels:
    """What a reading offers to learn from, and what is needed.

    Attributes:
        rows: Of each class of the model that has reviewed cells: label, cells, in how many fields,
            and whether that is enough for it to take part.
        other: Cells by labels that the model doesn't have.
        least: Cells that are needed of classes that take part.
        least_fields: In which a class has to be. Cells of one field have one light and focus, so
            none of them may judge what was fitted to another.
        images: Whether the images are still there.
    """

    rows: Sequence[dict[str, Any]]
    other: dict[str, int]
    least: int
    least_fields: int
    images: bool

    @property
    def missing(self) -> str:
        """What is to be done first: a sentence; empty if nothing is."""
        if not self.images:
            return (
                "The images of this slide were deleted at its signature, so there is nothing left "
                "to learn from. Next time adapt before the signature, or keep the images."
            )
        fit = [row for row in self.rows if row["enough"]]
        cells = sum(row["cells"] for row in fit)
        if len(fit) >= 2 and cells >= self.least:
            return ""
        wanted = (
            f"Needed are two classes or more with reviewed cells in {self.least_fields} different "
            f"fields each, and {self.least} cells of them in all; 50 to 100 are better."
        )
        there = "is 1 such class" if len(fit) == 1 else f"are {len(fit)} such classes"
        return f"{wanted} There {there}, with {cells} cells. Review some more."

    def describe_other(self) -> list[str]:
        """A sentence for each label that the model doesn't have."""
        return [
            f"{n} cell{'' if n == 1 else 's'} labelled {name!r} took no part: the model has no "
            "such class"
            for name, n in self.other.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            "classes": list(self.rows), "other": self.other, "least_cells": self.least,
            "least_fields": self.least_fields, "images": self.images, "missing": self.missing,
        }  # fmt: skip


def measure_labels(cells: Sequence[Cell], classes: Sequence[str], *, images: bool) -> Labels:
    """Whether reviewed cells are enough for an adaptation.

    Args:
        cells: From `list_reviewed`.
        classes: Of the model.
        images: Whether the images of the slide are still there.
    """
    from leuko.use.adaptation import LEAST, MINIMUM

    rows = []
    for name in classes:
        own = [cell for cell in cells if cell.label == name]
        fields = len({cell.field for cell in own})
        if own:
            rows.append({"label": name, "cells": len(own), "fields": fields,
                         "enough": fields >= LEAST})  # fmt: skip
    other = Counter(str(cell.label) for cell in cells if cell.label not in set(classes))
    return Labels(rows, dict(sorted(other.items())), MINIMUM, LEAST, images)


def add_adaptations(
    router: APIRouter, store: Store, bundle: Bundle, decoding: threading.Semaphore
) -> None:
    """Adds the routes of adaptations."""
    jobs = Jobs(store, bundle, decoding)
    place = "/slides/{sid}/readings/{rid}/adaptation"

    @router.post(
        place, status_code=202, summary="Adapt the model to the reviewed cells",
        responses=show_errors(404, 409, 410, 422),
    )  # fmt: skip
    def begin(sid: Id, rid: Id, wish: AdaptationWish | None = None) -> dict[str, Any]:
        jobs.begin(sid, rid, by=wish.by if wish else "")
        return jobs.tell(sid, rid)

    @router.get(
        place, summary="What is there to learn from, how far it is, and what came of it",
        description="Before and after are measured on cells that were held back.",
        responses=show_errors(404),
    )  # fmt: skip
    def read(sid: Id, rid: Id) -> dict[str, Any]:
        return jobs.tell(sid, rid)

    @router.delete(
        place, summary="Cancel what runs; what is kept stays", responses=show_errors(404)
    )
    def cancel(sid: Id, rid: Id) -> dict[str, Any]:
        jobs.cancel(sid, rid)
        return jobs.tell(sid, rid)

    @router.get(
        place + "/bundle.zip", response_class=Response, summary="The adapted bundle",
        responses=show_errors(404),
    )  # fmt: skip
    def read_adapted(sid: Id, rid: Id) -> Response:
        reviews.load_reading(store, sid, rid)
        packed = read_bundle(store, rid)
        if packed is None:
            raise Refusal(
                404, "no_adaptation",
                "No adaptation of this reading is kept. Start one, and ask again when it is done.",
            )  # fmt: skip
        name = f"bundle-slide-{sid}-reading-{rid}.zip"
        head = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(packed, media_type="application/zip", headers=head)


class Jobs:
    """The adaptations of one service: one runs at most.

    Args:
        store: Where readings are.
        bundle: That is adapted.
        decoding: Held while a picture is decoded.
    """

    def __init__(self, store: Store, bundle: Bundle, decoding: threading.Semaphore) -> None:
        self._store = store
        self._bundle = bundle
        self._decoding = decoding
        self._lock = threading.Lock()
        self._job: Job | None = None

    def begin(self, slide: int, reading: int, *, by: str = "") -> None:
        """Starts one in a thread of its own.

        Raises:
            Refusal: 404; 409 if one runs; 410 once the images are deleted; 422 with too few labels.
        """
        above = shelf.read_slide(self._store, slide)
        found = reviews.load_reading(self._store, slide, reading)
        reviewed = list_reviewed(found)
        labels = self._measure(above, reviewed)
        if labels.missing:
            status, code = (422, "too_few") if labels.images else (410, "images_deleted")
            raise Refusal(status, code, labels.missing)
        job = Job((slide, reading))
        with self._lock:
            if self._job is not None and self._job.state == RUNNING:
                raise Refusal(
                    409, "running", "Another adaptation is running. Wait until it is done."
                )
            self._job = job

        def work() -> None:
            known = {row["label"] for row in labels.rows}
            chosen = [c for c in reviewed if c.label in known]
            packed = write_set(self._store, above, chosen, self._decoding)
            bundle, result = self._adapt(job, packed)
            job.say("keeping the new bundle")  # the last moment to cancel
            keep_adaptation(
                self._store, slide, reading, bundle, by=by, result=result,
                notes=[*labels.describe_other(), *result["notes"]],
                revision=found.outline["revision"],
            )  # fmt: skip

        threading.Thread(target=_run, args=(job, work), name="leuko-adapt", daemon=True).start()

    def cancel(self, slide: int, reading: int) -> None:
        """Ends the one of this reading at its next step, if it runs."""
        job = self._job
        if job is not None and job.place == (slide, reading):
            job.unwanted = True

    def tell(self, slide: int, reading: int) -> dict[str, Any]:
        """All there is to say of a reading's adaptation, as the API gives it.

        Raises:
            Refusal: 404.
        """
        above = shelf.read_slide(self._store, slide)
        found = reviews.load_reading(self._store, slide, reading)
        job = self._job
        elsewhere = False
        if job is None or job.place != (slide, reading):
            elsewhere = job is not None and job.state == RUNNING
            job = Job((slide, reading), state=NONE, doing="")
        state = job.state  # before what is kept is asked for: what is done must be there
        kept = find_adaptation(self._store, reading)
        if state == NONE and kept is not None:
            state = DONE
        doing, done, total = job.doing, job.done, job.total
        if job.ending:
            doing, done, total = "it ends at its next step", 0, 0
        return {
            "state": state, "doing": doing, "done": done, "total": total,
            "error": job.error, "busy": elsewhere,
            "labels": self._measure(above, list_reviewed(found)).to_json(),
            "kept": None if kept is None else _describe(kept, found.outline["revision"]),
        }  # fmt: skip

    def _measure(self, slide: dict[str, Any], reviewed: Sequence[Cell]) -> Labels:
        there = slide["images_deleted"] is None
        return measure_labels(reviewed, self._bundle.facts.classes, images=there)

    def _adapt(self, job: Job, packed: bytes) -> tuple[bytes, dict[str, Any]]:
        """The new bundle, zipped, and what was found."""
        from leuko.microscope import adapt

        with TemporaryDirectory(prefix="leuko-") as folder:
            out = Path(folder) / "bundle.zip"
            with zipfile.ZipFile(io.BytesIO(packed)) as package:
                package.extractall(Path(folder) / "review")  # written by ourselves
            found = adapt(
                self._bundle.path, Path(folder) / "review" / "labels.csv", out=out,
                groups="given", workers=1, watcher=job,
            )  # fmt: skip
            return out.read_bytes(), {**found.facts, "bundle": found.bundle.id}


def _describe(kept: Kept, revision: int) -> dict[str, Any]:
    """As the API gives it; `revision` is the reading's present one."""
    return {**asdict(kept), "outdated": revision != kept.revision}


def _run(job: Job, work: Callable[[], None]) -> None:
    try:
        work()
        job.state = DONE
    except _Cancelled:
        job.state = CANCELLED
    except (LeukoError, Refusal) as error:
        job.error, job.state = str(error), FAILED
    except Exception:
        log.exception("an adaptation failed")
        job.error, job.state = "A fault in Leuko itself; the log tells more.", FAILED
