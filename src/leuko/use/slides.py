"""`leuko.differential`: pictures of one slide, or of several, → differentials → files.

    folder → slides → predictor → counts (→ beside a reference) → CSV, HTML, PDF, FHIR, JSON

Joins the parts; knows nothing of how any of them works.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leuko.data.folders import holds_images, is_folder, list_folders, walk_folders
from leuko.errors import LabelTableError, NoImagesError, OutputError, SettingsError
from leuko.storage import explain_storage_faults, fill_folder, write_atomically
from leuko.use.answers import Predictions
from leuko.use.differential import RESEARCH_USE, Differential, count_predictions
from leuko.use.differential_table import write_comparison_csv, write_csv
from leuko.use.flags import TARGET
from leuko.use.predictor import Predictor, load
from leuko.use.record import read_record
from leuko.use.reference import (
    Comparison,
    Difference,
    Reference,
    Threshold,
    compare_slide,
    compare_slides,
    read_reference,
)

Progress = Callable[[str, int, int], None]
KINDS = (".csv", ".html", ".pdf", ".json")
FHIR = ".fhir.json"
DEPTH = 8  # of folders that are searched for the pictures of a slide


@dataclass(frozen=True)
class Slides:
    """Differentials of one slide or more; a sequence of `Differential`.

    Attributes:
        differentials: In the order of the slides' names.
        predictions: The answers behind each, in the same order.
        differences: Per slide, per class against a reference count; empty without one.
        comparison: Of several slides with the reference; None for one slide.
        reference: Name of the reference; empty without one.
        notes: What was left out, in sentences.
    """

    differentials: tuple[Differential, ...]
    predictions: tuple[Predictions, ...]
    differences: dict[str, tuple[Difference, ...]]
    comparison: Comparison | None
    reference: str
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.differentials)

    def __iter__(self) -> Iterator[Differential]:
        return iter(self.differentials)

    def __getitem__(self, number: int) -> Differential:
        return self.differentials[number]

    def to_csv(self) -> str:
        """All slides in one table."""
        return write_csv(self.differentials, self.differences)

    def to_json(self) -> dict[str, Any]:
        """As ``leuko differential --json`` prints it: one slide, or ``slides``."""
        told = [self._tell(one) for one in self.differentials]
        if len(told) == 1 and self.comparison is None:
            return told[0]
        compared = self.comparison.to_json() if self.comparison else None
        return {"use": RESEARCH_USE, "slides": told, "comparison": compared}

    def _tell(self, one: Differential) -> dict[str, Any]:
        from dataclasses import asdict

        rows = self.differences.get(one.slide)
        if rows is None:
            return one.to_json()
        compared = [{**asdict(d), "beyond_chance": d.beyond_chance} for d in rows]
        return {**one.to_json(), "reference": {"name": self.reference, "classes": compared}}

    def write(self, out: str | os.PathLike[str]) -> list[Path]:
        """Writes one file, by its ending, or everything into a new folder.

        Args:
            out: ``….csv``, ``.json``, and of one slide ``.html``, ``.pdf`` or ``.fhir.json``; or
                a folder that doesn't exist or is empty.

        Returns:
            What was written.

        Raises:
            SettingsError: That file can't hold several slides.
            OutputError: The folder isn't empty.
        """
        place = Path(out)
        check_place(place)
        kind = _find_kind(place)
        if kind in (".csv", ".json"):
            return [write_atomically(place, self._render(kind))]
        if kind:
            if len(self) > 1:
                raise SettingsError(
                    f"{place} is for one slide, and there are {len(self)}. Name a folder, or a "
                    ".csv or .json."
                )
            return [write_atomically(place, self._render_slide(0, kind))]
        with fill_folder(place):
            return self._fill(place)

    def _fill(self, folder: Path) -> list[Path]:
        """Everything: the slide's files, or a folder for each slide and what is of all."""
        written: list[Path] = []
        for number, one in enumerate(self.differentials):
            own = folder if self._is_single() else folder / one.slide
            with explain_storage_faults(own):
                own.mkdir(exist_ok=True)
            for kind in (*KINDS, FHIR):
                path = own / f"differential{kind}"
                written.append(write_atomically(path, self._render_slide(number, kind)))
            written.append(self.predictions[number].write(own / "cells.csv"))
        if not self._is_single():
            for kind in (".csv", ".json"):
                path = folder / f"differentials{kind}"
                written.append(write_atomically(path, self._render(kind)))
        if self.comparison is not None:
            from leuko.use.differential_page import write_comparison_page

            page = write_comparison_page(self.comparison, self.differentials)
            written.append(write_atomically(folder / "comparison.html", _to_bytes(page)))
            table = write_comparison_csv(self.comparison)
            written.append(write_atomically(folder / "comparison.csv", table))
        return written

    def _is_single(self) -> bool:
        return len(self) == 1 and self.comparison is None

    def _render(self, kind: str) -> bytes:
        return _to_bytes(self.to_csv() if kind == ".csv" else _to_text(self.to_json()))

    def _render_slide(self, number: int, kind: str) -> bytes:
        """One slide as the content of a file of that ending."""
        from leuko.use.differential_page import write_page
        from leuko.use.differential_pdf import write_pdf
        from leuko.use.fhir import write_fhir

        one = self.differentials[number]
        rows = self.differences.get(one.slide, ())
        if kind == ".pdf":
            return write_pdf(one, rows, self.reference)
        if kind == ".html":
            return _to_bytes(write_page(one, rows, self.reference))
        if kind == FHIR:
            return _to_bytes(_to_text(write_fhir(one)))
        if kind == ".csv":
            return _to_bytes(write_csv([one], {one.slide: rows} if rows else None))
        return _to_bytes(_to_text(self._tell(one)))


