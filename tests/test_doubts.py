"""Wrong labels are found, right ones left alone, and silence is explained."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from leuko.data.cuts import cut_cell
from leuko.data.drawing import draw_field
from leuko.data.leukocytes import Leukocyte
from leuko.data.portraits import describe_cell
from leuko.errors import SettingsError, ShapeError
from leuko.learning.doubts import Doubts, find_doubts

CLASSES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE")


def scatter(count: int, seed: int, apart: float = 6.0) -> tuple[NDArray[np.float64], list[str]]:
    """count points a class, the classes `apart` deviations from each other, as 60 numbers each."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(3), count)
    hidden = rng.normal(size=(3 * count, 6))
    hidden[:, :3] += apart / np.sqrt(2) * np.eye(3)[truth]
    features = hidden @ rng.normal(size=(6, 60)) + rng.normal(size=(3 * count, 60))
    return features, [CLASSES[k] for k in truth]


def swap(labels: list[str], rows: NDArray[np.int64]) -> list[str]:
    swapped = list(labels)
    for row in rows:
        swapped[row] = CLASSES[(CLASSES.index(labels[row]) + 1) % 3]
    return swapped


def doubt(features, labels, groups=None, **settings) -> Doubts:
    groups = [f"g{i}" for i in range(len(labels))] if groups is None else groups
    return find_doubts(features, labels, groups, **{"seed": 0} | settings)


@pytest.fixture(scope="module")
def planted() -> tuple[NDArray[np.float64], list[str], list[str], NDArray[np.int64]]:
    features, truth = scatter(100, seed=1)
    rows = np.random.default_rng(2).choice(300, 18, replace=False)
    return features, truth, swap(truth, rows), np.sort(rows)


def test_finds_the_planted_errors_and_says_what_they_are(planted):
    features, truth, labels, rows = planted
    doubts = doubt(features, labels)
    flagged = np.flatnonzero(doubts.flagged)
    assert len(set(flagged) & set(rows)) >= 17
    assert len(set(flagged) - set(rows)) <= 1
    suggested = [doubts.classes[k] for k in doubts.suggested[flagged]]
    assert suggested == [truth[i] for i in flagged]
    assert doubts.score[rows].mean() > 0.9
    assert np.delete(doubts.score, rows).max() < doubts.score[rows].max()
    assert doubts.wrong is not None
    assert doubts.wrong.low <= 18 / 300 <= doubts.wrong.high
    assert doubts.wrong.high - doubts.wrong.low < 0.1


def test_its_numbers_keep_their_ranges(planted):
    features, _, labels, _ = planted
    doubts = doubt(features, labels)
    assert doubts.classes == CLASSES
    assert [doubts.classes[k] for k in doubts.given] == labels
    assert np.allclose(doubts.probabilities.sum(axis=1), 1)
    assert doubts.score.min() >= 0
    assert doubts.score.max() <= 1
    assert doubts.judged.all()
    assert doubts.reason == ""


@pytest.mark.parametrize("apart", [2.0, 3.0, 6.0])
def test_right_labels_are_not_flagged_however_hard_the_classes_are(apart: float):
    flags = [doubt(*scatter(60, seed=seed, apart=apart)).flagged.sum() for seed in range(3)]
    assert sum(flags) <= 2  # of 540


def draw_portrait(kind: str, seed: int) -> NDArray[np.float32]:
    field = draw_field(np.random.default_rng(seed), [kind], height=300, width=300, centred=True)
    return describe_cell(
        cut_cell(field.image, Leukocyte(60, 60, 240, 240, score=1, scale=14.0), 64, light="given")
    )


def test_drawn_cells_raise_no_doubt_until_labels_are_swapped():
    labels = [CLASSES[k] for k in range(3) for _ in range(20)]
    portraits = np.stack([draw_portrait(label, seed) for seed, label in enumerate(labels)])
    assert not doubt(portraits, labels).flagged.any()
    rows = np.array([3, 27, 49])
    doubts = doubt(portraits, swap(labels, rows))
    assert doubts.flagged[rows].sum() >= 2
    assert doubts.flagged.sum() <= 3


def test_a_copy_in_the_same_group_is_no_witness():
    features, truth = scatter(60, seed=3)
    rng = np.random.default_rng(4)
    rows = rng.choice(180, 8, replace=False)
    labels = swap(truth, rows)
    of = np.concatenate([np.arange(180), np.repeat(rows, 3)])  # each wrong one is there 4 times
    copies = features[of] + rng.normal(0, 0.05, (len(of), features.shape[1]))
    copied = [labels[i] for i in of]
    wrong = np.isin(of, rows)
    together = doubt(copies, copied, [f"cell{i}" for i in of])
    apart = doubt(copies, copied)
    assert together.flagged[wrong].mean() > 0.9
    assert apart.flagged[wrong].mean() < 0.3


