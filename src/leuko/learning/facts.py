"""What ``bundle.json`` says, as objects: strict to read, so that nothing is passed over.

A key too many, too few or of another type is an error, and so is a value out of its range. Knows
what the facts mean; knows nothing of files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.cuts import LIGHTS, cut_cell, cut_field
from leuko.data.leukocytes import Leukocyte
from leuko.errors import BundleError, LeukoError
from leuko.learning.models import find_architecture

FORMAT = 4
# That are read. 2 had float32 in model.onnx whatever the weights; 2 and 3 knew no light.
FORMATS = (2, 3, FORMAT)
LARGEST = sys.float_info.max
MOST_CELLS = 10**12  # of a class; far more than anybody has, and exact as a float
RESIZE = "bilinear, antialiased"  # what leuko.data.image.resize_image does


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what the network sees.

    Attributes:
        view: ``cell``: the leukocyte, cut out; ``field``: the whole picture.
        window: Side of the square around a cell in µm.
        size: Side of what the network sees in px.
        resize: The filter; there is one.
        mean, deviation: Of red, green and blue in [0, 1]; applied within ``model.onnx``.
        views: Over how many quarter turns and mirror images an answer is averaged: 1 or 8.
        light: ``matched``: the empty slide is brought to one grey, see
            `leuko.data.density.match_light`; ``given``: it stays as the camera gave it.
    """

    view: str
    window: float
    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    views: int
    light: str
    resize: str = RESIZE

    def cut(self, picture: NDArray[np.uint8], leukocyte: Leukocyte) -> NDArray[np.uint8]:
        """What the network sees of a picture: (S, S, 3) uint8, as `cut_pictures` cuts it."""
        if self.view == "field":
            return cut_field(picture, self.size, light=self.light)
        return cut_cell(picture, leukocyte, self.size, self.window, light=self.light)


@dataclass(frozen=True)
class Outliers:
    """Limits for the scores of `leuko.judgement.outliers`.

    Attributes:
        portraits: Beyond it a picture is none of a stained cell, and is rejected.
        features: Beyond it the network knows nothing like it, and the cell stays unidentified.
    """

    portraits: float
    features: float


@dataclass(frozen=True)
class Decision:
    """What turns the network's output into an answer that means what it says.

    Attributes:
        temperature: See `leuko.judgement.calibration`.
        minimum: Probability below which a cell stays unidentified.
        coverage: That the sets of classes were made for; None without thresholds.
        thresholds: Least probability with which each class is in the set; None without.
        cells: Cells of each class that the thresholds come from; None without.
        outliers: Limits for what is no cell, or none that is known; they belong to
            ``reference.safetensors``. None without.
    """

    temperature: float = 1.0
    minimum: float = 0.5
    coverage: float | None = None
    thresholds: dict[str, float] | None = None
    cells: dict[str, int] | None = None
    outliers: Outliers | None = None