def differential(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Predictor | None = None,
    reference: str | os.PathLike[str] | None = None,
    target: int = TARGET,
    scale: float | None = None,
    several: bool = False,
    thresholds: Sequence[Threshold] = (),
    progress: Progress | None = None,
    workers: int = 1,
) -> Slides:
    """Counts the leukocytes in the pictures of a slide, with exact limits.

    Args:
        folder: Pictures of one slide: a folder with all folders below, an image, or a CSV with a
            column ``image``. With `several`, or a reference whose slides are folders in it, each
            folder in it is one slide.
        model: A bundle or a predictor; None for the model that ships with Leuko.
        reference: A CSV of reference counts, see `leuko.use.reference.read_reference`.
        target: Leukocytes wanted on each slide.
        scale: Pixels per µm, where it is known.
        several: Each folder in `folder` is a slide.
        thresholds: What counts as a sign, for sensitivity and specificity over several slides.
        progress: Called with a slide's name, pictures done and pictures of it in all.
        workers: As for `leuko.use.predictor.Predictor.predict`.

    Returns:
        A sequence of differentials, which writes itself.

    Raises:
        NoImagesError: No image, or no such folder.
        LabelTableError: The reference can't be read, or belongs to other slides.
        BundleError: The bundle isn't there, or isn't what was written.
    """
    place = Path(folder)
    if not place.exists():
        raise NoImagesError(f"There is no {place}; expected a folder with the images of a slide.")
    known = read_reference(Path(reference)) if reference is not None else None
    slides, notes = find_slides(place, known, several=several)
    if thresholds and (known is None or list(slides.values()) == [place]):
        raise SettingsError(
            "A threshold says how often a sign is found on several slides; here is one slide, or "
            "no reference. Leave --above and --below out."
        )
    predictor = model if isinstance(model, Predictor) else load(model)
    record = read_record(predictor.bundle.facts, predictor.bundle.id)
    found: list[Differential] = []
    answers: list[Predictions] = []
    for name, path in slides.items():

        def tell(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        given = predictor.predict(path, scale=scale, progress=tell, workers=workers)
        answers.append(given)
        notes += given.notes
        found.append(
            count_predictions(
                given, record=record, slide=name, target=target, made=datetime.now(UTC)
            )
        )
    whole = list(slides.values()) == [place]
    return _join(found, answers, known, thresholds, notes, single=whole)


def _join(
    found: Sequence[Differential],
    answers: Sequence[Predictions],
    reference: Reference | None,
    thresholds: Sequence[Threshold],
    notes: Sequence[str],
    *,
    single: bool,
) -> Slides:
    """Puts the reference beside the slides, or beside the one slide that all pictures are of."""
    differences: dict[str, tuple[Difference, ...]] = {}
    comparison = None
    if reference is not None:
        if single:
            own = found[0].slide
            counts = reference.slides.get(own) or next(iter(reference.slides.values()))
            differences[own] = compare_slide(found[0], counts)
        else:
            comparison = compare_slides(found, reference, thresholds)
            differences = dict(comparison.differences)
        notes = [*notes, *reference.notes]
    name = reference.name if reference else ""
    return Slides(tuple(found), tuple(answers), differences, comparison, name, tuple(notes))


def find_slides(
    place: Path, reference: Reference | None, *, several: bool
) -> tuple[dict[str, Path], list[str]]:
    """Which pictures are of which slide.

    Args:
        place: What was handed over.
        reference: Its slides' names decide whether the folders in `place` are slides.
        several: They are.

    Returns:
        Name → path, by name; and sentences about what belongs to no slide, or is taken for one.

    Raises:
        LabelTableError: The reference names slides that aren't there.
        NoImagesError: No folder in `place` holds images.
    """
    own = (place.resolve().name if is_folder(place) else place.stem) or "slide"
    named = [name for name in reference.slides if name] if reference else []
    inner = {path.name: path for path in list_folders(place)} if is_folder(place) else {}
    hits = [name for name in named if name in inner]
    fits = bool(hits) or (not several and (not named or own in named))
    if reference is not None and not fits:
        raise LabelTableError(
            f"{reference.name} names {f'the slides {_quote(named)}' if named else 'no slide'}, but "
            f"{place} holds {_quote(list(inner)) if inner else 'no folders'}. Name a slide as its "
            "folder, or leave the column slide out for a single slide."
        )
    if not several and not hits:
        return {own: place}, _tell_folders(place, inner)
    slides = {name: path for name, path in inner.items() if _holds_any(path)}
    if not slides:
        raise NoImagesError(f"No folder in {place} holds images; expected one for each slide.")
    notes = [f"{name} holds no images and is no slide." for name in inner if name not in slides]
    if holds_images(place):
        notes.append(f"The images that lie in {place} itself belong to no slide.")
    return slides, notes


def _tell_folders(place: Path, inner: dict[str, Path]) -> list[str]:
    """One slide may lie in several folders; several slides may too, and nobody would see it."""
    names = [name for name, path in inner.items() if _holds_any(path)]
    if inner and holds_images(place):
        names.insert(0, f"{place} itself")
    if len(names) < 2:
        return []
    told = ", ".join([*names[:4], *(["…"] if len(names) > 4 else [])])
    return [
        f"The images lie in {len(names)} folders ({told}) and are counted as one slide; --several "
        "counts each folder in it by itself."
    ]


def check_place(place: Path) -> None:
    """Refuses a place for the results before any work is done.

    Raises:
        OutputError: A folder that isn't empty, or a file where a folder should be.
        SettingsError: A file of another kind.
    """
    if _find_kind(place):
        return
    if is_folder(place):
        if any(place.iterdir()):
            raise OutputError(f"{place} isn't empty. Name a folder with --out that doesn't exist.")
    elif place.exists():
        raise OutputError(f"{place} is a file; expected a folder, or a file {_quote(KINDS)}.")
    elif place.suffix and place.suffix[1:].isalpha() and len(place.suffix) <= 5:
        raise SettingsError(
            f"{place} ends in {place.suffix}; a differential is written as "
            f"{', '.join((*KINDS, FHIR))}, or all of them into a folder."
        )


def _find_kind(place: Path) -> str:
    name = place.name.lower()
    return next((kind for kind in (FHIR, *KINDS) if name.endswith(kind)), "")


def _holds_any(folder: Path) -> bool:
    return holds_images(folder) or any(holds_images(one) for one in walk_folders(folder, DEPTH))


def _quote(names: Sequence[str]) -> str:
    told = ", ".join(ascii(name)[:60] for name in names[:6])
    return f"{told}, …" if len(names) > 6 else told


def _to_text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _to_bytes(text: str) -> bytes:
    # a file name may hold bytes that are no text: they become "?", and the file is still written
    return text.encode("utf-8", "replace")
