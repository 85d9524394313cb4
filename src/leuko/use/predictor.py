"""From pictures to answers, with a bundle and without PyTorch.

    inputs → cells (leuko.use.cutting) → network (batches) → calibrated → state

A few dozen pictures are held at a time, whatever the number asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.leukocytes import CERTAIN, Leukocyte
from leuko.data.portraits import describe_cell
from leuko.engine import count_cores, refuse_in_worker
from leuko.errors import BundleError, ImageError, UnknownNameError, suggest
from leuko.learning.bundle import Bundle, load_bundle
from leuko.learning.facts import Decision
from leuko.use.answers import (
    PRE_CLASSIFIED,
    REJECTED,
    UNIDENTIFIED,
    Answer,
    Predictions,
    SetAside,
)
from leuko.use.cutting import Cutter, Found, Prepared, stream_cells
from leuko.use.inputs import Item, gather
from leuko.use.maps import CellMap, map_cells

NO_CELL = "no leukocyte was found"
UNLIKE = "the picture is unlike those of stained cells"
STRANGE = "its features are far from those of every training cell"

DEFAULT = "default"  # names the model that ships with Leuko

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]


class Predictor:
    """Answers for pictures with one bundle; made by `load`.

    Attributes:
        bundle: The bundle, checked.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._cutter = Cutter(bundle.facts.preprocessing, bundle.reference is not None)

    @property
    def classes(self) -> tuple[str, ...]:
        """K names, in the order of the columns."""
        return self.bundle.facts.classes

    def predict(
        self,
        images: Any,
        *,
        scale: float | None = None,
        progress: Progress | None = None,
        workers: int = 1,
    ) -> Predictions:
        """Finds and classifies the leukocytes.

        Args:
            images: A path of an image, a folder or a CSV with a column ``image``; bytes of a
                file; an array (H, W, 3) uint8 RGB; a picture of Pillow; or a list of these. Whole
                fields and pictures that were cut around one cell are told apart by their size.
            scale: Pixels per µm, where it is known. None measures it from the red cells, once
                for all pictures of one size: they are taken to come from one microscope.
            progress: Called with (pictures done, pictures in all).
            workers: Processes that find and cut cells in files; answers are the same. They pay
                from a few hundred files on, and a script has to guard its start with ``if
                __name__ == "__main__":``. With 1 threads of this process do it.

        Returns:
            An answer per cell. A picture without a cell has one too, ``rejected``; one that can't
            be read is set aside.

        Raises:
            NoImagesError: No image at all.
            ShapeError: An array that is no picture.
            SettingsError: `workers` above 1 in a script without that guard.
            TrainingError: A worker process was killed.
        """
        if workers > 1:
            refuse_in_worker("predict with several workers")
        items, notes = gather(images)
        answers: list[Answer] = []
        aside: list[SetAside] = []
        told = self.stream(items, scale=scale, workers=workers)
        for done, one in enumerate(told, start=1):
            if isinstance(one, SetAside):
                aside.append(one)
            else:
                answers += one
            if progress is not None:
                progress(done, len(items))
        return Predictions(self.classes, tuple(answers), tuple(aside), self.bundle.id, tuple(notes))

    def predict_proba(self, images: Any, *, scale: float | None = None) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K): a row per answer of `predict`; NaN without a cell.

        Raises:
            ImageError: A picture can't be read; rows would no longer belong to pictures.
        """
        found = self.predict(images, scale=scale)
        if found.set_aside:
            first = found.set_aside[0]
            raise ImageError(first.detail, reason=first.reason)
        return found.probabilities

    def stream(
        self, items: Sequence[Item], *, scale: float | None = None, workers: int = 1
    ) -> Iterator[list[Answer] | SetAside]:
        """Answers picture by picture, in order, in little memory.

        Args:
            items: From `leuko.use.inputs.gather`.
            scale, workers: As for `predict`.
        """
        for prepared in stream_cells(self._cutter, items, scale, workers=workers):
            yield from self.conclude(prepared)

    def explain(
        self,
        images: Any,
        *,
        of: str | None = None,
        scale: float | None = None,
        progress: Progress | None = None,
    ) -> Iterator[CellMap]:
        """What the answers rest on: for each cell with a class the map of what speaks for it.

        Args:
            images, scale, progress: As for `predict`.
            of: The class to explain; None for the one that was answered.

        Yields:
            Cell by cell in the order of `predict`, in little memory; none for what is rejected
            or can't be read.

        Raises:
            UnknownNameError: The model has no class of that name.
            BundleError: The bundle's network gives no map.
        """
        if of is not None and of not in self.classes:
            raise UnknownNameError(f"The model has no class {of!r}. {suggest(of, [*self.classes])}")
        items, _ = gather(images)
        done = 0
        for prepared in stream_cells(self._cutter, items, scale):
            found = zip(self.conclude(prepared), prepared.ready, strict=True)
            named = [
                (answer, of or answer.label, cell.pixels)
                for answers, cells in found
                if isinstance(answers, list) and isinstance(cells, list)
                for answer, cell in zip(answers, cells, strict=False)  # no cell has an answer too
                if answer.label is not None
            ]
            if named:
                pixels = np.stack([cell for _, _, cell in named])
                wanted = np.array([self.classes.index(label) for _, label, _ in named])
                for (answer, label, cell), heat in zip(
                    named, map_cells(self.bundle, pixels, wanted), strict=True
                ):
                    yield CellMap(answer, label, heat, cell)
            done += len(prepared.items)
            if progress is not None:
                progress(done, len(items))

    def answer_cells(
        self, images: Sequence[str], leukocytes: Sequence[Leukocyte], cells: Sequence[Pixels]
    ) -> tuple[list[Answer], NDArray[np.float64]]:
        """Answers for cells that were cut out elsewhere, one of each picture.

        Args:
            images: N names, one at least.
            leukocytes: What was cut around, N.
            cells: N pictures (S, S, 3), as ``preprocessing.cut`` of the bundle cuts them.

        Returns:
            N answers as `predict` gives them, and calibrated probabilities (N, K), of what is
            rejected too.
        """
        probabilities, features = self.bundle.answer(np.stack(cells))
        scores = score_cells(self.bundle, cells, features)
        rows = zip(images, leukocytes, probabilities, scores, strict=True)
        answers = [
            self._describe(image, 1, cell, p, outlier)
            if cell.score > 0
            else Answer(image, state=REJECTED, reason=NO_CELL)
            for image, cell, p, outlier in rows
        ]
        return answers, probabilities

    def prepare(self, items: Sequence[Item], *, scale: float | None = None) -> Prepared:
        """The first half of `stream`, in this thread, for programs that queue their work.

        Args:
            items: As for `stream`; the scale is measured over them alone.
            scale: As for `predict`.
        """
        scales = {} if scale else self._cutter.measure_scales(items)
        ready = [self._cutter.cut(item, scales, scale) for item in items]
        return Prepared([Item(item.name, None) for item in items], ready)

    def conclude(self, prepared: Prepared) -> Iterator[list[Answer] | SetAside]:
        """The second half: what `stream` gives for the same items."""
        return self._answer(prepared.items, prepared.ready)

    def _answer(
        self, items: Sequence[Item], ready: Sequence[list[Found] | SetAside]
    ) -> Iterator[list[Answer] | SetAside]:
        """Answers for all cells of a part at once."""
        size = self.bundle.facts.preprocessing.size
        cells = [found for one in ready if isinstance(one, list) for found in one]
        pixels = [found.pixels for found in cells]
        stacked = np.stack(pixels) if cells else np.zeros((0, size, size, 3), np.uint8)
        probabilities, features = self.bundle.answer(stacked)
        scores = score(self.bundle, [found.portrait for found in cells], features)
        rows = iter(zip(probabilities, scores, strict=True))
        for item, one in zip(items, ready, strict=True):
            if isinstance(one, SetAside):
                yield one
                continue
            answers = [
                self._describe(item.name, number, found.leukocyte, *next(rows))
                for number, found in enumerate(one, start=1)
            ]
            yield answers or [Answer(item.name, state=REJECTED, reason=NO_CELL)]

    def _describe(
        self,
        image: str,
        number: int,
        cell: Leukocyte,
        probabilities: NDArray[np.float64],
        scores: NDArray[np.float64],
    ) -> Answer:
        x0, y0, x1, y1 = (round(float(side), 1) for side in (cell.x0, cell.y0, cell.x1, cell.y1))
        place = Answer(image=image, cell=number, box=(x0, y0, x1, y1))
        chosen, state, reason = judge_cell(cell, probabilities, scores, self.bundle)
        if state == REJECTED:  # no class, however probable
            return replace(place, reason=reason)
        best = int(probabilities.argmax())
        return replace(
            place, label=self.classes[best], probability=float(probabilities[best]),
            probabilities=tuple(probabilities.tolist()), set=chosen, state=state, reason=reason,
        )  # fmt: skip


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    engine: str = "onnxruntime",
) -> Predictor:
    """Loads a bundle for use; needs no PyTorch.

    Args:
        path: A folder or zip from `leuko.train`; None or ``default`` for the model that ships with
            Leuko.
        threads: For the network; None takes one per core.
        engine: ``onnxruntime``, or ``openvino``. Which is faster depends on the processor;
            answers differ by rounding, about 1e-6.

    Raises:
        UnknownNameError: There is no such engine.
        MissingExtraError: OpenVINO isn't installed.
        BundleError: The bundle isn't there, or isn't what was written.
    """
    return Predictor(load_bundle(find_bundle(path), threads=threads, engine=engine))


def find_bundle(path: str | os.PathLike[str] | None) -> Path:
    """Where the bundle lies that was asked for.

    Args:
        path: None for the model that ships with Leuko, and the word ``default`` too, unless
            something of that name is there: a path that exists is never taken for a word.

    Raises:
        BundleError: None was shipped with this installation.
    """
    if path is not None and (os.fspath(path) != DEFAULT or Path(path).exists()):
        return Path(path)
    return find_default()


def find_default() -> Path:
    """Where the model lies that ships with Leuko.

    Raises:
        BundleError: None was shipped with this installation.
    """
    place = Path(str(files("leuko") / "weights" / "default"))
    if not place.exists():
        raise BundleError(
            "This installation of Leuko ships no model. Name one with --model BUNDLE (in Python: "
            "leuko.load(BUNDLE)), or train one with: leuko train DATA --out BUNDLE."
        )
    return place


def score(
    bundle: Bundle,
    portraits: Sequence[NDArray[np.float32] | None],
    features: NDArray[np.float32],
) -> NDArray[np.float64]:
    """How far cells lie from what is known, (N, 2), see `Bundle.score_outliers`.

    Args:
        bundle: Whose reference counts.
        portraits: N, of `Found`.
        features: (N, D), from `Bundle.answer`.
    """
    there = [portrait for portrait in portraits if portrait is not None]
    if not there:
        return np.zeros((len(features), 2))
    return bundle.score_outliers(np.stack(there), features)


def score_cells(
    bundle: Bundle, cells: Iterable[Pixels], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """As `score`, for N cells (S, S, 3) whose portraits aren't at hand."""
    if bundle.reference is None:
        return np.zeros((len(features), 2))
    with ThreadPoolExecutor(count_cores()) as pool:
        return score(bundle, list(pool.map(describe_cell, cells)), features)


