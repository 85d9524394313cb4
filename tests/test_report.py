"""The report: whole, self-contained, escaped, and never saying more than the numbers."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from leuko.errors import DataError
from leuko.judgement import findings, report
from leuko.judgement.pointing import CELL, ELSEWHERE
from leuko.judgement.second_opinion import hear_opinions
from run_folder import MODELS, write_run

FIGURES = ("comparison", "cost", "confusions", "reliability", "training_curves", "mistakes",
           "class_counts", "samples", "average_pictures")  # fmt: skip
SECTIONS = ("comparison", "classes", "confusion", "reliability", "training", "mistakes", "data",
            "protocol", "environment", "limits", "reproduce")  # fmt: skip
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


class Page(HTMLParser):
    """Collects elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(
        tmp_path_factory.mktemp("run") / "a", size=32, models={"resnet18": 1.9, "alexnet": 1.2}
    )
    report.write_report(folder)
    return folder


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the figures out, for tests of words and markup."""
    monkeypatch.setattr(report, "draw_figures", lambda run: {})
    plain = dict.fromkeys((*FIGURES, "disputed"), "data:,")
    render = report._render
    monkeypatch.setattr(report, "_render", lambda run, pictures: render(run, plain))


def change(run: Path, tmp_path: Path, name: str, edit: Any) -> Path:
    """A copy of the run with one JSON file edited."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    facts = json.loads((copy / name).read_text("utf-8"))
    edit(facts)
    (copy / name).write_text(json.dumps(facts), encoding="utf-8")
    return copy


def test_no_sentence_breaks_between_a_figure_and_its_per_cent_sign(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    answer = page.split('<div class="answer">')[1].split("</div>")[0]
    assert "\u00a0%" in answer
    assert " %" not in answer


def test_page_is_whole(run: Path) -> None:
    page = Page((run / "report.html").read_text("utf-8"))
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert set(SECTIONS) <= ids
    assert {f"figure-{f}" for f in FIGURES} <= ids
    for name in FIGURES:
        assert (run / "figures" / f"{name}.png").stat().st_size > 3000
        assert (run / "figures" / f"{name}.svg").stat().st_size > 3000
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == len(FIGURES)
    assert all(len(alt) > 30 for alt in alts)


def test_page_asks_nothing_of_a_network(run: Path) -> None:
    page = Page((run / "report.html").read_text("utf-8"))
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert "://" not in value, (tag, name)
        if name in ("src", "href"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:40])
    style = (run / "report.html").read_text("utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_two_runs_of_the_report_give_the_same_bytes(
    run: Path, tmp_path: Path, no_drawing: None
) -> None:
    # the figures are compared byte by byte in test_plots
    pages = []
    for name in ("b", "c"):
        copy = tmp_path / name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("figures", "report.html"))
        pages.append(report.write_report(copy).read_bytes())
    assert pages[0] == pages[1]


def test_hostile_names_appear_as_text(tmp_path: Path, no_drawing: None) -> None:
    found = {"A": 12, "B": 11}
    kind = Page(_page(write_run(tmp_path / "kind", found=found, drop=(), size=8)))
    evil = write_run(tmp_path / "evil", found={f"A{HOSTILE}": 12, f"B{HOSTILE}": 11}, drop=(),
                     size=8, models={f"{m}{HOSTILE}": skill for m, skill in MODELS.items()},
                     image=HOSTILE + "{}", name=HOSTILE, layout=HOSTILE)  # fmt: skip
    for name in ("environment.json", "ledger.json"):
        text = (evil / name).read_text("utf-8")
        (evil / name).write_text(text.replace("torch", "</dd><script>x").replace("blank", "<b>"))
    page = Page(_page(evil))
    assert page.tags == kind.tags
    assert [(t, n) for t, n, _ in page.attributes] == [(t, n) for t, n, _ in kind.attributes]
    assert HOSTILE in "".join(page.words)


def _page(run: Path) -> str:
    return report.write_report(run).read_text("utf-8")


