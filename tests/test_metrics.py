"""Metrics agree with scikit-learn, with hand-made cases, and with plain repetition of rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leuko.errors import ShapeError, UnknownNameError
from leuko.judgement import metrics
from leuko.judgement.metrics import METRICS, resampled


def draw(seed: int, n: int = 200, K: int = 4, skill: float = 1.5, decimals: int | None = None):
    """Labels of all K classes and softmax probabilities; rounding them makes ties."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), rng.integers(0, K, n - K)])
    p = np.exp(rng.normal(size=(n, K)) + skill * np.eye(K)[y])
    p /= p.sum(axis=1, keepdims=True)
    if decimals is not None:
        p = np.round(p, decimals) + 1e-9
        p /= p.sum(axis=1, keepdims=True)
        p = np.round(p, 6)
        p[:, -1] = 1 - p[:, :-1].sum(axis=1)
        p = np.clip(np.round(p, 6), 0, 1)
    return y, p


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("K", [2, 3, 5])
def test_equal_to_scikit_learn(K, decimals):
    from sklearn.metrics import (
        accuracy_score,
        balanced_accuracy_score,
        confusion_matrix,
        f1_score,
        log_loss,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    y, p = draw(K, K=K, decimals=decimals)
    guess = p.argmax(axis=1)
    assert metrics.accuracy(y, p) == pytest.approx(accuracy_score(y, guess))
    assert metrics.balanced_accuracy(y, p) == pytest.approx(balanced_accuracy_score(y, guess))
    assert metrics.macro_f1(y, p) == pytest.approx(f1_score(y, guess, average="macro"))
    own = [roc_auc_score(y == k, p[:, k]) for k in range(K)]
    assert metrics.auroc(y, p) == pytest.approx(np.mean(own), abs=1e-12)
    if K > 2:
        theirs = roc_auc_score(y, p, multi_class="ovr", average="macro")
        assert metrics.auroc(y, p) == pytest.approx(theirs, abs=1e-12)
    if decimals is None:
        assert metrics.nll(y, p) == pytest.approx(log_loss(y, p))
    assert (metrics.confusion(y, p) == confusion_matrix(y, guess)).all()
    table = metrics.per_class(y, p, "ABCDE"[:K])
    theirs = precision_recall_fscore_support(y, guess, zero_division=0)
    for k, row in enumerate(table.values()):
        found = [row["precision"], row["recall"], row["f1"], row["n"]]
        assert found == pytest.approx([column[k] for column in theirs])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.sampled_from(sorted(METRICS)))
def test_weights_are_the_same_as_repeating_rows(seed, K, metric):
    y, p = draw(seed, n=25, K=K, decimals=1 if seed % 2 else None)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 25)).astype(np.int32)
    weights[:, :K] += 1  # so that each class occurs
    values = resampled(metric, y, p, weights)
    for b in range(3):
        rows = np.repeat(np.arange(25), weights[b])
        assert values[b] == pytest.approx(getattr(metrics, metric)(y[rows], p[rows]), abs=1e-12)


def test_blocks_change_nothing(monkeypatch):
    y, p = draw(1)
    weights = np.random.default_rng(0).integers(0, 3, (50, 200))
    whole = {m: resampled(m, y, p, weights) for m in METRICS}
    monkeypatch.setattr(metrics, "BLOCK", 7 * 200)
    for m in METRICS:
        assert resampled(m, y, p, weights) == pytest.approx(whole[m], abs=1e-12)


def test_a_constant_guess():
    y = np.array([0] * 90 + [1] * 8 + [2] * 2)
    p = np.tile([0.9, 0.08, 0.02], (100, 1))
    assert metrics.accuracy(y, p) == pytest.approx(0.9)
    assert metrics.balanced_accuracy(y, p) == pytest.approx(1 / 3)
    assert metrics.auroc(y, p) == 0.5
    assert metrics.ece(y, p) == pytest.approx(0, abs=1e-12)
    assert metrics.classwise_ece(y, p) == pytest.approx(0, abs=1e-12)
    row = metrics.per_class(y, p, ["a", "b", "c"])["c"]
    assert row == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 2, "predicted": 0}
    json.dumps(row, allow_nan=False)


def test_a_class_that_does_not_occur_is_left_out():
    y, p = np.array([0, 0, 1, 1]), np.eye(3)[[0, 0, 1, 2]]
    assert metrics.balanced_accuracy(y, p) == pytest.approx(0.75)
    assert metrics.macro_f1(y, p) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.auroc(y, p) == pytest.approx((1 + 0.75) / 2)
    assert metrics.per_class(y, p, "abc")["c"]["predicted"] == 1
    with pytest.raises(ShapeError, match="one class only"):
        metrics.auroc(np.zeros(4, int), p)


