"""A reference count beside a model's differential: one slide, or many slides as a method.

    table (slide, class, count) → per class difference | bias, limits of agreement, sensitivity

Knows counts and names of classes; knows nothing of pictures or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leuko.data.steps import normalise_spelling
from leuko.data.tables import read_table
from leuko.errors import LabelTableError, SettingsError, UnknownNameError, suggest
from leuko.judgement.agreement import (
    Agreement,
    Detection,
    Limited,
    limit_difference,
    measure_agreement,
    measure_detection,
)
from leuko.judgement.findings import quantity
from leuko.judgement.metrics import exact_limits
from leuko.use.differential import Beside, Differential, Row
from leuko.use.kinds import LEUKOCYTE, NUCLEATED_RED, order_classes, sort_class

SLIDE, CLASS, COUNT = ("slide", "sample"), ("class", "label"), ("count", "cells", "n")
_TOTALS = {"total", "sum", "all", "n", "cells", "count"}
ABOVE, BELOW = "above", "below"
FEWEST_TO_CORRELATE = 3  # slides: any two points lie on a line
COUNTED, CORRECTED = "counted", "corrected"


@dataclass(frozen=True)
class Reference:
    """Counts that are taken for right.

    Attributes:
        name: Of the table.
        slides: Per slide the cells of each class; the one slide of a table without a column
            ``slide`` is called "".
        notes: What was found out while reading.
    """

    name: str
    slides: dict[str, dict[str, int]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One class of one slide, by the model and by the reference.

    Attributes:
        label: The class, as the model calls it if it does.
        unit: ``%`` of the leukocytes, or ``per 100 leukocytes``.
        count: Cells by the model; None if it has no such class.
        reference_count: Cells by the reference; None if it doesn't name the class.
        counted: The model's raw share.
        corrected: The share corrected for the model's errors.
        reference: The reference's share.
        difference: Counted minus reference, in points.
        corrected_difference: Corrected minus reference.
    """

    label: str
    unit: str
    count: int | None
    reference_count: int | None
    counted: Limited
    corrected: Limited
    reference: Limited
    difference: Limited
    corrected_difference: Limited

    @property
    def beyond_chance(self) -> bool:
        """Whether the limits of the raw difference leave out 0."""
        low, high = self.difference.low, self.difference.high
        return low is not None and high is not None and not low <= 0 <= high


@dataclass(frozen=True)
class Threshold:
    """What counts as a sign: a share above or below a number that the asker states.

    Attributes:
        label: The class.
        side: ``above`` or ``below``.
        percent: The number.
    """

    label: str
    side: str
    percent: float

    def holds(self, percent: float) -> bool:
        """Whether a share has the sign."""
        return percent > self.percent if self.side == ABOVE else percent < self.percent


@dataclass(frozen=True)
class Method:
    """One class over several slides.

    Attributes:
        label: The class.
        way: ``counted`` or ``corrected``.
        agreement: Of the shares in percent.
        by_chance: Slides on which the limits of the difference hold 0.
        detections: For each threshold of the class.
    """

    label: str
    way: str
    agreement: Agreement
    by_chance: int
    detections: tuple[tuple[Threshold, Detection], ...]


@dataclass(frozen=True)
class Comparison:
    """Several slides against their reference counts.

    Attributes:
        reference: Name of the table.
        slides: Those that were compared.
        differences: Per slide, per class.
        methods: Per class and way.
        left_out: Sentences about slides and classes that couldn't be compared.
    """

    reference: str
    slides: tuple[str, ...]
    differences: dict[str, tuple[Difference, ...]]
    methods: tuple[Method, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "reference": self.reference,
            "slides": list(self.slides),
            "left_out": list(self.left_out),
            "methods": [
                {
                    "label": m.label, "way": m.way, **asdict(m.agreement),
                    "by_chance": m.by_chance,
                    "thresholds": [{**asdict(t), **asdict(d)} for t, d in m.detections],
                }
                for m in self.methods
            ],
        }  # fmt: skip