def test_demo_is_marked_loudly_and_only_the_demo(
    run: Path, tmp_path: Path, no_drawing: None
) -> None:
    assert "Synthetic images" not in (run / "report.html").read_text("utf-8")
    copy = change(run, tmp_path, "results.json", lambda r: r["data"].update(layout="demo"))
    words = " ".join(Page(_page(copy)).words)
    assert words.index("Synthetic images") < words.index("Comparison")


def test_every_dropped_row_and_its_reason_is_listed(run: Path) -> None:
    words = " ".join(Page((run / "report.html").read_text("utf-8")).words)
    for step in json.loads((run / "ledger.json").read_text("utf-8"))["steps"]:
        for row in step["dropped"]:
            assert row["image"] in words
            assert row["reason"] in words


def test_every_label_that_was_changed_is_listed_and_drawn(
    run: Path, tmp_path: Path, no_drawing: None
) -> None:
    def relabel(ledger: Any) -> None:
        first = ledger["steps"][0]
        counts = {**first["counts_before"]}
        counts["LYMPHOCYTE"], counts["NEUTROPHIL"] = (
            counts["LYMPHOCYTE"] - 1, counts["NEUTROPHIL"] + 1,
        )  # fmt: skip
        row = {"row": 7, "image": "odd one", "label_written": "LYMPHOCYTE", "old": "LYMPHOCYTE",
               "new": "NEUTROPHIL", "reason": "grains were seen"}  # fmt: skip
        rows, images = first["rows_before"], first["images_before"]
        step = {**first, "name": "apply_decisions", "dropped": [], "renamed": [row],
                "factors": {}, "counts_after": counts, "rows_after": rows,
                "images_after": images}  # fmt: skip
        ledger["steps"].insert(0, step)

    copy = change(run, tmp_path, "ledger.json", relabel)
    words = " ".join(Page(_page(copy)).words)
    assert "apply decisions: 1 label changed" in words
    assert "odd one LYMPHOCYTE NEUTROPHIL grains were seen" in words
    record = report.read_run(copy)
    titles = [(stage.title, stage.renamed) for stage in report._stages(record)]
    assert titles[:2] == [("as found", 0), ("apply decisions", 1)]


def test_images_of_one_cell_count_once_in_the_limits_of_a_recall() -> None:
    row = {"precision": 0.9, "recall": 1.0, "f1": 0.95, "n": 126}
    model = {"per_class": {"x": row}, "groups_per_class": {"x": 6}}
    (told,) = findings.per_class(model, {"x": 126})
    assert told["low"] == pytest.approx(0.025 ** (1 / 6)), "six cells, not 126"
    assert "x has 126 images of 6 groups" in findings.small_classes([told])[0]
    model["per_class"]["x"]["recall"] = 0.75
    half = findings.per_class(model, {"x": 126})[0]
    assert half["low"] < 0.75 < half["high"]


def test_class_with_few_images_is_warned_of(run: Path) -> None:
    words = " ".join(Page((run / "report.html").read_text("utf-8")).words)
    assert "MONOCYTE has 20 images" in words
    assert "LYMPHOCYTE has 33 images" not in words


def test_one_model_has_nothing_to_compare(tmp_path: Path, no_drawing: None) -> None:
    run = write_run(tmp_path / "one", models={"alexnet": 1.5}, size=8)
    assert "there is nothing to compare it with" in _page(run)


def test_baseline_without_costs_and_missing_limits_show_dashes(
    run: Path, tmp_path: Path, no_drawing: None
) -> None:
    def edit(results: dict[str, Any]) -> None:
        for model in results["models"].values():
            model["auroc"] = {"value": None, "low": None, "high": None}

    assert "–––" in "".join(Page(_page(change(run, tmp_path, "results.json", edit))).words)


@pytest.mark.parametrize(
    "name",
    ["results.json", "manifest.parquet", "ledger.json", "splits.parquet", "history.parquet",
     "predictions.parquet", "cells.npz", "environment.json", "config.toml"],
)  # fmt: skip
@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_missing_or_broken_file_is_named(run: Path, tmp_path: Path, name: str, fault: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("figures", "report.html"))
    (copy / name).unlink()
    if fault == "broken":
        (copy / name).write_bytes(b"\xff\xfe not what was expected")
    with pytest.raises(DataError, match=name):
        report.write_report(copy)
    assert not (copy / "report.html").exists()


