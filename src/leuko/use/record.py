"""What a bundle says of its own model's errors, as a differential needs it.

Knows the facts of a bundle; knows nothing of slides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeGuard

from leuko.learning.facts import MOST_CELLS, Facts

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Record:
    """How the model did in its test.

    Attributes:
        bundle: The id of the bundle.
        architecture: Of the network.
        created: Day on which the bundle was made.
        leuko: Version that made it.
        classes: K names, in the order of the confusion.
        confusion: Cells by true class (rows) and likeliest class (columns); None if the bundle
            doesn't say, or says too little.
        cells: Of the test.
        unidentified: Share of the test's cells that stayed unidentified, in [0, 1]; None if it
            isn't known of the model as it is.
        source: What was tested on what, in words.
        lack: Why there is no confusion; empty if there is one.
        doubt: Why there is no share of unidentified cells; empty if there is one.
    """

    bundle: str
    architecture: str
    created: str
    leuko: str
    classes: tuple[str, ...]
    confusion: Table | None
    cells: int
    unidentified: float | None
    source: str
    lack: str = ""
    doubt: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a differential shows it; with how many cells of each class the model finds."""
        found = {}
        for k, row in enumerate(self.confusion or ()):
            found[self.classes[k]] = {"tested": sum(row), "found": row[k]}
        return {
            "bundle": self.bundle,
            "architecture": self.architecture,
            "created": self.created,
            "leuko": self.leuko,
            "classes": list(self.classes),
            "test": {
                "cells": self.cells,
                "source": self.source,
                "unidentified": self.unidentified,
                "classes": found,
            },
        }


def read_record(facts: Facts, bundle: str) -> Record:
    """Reads it from a bundle.

    The figures of a bundle that was fitted to another microscope are those of the bundle that it
    was made from: of another last layer, where that was fitted again, and of other thresholds.

    Args:
        facts: Of the bundle.
        bundle: Its id.
    """
    metrics = _mapping(facts.training.get("metrics"))
    data = _mapping(facts.training.get("data"))
    judged = _mapping(facts.training.get("protocol")).get("judged")
    table, lack = _read_confusion(metrics.get("confusion"), facts.classes)
    share, doubt = _read_share(metrics, bundle)
    source = ""
    if "adaptation" in facts.training:
        table, lack, after = _read_adaptation(facts.training["adaptation"], table, lack)
        share, doubt = None, "it was fitted to another microscope after its test"
        source = f"; before {after}"
    name = f"the set {data.get('name') or 'without a name'!r}"
    if isinstance(data.get("images"), int):
        name += f" of {data['images']:,} images"
    return Record(
        bundle=bundle,
        architecture=facts.architecture,
        created=facts.created,
        leuko=facts.leuko,
        classes=facts.classes,
        confusion=table,
        cells=sum(map(sum, table)) if table else 0,
        unidentified=share,
        source=(f"{name}, {judged}" if judged else name) + source,
        lack=lack,
        doubt=doubt,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_share(metrics: Mapping[str, Any], bundle: str) -> tuple[float | None, str]:
    """The share of unidentified cells among those that weren't rejected; or None, and why."""
    counted = metrics if "rejected" in metrics else _find_measured(bundle)
    left, out = (counted.get(state) for state in ("unidentified", "rejected"))
    if _is_share(left) and _is_share(out) and out < 1:
        return min(left / (1 - out), 1.0), ""
    if "unidentified" in metrics and "rejected" not in metrics:
        return None, (
            "its bundle counted them in the test without those that are strange to the network or "
            "may be no leukocyte"
        )
    return None, "its bundle doesn't say"


def _is_share(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and 0 <= value <= 1


def _find_measured(bundle: str) -> Mapping[str, Any]:
    """What was measured of the bundle that ships after it was made; nothing of another one.

    Written by ``benchmarks/unidentified.py``. It lies beside the bundle, because in it the bundle
    would be another one, with another id.
    """
    place = files("leuko") / "weights" / "measured" / "default.json"
    told = _mapping(json.loads(place.read_text("utf-8"))) if place.is_file() else {}
    return told if told.get("bundle") == bundle else {}


def _read_adaptation(told: Any, table: Table | None, lack: str) -> tuple[Table | None, str, str]:
    """What is left of a confusion; why it is nothing; and what came after the test, in words."""
    facts = _mapping(told)
    if facts.get("layer_tested") is True:
        return table, lack, "the model was fitted to another microscope, which left its last layer"
    # Without a word about it an earlier adaptation may have changed the layer.
    done = "was" if facts.get("changed") or "layer_tested" in facts else "may have been"
    return None, (
        f"the model's last layer {done} fitted again after the test in its bundle, so its errors "
        "are others now. Measure them with leuko evaluate on cells that it hasn't seen."
    ), f"the model's last layer {done} fitted to another microscope"  # fmt: skip


def _read_confusion(found: Any, classes: tuple[str, ...]) -> tuple[Table | None, str]:
    """The table; or None and what is wrong with it. A bundle needn't have one."""
    K = len(classes)
    if found is None:
        return None, "the bundle doesn't say how often its model takes one class for another."
    rows = found if isinstance(found, list) else []
    fits = len(rows) == K and all(
        isinstance(row, list)
        and len(row) == K
        and all(isinstance(n, int) and not isinstance(n, bool) for n in row)
        and all(0 <= n <= MOST_CELLS for n in row)
        for row in rows
    )
    if not fits:
        return None, "the confusion in the bundle doesn't belong to its classes."
    untested = [name for name, row in zip(classes, rows, strict=True) if not sum(row)]
    if untested:
        return None, f"the model was never tested on {', '.join(untested)}."
    return tuple(tuple(row) for row in rows), ""