def read_reference(path: Path) -> Reference:
    """Reads a table of counts.

    Either a row per class with the columns class, count and, for several slides, slide; or a row
    per slide with a column per class. Rows of one slide and class are summed, so that two
    examiners may have a row each.

    Raises:
        LabelTableError: It can't be read, or a count is no whole number of cells.
    """
    table = read_table(path, [], others=True)
    rows = [{name.casefold(): value for name, value in row.items()} for row in table.rows]
    written = {name.casefold(): name for row in table.rows for name in row}
    slide, kind, count = (
        next((name for name in names if name in written), None) for names in (SLIDE, CLASS, COUNT)
    )
    long = kind is not None and count is not None
    classes = [n for n in written if n != slide and normalise_spelling(n) not in _TOTALS]
    if not rows or not (long or classes):
        raise LabelTableError(
            f"{path} holds no reference count; expected the columns class and count (and slide), "
            "or a column for each class."
        )
    slides: dict[str, dict[str, int]] = {}
    for number, row in zip(table.numbers, rows, strict=True):
        counts = slides.setdefault(row[slide] if slide else "", {})
        pairs = [(row[kind], row[count])] if kind and count else [(n, row[n]) for n in classes]
        for name, value in pairs:
            label = name if long else written[name]
            if not label:
                raise LabelTableError(f"{path}, row {number} has no class; expected its name.")
            counts[label] = counts.get(label, 0) + _read_count(path, number, label, value)
    return Reference(path.name, slides, table.notes)


def _read_count(path: Path, number: int, label: str, value: str) -> int:
    try:
        found = float(value) if value else 0.0
        if found >= 0 and found == int(found):
            return int(found)
    except (ValueError, OverflowError):
        pass
    raise LabelTableError(
        f"{path}, row {number}: {label} has {value[:40]!r}; expected a whole number of cells, 0 or "
        "more. Percentages can't be compared: their limits depend on the number of cells."
    )


def parse_threshold(text: str, side: str) -> Threshold:
    """Reads ``monocyte=10``.

    Raises:
        SettingsError: It isn't of that form.
    """
    label, _, value = text.rpartition("=")
    try:
        percent = float(value)
    except ValueError:
        percent = -1.0
    if not label.strip() or not 0 <= percent <= 100:
        raise SettingsError(f"--{side} is {text!r}; expected CLASS=PERCENT, such as monocyte=10.")
    return Threshold(label.strip(), side, percent)


# --- one slide ------------------------------------------------------------------------------------


def compare_slide(found: Differential, reference: Mapping[str, int]) -> tuple[Difference, ...]:
    """The model's differential beside a reference count of the same slide.

    Classes are matched by name, whatever the spelling. One that only one side has is listed
    without a difference; its cells stay in the whole of that side.

    Args:
        found: The model's.
        reference: Cells per class.
    """
    named: dict[str, int] = {}
    spelled: dict[str, str] = {}
    for name, count in reference.items():
        key = normalise_spelling(name)
        named[key] = named.get(key, 0) + count
        spelled.setdefault(key, name)
    whole = sum(n for name, n in reference.items() if sort_class(name) == LEUKOCYTE)
    classes: list[Row | Beside] = [*found.rows, *found.beside]
    own = {normalise_spelling(one.label): one for one in classes}
    labels = {key: one.label for key, one in own.items()}
    names = order_classes({**spelled, **labels}.values())
    names.sort(key=lambda name: sort_class(name) == NUCLEATED_RED)
    return tuple(
        _compare_class(name, own.get(key), named.get(key), whole)
        for name in names
        if (key := normalise_spelling(name)) is not None
        and sort_class(name) in (LEUKOCYTE, NUCLEATED_RED)
    )


def _compare_class(
    name: str, own: Row | Beside | None, reference: int | None, whole: int
) -> Difference:
    red = sort_class(name) == NUCLEATED_RED
    share = Limited(None) if reference is None else _limit(reference, whole, red)
    counted = corrected = Limited(None)
    if own is not None:
        value = own.per_100 if isinstance(own, Beside) else own.percent
        counted = Limited(value, own.low, own.high)
        corrected = Limited(own.corrected, own.corrected_low, own.corrected_high)
    return Difference(
        label=name,
        unit="per 100 leukocytes" if red else "%",
        count=None if own is None else own.count,
        reference_count=reference,
        counted=counted,
        corrected=corrected,
        reference=share,
        difference=limit_difference(counted, share),
        corrected_difference=limit_difference(corrected, share),
    )


def _limit(count: int, whole: int, red: bool) -> Limited:
    """In percent of the whole; nucleated red cells per 100 of it."""
    if not whole:
        return Limited(None)
    low, high = exact_limits(count, count + whole if red else whole)
    if red:
        low, high = low / (1 - low), high / (1 - high)
    return Limited(100 * count / whole, 100 * low, 100 * high)