def test_lacking_key_is_named(run: Path, tmp_path: Path) -> None:
    copy = change(run, tmp_path, "results.json", lambda r: r.pop("pairs"))
    with pytest.raises(DataError, match="lacks pairs"):
        report.write_report(copy)


# --- findings -------------------------------------------------------------------------------------


def a_study(verdict: str, over: str) -> dict[str, Any]:
    value = {"value": 0.8, "low": 0.7, "high": 0.9}
    model = {"accuracy": value, "balanced_accuracy": value}

    def pair(a: str, b: str, said: str) -> dict[str, Any]:
        d = {"better": 0.1, "worse": -0.1, "tie": 0.0}[said]
        return {"a": a, "b": b, "difference": d, "low": d - 0.05, "high": d + 0.05, "verdict": said}

    return {
        "data": {"images": 100, "classes": ["x", "y"]}, "best": "b",
        "models": {"a": model, "b": model}, "baselines": {"colour": model},
        "pairs": [pair("a", "b", verdict)], "over_colour": [pair("b", "colour", over)],
        "best_rule": "b is the cheapest.",
    }  # fmt: skip


def test_given_split_counts_only_the_images_that_were_judged() -> None:
    study = a_study("tie", "better")
    study["models"]["b"] = {**study["models"]["b"], "n": 40}
    assert "on 40 images" in findings.answer(study)[0]


def test_verdict_is_told_from_the_side_of_the_chosen_model() -> None:
    lost = " ".join(findings.answer(a_study("worse", "better")))
    assert "It is better than a (+10.0 points, 95 % interval +5.0 to +15.0)" in lost
    won = " ".join(findings.answer(a_study("better", "better")))
    assert "It is worse than a (−10.0 points" in won


def test_tie_is_said_plainly_with_the_rule() -> None:
    said = " ".join(findings.answer(a_study("tie", "better")))
    assert "ties with a" in said
    assert "can't tell them apart" in said
    assert "b is the cheapest." in said
    assert "better than a" not in said


@pytest.mark.parametrize(
    ("over", "told"),
    [("better", "is better by"), ("tie", "don't show that the network is right more often"),
     ("worse", "right less often than colour")],
)  # fmt: skip
def test_what_is_added_over_colour(over: str, told: str) -> None:
    assert told in findings.answer(a_study("tie", over))[-1]


def test_exact_limits_are_those_of_clopper_and_pearson() -> None:
    # 0 of 10 and 10 of 10: closed form 1 - 0.025 ** (1 / 10)
    edge = 1 - 0.025 ** (1 / 10)
    assert findings.exact_limits(0, 10) == (0.0, pytest.approx(edge))
    assert findings.exact_limits(10, 10) == (pytest.approx(1 - edge), 1.0)
    assert findings.exact_limits(8, 10) == (pytest.approx(0.4439, abs=1e-4),
                                            pytest.approx(0.9748, abs=1e-4))  # fmt: skip
    assert findings.exact_limits(0, 0) == (0.0, 1.0)


def test_one_repeat_is_a_limit_of_the_verdicts() -> None:
    row = {"precision": 0.8, "recall": 0.8, "f1": 0.8, "n": 50}
    study = a_study("tie", "better")
    study["data"] |= {"name": "s", "counts": {"x": 50, "y": 50}}
    study["models"]["b"] = study["models"]["b"] | {"per_class": {"x": row, "y": row}}

    def said(**protocol: Any) -> str:
        return " ".join(findings.limits({**study, "protocol": {"groups": "cell", **protocol}}, []))

    assert "training the same family again could move them" in said(repeats=1)
    assert "18 % of such studies. --repeats 3 measures" in said(repeats=1)
    assert "--split folds --repeats 3" in said(repeats=1, split="given")
    assert "--repeats" not in said(repeats=3)
    del study["models"]["a"]
    assert "--repeats" not in said(repeats=1)