def test_calibration_by_hand():
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
    assert metrics.ece(y, p) == pytest.approx(0.75 * abs(0.9 - 2 / 3) + 0.25 * 0.3)
    assert metrics.brier(y, p) == pytest.approx((2 * 0.02 + 2 * 0.81 + 2 * 0.09) / 4)
    assert metrics.nll(y, p) == pytest.approx(-np.log([0.9, 0.9, 0.1, 0.7]).mean())
    curve = metrics.reliability_curve(y, p)
    assert curve.count.tolist() == [1, 3]
    assert curve.confidence == pytest.approx([0.7, 0.9])
    assert curve.accuracy == pytest.approx([1, 2 / 3])
    assert curve.lower == pytest.approx([10 / 15, 13 / 15])


def test_certain_answers_stay_finite():
    y, p = np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]])
    assert metrics.nll(y, p) == pytest.approx(-np.log(1e-15) / 2)
    assert metrics.nll(y[1:], p[1:]) == 0
    assert metrics.ece(y, p) == 0.5
    assert metrics.reliability_curve(y, p).upper.tolist() == [1.0]


def test_reliability_limits_are_exact():
    from statsmodels.stats.proportion import proportion_confint

    y, p = draw(3, n=400)
    curve = metrics.reliability_curve(y, p, bins=10)
    assert curve.count.sum() == 400
    hits = np.round(curve.accuracy * curve.count)
    low, high = proportion_confint(hits, curve.count, method="beta")
    assert curve.low == pytest.approx(np.nan_to_num(low, nan=0.0), abs=1e-9)
    assert curve.high == pytest.approx(np.nan_to_num(high, nan=1.0), abs=1e-9)
    assert (curve.low <= curve.accuracy).all()
    assert (curve.high >= curve.accuracy).all()


def test_noise_floor_is_what_a_calibrated_model_shows():
    rng = np.random.default_rng(5)
    p = rng.dirichlet([0.4] * 4, size=300)
    floor = metrics.ece_noise_floor(p, rng=1, n_simulations=2000)
    shown = [
        metrics.ece((p.cumsum(axis=1) < rng.random((300, 1))).sum(axis=1).clip(max=3), p)
        for _ in range(300)
    ]
    assert floor.mean == pytest.approx(np.mean(shown), rel=0.08)
    assert 0.88 <= np.mean(np.array(shown) <= floor.p95) <= 0.99
    assert floor == metrics.ece_noise_floor(p, rng=1, n_simulations=2000)
    sharper = np.exp(np.log(p + 1e-12) * 3)
    sharper /= sharper.sum(axis=1, keepdims=True)
    y = (p.cumsum(axis=1) < rng.random((300, 1))).sum(axis=1).clip(max=3)
    assert metrics.ece(y, sharper) > metrics.ece_noise_floor(sharper, rng=1).p95


@pytest.mark.parametrize(
    ("y", "p", "says"),
    [
        ([0, 1, 0], [[0.5, 0.5]] * 2, r"\(3,\) and probabilities of shape \(2, 2\)"),
        ([0, 2], [[0.5, 0.5]] * 2, "0 to 2 for 2 columns"),
        ([0, -1], [[0.5, 0.5]] * 2, "-1 to 0"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], "1 rows that aren't probabilities; row 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "row 1"),
        ([0, 1], [[-0.5, 1.5], [0.5, 0.5]], "row 0"),
        ([0.0, 1.0], [[0.5, 0.5]] * 2, "float64"),
        ([], np.empty((0, 2)), "no predictions"),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "confusion", "reliability_curve", "nll"])
def test_wrong_input_is_refused(metric, y, p, says):
    y = np.array(y, dtype=int) if len(y) == 0 else np.array(y)
    with pytest.raises(ShapeError, match=says):
        getattr(metrics, metric)(y, np.array(p))


def test_wrong_names_and_weights_are_refused():
    y, p = draw(0, n=10)
    with pytest.raises(UnknownNameError, match="balanced_accuracy"):
        resampled("balanced_acuracy", y, p, np.ones((1, 10)))
    with pytest.raises(ShapeError, match="weights"):
        resampled("accuracy", y, p, np.ones((1, 9)))
    with pytest.raises(ShapeError, match="class names"):
        metrics.per_class(y, p, ["a", "b"])


def test_rows_as_a_float32_network_gives_them_are_taken():
    y, p = draw(0, n=50)
    assert metrics.accuracy(y, p.astype(np.float32)) == metrics.accuracy(y, p)
