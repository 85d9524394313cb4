"""Second opinions: agreement, disputes, the share of wrong labels, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from leuko.data.decisions import read_decisions, write_decisions
from leuko.data.manifest import SCHEMA, Manifest
from leuko.errors import ShapeError
from leuko.judgement.second_opinion import describe_disputes, hear_opinions
from leuko.learning.noise import bound_share, fit_noise
from leuko.learning.opinions import (
    ALL,
    SHARPNESS,
    Labels,
    Opinion,
    agree,
    collect_own,
    judge_opinion,
    list_cases,
    read_labels,
    translate_foreign,
)

CLASSES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
PRIOR = np.array([0.27, 0.1, 0.06, 0.57])


def answer(
    truth: NDArray[np.int64], seed: int, skill: float = 3.0, flat: float = 1.0
) -> NDArray[np.float64]:
    """Answers whose true calibration is known: the posterior of normal scores, flattened."""
    noise = np.random.default_rng([seed, 1]).normal(size=(len(truth), 4))
    logits = flat * (skill * (noise + skill * np.eye(4)[truth]) + np.log(PRIOR))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def draw(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What cells are, and their labels, of which a share is wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, count, p=PRIOR)
    wrong = rng.random(count) < share
    return truth, np.where(wrong, (truth + rng.integers(1, 4, count)) % 4, truth)


def label(given: NDArray[np.int64]) -> Labels:
    names = tuple(f"i{i:04}" for i in range(len(given)))
    return Labels(names, names, given, CLASSES)


def voice(p: NDArray[np.float64], name: str = "net", kind: str = "own") -> Opinion:
    images = tuple(f"i{i:04}" for i in range(len(p)))
    return Opinion(name, kind, images, CLASSES, p, np.zeros(len(p), dtype=bool))


def table(given: NDArray[np.int64], answers: dict[str, NDArray[np.float64]]) -> pl.DataFrame:
    """As predictions.parquet; answers are (N, 4), or (R, N, 4)."""
    parts = []
    for model, p in answers.items():
        for repeat, q in enumerate(p if p.ndim == 3 else p[None]):
            parts.append(pl.DataFrame({
                "model": [model] * len(given), "repeat": [repeat] * len(given),
                "fold": [0] * len(given), "image": [f"i{i:04}" for i in range(len(given))],
                "group": [f"i{i:04}" for i in range(len(given))],
                "label": [CLASSES[k] for k in given],
                **{f"p_{c}": q[:, k] for k, c in enumerate(CLASSES)},
            }))  # fmt: skip
    return pl.concat(parts)


@pytest.mark.parametrize(("share", "flat"), [(0.0, 1.0), (0.06, 0.7), (0.06, 2.0), (0.12, 1.0)])
def test_the_interval_of_the_share_covers_what_was_planted(share: float, flat: float):
    covered = []
    for seed in range(4):
        truth, given = draw(300, share, seed)
        scores = np.log(np.maximum(answer(truth, seed, flat=flat), 1e-6))
        noise = fit_noise(scores, given, SHARPNESS)
        wrong = bound_share(scores, given, [str(i) for i in range(300)], noise, seed)
        assert wrong.low <= wrong.value <= wrong.high
        covered.append(wrong.low <= (truth != given).mean() <= wrong.high)
    assert sum(covered) >= 3


def test_planted_labels_are_disputed_and_the_rest_seldom():
    truth, given = draw(400, 0.06, seed=3)
    judged = judge_opinion(voice(answer(truth, 3, skill=3.5)), label(given), seed=0)
    wrong = truth != given
    assert judged.reason == ""
    assert judged.disputed[wrong].mean() > 0.8
    assert judged.disputed[~wrong].sum() <= 4
    cases = list_cases([judged], label(given))
    assert [c.score for c in cases] == sorted((c.score for c in cases), reverse=True)
    assert all(c.score > 0.9 and c.label != c.suggested for c in cases)
    said = {c.image: c.suggested for c in cases}
    right = [said[f"i{i:04}"] == CLASSES[truth[i]] for i in np.flatnonzero(judged.disputed & wrong)]
    assert np.mean(right) > 0.9


def test_nothing_is_disputed_where_models_agree_with_the_labels():
    truth, _ = draw(120, 0.0, seed=1)
    sure = 0.97 * np.eye(4)[truth] + 0.0075
    told = hear_opinions(table(truth, {"net": sure}), CLASSES, ["net"], seed=0)
    assert told is not None
    assert told["disputed"] == []
    assert told["without_disputed"] is None
    opinion = told["opinions"][0]
    assert opinion["agreement"]["value"] == opinion["kappa"]["value"] == 1
    assert 0.95 < opinion["agreement"]["low"] < 1, "120 of 120 don't show that all are right"
    assert opinion["kappa"]["low"] < 1
    assert opinion["wrong"]["value"] == opinion["wrong"]["low"] == 0


def test_kappa_is_cohens_and_its_interval_is_of_groups():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 200)
    b = np.where(rng.random(200) < 0.3, rng.integers(0, 3, 200), a)
    single = [str(i) for i in range(200)]
    agreement, kappa = agree(a, b, single, 3, seed=0)
    assert agreement.value == pytest.approx((a == b).mean())
    assert kappa is not None
    assert kappa.value == pytest.approx(cohen_kappa_score(a, b))
    assert kappa.low < kappa.value < kappa.high
    # each image four times, as four pictures of one cell: no narrower
    groups = [str(i // 4) for i in range(800)]
    four = agree(a.repeat(4), b.repeat(4), groups, 3, seed=0)[1]
    apart = agree(a.repeat(4), b.repeat(4), [str(i) for i in range(800)], 3, seed=0)[1]
    assert four is not None
    assert apart is not None
    assert four.high - four.low > 1.6 * (apart.high - apart.low)
    assert agree(np.zeros(5, int), np.zeros(5, int), list("abcde"), 3, seed=0)[1] is None


def test_repeats_are_averaged_and_all_models_speak_together():
    truth, given = draw(60, 0.0, seed=2)
    first, second = answer(truth, 1), answer(truth, 2)
    predictions = table(given, {"a": np.stack([first, second]), "b": np.stack([second, second])})
    shuffled = predictions.sample(fraction=1, shuffle=True, seed=0)
    a, b, both = collect_own(shuffled, CLASSES, ["a", "b"])
    assert (a.name, b.name, both.name) == ("a", "b", ALL)
    assert np.allclose(a.probabilities, (first + second) / 2)
    assert np.allclose(both.probabilities, (first + 3 * second) / 4)
    assert [o.name for o in collect_own(shuffled, CLASSES, ["a"])] == ["a"]
    assert read_labels(shuffled, CLASSES).images == a.images


def test_a_foreign_opinion_is_translated_and_says_none_of_these():
    p = np.array([[0.2, 0.1, 0.0, 0.7], [0.1, 0.0, 0.3, 0.6], [0.1, 0.7, 0.1, 0.1]])
    opinion = translate_foreign(
        "pbc", ["x", "y", "z"], ["platelet", "ig", "eosinophils", "neutrophil"], p, CLASSES
    )
    assert opinion.classes == ("EOSINOPHIL", "NEUTROPHIL")
    assert np.allclose(opinion.probabilities[0], [0.0, 1.0], atol=1e-4)
    assert np.allclose(opinion.probabilities[1], [1 / 3, 2 / 3], atol=1e-4)
    assert opinion.none.tolist() == [False, False, True]
    mapped = translate_foreign(
        "pbc", ["x"], ["ig", "eos", "neu"], np.array([[0.6, 0.1, 0.3]]), CLASSES,
        {"ig": "NEUTROPHIL", "neu": "NEUTROPHIL", "eos": "EOSINOPHIL"},
    )  # fmt: skip
    assert np.allclose(mapped.probabilities, [[0.1, 0.9]], atol=1e-4)
    with pytest.raises(ShapeError, match="takes two"):
        translate_foreign("pbc", ["x"], ["ig", "eosinophil"], np.array([[0.5, 0.5]]), CLASSES)
    with pytest.raises(ShapeError, match="one row an image"):
        translate_foreign("pbc", ["x"], ["ig"], np.zeros((2, 1)), CLASSES)
    with pytest.raises(ShapeError, match="'X' is no class"):
        translate_foreign("pbc", ["x"], ["a", "b"], np.zeros((1, 2)), CLASSES, {"a": "X"})


def test_an_opinion_is_silent_on_classes_it_cannot_name_and_on_images_it_did_not_see():
    truth, given = draw(200, 0.0, seed=5)
    p = answer(truth, 5)[:150, 1:]
    p = p / p.sum(axis=1, keepdims=True)
    images = tuple(f"i{i:04}" for i in range(150))
    none = np.arange(150) < 4
    opinion = Opinion("pbc", "foreign", images, CLASSES[1:], p, none)
    judged = judge_opinion(opinion, label(given), seed=0)
    silent = (np.arange(200) >= 150) | (given == 0)
    assert (judged.answers[silent] == -1).all()
    assert judged.asked == (~silent).sum()
    assert not judged.disputed[silent].any()
    assert judged.none == (none & ~silent[:150]).sum() > 0
    assert not judged.disputed[:4].any(), "none of these names no other class"
    assert judged.agreement.value < 1


def test_an_opinion_that_is_too_often_wrong_may_not_dispute():
    truth, given = draw(300, 0.0, seed=4)
    judged = judge_opinion(voice(answer(truth, 4, skill=1.0)), label(given), seed=0)
    assert "at least 80%" in judged.reason or "commonest" in judged.reason
    assert judged.wrong is None
    assert not judged.disputed.any()
    assert list_cases([judged], label(given)) == []


def test_no_image_calibrates_itself():
    truth, given = draw(200, 0.05, seed=6)
    p = answer(truth, 6)
    changed = given.copy()
    changed[7] = (given[7] + 1) % 4
    before, after = (judge_opinion(voice(p), label(g), seed=0) for g in (given, changed))
    assert np.array_equal(before.probabilities[7], after.probabilities[7])
    assert not np.array_equal(before.probabilities, after.probabilities)


def test_own_and_foreign_are_told_apart_and_the_second_table_calls_itself_optimistic(tmp_path):
    truth, given = draw(240, 0.06, seed=8)
    foreign = voice(answer(truth, 9), "pbc", "foreign")
    predictions = table(given, {"net": answer(truth, 8), "majority": np.tile(PRIOR, (240, 1))})
    told = hear_opinions(predictions, CLASSES, ["net"], [foreign], seed=0)
    assert told is not None
    assert json.loads(json.dumps(told)) == told
    assert [(o["name"], o["kind"]) for o in told["opinions"]] == [
        ("net", "own"),
        ("pbc", "foreign"),
    ]
    assert {tuple(c["kinds"]) for c in told["disputed"]} >= {("own", "foreign")}
    assert [(b["a"], b["b"], b["n"]) for b in told["between"]] == [("net", "pbc", 240)]
    without = told["without_disputed"]
    assert without["note"].startswith("Optimistic by construction")
    assert without["n"] == 240 - len(told["disputed"]) == without["models"]["net"]["accuracy"]["n"]
    assert without["models"]["net"]["accuracy"]["value"] > told["opinions"][0]["agreement"]["value"]
    assert told["decisions"] == {"applied": False}
    assert hear_opinions(predictions, CLASSES, ["net"], [foreign], seed=0) == told


def test_few_images_have_no_second_opinion():
    truth, given = draw(29, 0.0, seed=1)
    assert hear_opinions(table(given, {"net": answer(truth, 1)}), CLASSES, ["net"], seed=0) is None


def test_the_cases_become_a_table_that_decides_nothing_until_a_person_does(tmp_path):
    truth, given = draw(150, 0.08, seed=8)
    told = hear_opinions(table(given, {"net": answer(truth, 8)}), CLASSES, ["net"], seed=0)
    assert told is not None
    issues = describe_disputes(told)
    assert {i.images[0] for i in issues} == {c["image"] for c in told["disputed"]}
    assert "net (of the study, out of fold)" in issues[0].detail
    rows = [
        dict.fromkeys(SCHEMA) | {"image": f"i{i:04}", "label": CLASSES[k], "labels": [CLASSES[k]]}
        for i, k in enumerate(given)
    ]
    manifest = Manifest(pl.DataFrame(rows, schema=SCHEMA), tmp_path, "set", "csv")
    read = read_decisions(write_decisions(issues, manifest, tmp_path / "disputed.csv"))
    assert read.taken == ()
    assert read.undecided == len(issues) > 0
