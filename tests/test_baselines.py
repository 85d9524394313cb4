"""The classifiers that know no morphology answer as they are described."""

from __future__ import annotations

import numpy as np
import pytest

from leuko.judgement.metrics import auroc
from leuko.learning.baselines import predict_colour, predict_majority


def test_majority_always_gives_the_commonest_class() -> None:
    answers = predict_majority(np.array([2, 0, 2, 1]), 4, 3)
    assert answers.tolist() == [[0, 0, 1, 0]] * 3
    assert predict_majority(np.array([1, 0]), 2, 1).tolist() == [[1, 0]]
    assert auroc(np.array([0, 1, 2]), answers) == 0.5


def test_colour_tells_colours_and_leaves_out_what_it_never_saw() -> None:
    cells = np.zeros((12, 4, 4, 3), np.uint8)
    cells[6:, ..., 0] = 200
    labels = np.repeat([0, 2], 6)
    answers = predict_colour(cells, labels, cells[::6], 3, seed=0)
    assert answers.argmax(axis=1).tolist() == [0, 2]
    assert answers[:, 1].tolist() == [0, 0]
    assert answers.sum(axis=1) == pytest.approx(1)