@dataclass(frozen=True)
class Facts:
    """All of ``bundle.json``.

    Attributes:
        architecture: Name of the network, see `leuko.learning.models`.
        head: Name of its last layer.
        features: D, what the last layer takes.
        classes: K names in the order of the outputs.
        preprocessing: How a picture is prepared.
        decision: What an output means.
        training: Where the model comes from: ``data``, ``protocol``, ``metrics`` and more, as JSON.
        leuko: Version that wrote it.
        created: Day, as 2026-01-31.
        format: Of the bundle.
    """

    architecture: str
    head: str
    features: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    decision: Decision
    training: dict[str, Any]
    leuko: str
    created: str
    format: int = FORMAT

    @property
    def model_text(self) -> str:
        """What weights and model say of themselves."""
        facts = {
            "format": self.format,
            "architecture": self.architecture,
            "head": self.head,
            "classes": list(self.classes),
            "preprocessing": self._tell_preprocessing(),
        }
        return json.dumps(facts, sort_keys=True)

    @property
    def answer_text(self) -> str:
        """What the golden answers say of themselves."""
        facts = {**json.loads(self.model_text), "decision": asdict(self.decision)}
        return json.dumps(facts, sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """As in ``bundle.json``."""
        facts = {"format": self.format, **_plain(asdict(self))}
        return {**facts, "preprocessing": self._tell_preprocessing()}

    def _tell_preprocessing(self) -> dict[str, Any]:
        """As the bundle's own format has it: its parts repeat it, and are compared by its text."""
        told: dict[str, Any] = _plain(asdict(self.preprocessing))
        if self.format < FORMAT:
            del told["light"]
        return told

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Facts:
        """Reads what `to_json` gave.

        Raises:
            BundleError: Another version, a key or a value that can't be.
        """
        written = facts.get("format")
        if type(written) is not int or written not in FORMATS:
            raise BundleError(
                f"The bundle has the format {written!r}; this Leuko reads "
                f"{', '.join(map(str, FORMATS))}. "
                "Use the version of Leuko that wrote it, or export the bundle again."
            )
        _check_keys("bundle.json", facts, set(cls.__dataclass_fields__))
        prepared = _take(facts, "preprocessing", dict)
        decision = _take(facts, "decision", dict)
        read = cls(
            architecture=_take(facts, "architecture", str),
            head=_take(facts, "head", str),
            features=_take(facts, "features", int),
            classes=tuple(_take(facts, "classes", list)),
            preprocessing=_read_preprocessing(prepared, written),
            decision=_read_decision(decision),
            training=_take(facts, "training", dict),
            leuko=_take(facts, "leuko", str),
            created=_take(facts, "created", str),
            format=written,
        )
        _check(read)
        return read


def _read_preprocessing(facts: Mapping[str, Any], written: int) -> Preprocessing:
    known = set(Preprocessing.__dataclass_fields__)
    if written < FORMAT:  # which knew no light but the camera's
        _check_keys("preprocessing", facts, known - {"light"})
        facts = {**facts, "light": "given"}
    _check_keys("preprocessing", facts, known)
    return Preprocessing(
        view=_take(facts, "view", str),
        window=_number(facts, "window"),
        size=_take(facts, "size", int),
        mean=_three(facts, "mean"),
        deviation=_three(facts, "deviation"),
        views=_take(facts, "views", int),
        resize=_take(facts, "resize", str),
        light=_take(facts, "light", str),
    )


def _read_decision(facts: Mapping[str, Any]) -> Decision:
    _check_keys("decision", facts, set(Decision.__dataclass_fields__))
    outliers = None
    if facts["outliers"] is not None:
        limits = _take(facts, "outliers", dict)
        _check_keys("outliers", limits, set(Outliers.__dataclass_fields__))
        outliers = Outliers(**{name: _number(limits, name) for name in limits})
    absent = [facts[key] is None for key in ("coverage", "thresholds", "cells")]
    if any(absent) and not all(absent):
        raise BundleError("Of coverage, thresholds and cells of the decision some are missing.")
    if facts["thresholds"] is None:
        return Decision(_number(facts, "temperature"), _number(facts, "minimum"), outliers=outliers)
    thresholds, cells = _take(facts, "thresholds", dict), _take(facts, "cells", dict)
    return Decision(
        _number(facts, "temperature"),
        _number(facts, "minimum"),
        _number(facts, "coverage"),
        {name: _number(thresholds, name) for name in thresholds},
        {name: _take(cells, name, int) for name in cells},
        outliers,
    )


def _check(facts: Facts) -> None:
    """Refuses values that can't be."""
    prepared, decision, classes = facts.preprocessing, facts.decision, facts.classes
    try:
        find_architecture(facts.architecture)
    except LeukoError as error:
        raise BundleError(f"bundle.json names an architecture that isn't known. {error}") from None
    if not all(isinstance(name, str) and name for name in classes) or len(classes) < 2:
        raise BundleError("The classes of a bundle are two names or more; found something else.")
    if len(set(classes)) < len(classes):
        raise BundleError("A class is named twice in bundle.json.")
    if prepared.resize != RESIZE:
        raise BundleError(
            f"The bundle was made with the resizing {prepared.resize!r}; this Leuko has "
            f"{RESIZE!r} only, and another filter gives other answers."
        )
    thresholds = decision.thresholds or {}
    named = {} if decision.thresholds is None else dict.fromkeys(classes)
    for fine, what in (
        (prepared.view in ("cell", "field"), "view"),
        (0 < prepared.window <= 1000, "window"),
        (16 <= prepared.size <= 1024, "size"),
        (prepared.light in LIGHTS, "light"),
        (prepared.views in (1, 8), "views"),
        (all(d > 0 for d in prepared.deviation), "deviation"),
        (0 < decision.temperature < 1000, "temperature"),
        (0 <= decision.minimum <= 1, "minimum"),
        (decision.coverage is None or 0 < decision.coverage < 1, "coverage"),
        (set(thresholds) == set(named), "thresholds"),
        (set(decision.cells or {}) == set(named), "cells"),
        (all(0 <= n <= MOST_CELLS for n in (decision.cells or {}).values()), "cells"),
        (all(0 <= t <= 1 for t in thresholds.values()), "thresholds"),
        (facts.features > 0, "features"),
        (decision.outliers is None or decision.outliers.portraits > 0, "portraits"),
        (decision.outliers is None or decision.outliers.features > 0, "features"),
    ):
        if not fine:
            raise BundleError(f"The value of {what!r} in bundle.json is out of its range.")


def _check_keys(where: str, facts: Mapping[str, Any], wanted: set[str]) -> None:
    if odd := sorted(set(facts) - wanted):
        raise BundleError(f"{where} has the key {odd[0]!r}, which this version doesn't know.")
    if missing := sorted(wanted - set(facts)):
        raise BundleError(f"{where} lacks the key {missing[0]!r}.")


def _take(facts: Mapping[str, Any], key: str, kind: type) -> Any:
    value = facts[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{key!r} in bundle.json is {value!r:.80}; expected {kind.__name__}.")
    return value


def _number(facts: Mapping[str, Any], key: str) -> float:
    value = facts[key]
    # Compared, not converted: a whole number may be too large for a float.
    fine = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if not fine:
        raise BundleError(f"{key!r} in bundle.json is {value!r:.80}; expected a number.")
    return float(value)


def _three(facts: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values: Sequence[Any] = _take(facts, key, list)
    if len(values) != 3:
        raise BundleError(f"{key!r} in bundle.json has {len(values)} values; expected 3.")
    return tuple(_number({key: value}, key) for value in values)


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
