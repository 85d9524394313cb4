"""Telling what is no cell, or none that the model can know: two scores and their limits.

A portrait (`leuko.data.portraits`) says what a picture is like: colour, grain, shapes. It is
compared with portraits of training cells that were changed as widely as laboratories differ, so
that another stain is no outlier, but a document or a cell out of focus is. Features say what the
network makes of it; they are compared with those of the most similar training cells. Neither
finds what the other does (``results/outliers.md``).

Pure functions on arrays. They know no pictures, no networks and no files.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from leuko.errors import ShapeError

AXES = 128  # of portraits; the rest of their 1,303 directions is noise
FEATURE_AXES = 64  # of features; as good as all 1,280 (results/outliers.md)
FARTHEST = 8.0  # deviations; farther numbers of a portrait say no more
NEIGHBOUR = 3  # the distance to the third nearest example counts
PORTRAITS_KEPT = 0.90  # of widely changed training cells; nearly all unchanged ones lie within
FEATURES_KEPT = 0.98  # of cells that the network hasn't seen

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """What cells are like, as arrays of float32.

    Attributes:
        centre: (P,) mean of portraits.
        spread: (P,) their deviation.
        axes: (P, A) from standardised portraits to uncorrelated numbers of variance 1.
        feature_axes: (D, F) from features of length 1 to the axes along which cells differ.
        examples: (R, F) features of training cells along these axes.
    """

    centre: Float32
    spread: Float32
    axes: Float32
    feature_axes: Float32
    examples: Float32

    def to_tensors(self) -> dict[str, Float32]:
        """By name, as a file keeps them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def fit_reference(
    portraits: NDArray[np.floating], features: NDArray[np.floating]
) -> tuple[Reference, float]:
    """Learns what cells are like.

    Args:
        portraits: (M, P) of training cells, widely changed, in an order in which every second
            row is another cell: the even rows are learnt, the odd ones give the limit.
        features: (R, D) of training cells as they are.

    Returns:
        The reference, and the limit for `score_portraits`.

    Raises:
        ShapeError: Fewer than eight portraits or one example.
    """
    if len(portraits) < 8 or len(features) < 1:
        raise ShapeError(
            f"Found {len(portraits)} portraits and {len(features)} examples; expected at least 8 "
            "and 1, to say what cells are like. Use more images."
        )
    seen = np.asarray(portraits[::2], np.float64)
    centre, spread = seen.mean(0), seen.std(0) + 1e-6
    _, sizes, axes = np.linalg.svd(_standardise(seen, centre, spread), full_matrices=False)
    count = min(AXES, max(1, len(seen) // 8))
    scaled = axes[:count].T / np.maximum(sizes[:count] / np.sqrt(len(seen)), 1e-6)
    unit = _unit(features)
    _, _, directions = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    along = directions[:FEATURE_AXES].T
    reference = Reference(
        *(np.asarray(a, np.float32) for a in (centre, spread, scaled, along, unit @ along))
    )
    limit = float(np.quantile(score_portraits(reference, portraits[1::2]), PORTRAITS_KEPT))
    return reference, limit


def add_examples(reference: Reference, features: NDArray[np.floating]) -> Reference:
    """A reference that knows the features (M, D) of more cells too, as of another laboratory."""
    more = (_unit(features) @ reference.feature_axes).astype(np.float32)
    return Reference(
        reference.centre, reference.spread, reference.axes, reference.feature_axes,
        np.concatenate([reference.examples, more]),
    )  # fmt: skip


def score_portraits(reference: Reference, portraits: NDArray[np.floating]) -> Float64:
    """How far portraits lie from those of cells, whatever the direction.

    Args:
        reference: From `fit_reference`.
        portraits: (N, P).

    Returns:
        (N,), 0 or more; about 1 for cells as they were learnt. Mean square of the
        uncorrelated numbers: Mahalanobis' distance, squared, divided by their count.
    """
    standard = _standardise(portraits, reference.centre, reference.spread)
    return np.asarray((_project(standard, reference.axes.T) ** 2).mean(1))


def score_features(reference: Reference, features: NDArray[np.floating]) -> Float64:
    """How far features lie from those of the third most similar example.

    Args:
        reference: From `fit_reference`.
        features: (N, D).

    Returns:
        (N,), 0 or more: a distance between features of length 1.

    Source: Sun et al. 2022, arXiv:2204.06507.
    """
    placed = _project(_unit(features), reference.feature_axes.T)
    examples = np.asarray(reference.examples, np.float64)
    products = _project(placed, examples)
    squared = (placed**2).sum(1)[:, None] + (examples**2).sum(1)[None] - 2 * products
    last = min(NEIGHBOUR, len(examples)) - 1
    nearest = np.partition(squared, last, axis=1)[:, last]
    return np.sqrt(np.maximum(nearest, 0))


def choose_feature_limit(scores: NDArray[np.floating]) -> float:
    """The limit that all but a fiftieth of unseen cells keep.

    Args:
        scores: (N,) from `score_features`, of cells that the network hasn't seen.

    Raises:
        ShapeError: No score.
    """
    if not len(scores):
        raise ShapeError("Found no score of unseen cells; expected some, to choose a limit.")
    return float(np.quantile(scores, FEATURES_KEPT))


def _standardise(
    portraits: NDArray[np.floating], centre: NDArray[np.floating], spread: NDArray[np.floating]
) -> Float64:
    distances = (np.asarray(portraits, np.float64) - centre) / spread
    return np.asarray(np.clip(distances, -FARTHEST, FARTHEST))


def _project(rows: Float64, axes: NDArray[np.floating]) -> Float64:
    """Products (N, A) of rows (N, P) and axes (A, P).

    Not by NumPy's matrix product: its threads wait for each other, many times as long as the work
    takes while other threads find cells; and the sum of a row depends on their number.
    """
    return np.asarray(np.einsum("np,ap->na", rows, np.ascontiguousarray(axes, np.float64)))


def _unit(features: NDArray[np.floating]) -> Float64:
    given = np.asarray(features, np.float64)
    length = np.linalg.norm(given, axis=1, keepdims=True)
    return np.asarray(given / np.maximum(length, 1e-12))
