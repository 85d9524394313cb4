"""Intervals cover, equal models are seldom told apart, different ones nearly always."""

from __future__ import annotations

import json
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from leuko.errors import ShapeError, UnknownNameError
from leuko.judgement import comparison, metrics
from leuko.judgement.comparison import (
    Pair,
    bootstrap_weights,
    choose_best,
    compare_models,
    compare_pair,
    interval,
)
from leuko.judgement.predictions import Predictions
from leuko.judgement.results import judge_model

SHARES = np.array([186, 88, 33, 20]) / 327  # the Kaggle set after cleaning


def answer(right: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Probabilities (..., N, 4) whose highest is the true class where right (..., N) says so."""
    guess = np.where(right, y, (y + rng.integers(1, 4, right.shape)) % 4)
    return 0.1 + 0.6 * np.eye(4)[guess]


def draw(
    chances: dict[str, float],
    seed: int,
    *,
    n: int = 300,
    repeats: int = 1,
    group_size: int = 1,
    training_sd: float = 0.0,
) -> list[Predictions]:
    """Models that are right with the given chances; some images are harder for all of them.

    training_sd moves a whole training run; 0.3 is about five points of accuracy at 0.85.
    """
    rng = np.random.default_rng([17, seed])
    y = rng.choice(4, n, p=SHARES)
    hardness = rng.normal(0, 1, n)
    names = tuple(f"image{i}" for i in range(n))
    groups = tuple(f"group{i // group_size}" for i in range(n))
    models = []
    for name, chance in chances.items():
        run = rng.normal(0, training_sd, (repeats, 1))
        skill = NormalDist().inv_cdf(chance) * np.sqrt(2) + run
        right = hardness + rng.normal(0, 1, (repeats, n)) < skill
        models.append(Predictions(name, names, groups, y, answer(right, y, rng)))
    return models


def singles(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_whole_groups_are_drawn():
    groups = ["a", "b", "a", "c", "c", "c", "d"]
    weights = bootstrap_weights(groups, np.random.default_rng(0), 500)
    assert weights.shape == (500, 7)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [3]] == weights[:, 4:6]).all()
    assert (weights[:, [0, 1, 3, 6]].sum(axis=1) == 4).all(), "as many groups as there were"
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
    renamed = bootstrap_weights(["x" + g for g in groups], np.random.default_rng(0), 500)
    assert (weights == renamed).all()


@pytest.mark.parametrize("group_size", [1, 2])
def test_accuracy_interval_covers(group_size):
    recalls = np.array([0.92, 0.8, 0.75, 0.6])
    truth, covered = float(SHARES @ recalls), 0
    for s in range(400):
        rng = np.random.default_rng([3, s])
        # Images of a group are copies of one another: the hardest case for an interval.
        y = rng.choice(4, 300 // group_size, p=SHARES).repeat(group_size)
        right = (rng.random(300 // group_size) < recalls[y[::group_size]]).repeat(group_size)
        groups = [str(i // group_size) for i in range(300)]
        found = interval("accuracy", y, answer(right, y, rng), groups, rng=s, n_resamples=300)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.975


def test_equal_models_are_seldom_told_apart_and_different_ones_nearly_always():
    def claims(chances: dict[str, float], runs: int) -> list[str]:
        return [
            compare_pair(*draw(chances, s), rng=s, n_resamples=300).verdict for s in range(runs)
        ]

    equal = claims({"a": 0.85, "b": 0.85}, 200)
    assert equal.count("tie") >= 200 - 18, "5 % of 200 and a margin of 2.6 standard errors"
    different = claims({"a": 0.80, "b": 0.95}, 40)
    assert different.count("worse") >= 39


def test_repeats_bring_in_the_variance_of_training():
    def false_claims(repeats: int) -> int:
        models = (
            draw({"a": 0.85, "b": 0.85}, s, repeats=repeats, training_sd=0.3) for s in range(30)
        )
        return sum(compare_pair(*pair, n_resamples=200).verdict != "tie" for pair in models)

    once, five = false_claims(1), false_claims(5)
    assert once >= 5, "one repeat can't know that the training runs differ"
    assert five <= 5


def test_repeats_of_one_image_count_once():
    model = draw({"a": 0.85}, 0)[0]
    y, p, groups = model.y_true, model.probabilities[0], model.groups
    once = interval("accuracy", y, p, groups, rng=1)
    thrice = interval("accuracy", y, np.stack([p, p, p]), groups, rng=1)
    assert thrice == once
    averaged = draw({"a": 0.85}, 0, repeats=3)[0]
    found = interval("accuracy", y, averaged.probabilities, groups, rng=1)
    each = [metrics.accuracy(y, q) for q in averaged.probabilities]
    assert found.value == pytest.approx(np.mean(each))


@pytest.mark.parametrize("metric", sorted(metrics.METRICS))
def test_limits_enclose_the_value_and_stay_in_range(metric):
    model = draw({"a": 0.85}, 4, n=120, repeats=2)[0]
    found = interval(metric, model.y_true, model.probabilities, model.groups, n_resamples=300)
    assert 0 <= found.low < found.value < found.high
    assert found.high <= {"nll": 40, "brier": 2}.get(metric, 1)
    again = interval(metric, model.y_true, model.probabilities, model.groups, n_resamples=300)
    assert found == again
    json.dumps(found.__dict__, allow_nan=False)


def test_calibrated_model_has_its_ece_inside_the_interval():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.4] * 4, 300)
    y = (p.cumsum(axis=1) < rng.random((300, 1))).sum(axis=1).clip(max=3)
    found = interval("ece", y, p, singles(300), n_resamples=500)
    middle = (found.low + found.high) / 2
    assert abs(middle - found.value) < 0.25 * (found.high - found.low), "shifted back"


def test_no_mistakes_is_not_certainty():
    y = np.array([0] * 30 + [1] * 10)
    p = np.eye(2)[y]
    found = interval("accuracy", y, p, singles(40), n_resamples=100)
    assert found == comparison.Interval(1.0, pytest.approx(0.025 ** (1 / 40)), 1.0)
    twins = interval("accuracy", y, p, [str(i // 2) for i in range(40)], n_resamples=100)
    assert twins.low == pytest.approx(0.025 ** (1 / 20))
    balanced = interval("balanced_accuracy", y, p, singles(40), n_resamples=100)
    assert balanced.low == pytest.approx((0.025 ** (1 / 30) + 0.025 ** (1 / 10)) / 2)


def test_nothing_right_is_not_certainty_either():
    y = np.array([0] * 30 + [1] * 10)
    p = np.eye(2)[1 - y]
    edge = pytest.approx(1 - 0.025 ** (1 / 40))
    found = interval("accuracy", y, p, singles(40), n_resamples=100)
    assert found == comparison.Interval(0.0, 0.0, edge)
    twins = interval("accuracy", y, p, [str(i // 2) for i in range(40)], n_resamples=100)
    assert twins.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_one_repeat_of_single_images_is_mcnemars_exact_test():
    from statsmodels.stats.contingency_tables import mcnemar

    for seed in range(5):
        a, b = draw({"a": 0.8, "b": 0.85}, seed, n=150)
        right = [(m.probabilities[0].argmax(axis=1) == m.y_true) for m in (a, b)]
        table = [[np.sum((right[0] == i) & (right[1] == j)) for j in (1, 0)] for i in (1, 0)]
        theirs = mcnemar(table, exact=True).pvalue
        assert compare_pair(a, b, n_resamples=50).p == pytest.approx(theirs, abs=1e-12)


def test_sign_flips_are_counted_exactly():
    for wins in ([3, -1, 2, 0, 2, -1], [1], [5, 5, 5, -1], [0, 0]):
        sums = [abs(np.dot(signs, wins)) for signs in product([-1, 1], repeat=len(wins))]
        expected = np.mean(np.array(sums) >= abs(sum(wins)))
        assert comparison._sign_flip_exact(np.array(wins)) == pytest.approx(expected)


def test_sampled_test_agrees_with_the_exact_one(monkeypatch):
    a, b = draw({"a": 0.8, "b": 0.86}, 3, n=200, repeats=2, group_size=2)
    exact = comparison._sign_flip_exact(comparison._group_wins(a, b))
    sampled = comparison._sign_flip_sampled("accuracy", a, b, np.random.default_rng(0))
    assert sampled == pytest.approx(exact, abs=0.03)
    monkeypatch.setattr(comparison, "FLIPS", 199)
    for metric in ("balanced_accuracy", "macro_f1", "auroc"):
        close = compare_pair(a, a, metric=metric, n_resamples=50)
        assert (close.difference, close.p, close.verdict) == (0, 1, "tie")
        far = compare_pair(*draw({"a": 0.6, "b": 0.95}, 0, n=200), metric=metric, n_resamples=100)
        assert (far.p, far.verdict) == (1 / 200, "worse")


def test_pairs_are_mirrored_and_seeded():
    a, b = draw({"a": 0.75, "b": 0.9}, 1)
    one, other = compare_pair(a, b, rng=5), compare_pair(b, a, rng=5)
    assert (one.difference, one.low, one.high) == pytest.approx(
        (-other.difference, -other.high, -other.low)
    )
    assert one.p == other.p
    assert (one.verdict, other.verdict) == ("worse", "better")
    assert one == compare_pair(a, b, rng=5)


def test_holm_and_all_pairs():
    models = draw({"a": 0.80, "b": 0.86, "c": 0.87, "d": 0.97}, 2)
    pairs = compare_models(models, seed=3, n_resamples=300)
    assert [(p.a, p.b) for p in pairs] == list(map(tuple, ["ab", "ac", "ad", "bc", "bd", "cd"]))
    ordered = sorted(pairs, key=lambda pair: pair.p)
    adjusted = np.maximum.accumulate([(6 - i) * pair.p for i, pair in enumerate(ordered)])
    assert [pair.p_holm for pair in ordered] == pytest.approx(np.minimum(adjusted, 1).tolist())
    for pair in pairs:
        assert (pair.verdict == "tie") == (pair.p_holm >= 0.05 or pair.low <= 0 <= pair.high)
    lifted = [pair for pair in pairs if pair.p < 0.05 <= pair.p_holm]
    assert all(pair.verdict == "tie" for pair in lifted)
    assert compare_models(models[:2], seed=3, n_resamples=300)[0].low == pairs[0].low
    assert compare_models(models[:1]) == []
    keys = {"a", "b", "difference", "low", "high", "p", "p_holm", "verdict"}
    assert keys <= json.loads(json.dumps(pairs[0].to_json(), allow_nan=False)).keys()


def rows(model: Predictions, rng: np.random.Generator) -> dict[str, object]:
    """What the rows of predictions.parquet hold, shuffled."""
    R, N, K = model.probabilities.shape
    order = rng.permutation(R * N)
    return {
        "images": [model.images[i % N] for i in order],
        "groups": [model.groups[i % N] for i in order],
        "y_true": np.tile(model.y_true, R)[order],
        "repeats": np.arange(R).repeat(N)[order],
        "probabilities": model.probabilities.reshape(R * N, K)[order],
    }


def test_rows_in_any_order_are_arranged():
    model = draw({"a": 0.85}, 0, n=30, repeats=3)[0]
    rng = np.random.default_rng(0)
    one, two = (Predictions.from_rows("a", **rows(model, rng)) for _ in range(2))
    assert one.images == two.images == tuple(sorted(model.images))
    assert (one.probabilities == two.probabilities).all()
    i, j = one.images.index("image7"), model.images.index("image7")
    assert (one.probabilities[:, i] == model.probabilities[:, j]).all()
    assert (one.y_true[i], one.groups[i]) == (model.y_true[j], model.groups[j])


def test_a_group_answers_once_by_the_mean_of_its_images():
    y = np.array([0, 0, 1, 1, 0])
    p = np.array([[[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.9, 0.1]]])
    images, groups = tuple("abcde"), ("one", "one", "two", "mixed", "mixed")
    grouped = Predictions("m", images, groups, y, p).by_group()
    assert grouped.images == ("one", "two"), "a group of two labels has no answer right for all"
    assert grouped.y_true.tolist() == [0, 1]
    assert grouped.probabilities[0] == pytest.approx(np.array([[0.65, 0.35], [0.3, 0.7]]))
    judged = judge_model(Predictions("m", images, groups, y, p), ["x", "y"], seed=0)
    assert judged["by_group"]["accuracy"]["value"] == 1
    assert judged["accuracy"]["value"] == pytest.approx(0.8)
    assert judged["by_group"]["n"] == 2
    assert "by_group" not in judge_model(Predictions("m", images, images, y, p), ["x", "y"], seed=0)


def test_incomplete_or_contradictory_rows_are_refused():
    model = draw({"a": 0.85}, 0, n=30, repeats=2)[0]
    whole = rows(model, np.random.default_rng(0))
    short = {k: v[:-1] for k, v in whole.items()}
    with pytest.raises(ShapeError, match="a: the 2 repeats don't hold the same images"):
        Predictions.from_rows("a", **short)
    with pytest.raises(ShapeError, match="each once"):
        Predictions.from_rows("a", **{**whole, "images": ["same"] * 60})
    with pytest.raises(ShapeError, match="60 images, 59 groups"):
        Predictions.from_rows("a", **{**whole, "groups": short["groups"]})


def test_wrong_requests_are_refused():
    a, b = draw({"a": 0.8, "b": 0.9}, 0, n=40)
    with pytest.raises(UnknownNameError, match="Did you mean 'accuracy'"):
        interval("acuracy", a.y_true, a.probabilities, a.groups)
    with pytest.raises(UnknownNameError, match="less of it is better"):
        compare_pair(a, b, metric="nll")
    with pytest.raises(ShapeError, match="a and c weren't judged on the same images"):
        compare_pair(a, draw({"c": 0.8}, 1, n=40)[0])
    with pytest.raises(ShapeError, match="one group"):
        interval("accuracy", a.y_true, a.probabilities, ["g"] * 40)
    with pytest.raises(ShapeError, match="39 groups"):
        interval("accuracy", a.y_true, a.probabilities, a.groups[1:])
    with pytest.raises(ShapeError, match="one class only"):
        interval("auroc", a.y_true * 0, a.probabilities, a.groups)


def pair(a: str, b: str, verdict: str) -> Pair:
    return Pair(a, b, 0.0, -0.1, 0.1, 0.5, 0.5, verdict, "accuracy")


def test_the_cheapest_within_the_tie_is_chosen():
    values = {"resnet18": 0.86, "efficientnet_b0": 0.84, "alexnet": 0.75}
    cost = {"resnet18": (1.8e9, 11e6), "efficientnet_b0": (0.4e9, 4e6), "alexnet": (0.7e9, 57e6)}
    pairs = [
        pair("resnet18", "efficientnet_b0", "tie"),
        pair("alexnet", "resnet18", "worse"),
        pair("efficientnet_b0", "alexnet", "better"),
    ]
    name, rule = choose_best(values, pairs, cost)
    assert name == "efficientnet_b0"
    assert "resnet18 has the highest balanced accuracy (0.860)" in rule
    assert "in accuracy it is not shown to be better than efficientnet_b0" in rule
    assert "can't tell" not in rule
    assert "alexnet" not in rule
    pairs[0] = pair("efficientnet_b0", "resnet18", "worse")
    assert choose_best(values, pairs, cost)[0] == "resnet18"
    pairs[1] = pair("alexnet", "resnet18", "tie")
    assert choose_best(values, pairs, {**cost, "alexnet": (1.8e9, 9e6)})[0] == "alexnet"
    assert choose_best({"alexnet": 0.7}, [], cost)[0] == "alexnet"
    with pytest.raises(ShapeError, match="no comparison of resnet18 and"):
        choose_best(values, pairs[:1], cost)
    with pytest.raises(ShapeError, match="no cost of resnet18"):
        choose_best(values, pairs, {})