def judge_cell(
    cell: Leukocyte,
    probabilities: NDArray[np.float64],
    scores: NDArray[np.float64],
    bundle: Bundle,
) -> tuple[tuple[str, ...], str, str]:
    """All that there is to say of a cell beside its class: set, state, reason as in `decide`.

    Args:
        cell: As it was found; below a score of 0.5 it may be no leukocyte.
        probabilities: (K,), calibrated.
        scores: (2,) from `score`. If the first is above 1, the picture is none of a stained cell,
            and it is rejected, however probable a class may be. If the second is, the network
            knows nothing like it: another kind of cell, or one of another microscope. That is for
            a person to tell, so it stays unidentified.
        bundle: Whose classes and decision count.
    """
    facts = bundle.facts
    return judge_answer(cell.score, probabilities, scores, facts.decision, facts.classes)


def judge_answer(
    certainty: float,
    probabilities: NDArray[np.float64],
    scores: NDArray[np.float64],
    decision: Decision,
    classes: Sequence[str],
) -> tuple[tuple[str, ...], str, str]:
    """As `judge_cell`, before there is a bundle.

    Args:
        certainty: That it is a leukocyte: its score as it was found.
        probabilities, scores: As for `judge_cell`.
        decision, classes: As for `decide`.
    """
    if scores[0] > 1:
        return (), REJECTED, UNLIKE
    chosen, state, reason = decide(probabilities, decision, classes)
    doubts = [reason] if reason else []
    if scores[1] > 1:
        doubts.append(STRANGE)
    if certainty < CERTAIN:
        doubts.append("it may be no leukocyte")
    return chosen, UNIDENTIFIED if doubts else state, "; ".join(doubts)


def decide(
    probabilities: NDArray[np.float64], decision: Decision, classes: Sequence[str]
) -> tuple[tuple[str, ...], str, str]:
    """Whether an answer can be relied on.

    Args:
        probabilities: (K,), calibrated.
        decision: Of the bundle.
        classes: K names.

    Returns:
        The classes that can't be excluded, the likeliest first (none without thresholds); the
        state; and why, if it isn't pre-classified.
    """
    order = np.argsort(-probabilities, kind="stable")
    best = classes[order[0]]
    chosen: tuple[str, ...] = ()
    if decision.thresholds is not None:
        chosen = tuple(
            classes[k] for k in order if probabilities[k] >= decision.thresholds[classes[k]]
        )
        if not chosen:
            return chosen, UNIDENTIFIED, "unlike the cells of every class"
        if len(chosen) > 1:
            return chosen, UNIDENTIFIED, f"{len(chosen)} classes can't be told apart"
        if chosen[0] != best:
            return chosen, UNIDENTIFIED, f"{best} is likeliest, but only {chosen[0]} fits"
    if probabilities[order[0]] < decision.minimum:
        return chosen, UNIDENTIFIED, f"no class reaches a probability of {decision.minimum:g}"
    return chosen, PRE_CLASSIFIED, ""
