"""Fits a last layer again from the features that an exported network gives, without PyTorch.

A few dozen cells can't teach a network what cells look like, but they can tell where, among the
features that it has, a new microscope's classes lie. So only the last layer moves, it begins where
it was, and moving costs: the new weights are the old ones plus as little as the labels demand. A
shift of all features, which is what another lamp or stain mostly does, is a matter of the bias
alone, and moving that is free.

Knows features, labels and a layer; knows nothing of files, classes' names or judging.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import ShapeError

Float64 = NDArray[np.float64]
Labels = NDArray[np.integer]
Head = tuple[NDArray[Any], NDArray[Any]]  # weight (K, D), bias (K,)

NEGLIGIBLE = 1e-10  # of the largest square: directions in which the cells don't differ


def answer_features(features: NDArray[np.floating], head: Head) -> Float64:
    """Class probabilities of cells, as the exported network with this last layer gives them.

    Args:
        features: (N, V, D), one row for each view of a cell, or (N, D) of one view.
        head: Weight (K, D) and bias (K,).

    Returns:
        (N, K), the mean over the views; rows sum to 1.

    Raises:
        ShapeError: The layer takes another number of features.
    """
    views = _as_views(features, head)
    weight, bias = (np.asarray(part, np.float64) for part in head)
    return np.asarray(_softmax(views @ weight.T + bias).mean(axis=1))


def fit_head(
    features: NDArray[np.floating], labels: Labels, head: Head, strength: float
) -> tuple[Float64, Float64]:
    """The layer nearest to the old one that suits these cells; see `fit_heads`."""
    return fit_heads(features, labels, head, [strength])[0]


def fit_heads(
    features: NDArray[np.floating], labels: Labels, head: Head, strengths: Sequence[float]
) -> list[tuple[Float64, Float64]]:
    """The layers nearest to the old one that suit these cells, for several meanings of near.

    Minimises the mean over the classes of the log loss of their cells, so that no class counts
    more by being frequent, plus half of the strength times the squared distance of the weights
    from the old ones, in units in which the cells' features have a variance of 1 in all. Rows of
    classes without a cell stay as they are, bit for bit.

    Args:
        features: (N, V, D) or (N, D).
        labels: (N,), in [0, K).
        head: The layer to begin with, (K, D) and (K,).
        strengths: Above 0; the larger, the nearer to the old weights. The bias is free.

    Returns:
        Weight (K, D) and bias (K,) for each strength.

    Raises:
        ShapeError: The arrays don't fit each other, or a strength that isn't above 0.
    """
    y = np.asarray(labels)
    cells = _as_views(features, head).mean(axis=1)  # (N, D)
    weight, bias = (np.asarray(part, np.float64) for part in head)
    _check(y, cells, weight, strengths)
    there, column = np.unique(y, return_inverse=True)
    share = 1 / np.bincount(column)[column] / len(there)  # (N,) of each cell in the loss
    centre = share @ cells
    places, axes = _find_axes(cells - centre, share)  # (N, M), (M, D)
    before, R, M = cells @ weight.T + bias, len(there), places.shape[1]
    found = []
    moved = np.zeros(R * M + R)
    for strength in strengths:  # each begins where the one before ended
        moved = _minimise(moved, places, before, y, there, share, strength)
        change = moved[: R * M].reshape(R, M) @ axes
        new, shift = weight.copy(), bias.copy()
        new[there] += change
        shift[there] += moved[R * M :] - change @ centre
        found.append((new, shift))
    return found


def _find_axes(away: Float64, share: Float64) -> tuple[Float64, Float64]:
    """Where the cells lie (N, M) along the M directions in which they differ, and these (M, D).

    What they don't differ in can't be learnt from: M < N numbers a class instead of D.
    """
    unit = max(float(np.sqrt(share @ (away**2).sum(axis=1))), 1e-12)
    scaled = away / unit
    squares, vectors = np.linalg.eigh(scaled @ scaled.T)
    kept = squares > NEGLIGIBLE * max(squares[-1], 1e-300)
    places = vectors[:, kept] * np.sqrt(squares[kept])
    return places, places.T @ scaled / squares[kept][:, None] / unit


def _minimise(
    start: Float64,
    places: Float64,
    before: Float64,
    y: Labels,
    there: NDArray[np.integer],
    share: Float64,
    strength: float,
) -> Float64:
    """What is added to weights, along the axes, and to biases: (R M + R,)."""
    from scipy.optimize import minimize

    R, M = len(there), places.shape[1]
    truth = (y[:, None] == np.arange(before.shape[1])).astype(np.float64)

    def lose(moved: Float64) -> tuple[float, Float64]:
        turn, shift = moved[: R * M].reshape(R, M), moved[R * M :]
        scores = before.copy()
        scores[:, there] += places @ turn.T + shift
        scores -= scores.max(axis=1, keepdims=True)
        total = np.log(np.exp(scores).sum(axis=1))
        loss = share @ (total - (scores * truth).sum(axis=1)) + strength / 2 * (turn**2).sum()
        slope = ((np.exp(scores - total[:, None]) - truth) * share[:, None])[:, there]
        return float(loss), np.append(slope.T @ places + strength * turn, slope.sum(axis=0))

    found = minimize(
        lose, start, jac=True, method="L-BFGS-B",
        options={"maxiter": 500, "ftol": 1e-8, "gtol": 1e-5},
    )  # fmt: skip
    return np.asarray(found.x)


def _as_views(features: NDArray[np.floating], head: Head) -> Float64:
    """(N, V, D) float64."""
    views = np.asarray(features, np.float64)
    views = views[:, None] if views.ndim == 2 else views
    if views.ndim != 3 or views.shape[2] != np.shape(head[0])[1]:
        raise ShapeError(
            f"Found features of shape {np.shape(features)} for a last layer of shape "
            f"{np.shape(head[0])}; expected (N, D) or (N, views, D) with the layer's D."
        )
    return views


def _check(y: Labels, cells: Float64, weight: Float64, strengths: Sequence[float]) -> None:
    if not len(y) or len(y) != len(cells) or y.min() < 0 or y.max() >= len(weight):
        raise ShapeError(
            f"Found {len(y)} labels for {len(cells)} cells and {len(weight)} classes; expected a "
            "label for each cell, from 0 to the number of classes less 1, and at least one cell."
        )
    if not np.isfinite(cells).all():
        raise ShapeError("Found features that are NaN or infinite; expected finite numbers.")
    if not all(strength > 0 for strength in strengths):
        raise ShapeError(f"Found the strengths {list(strengths)}; expected numbers above 0.")


def _softmax(scores: Float64) -> Float64:
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))
