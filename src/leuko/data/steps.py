"""The kinds of cleaning steps: each looks at the rows and says which it drops, and why.

A step changes nothing and knows no other step; `leuko.data.cleaning` runs them in the order of a
recipe.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Rows = list[dict[str, Any]]
Drops = dict[int, str]  # position in the rows → reason


@dataclass(frozen=True)
class Outcome:
    """What a step asks for.

    Attributes:
        drops: By position in the rows, the reason why a row goes.
        note: What else there is to know, such as a class that doesn't occur.
        factors: How many times as often each class is drawn in training.
    """

    drops: Drops
    note: str = ""
    factors: dict[str, float] = field(default_factory=dict)


def count_labels(rows: Rows) -> dict[str, int]:
    """Rows with exactly one label, per class."""
    counts = Counter(row["label"] for row in rows if row["label"] is not None)
    return dict(sorted(counts.items()))


def _drop_blank_labels(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    drops = {}
    for i, row in enumerate(rows):
        if not row["labels"]:
            why = "no label row names it" if row["label_written"] is None else "blank label"
            drops[i] = why + (", no image" if row["path"] is None else "")
    without = sum(rows[i]["path"] is None for i in drops)
    return Outcome(drops, f"{without} of {len(drops)} have no image either" if without else "")


def _drop_missing_images(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    return Outcome({i: "no image" for i, row in enumerate(rows) if row["path"] is None})


def _drop_unreadable(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    codes = (
        (i, next((issue for issue in row["issues"] if issue.startswith("unreadable:")), None))
        for i, row in enumerate(rows)
    )
    return Outcome({i: code for i, code in codes if code is not None})


def _drop_multiple_labels(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    return Outcome(
        {i: f"{len(row['labels'])} labels" for i, row in enumerate(rows) if len(row["labels"]) > 1}
    )


def _drop_conflicts(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    same: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        readable = row["width"] is not None
        same[row["sha256"] if readable else f"id:{row['image']}"].append(i)
    drops = {}
    for members in same.values():
        labels = sorted({" + ".join(sorted(set(rows[i]["labels"]))) for i in members} - {""})
        if len(labels) > 1:
            for i in members:
                drops[i] = f"the same image is labelled {' and '.join(labels)}"
    return Outcome(drops)


def _drop_repeated_rows(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    drops = {}
    # The first is the one that comes first in the table file, however the rows are ordered here.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["row"] is None, rows[i]["row"] or 0))
    for i in order:
        key = (rows[i]["image"], tuple(sorted(set(rows[i]["labels"]))))
        if key in first:
            drops[i] = f"listed before, in row {rows[first[key]]['row']}"
        first.setdefault(key, i)
    return Outcome(drops)


def _drop_classes(rows: Rows, *, seed: int, classes: list[str]) -> Outcome:  # noqa: ARG001
    wanted = {name.strip().casefold() for name in classes}
    drops = {
        i: f"class {row['label']}"
        for i, row in enumerate(rows)
        if row["label"] is not None and row["label"].casefold() in wanted
    }
    found = {rows[i]["label"].casefold() for i in drops}
    absent = [name for name in classes if name.strip().casefold() not in found]
    return Outcome(drops, f"not in this set: {', '.join(absent)}" if absent else "")


def _delete_share(rows: Rows, *, seed: int, class_: str, share: float) -> Outcome:
    name = class_.strip().casefold()
    members = [i for i, row in enumerate(rows) if (row["label"] or "").casefold() == name]
    if not members:
        return Outcome({}, f"not in this set: {class_}")
    number = math.floor(share * len(members) + 0.5)

    # A hash instead of a generator: what is drawn depends on the seed and on each image's id
    # alone, not on the order of the rows or on the version of a library.
    def draw(i: int) -> tuple[bytes, str]:
        image = rows[i]["image"]
        return hashlib.sha256(f"{seed}\0{name}\0{image}".encode()).digest(), image

    chosen = sorted(members, key=draw)[:number]
    reason = f"drawn: {number} of {len(members)}, seed {seed}"
    return Outcome(dict.fromkeys(chosen, reason), f"{number} of {len(members)} {class_} drawn")


def _repeat_rare(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    counts = count_labels(rows)
    most = max(counts.values(), default=0)
    factors = {name: round(most / n, 4) for name, n in counts.items()}
    spelt = ", ".join(f"{name} × {factor:.2f}" for name, factor in factors.items())
    return Outcome({}, f"drawn in training: {spelt}" if spelt else "", factors)


@dataclass(frozen=True)
class Kind:
    """A kind of step: what it is for, what does it, and which parameters a recipe has to give."""

    reason: str
    apply: Callable[..., Outcome]
    parameters: tuple[str, ...] = ()


#: The kinds of steps; their parameters are all required.
KINDS: dict[str, Kind] = {
    "drop_blank_labels": Kind("nothing says what the image shows", _drop_blank_labels),
    "drop_missing_images": Kind("a label without an image", _drop_missing_images),
    "drop_unreadable": Kind("the image can't be read", _drop_unreadable),
    "drop_conflicts": Kind("one image under different labels", _drop_conflicts),
    "drop_repeated_rows": Kind("one image name listed again", _drop_repeated_rows),
    "drop_multiple_labels": Kind("a field with two or more leukocytes", _drop_multiple_labels),
    "drop_classes": Kind("a class that is left out", _drop_classes, ("classes",)),
    "delete_share": Kind("a share of a frequent class", _delete_share, ("class", "share")),
    "repeat_rare": Kind("rarer classes are trained several times over", _repeat_rare),
}