# --- several slides -------------------------------------------------------------------------------


def compare_slides(
    found: Sequence[Differential], reference: Reference, thresholds: Sequence[Threshold] = ()
) -> Comparison:
    """The model as a method, against the reference counts of several slides.

    Args:
        found: Differentials; each slide's name is looked for in the reference.
        reference: Counts of these slides.
        thresholds: What counts as a sign; without them there is no sensitivity.

    Raises:
        UnknownNameError: A threshold names a class that isn't compared.
    """
    left_out: list[str] = []
    differences: dict[str, tuple[Difference, ...]] = {}
    for one in found:
        counts = reference.slides.get(one.slide)
        if counts is None:
            left_out.append(f"{one.slide} has no reference count")
        elif not one.cells or not sum(counts.values()):
            left_out.append(f"{one.slide} has no leukocyte on one of the two sides")
        else:
            differences[one.slide] = compare_slide(one, counts)
    there = {one.slide for one in found}
    left_out += [f"{name} has no pictures" for name in reference.slides if name not in there]
    labels = order_classes(d.label for rows in differences.values() for d in rows)
    methods = []
    for label in labels:
        rows = [d for one in differences.values() for d in one if d.label == label]
        both = [d for d in rows if d.difference.value is not None]
        if len(both) < len(differences):
            left_out.append(_tell_one_sided(label, rows, len(differences) - len(both), differences))
        for way in (COUNTED, CORRECTED):
            method = _judge_class(label, way, both, thresholds)
            methods += [method] if method else []
    _check_thresholds(thresholds, [m.label for m in methods])
    return Comparison(
        reference.name, tuple(differences), differences, tuple(methods), tuple(left_out)
    )


def _tell_one_sided(
    label: str, rows: Sequence[Difference], lacking: int, slides: Mapping[str, Any]
) -> str:
    """A class that only one side names. What to do about it depends on the side.

    A class that the table leaves out is no 0: an examiner may have counted it under another name.
    But if it is left out just where none was found, bias rests on the slides where one was.
    """
    have = "has" if lacking == 1 else "have"
    told = f"{label}: {lacking} of {quantity(len(slides), 'slide')} {have} it on one"
    if all(d.count is None for d in rows):
        return f"{told} side only; the model has no such class"
    if all(d.reference_count is None for d in rows):
        return f"{told} side only; the reference doesn't name it"
    return (
        f"{told} side only: write 0 in the reference where it was looked for and none was found, "
        "or the bias rests only on slides where there was one"
    )


def _judge_class(
    label: str, way: str, rows: Sequence[Difference], thresholds: Sequence[Threshold]
) -> Method | None:
    """One class by one way; None where no slide has it."""
    triples = [
        (d.counted, d.reference, d.difference)
        if way == COUNTED
        else (d.corrected, d.reference, d.corrected_difference)
        for d in rows
    ]
    pairs = [
        (own.value, reference.value, difference)
        for own, reference, difference in triples
        if own.value is not None and reference.value is not None
    ]
    if not pairs:
        return None
    measured, wanted = [own for own, _, _ in pairs], [reference for _, reference, _ in pairs]
    held = [d.low is not None and d.high is not None and d.low <= 0 <= d.high for _, _, d in pairs]
    agreement = measure_agreement(measured, wanted)
    if agreement.slides < FEWEST_TO_CORRELATE:
        agreement = replace(agreement, correlation=Limited(None))
    asked = [t for t in thresholds if normalise_spelling(t.label) == normalise_spelling(label)]
    return Method(
        label=label,
        way=way,
        agreement=agreement,
        by_chance=sum(held),
        detections=tuple(
            (t, measure_detection([t.holds(v) for v in measured], [t.holds(v) for v in wanted]))
            for t in asked
        ),
    )


def _check_thresholds(thresholds: Sequence[Threshold], labels: Sequence[str]) -> None:
    known = {normalise_spelling(label) for label in labels}
    for threshold in thresholds:
        if labels and normalise_spelling(threshold.label) not in known:
            raise UnknownNameError(
                f"--{threshold.side} names a class {threshold.label!r} that isn't compared. "
                f"{suggest(threshold.label, list(labels))}"
            )
