"""Calibration on made answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from leuko.errors import ShapeError
from leuko.judgement.calibration import (
    apply_temperature,
    cross_calibrate,
    find_sets,
    fit_temperature,
    fit_thresholds,
)
from leuko.judgement.metrics import ece, nll


def draw(n: int, seed: int = 0, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities themselves: calibrated by construction."""
    rng = np.random.default_rng(seed)
    p = np.exp(spread * rng.normal(size=(n, 4)))
    p /= p.sum(axis=1, keepdims=True)
    return np.array([rng.choice(4, p=row) for row in p]), p


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(true: float):
    y, p = draw(8000)
    distorted = apply_temperature(p, 1 / true)
    assert fit_temperature(y, distorted) == pytest.approx(true, rel=0.06)


def test_a_temperature_lowers_the_loss_and_the_calibration_error_and_keeps_the_order():
    y, p = draw(4000)
    sure = apply_temperature(p, 0.4)
    calibrated = apply_temperature(sure, fit_temperature(y, sure))
    assert nll(y, calibrated) < nll(y, sure)
    assert ece(y, calibrated) < 0.5 * ece(y, sure)
    assert np.array_equal(calibrated.argmax(1), sure.argmax(1))
    assert np.abs(calibrated.sum(1) - 1).max() < 1e-12


def test_certain_answers_and_exact_zeros_stay_finite():
    p = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(apply_temperature(p, 3.0)).all()
    assert np.isfinite(fit_temperature(np.array([0, 1, 1]), p))


def test_a_threshold_is_the_order_statistic_that_the_definition_names():
    own = np.arange(1, 20) / 20  # 19 cells: floor(20 × 0.1) = 2nd smallest
    p = np.stack([own, 1 - own], axis=1)
    y = np.zeros(19, np.int64)
    assert fit_thresholds(y, p, 0.9).tolist() == [0.1, 0.0]


def test_too_few_cells_leave_a_class_in_every_set():
    y, p = np.array([0] * 18 + [1] * 18), np.tile([[0.7, 0.3]], (36, 1))
    assert fit_thresholds(y, p, 0.95).tolist() == [0.0, 0.0]
    assert find_sets(p, np.array([0.0, 0.5])).tolist() == [[True, False]] * 36


def test_each_class_has_its_coverage_whatever_the_model_is_worth():
    """Mean over 40 draws of the share of cells with their class in the set, for each class."""
    held = []
    for seed in range(40):
        y, p = draw(600, seed)
        wrong = p[:, [0, 2, 1, 3]]  # a model that mixes up two classes
        thresholds = fit_thresholds(y[:300], wrong[:300], 0.9)
        sets = find_sets(wrong[300:], thresholds)
        right = sets[np.arange(300), y[300:]]
        held.append([right[y[300:] == k].mean() for k in range(4)])
    coverage = np.mean(held, axis=0)  # its standard error is below 0.01
    assert (coverage > 0.88).all()
    assert (coverage < 0.94).all()


def test_cross_calibration_uses_no_part_for_itself():
    y, p = draw(400)
    parts = np.arange(400) % 4
    calibrated, sets = cross_calibrate(y, p, parts, 0.9)
    changed = y.copy()
    changed[parts == 2] = 0  # labels of a part don't change its own answers
    again, sets_again = cross_calibrate(changed, p, parts, 0.9)
    own = parts == 2
    assert np.array_equal(calibrated[own], again[own])
    assert np.array_equal(sets[own], sets_again[own])
    assert not np.array_equal(calibrated[~own], again[~own])


def test_what_cannot_be_calibrated_is_refused():
    y, p = draw(10)
    with pytest.raises(ShapeError, match="two or more"):
        cross_calibrate(y, p, np.zeros(10, int))
    with pytest.raises(ShapeError, match="between 0 and 1"):
        fit_thresholds(y, p, 1.0)
