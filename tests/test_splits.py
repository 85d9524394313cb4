"""Splits: each image tested once, groups whole, classes everywhere, whatever the row order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leuko.data.splits import Split, check_splits, make_splits
from leuko.errors import (
    NoImagesError,
    SettingsError,
    ShapeError,
    SplitLeakError,
    TooFewGroupsError,
)


@st.composite
def tables(draw):
    """Labels, groups, image names and folds for which a split exists; groups of one class."""
    folds = draw(st.integers(2, 6))
    labels, groups, images = [], [], []
    for k in range(draw(st.integers(1, 5))):
        for g in range(draw(st.integers(folds, 14))):
            for _ in range(draw(st.integers(1, 4))):
                labels.append("ABCDE"[k])
                groups.append(f"{k}/{g}")
                images.append(f"image{len(images):04d}")
    order = draw(st.randoms(use_true_random=False)).sample(range(len(images)), len(images))
    return [labels[i] for i in order], [groups[i] for i in order], [images[i] for i in order], folds


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(0, 5))
def test_each_image_is_tested_once_and_groups_and_classes_stay_whole(table, seed):
    labels, groups, images, folds = table
    splits = make_splits(labels, groups, folds=folds, repeats=2, seed=seed, images=images)
    assert [(s.repeat, s.fold) for s in splits] == [(r, f) for r in (0, 1) for f in range(folds)]
    everything = set(range(len(images)))
    for repeat in (0, 1):
        tested = np.concatenate([s.test for s in splits if s.repeat == repeat])
        assert sorted(tested.tolist()) == sorted(everything)
    for s in splits:
        assert set(s.train.tolist()) == everything - set(s.test.tolist())
        assert not {groups[i] for i in s.train} & {groups[i] for i in s.test}
        assert {labels[i] for i in s.train} == {labels[i] for i in s.test} == set(labels)


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(0, 5))
def test_classes_are_balanced_to_within_the_largest_group(table, seed):
    labels, groups, images, folds = table
    largest = {
        c: max(Counter(g for g, k in zip(groups, labels, strict=True) if k == c).values())
        for c in set(labels)
    }
    splits = make_splits(labels, groups, folds=folds, repeats=1, seed=seed, images=images)
    for c in set(labels):
        in_fold = [sum(labels[i] == c for i in s.test) for s in splits]
        assert max(in_fold) - min(in_fold) <= largest[c]


@settings(max_examples=25, deadline=None)
@given(tables(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_row_order_and_group_names_change_nothing(table, seed, random):
    labels, groups, images, folds = table
    first = make_splits(labels, groups, folds=folds, repeats=2, seed=seed, images=images)
    order = random.sample(range(len(images)), len(images))
    second = make_splits(
        [labels[i] for i in order],
        ["renamed " + groups[i][::-1] for i in order],
        folds=folds,
        repeats=2,
        seed=seed,
        images=[images[i] for i in order],
    )
    for a, b in zip(first, second, strict=True):
        assert {images[i] for i in a.test} == {images[order[i]] for i in b.test}
        assert (np.diff(b.test) > 0).all()
        assert (np.diff(b.train) > 0).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_groups_of_mixed_classes_either_work_or_are_refused(data):
    n = data.draw(st.integers(8, 40))
    labels = [data.draw(st.sampled_from("ABC")) for _ in range(n)]
    groups = [str(data.draw(st.integers(0, 15))) for _ in range(n)]
    images = [f"{i:03d}" for i in range(n)]
    folds = data.draw(st.integers(2, 4))
    try:
        splits = make_splits(labels, groups, folds=folds, repeats=1, seed=0, images=images)
    except TooFewGroupsError as error:
        message = str(error)
        if "No number of folds" not in message:
            largest = int(message.split("works is ")[1].split(".")[0])
            assert 2 <= largest < folds
            make_splits(labels, groups, folds=largest, repeats=1, seed=0, images=images)
        return
    for s in splits:
        assert {labels[i] for i in s.test} == {labels[i] for i in s.train} == set(labels)
        assert not {groups[i] for i in s.train} & {groups[i] for i in s.test}


def kaggle_like(seed: int = 0):
    labels = ["N"] * 186 + ["E"] * 88 + ["L"] * 33 + ["M"] * 20
    images = [f"BloodImage_{i:05d}" for i in range(len(labels))]
    return labels, list(images), images


def test_folds_of_single_images_differ_by_one_at_most_in_each_class_and_in_all():
    labels, groups, images = kaggle_like()
    for s in (splits := make_splits(labels, groups, folds=5, repeats=3, seed=1, images=images)):
        assert 65 <= len(s.test) <= 66
        counts = Counter(labels[i] for i in s.test)
        assert counts["M"] == 4
        assert counts["L"] in (6, 7)
        assert counts["N"] in (37, 38)
    assert set(splits[0].test.tolist()) != set(splits[5].test.tolist()), "repeats shuffle anew"


def test_twins_under_two_labels_stay_together():
    labels, groups, images = kaggle_like()
    groups[10] = groups[200] = "twins"  # a neutrophil and an eosinophil
    groups[300] = groups[320] = "others"
    for s in make_splits(labels, groups, folds=20, repeats=2, seed=0, images=images):
        assert (10 in s.test) == (200 in s.test)
        assert (300 in s.test) == (320 in s.test)
        assert {labels[i] for i in s.test} == set("NELM")


def test_seed_decides_and_later_repeats_leave_earlier_ones_alone():
    labels, groups, images = kaggle_like()

    def tests(repeats: int, seed: int) -> list[list[int]]:
        splits = make_splits(labels, groups, folds=5, repeats=repeats, seed=seed, images=images)
        return [s.test.tolist() for s in splits]

    assert tests(1, 4) == tests(1, 4) == tests(3, 4)[:5]
    assert tests(1, 4) != tests(1, 5)


def test_too_few_groups_names_class_number_and_largest_number_of_folds():
    labels = ["N"] * 10 + ["BASOPHIL"] * 4
    groups = [str(i) for i in range(12)] + ["11", "11"]  # 4 images of 2 cells
    images = [str(i) for i in range(14)]
    with pytest.raises(TooFewGroupsError, match=r"BASOPHIL has 2 groups.*works is 2\. Set folds"):
        make_splits(labels, groups, folds=5, repeats=1, seed=0, images=images)
    groups[10] = "11"
    with pytest.raises(TooFewGroupsError, match=r"BASOPHIL has 1 group .*No number of folds works"):
        make_splits(labels, groups, folds=2, repeats=1, seed=0, images=images)


def test_mixed_groups_that_leave_no_way_are_refused():
    # Each pair of classes shares a group: three groups would have to lie in different folds of two.
    with pytest.raises(TooFewGroupsError, match="several classes"):
        make_splits("ABBCCA", "112233", folds=2, repeats=1, seed=0, images="uvwxyz")


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"repeats": 0}, {"seed": -1}, {"folds": 2.5}])
def test_wrong_settings(wrong):
    name = next(iter(wrong))
    with pytest.raises(SettingsError, match=name):
        make_splits("AB", "12", images="xy", **{"folds": 2, "repeats": 1, "seed": 0, **wrong})


def test_wrong_tables():
    with pytest.raises(ShapeError, match="3 labels, 2 groups and 2 images"):
        make_splits("ABB", "12", images="xy", folds=2, repeats=1, seed=0)
    with pytest.raises(NoImagesError):
        make_splits([], [], images=[], folds=2, repeats=1, seed=0)
    with pytest.raises(SplitLeakError, match="x is named by two rows"):
        make_splits("AABB", "1234", images="xxyz", folds=2, repeats=1, seed=0)


def test_check_names_the_two_images_and_their_folds():
    images = ["BloodImage_00224", "BloodImage_00264", "c", "d"]
    a, b = np.array([0, 2]), np.array([1, 3])
    halves = [Split(0, 0, a, b), Split(0, 1, b, a)]
    check_splits(halves, ["1", "2", "3", "4"], images)
    with pytest.raises(
        SplitLeakError,
        match=r"BloodImage_00224 and BloodImage_00264 .*in fold 0 and fold 1 of repeat 0",
    ):
        check_splits(halves, ["1", "1", "3", "4"], images)
    with pytest.raises(SplitLeakError, match="in the training part and in the test part"):
        check_splits(halves[:1], ["1", "1", "3", "4"], images)
    with pytest.raises(SplitLeakError, match="c is both in"):
        check_splits(halves, ["1", "2", "3", "4"], ["a", "c", "c", "d"])
    with pytest.raises(ShapeError, match="outside 0 to 3"):
        check_splits([Split(0, 0, a, np.array([4]))], ["1", "2", "3", "4"], images)
