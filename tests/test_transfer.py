"""Home, away and the drop on answers whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from leuko.errors import ShapeError
from leuko.judgement.transfer import METRICS, Side, flatten_transfers, judge_drop, judge_transfer

CLASSES = ("A", "B", "C")  # C is unknown away


def answer(y: np.ndarray, right: float, rng: np.random.Generator, K: int = 3) -> np.ndarray:
    """Probabilities of which a share is right; the others go to any other class."""
    said = np.where(rng.random(len(y)) < right, y, (y + rng.integers(1, K, len(y))) % K)
    p = rng.dirichlet(np.ones(K), len(y)) * 0.4
    p[np.arange(len(y)), said] += 0.6
    return p


def make_side(
    right: float, n: int, seeds: int, rng: np.random.Generator, *, home: bool, most: int = 3
) -> Side:
    """At home each network has images of its own; away all have the same."""
    images, seed, truth, p = [], [], [], []
    fixed = np.arange(n) % most
    for s in range(seeds):
        images += [f"{s if home else ''}-{i}" for i in range(n)]
        seed += [s] * n
        truth.append(fixed)
        p.append(answer(fixed, right, rng))
    return Side.from_rows(images, images, np.concatenate(truth), np.array(seed), np.concatenate(p))


@pytest.fixture(scope="module")
def judged() -> dict:
    rng = np.random.default_rng(0)
    home = make_side(0.95, 90, 3, rng, home=True)
    away = make_side(0.6, 80, 3, rng, home=False, most=2)
    return judge_transfer(home, away, CLASSES, ["A", "B"], seed=0)


def test_the_drop_is_home_minus_away_network_by_network(judged):
    for way in ("forced", "free"):
        for metric in METRICS:
            home, away, drop = (judged[part][way][metric] for part in ("home", "away", "drop"))
            assert drop["value"] == pytest.approx(home["value"] - away["value"])
            for h, a, d in zip(home["seeds"], away["seeds"], drop["seeds"], strict=True):
                assert d == pytest.approx(h - a)
            for part in (home, away, drop):
                assert part["low"] <= part["value"] <= part["high"]
                assert np.mean(part["seeds"]) == pytest.approx(part["value"])
    assert judged["drop"]["free"]["accuracy"]["low"] > 0.2


def test_only_images_of_common_classes_count_on_both_sides(judged):
    assert judged["n_home"] == 3 * 60
    assert judged["n_away"] == 80
    assert judged["classes"] == ["A", "B"]
    assert judged["answers"] == list(CLASSES)
    assert np.sum(judged["confusion"]["away"]["free"]) == 3 * 80
    assert np.shape(judged["confusion"]["away"]["free"]) == (2, 3)
    assert np.shape(judged["confusion"]["home"]["forced"]) == (2, 2)


def test_forced_is_never_less_often_right_than_free(judged):
    for part in ("home", "away"):
        for metric in ("accuracy", "balanced_accuracy"):
            forced, free = (judged[part][way][metric]["seeds"] for way in ("forced", "free"))
            assert all(a >= b for a, b in zip(forced, free, strict=True))
    astray = np.array(judged["confusion"]["away"]["free"])[:, 2].sum()
    assert astray > 0
    assert judged["away"]["forced"]["accuracy"]["value"] > judged["away"]["free"]["accuracy"][
        "value"
    ]  # fmt: skip


def test_recalls_of_the_classes_average_to_the_balanced_accuracy(judged):
    for way in ("forced", "free"):
        for part in ("home", "away"):
            recalls = [judged["per_class"][way][c][part]["value"] for c in ("A", "B")]
            whole = judged[part][way]["balanced_accuracy"]["value"]
            assert np.mean(recalls) == pytest.approx(whole)


def test_forcing_leaves_an_even_guess_where_nothing_was_given_to_the_common_classes():
    p = np.array([[0.0, 0.0, 1.0], [0.2, 0.2, 0.6]])
    side = Side.from_rows(["a", "b"], ["a", "b"], np.array([0, 1]), np.zeros(2, int), p)
    assert side.force([0, 1]).probabilities[0].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_limits_hold_the_true_drop_about_as_often_as_they_say():
    rng, held = np.random.default_rng(1), 0
    for _ in range(40):
        home = make_side(0.9, 60, 1, rng, home=True, most=3)
        away = make_side(0.6, 60, 1, rng, home=False, most=3)
        drop = judge_drop("accuracy", home, away, seed=0)["drop"]
        held += drop["low"] <= 0.3 <= drop["high"]
    assert 34 <= held <= 40


def test_without_any_mistake_the_limit_is_exact_and_the_drop_has_a_width():
    rng = np.random.default_rng(2)
    sides = [make_side(1.0, 30, 1, rng, home=True), make_side(1.0, 40, 1, rng, home=False)]
    told = judge_drop("accuracy", *sides, seed=0)
    assert told["home"]["value"] == 1.0
    assert told["home"]["low"] == pytest.approx(0.025 ** (1 / 30), abs=0.01)
    assert told["drop"]["low"] < 0 < told["drop"]["high"]


def test_one_group_has_no_limits():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    one = Side.from_rows(["a", "b"], ["g", "g"], np.array([0, 1]), np.zeros(2, int), p)
    told = judge_drop("accuracy", one, one, seed=0)
    assert told["drop"] == {"value": 0.0, "low": None, "high": None, "seeds": [0.0]}


def test_no_answers_are_refused():
    with pytest.raises(ShapeError, match="no answers"):
        Side.from_rows([], [], np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)))


def test_the_flat_table_has_every_number_once(judged):
    rows = flatten_transfers([{"train": "x", "test": "y", "model": "m", **judged}])
    assert len(rows) == 2 * (3 + 2)
    keys = {(r["judged"], r["metric"], r["class"]) for r in rows}
    assert len(keys) == len(rows)
    forced = next(r for r in rows if r["judged"] == "forced" and r["metric"] == "accuracy")
    assert forced["drop_high"] == judged["drop"]["forced"]["accuracy"]["high"]
