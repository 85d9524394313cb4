"""What one model said about every image, arranged by repeat, so that models can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leuko.errors import ShapeError
from leuko.judgement.metrics import Float64, IntArray, check_inputs


@dataclass(frozen=True)
class Predictions:
    """What one model said about each image when the image was in the test part.

    Attributes:
        name: The model.
        images: N names.
        groups: N names; images of one group are resampled together.
        y_true: True class indices, (N,).
        probabilities: (R, N, K): one answer per image and repeat.
    """

    name: str
    images: tuple[str, ...]
    groups: tuple[str, ...]
    y_true: IntArray
    probabilities: Float64

    @classmethod
    def from_rows(
        cls,
        name: str,
        images: Sequence[str],
        groups: Sequence[str],
        y_true: IntArray,
        repeats: IntArray,
        probabilities: Float64,
    ) -> Predictions:
        """Arranges rows of ``predictions.parquet`` (any order), one per image and repeat.

        All sequences have N * R entries; probabilities are (N * R, K).

        Raises:
            ShapeError: An image is missing from a repeat, or is there twice, or has two labels
                or groups.
        """
        y, p = check_inputs(y_true, probabilities)
        if not len(images) == len(groups) == len(repeats) == len(y):
            raise ShapeError(
                f"{name}: found {len(images)} images, {len(groups)} groups, {len(repeats)} repeats "
                f"and {len(y)} labels; expected as many of each, one a row."
            )
        order = sorted(range(len(y)), key=lambda i: (int(repeats[i]), images[i]))
        R = len(np.unique(repeats))
        N = len(order) // R
        facts = [(images[i], groups[i], int(y[i])) for i in order]
        keys = facts[:N]  # of the first repeat; the others have to be the same
        if facts != keys * R or len({image for image, _, _ in keys}) != N:
            raise ShapeError(
                f"{name}: the {R} repeats don't hold the same images with the same labels and "
                "groups, each once. Judge a finished study, or finish it with --resume."
            )
        return cls(
            name,
            tuple(k[0] for k in keys),
            tuple(k[1] for k in keys),
            y[order[:N]],
            p[order].reshape(R, N, -1),
        )

    def by_group(self) -> Predictions:
        """One row per group: the mean of its images' answers.

        A group whose images bear several labels has no answer that is right for all, and is left
        out.
        """
        members: dict[str, list[int]] = {}
        for i, group in enumerate(self.groups):
            members.setdefault(group, []).append(i)
        one = {g: rows for g, rows in members.items() if len(set(self.y_true[rows])) == 1}
        names = tuple(one)
        means = [self.probabilities[:, rows].mean(axis=1) for rows in one.values()]  # (R, K) each
        return Predictions(
            self.name, names, names, np.array([self.y_true[rows[0]] for rows in one.values()]),
            np.stack(means, axis=1) if means else self.probabilities[:, :0],
        )  # fmt: skip
