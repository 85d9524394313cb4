"""Classifiers that know no morphology: what a network has to beat to have seen a cell.

They see the same pictures, folds and training rows as the networks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BASELINES = ("majority", "colour")


def predict_majority(labels: NDArray[np.int64], classes: int, rows: int) -> NDArray[np.float64]:
    """Always gives the commonest class of the training part, with probability 1.

    Every image gets the same answer, so that the AUROC is exactly 0.5 (where that class is the
    same in all folds). Among equally common classes it is the first.

    Args:
        labels: (N,) of the training part, in [0, K).
        classes: K.
        rows: Images to answer for.

    Returns:
        (rows, K): 1 for that class, 0 for the others.
    """
    commonest = np.bincount(labels, minlength=classes).argmax()
    return np.tile(np.eye(classes)[commonest], (rows, 1))


def predict_colour(
    train: NDArray[np.uint8],
    labels: NDArray[np.int64],
    test: NDArray[np.uint8],
    classes: int,
    *,
    seed: int,
) -> NDArray[np.float64]:
    """A colour histogram and extremely randomised trees.

    Args:
        train: (N, S, S, 3).
        labels: (N,), in [0, K).
        test: (M, S, S, 3).
        classes: K.
        seed: Decides the trees.

    Returns:
        (M, K); rows sum to 1.

    Source: Geurts et al. 2006, doi:10.1007/s10994-006-6226-1.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    trees = ExtraTreesClassifier(
        n_estimators=400, class_weight="balanced", random_state=seed, n_jobs=1
    )
    trees.fit(histogram(train), labels)
    answers = trees.predict_proba(histogram(test))
    probabilities = np.zeros((len(test), classes))
    probabilities[:, trees.classes_] = answers
    return probabilities


def look_up(
    train: NDArray[np.uint8], labels: NDArray[np.int64], test: NDArray[np.uint8], classes: int
) -> NDArray[np.float64]:
    """The label of the training picture with the most similar colours: memory and nothing else.

    Args:
        train: (N, S, S, 3).
        labels: (N,), in [0, K).
        test: (M, S, S, 3).
        classes: K.

    Returns:
        (M, K): 1 for that label, 0 for the others.
    """
    from sklearn.neighbors import KNeighborsClassifier

    # The distance of square roots (Hellinger's) counts rare colours, those of granules, too.
    nearest = KNeighborsClassifier(n_neighbors=1).fit(np.sqrt(histogram(train)), labels)
    said: NDArray[np.int64] = nearest.predict(np.sqrt(histogram(test)))
    return np.eye(classes)[said]


def histogram(cells: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Share of the pixels in each of 8 × 8 × 8 RGB bins: (N, S, S, 3) to (N, 512)."""
    bins = (cells >> 5).astype(np.int64)
    index = bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]
    rows = [np.bincount(i.ravel(), minlength=512) for i in index]
    shares: NDArray[np.float32] = (np.stack(rows) / index[0].size).astype(np.float32)
    return shares