def test_what_was_changed_of_a_network_is_said(run: Path, tmp_path: Path, no_drawing: None) -> None:
    def edit(results: Any) -> None:
        results["models"]["alexnet"]["notes"] = ["A head of <one> layer.", "He initialisation."]

    page = _page(change(run, tmp_path, "results.json", edit))
    part = page.split('id="protocol"')[1].split("</section>")[0]
    assert "<strong>alexnet</strong>, compared with the network as it was published" in part
    assert "<li>A head of &lt;one&gt; layer.</li><li>He initialisation.</li>" in part
    assert "<strong>resnet18</strong>" not in part
    assert "in 15 bins" in page


def test_mistakes_come_surest_first() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    assert findings.find_mistakes(np.array([1, 0, 0, 0]), p, 2).tolist() == [0, 2]
    assert findings.find_mistakes(np.array([0, 0, 1, 1]), p, 2).tolist() == []


def test_disputed_labels_are_shown_with_a_second_table_that_says_what_it_is(
    tmp_path: Path, no_drawing: None
) -> None:
    run = write_run(tmp_path / "run", models={"resnet18": 1.3}, size=8)
    results = json.loads((run / "results.json").read_text("utf-8"))
    predictions = pl.read_parquet(run / "predictions.parquet")
    told = hear_opinions(
        predictions, results["data"]["classes"], ["resnet18"], seed=0,
        decisions={"file": "mine.csv", "sha256": "ab", "keep": 0, "drop": 1, "relabel": 2,
                   "undecided": 0},
    )  # fmt: skip
    assert told is not None
    assert told["disputed"]
    results["labels"] = told
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = _page(run)
    assert page.index('id="comparison"') < page.index('id="labels"') < page.index('id="classes"')
    assert page.index("Sensitivity analysis") < page.index("Not the result of this study")
    assert "Optimistic by construction" in page
    assert "The decisions in mine.csv were applied (2 relabel, 1 drop and 0 keep)" in page
    assert "No model that never saw this laboratory was asked" in page


# --- what the networks look at --------------------------------------------------------------------


def look(run: Path, verdicts: dict[str, str]) -> Any:
    """Gives a made-up run maps, and the models verdicts."""
    rng = np.random.default_rng(0)
    images = np.load(run / "cells.npz")["image"][:40]
    arrays = {"models": np.array(list(verdicts)), "image": images, "boxes": np.zeros((40, 1, 4))}
    for number in range(len(verdicts)):
        arrays |= {f"rows_{number}": np.arange(40), f"maps_{number}": rng.normal(size=(40, 3, 3))}
    np.savez(run / "maps.npz", **arrays)

    def edit(results: dict[str, Any]) -> None:
        limits = {"value": 0.25, "low": 0.125, "high": 0.375}
        keys = (
            "alone", "without", "needs_cell", "pointing", "chance", "over_chance", "middle",
            "energy", "area", "over_area",
        )  # fmt: skip
        for model, verdict in verdicts.items():
            results["models"][model]["attention"] = {
                **dict.fromkeys(keys, limits), "n": 40, "groups": 40, "map": [3, 3],
                "verdict": verdict,
            }  # fmt: skip

    return edit


def test_a_model_that_looks_elsewhere_is_named_at_the_top(run: Path, tmp_path: Path) -> None:
    copy = change(run, tmp_path, "results.json", lambda results: None)
    verdicts = {"resnet18": ELSEWHERE, "alexnet": CELL}
    edit = look(copy, verdicts)
    results = json.loads((copy / "results.json").read_text("utf-8"))
    edit(results)
    (copy / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write_report(copy)
    text = (copy / "report.html").read_text("utf-8")
    header = text[: text.index("</header>")]
    assert "Looks elsewhere:" in header
    assert "resnet18" in header[header.index("Looks elsewhere:") :]
    assert "alexnet" not in header[header.index("Looks elsewhere:") :]
    page = Page(text)
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {"attention", "figure-attention_1", "figure-attention_2"} <= ids
    assert "with the cell covered 25.0\u00a0% (12.5 to 37.5\u00a0%)" in text


def test_without_maps_nothing_is_said_of_them(run: Path) -> None:
    assert "What the networks look at" not in (run / "report.html").read_text("utf-8")