def test_says_the_same_on_any_number_of_threads_and_something_else_for_another_seed(planted):
    features, _, labels, _ = planted
    first, other = doubt(features, labels), doubt(features, labels, seed=1)
    with threadpool_limits(limits=4):
        again = doubt(features, labels)
    assert np.array_equal(first.probabilities, again.probabilities)
    assert first.wrong == again.wrong
    assert not np.array_equal(first.probabilities, other.probabilities)


def test_a_class_that_is_too_small_is_left_out_and_the_others_are_judged(planted):
    features, _, labels, rows = planted
    labels = [*labels, *["BASOPHIL"] * 4]
    features = np.concatenate([features, np.full((4, features.shape[1]), 3.0)])
    doubts = doubt(features, labels)
    assert doubts.left_out == {"BASOPHIL": "4 images; at least 5 are needed."}
    assert not doubts.judged[-4:].any()
    assert not doubts.flagged[-4:].any()
    assert np.isnan(doubts.probabilities[-4:]).all()
    assert (doubts.probabilities[:-4, 0] == 0).all()
    assert doubts.flagged[rows].mean() > 0.8


def test_a_class_of_one_group_is_left_out(planted):
    features, _, labels, _ = planted
    groups = ["one" if label == "MONOCYTE" else f"g{i}" for i, label in enumerate(labels)]
    doubts = doubt(features, labels, groups)
    assert set(doubts.left_out) == {"MONOCYTE"}
    assert not doubts.judged[[label == "MONOCYTE" for label in labels]].any()


def test_uses_fewer_folds_where_a_class_has_fewer_groups(planted):
    features, _, labels, rows = planted
    slides = [f"{label} {i % 2}" for i, label in enumerate(labels)]  # two groups a class
    doubts = doubt(features, labels, slides)
    assert doubts.judged.all()
    assert doubts.flagged[rows].mean() > 0.8


def test_groups_that_leave_no_way_to_split_are_a_reason():
    features, labels = scatter(20, seed=5)
    pairs = {
        "EOSINOPHIL": "ab",
        "LYMPHOCYTE": "bc",
        "MONOCYTE": "ca",
    }  # a fold of one lacks a class
    groups = [pairs[label][i % 2] for i, label in enumerate(labels)]
    doubts = doubt(features, labels, groups)
    assert "no way to split" in doubts.reason
    assert not doubts.flagged.any()


@pytest.mark.parametrize(
    ("count", "keep", "reason"),
    [
        (9, CLASSES, "27 images can be judged; at least 30"),
        (60, CLASSES[:1], "Only EOSINOPHIL has enough images"),
        (4, CLASSES, "0 images can be judged"),
        (0, CLASSES, "0 images can be judged"),
    ],
)
def test_has_no_opinion_on_too_little(count: int, keep: tuple[str, ...], reason: str):
    features, labels = scatter(count, seed=6)
    rows = [i for i, label in enumerate(labels) if label in keep]
    doubts = doubt(features[rows], [labels[i] for i in rows])
    assert reason in doubts.reason
    assert doubts.wrong is None
    assert not doubts.flagged.any()
    assert not doubts.judged.any()
    assert doubts.score.shape == (len(rows),)


def test_has_no_opinion_where_the_features_say_nothing():
    features = np.random.default_rng(7).normal(size=(200, 12))
    labels = ["LYMPHOCYTE" if i % 10 else "MONOCYTE" for i in range(200)]
    doubts = doubt(features, labels)
    assert "commonest class" in doubts.reason
    assert not doubts.flagged.any()


def test_has_no_opinion_where_the_models_are_often_wrong():
    doubts = doubt(*scatter(60, seed=8, apart=1.0))
    assert "at least 80%" in doubts.reason
    assert not doubts.flagged.any()


def test_a_number_that_is_the_same_for_all_cells_does_no_harm(planted):
    features, _, labels, rows = planted
    doubts = doubt(np.hstack([features, np.full((300, 2), 7.0)]), labels)
    assert doubts.flagged[rows].mean() > 0.8


def test_says_what_is_wrong_with_what_it_was_given(planted):
    features, _, labels, _ = planted
    with pytest.raises(ShapeError, match="300 labels and 299 groups"):
        doubt(features, labels, ["a"] * 299)
    broken = features.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ShapeError, match="Row 7"):
        doubt(broken, labels)
    with pytest.raises(SettingsError, match="folds is 1"):
        doubt(features, labels, folds=1)
    with pytest.raises(SettingsError, match="seed is -1"):
        doubt(features, labels, seed=-1)
