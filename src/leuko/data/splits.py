"""Repeated stratified grouped k-folds that never lose a class and refuse to leak.

Knows labels, groups and image names; knows nothing of pixels, models or files.

Why not scikit-learn's ``StratifiedGroupKFold``: it balances the class shares but doesn't promise
that each fold gets a group of each class, it depends on the order of the rows, and it knows
nothing of several repeats. The assignment here is a short greedy one whose result is checked
before it's returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuko.errors import (
    NoImagesError,
    SettingsError,
    ShapeError,
    SplitLeakError,
    TooFewGroupsError,
)

IntArray = NDArray[np.int64]

# Groups that hold several classes can make one greedy pass end without a class in some fold.
# Another shuffle nearly always helps; the number bounds the time until the error is raised.
ATTEMPTS = 50


@dataclass(frozen=True)
class Split:
    """One fold of one repeat.

    Attributes:
        repeat: From 0.
        fold: From 0.
        train: Row indices of the training part, ascending.
        test: Row indices of the test part, ascending; shares no row and no group with train.
    """

    repeat: int
    fold: int
    train: IntArray
    test: IntArray


def make_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    folds: int,
    repeats: int,
    seed: int,
    images: Sequence[str],
) -> list[Split]:
    """Splits rows into folds, by group, with each class in each fold; several times over.

    Within a repeat each row is in exactly one test part. For a class whose images are groups of
    their own, the folds' counts differ by at most one.

    Args:
        labels: The class of each row, N of them.
        groups: Rows of one group stay on one side; N names. A group may hold several classes.
        folds: At least 2.
        repeats: At least 1. Each repeat shuffles anew; the first r repeats don't depend on how
            many follow.
        seed: At least 0.
        images: The name of each row's image. The folds depend on these names, on the labels and
            on who shares a group; not on the order of the rows nor on how the groups are called.

    Returns:
        ``repeats * folds`` splits, by repeat, then by fold.

    Raises:
        SettingsError: folds, repeats or seed out of range.
        ShapeError: The three sequences differ in length.
        NoImagesError: There are no rows.
        SplitLeakError: Two rows name one image but are in different groups.
        TooFewGroupsError: A class can't be in each fold.
    """
    _check_request(labels, groups, images, folds, repeats, seed)
    order = sorted(range(len(images)), key=lambda i: (images[i], labels[i]))
    index_of_group: dict[str, int] = {}  # numbered by their first image in sorted order
    group_of_row = np.empty(len(images), dtype=np.int64)  # (N,)
    for i in order:
        group_of_row[i] = index_of_group.setdefault(groups[i], len(index_of_group))
    classes, class_of_row = np.unique(np.asarray(list(labels), dtype=str), return_inverse=True)
    counts = np.zeros((len(index_of_group), len(classes)), dtype=np.int64)  # (G, K)
    np.add.at(counts, (group_of_row, class_of_row), 1)

    _check_group_numbers(counts, [str(c) for c in classes], folds, seed)
    splits = []
    for repeat in range(repeats):
        fold_of_group = _assign(counts, folds, np.random.default_rng([seed, repeat]))
        if fold_of_group is None:
            raise _mixed_groups_error(counts, [str(c) for c in classes], folds, seed)
        fold_of_row = fold_of_group[group_of_row]
        for fold in range(folds):
            test = fold_of_row == fold
            splits.append(Split(repeat, fold, np.flatnonzero(~test), np.flatnonzero(test)))
    check_splits(splits, groups, images)
    return splits


def check_splits(splits: Sequence[Split], groups: Sequence[str], images: Sequence[str]) -> None:
    """Raises unless each split keeps every image and every group on one side.

    Args:
        splits: From `make_splits`, from a file, or from a set that brings its own split.
        groups: N names.
        images: N names.

    Raises:
        SplitLeakError: Names two images of one group (or the image) that are on both sides.
        ShapeError: groups and images differ in length, or a row index is out of range.
    """
    if len(groups) != len(images):
        raise ShapeError(
            f"Found {len(groups)} groups for {len(images)} images; expected one group an image."
        )
    for split in splits:
        rows = np.concatenate([split.train, split.test])
        if rows.size and (rows.min() < 0 or rows.max() >= len(images)):
            raise ShapeError(
                f"Repeat {split.repeat}, fold {split.fold} has a row outside 0 to "
                f"{len(images) - 1}. Make the splits from the same table as the images."
            )
        trained_image = {images[i]: int(i) for i in split.train}
        trained_group = {groups[i]: int(i) for i in split.train}
        for i in split.test:
            if images[i] in trained_image:
                raise SplitLeakError(
                    f"{images[i]} is both in the training part and in the test part of repeat "
                    f"{split.repeat}, fold {split.fold}. Split by group: "
                    "leuko.data.splits.make_splits(labels, groups, ...)."
                )
            if groups[i] in trained_group:
                raise _leak_error(splits, split, trained_group[groups[i]], int(i), groups, images)


def _check_request(
    labels: Sequence[str],
    groups: Sequence[str],
    images: Sequence[str],
    folds: int,
    repeats: int,
    seed: int,
) -> None:
    settings: Mapping[str, tuple[int, int]] = {
        "folds": (folds, 2),
        "repeats": (repeats, 1),
        "seed": (seed, 0),
    }
    for name, (value, least) in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise SettingsError(
                f"{name} is {value!r}; expected a whole number of at least {least}. "
                f"Set {name} to {least} or more."
            )
    if not len(labels) == len(groups) == len(images):
        raise ShapeError(
            f"Found {len(labels)} labels, {len(groups)} groups and {len(images)} images; "
            "expected as many of each, one a row."
        )
    if not len(labels):
        raise NoImagesError(
            "Found no images to split; expected labelled ones. Check what cleaning dropped."
        )
    group_of_image: dict[str, str] = {}
    for image, group in zip(images, groups, strict=True):
        if group_of_image.setdefault(image, group) != group:
            raise SplitLeakError(
                f"{image} is named by two rows with different groups, {group_of_image[image]} "
                f"and {group}. Give both rows one group, or drop one of them."
            )


def _check_group_numbers(counts: IntArray, classes: list[str], folds: int, seed: int) -> None:
    """Raises TooFewGroupsError if a class (counts: (G, K)) has fewer groups than folds."""
    groups_per_class = (counts > 0).sum(axis=0)  # (K,)
    if groups_per_class.min() >= folds:
        return
    rarest = int(groups_per_class.argmin())
    n = int(groups_per_class[rarest])
    raise TooFewGroupsError(
        f"Class {classes[rarest]} has {n} group{'s' if n != 1 else ''} of images; {folds} folds "
        f"need at least {folds}, one for each fold. "
        + _advise(_largest_folds(counts, min(n, folds), seed))
    )


def _mixed_groups_error(
    counts: IntArray, classes: list[str], folds: int, seed: int
) -> TooFewGroupsError:
    """Enough groups of each class, but some hold several classes, and no assignment was found."""
    mixed = (counts > 0).sum(axis=1) > 1
    groups_per_class = np.where(
        counts[mixed].sum(axis=0) > 0, (counts > 0).sum(axis=0), len(counts) + 1
    )
    tightest = int(groups_per_class.argmin())
    return TooFewGroupsError(
        f"Class {classes[tightest]} has {int(groups_per_class[tightest])} groups of images, but "
        f"groups that hold several classes ({int(mixed.sum())} of them) leave no way to have each "
        f"class in each of {folds} folds. " + _advise(_largest_folds(counts, folds - 1, seed))
    )


def _advise(largest: int) -> str:
    if largest < 2:
        return (
            "No number of folds works: 2 folds need 2 groups. Add images of the class, or drop it."
        )
    return (
        f"The largest number of folds that works is {largest}. Set folds to {largest}, "
        "add images of the class, or drop it."
    )


def _largest_folds(counts: IntArray, most: int, seed: int) -> int:
    """The largest number of folds, at most `most`, for which an assignment is found; else 0."""
    for folds in range(most, 1, -1):
        if _assign(counts, folds, np.random.default_rng([seed, 0])) is not None:
            return folds
    return 0


def _assign(counts: IntArray, folds: int, rng: np.random.Generator) -> IntArray | None:
    """Gives each group a fold so that each class is in each fold; None if no way was found."""
    for _ in range(ATTEMPTS):
        fold_of_group = _assign_once(counts, folds, rng)
        present = np.zeros((folds, counts.shape[1]), dtype=np.int64)  # (F, K)
        np.add.at(present, fold_of_group, counts)
        if (present > 0).all():
            return fold_of_group
        if not ((counts > 0).sum(axis=1) > 1).any():
            return None  # without mixed groups a pass fails only if there are too few groups
    return None


def _assign_once(counts: IntArray, folds: int, rng: np.random.Generator) -> IntArray:
    """One greedy pass over shuffled groups; counts is (G, K), the result (G,) in [0, folds).

    The rarest class goes first, because its groups have the fewest places to choose from; within
    a class the largest group goes first, because small ones can even out what it unbalances.
    Each group goes to the fold with the fewest images of its class: an empty fold is therefore
    always filled before a second group is added anywhere, which keeps rare classes in each fold.
    """
    n_groups, n_classes = counts.shape
    fold_of_group = np.full(n_groups, -1, dtype=np.int64)
    shuffled = rng.permutation(n_groups)
    in_fold = [[0] * n_classes for _ in range(folds)]  # images, (F, K)
    totals = [0] * folds
    rank = [int(r) for r in rng.permutation(folds)]  # so that ties don't favour fold 0
    groups_per_class = (counts > 0).sum(axis=0)
    for k in np.argsort(groups_per_class, kind="stable"):
        members = shuffled[(counts[shuffled, k] > 0) & (fold_of_group[shuffled] < 0)]
        members = members[np.argsort(-counts[members].sum(axis=1), kind="stable")]
        for g in members:
            row = [int(c) for c in counts[g]]
            others = [j for j, c in enumerate(row) if c and j != k]

            def need(f: int, k: int = int(k), others: list[int] = others) -> tuple[int, ...]:
                # Other classes of a mixed group come second: the fold that lacks them most.
                return (in_fold[f][k], sum(in_fold[f][j] for j in others), totals[f], rank[f])

            best = min(range(folds), key=need)
            fold_of_group[g] = best
            in_fold[best] = [a + b for a, b in zip(in_fold[best], row, strict=True)]
            totals[best] += sum(row)
    return fold_of_group


def _leak_error(
    splits: Sequence[Split],
    split: Split,
    trained: int,
    tested: int,
    groups: Sequence[str],
    images: Sequence[str],
) -> SplitLeakError:
    """Says where two rows of one group ended up: in two folds, or in train and test."""
    where = f"in the training part and in the test part of repeat {split.repeat}, fold {split.fold}"
    for other in splits:
        if other.repeat == split.repeat and trained in other.test:
            first, second = sorted([other.fold, split.fold])
            where = f"in fold {first} and fold {second} of repeat {split.repeat}"
            break
    names = sorted([images[trained], images[tested]])
    return SplitLeakError(
        f"{names[0]} and {names[1]} belong to one group ({groups[tested]}: the same cell, source "
        f"or slide), but are {where}. Split by group: "
        "leuko.data.splits.make_splits(labels, groups, ...)."
    )
