"""The leak meter: it sees a planted leak, and claims none where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leuko.judgement.leaks import judge_leaks
from leuko.learning.baselines import look_up
from leuko.learning.fit import FitSettings
from leuko.meter import MOST, make_meter_jobs, plan_meter, read_meter
from leuko.settings import StudySettings
from leuko.study import _make_meter_jobs


def draw_set(copies: int, n: int = 120) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Pictures of random colours that say nothing of their class, each `copies` times over."""
    rng = np.random.default_rng(3)
    sources = n // copies
    base = rng.integers(0, 256, (sources, 16, 16, 3))
    pictures = np.repeat(base, copies, axis=0) + rng.integers(-3, 4, (n, 16, 16, 3))
    labels = np.repeat(rng.integers(0, 3, sources), copies)
    groups = [f"g{i // copies}" for i in range(n)]
    return pictures.clip(0, 255).astype(np.uint8), labels, groups, [f"i{i}" for i in range(n)]


def measure(copies: int) -> dict:
    pictures, labels, groups, images = draw_set(copies)
    meter = plan_meter(labels, groups, images, ["A", "B", "C"], folds=4, seed=0)
    assert meter is not None
    return read_meter(meter, pictures[meter.rows], [], {}, seed=0)


def test_copies_on_both_sides_look_like_knowledge():
    found = measure(copies=4)
    rows = {row["who"]: row for row in found["rows"]}
    for who in ("colour histogram", "nearest neighbour"):
        assert rows[who]["random"]["value"] > 0.9
        assert rows[who]["grouped"]["high"] < 0.65
        assert rows[who]["difference"]["low"] > 0.2
    assert (found["n"], found["groups"], found["partners"]) == (120, 30, 120)
    assert "points better than it is" in found["verdict"]


def test_without_copies_no_leak_is_claimed():
    found = measure(copies=1)
    assert found["partners"] == 0
    assert "nothing can leak" in found["verdict"]
    assert all(row["difference"]["value"] is None for row in found["rows"])


def test_few_partners_are_too_few_for_a_verdict():
    pictures, labels, groups, images = draw_set(1)
    groups[1], labels[1] = groups[0], labels[0]
    meter = plan_meter(labels, groups, images, ["A", "B", "C"], folds=4, seed=0)
    assert meter is not None
    found = read_meter(meter, pictures[meter.rows], [], {}, seed=0)
    assert "Only 2 of 120 images" in found["verdict"]
    assert "too few" in found["verdict"]


def test_the_gain_is_that_of_the_images_with_a_partner():
    """Half of the images have one; random folds get those right and nothing else."""
    groups = [f"p{i // 2}" for i in range(40)] + [f"s{i}" for i in range(40)]
    truth = np.array([i // 2 % 2 for i in range(40)] + [i % 2 for i in range(40)])
    right, wrong = np.eye(2)[truth], np.eye(2)[1 - truth]
    answers = {"random": np.concatenate([right[:40], wrong[40:]]), "grouped": wrong}
    found = judge_leaks(
        {"reader": answers}, truth, [str(i) for i in range(80)], groups, classes=2,
        split="2 folds", seed=0,
    )  # fmt: skip
    assert found["rows"][0]["random"]["value"] == pytest.approx(0.5)
    assert found["rows"][0]["difference"]["value"] == pytest.approx(1.0)


def test_rare_classes_are_left_out_and_one_class_is_no_meter():
    labels = np.array([0] * 20 + [1] * 20 + [2] * 2)
    names = [str(i) for i in range(42)]
    meter = plan_meter(labels, names, names, ["A", "B", "C"], folds=5, seed=0)
    assert meter is not None
    assert meter.classes == ("A", "B")
    assert plan_meter(labels[:20], names[:20], names[:20], ["A"], folds=5, seed=0) is None


def test_of_a_large_set_whole_groups_are_drawn_and_none_is_torn():
    n = MOST * 2
    labels, groups = np.arange(n) // 4 % 2, [str(i // 4) for i in range(n)]
    images = [str(i) for i in range(n)]
    meter = plan_meter(labels, groups, images, ["A", "B"], folds=3, seed=1)
    assert meter is not None
    assert MOST <= len(meter.rows) < MOST + 4
    assert all(meter.groups.count(name) == 4 for name in set(meter.groups[:40]))
    other = plan_meter(labels, groups, images, ["A", "B"], folds=3, seed=2)
    assert other is not None
    assert not np.array_equal(other.rows, meter.rows)


def test_the_network_has_jobs_of_its_own_in_both_kinds_of_folds(tmp_path: Path):
    _, labels, groups, images = draw_set(4)
    meter = plan_meter(labels, groups, images, ["A", "B", "C"], folds=4, seed=0)
    assert meter is not None
    jobs = make_meter_jobs(meter, tmp_path, FitSettings(epochs=1), size=32, seed=0)
    assert {job.model for job in jobs} == {"resnet18"}, "AlexNet can't digest 32 px"
    assert len({job.folder for job in jobs}) == 8
    for job in jobs:
        inside = {groups[i] for i in job.train} & {groups[i] for i in job.test}
        assert bool(inside) == (job.part == "meter-random")


def test_the_network_is_trained_where_those_of_the_study_are(tmp_path: Path):
    _, labels, groups, images = draw_set(4)
    meter = plan_meter(labels, groups, images, ["A", "B", "C"], folds=4, seed=0)
    assert meter is not None
    plan: Any = SimpleNamespace(
        settings=StudySettings(device="cuda"), fit_settings=FitSettings(epochs=1, precision="auto")
    )
    job: Any = SimpleNamespace(rows=np.arange(len(labels)))
    jobs = _make_meter_jobs(tmp_path, plan, meter, job)
    assert {(job.device, job.settings.precision) for job in jobs} == {("cuda", "float32")}


def test_the_look_up_gives_the_label_of_the_most_similar_picture():
    pictures, labels, _, _ = draw_set(2, 20)
    answers = look_up(pictures[::2], labels[::2], pictures[1::2], 3)
    assert (answers.argmax(1) == labels[1::2]).all()
    assert set(np.unique(answers)) == {0.0, 1.0}
