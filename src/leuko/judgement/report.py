"""One self-contained HTML page about a run, made from the run's files only.

The page needs no network, no JavaScript and no clock: the same files give the same bytes. What
is said in words comes from ``findings``, what is drawn from ``plots``. Everything that comes
from data passes through an escaping template.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.errors import DataError
from leuko.judgement import findings
from leuko.judgement.attention import read_study_maps
from leuko.judgement.explanation import draw_map
from leuko.judgement.finished_run import Run, read_run
from leuko.judgement.metrics import BINS, reliability_curve
from leuko.judgement.page import (
    describe_command,
    describe_protocol,
    embed_figure,
    fill_template,
    flatten,
    hash_files,
    write_value,
)
from leuko.judgement.pointing import ELSEWHERE, describe_attention
from leuko.storage import explain_storage_faults, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from leuko.judgement.pictures import Look
    from leuko.judgement.plots import Stage

T = TypeVar("T")
HASHED = (
    "config.toml", "manifest.parquet", "ledger.json", "splits.parquet", "cells.npz", "covered.npz",
    "maps.npz", "history.parquet", "predictions.parquet", "results.json",
)  # fmt: skip
MOST_MISTAKES = 15
MOST_DISPUTED = 30
MOST_LOOKS = 5  # cells in a row


# --- figures --------------------------------------------------------------------------------------


def draw_figures(run: Run) -> dict[str, Figure]:
    """Every figure of the run by name, in the order of the report."""
    from leuko.judgement import plots

    results, models = run.results, run.results["models"]
    baselines = results["baselines"]
    drawn = {m: {k: findings.triple(f, k) for k in plots.METRIC_TITLES} for m, f in models.items()}
    flat = {
        m: {k: findings.triple(f, k) for k in plots.METRIC_TITLES} for m, f in baselines.items()
    }
    pairs = [
        plots.Difference(p["a"], p["b"], p["difference"], p["low"], p["high"], p["verdict"])
        for p in results["pairs"]
    ]
    metric = str(results["pairs"][0].get("metric", "accuracy")) if pairs else "accuracy"
    confusions = {m: np.asarray(f["confusion"]) for m, f in models.items()}
    bins = {m: reliability_curve(*_answers(run, m)[:2]) for m in run.models}
    ece = {m: findings.triple(f, "ece") for m, f in models.items()}
    seconds = {m: float(f.get("fit_seconds") or 0) for m, f in models.items()}
    figures = {
        "comparison": plots.draw_comparison(drawn, flat, pairs, results["best"], metric),
        "cost": plots.draw_cost({m: d["accuracy"] for m, d in drawn.items()}, seconds,
                                "time of fitting all folds, seconds (logarithmic)"),
        "confusions": plots.draw_confusions(confusions, run.classes),
        "reliability": plots.draw_reliability(bins, ece, run.models),
        "training_curves": plots.draw_training_curves(run.history, run.models),
        "mistakes": _draw_mistakes(run),
        **_draw_attention(run),
        "class_counts": plots.draw_class_counts(_stages(run), run.found),
        **_draw_classes(run),
    }  # fmt: skip
    if len(run.models) < 2:
        del figures["cost"]
    if (results.get("labels") or {}).get("disputed"):
        figures["disputed"] = _draw_disputed(run)
    if results.get("leak_meter"):
        figures["leak_meter"] = plots.draw_leak_meter(results["leak_meter"])
    return figures


def _answers(run: Run, model: str) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Truth (N,), probabilities (N, K) and image ids of a model's first repeat."""
    part = run.predictions.filter(pl.col("model") == model)
    part = part.filter(pl.col("repeat") == part["repeat"].min()).sort("image")
    if part.height == 0:
        raise DataError(
            f"{run.folder / 'predictions.parquet'} has no row of {model}. "
            f"Finish the run with: leuko compare --resume {run.folder}"
        )
    number = {c: k for k, c in enumerate(run.classes)}
    truth = np.array([number[c] for c in part["label"]], dtype=np.int64)
    p = part.select(f"p_{c}" for c in run.classes).to_numpy().astype(np.float64)
    return truth, p, part["image"].to_list()


def _draw_mistakes(run: Run) -> Figure:
    """The surest wrong answers of the chosen model, as pictures."""
    from leuko.judgement import plots

    truth, p, images = _answers(run, run.results["best"])
    place = {image: i for i, image in enumerate(run.images)}
    rows = [r for r in findings.find_mistakes(truth, p, len(truth)) if images[r] in place]
    rows = rows[:MOST_MISTAKES]
    pictures = run.cells[[place[images[r]] for r in rows]]
    return plots.draw_mistakes(
        pictures, [run.classes[truth[r]] for r in rows],
        [run.classes[int(p[r].argmax())] for r in rows],
        [float(p[r].max()) for r in rows], [images[r] for r in rows],
    )  # fmt: skip


def _draw_attention(run: Run) -> dict[str, Figure]:
    """For each model some cells, right and wrong, beside what it looked at in them."""
    from leuko.judgement import plots

    figures, known = {}, set(run.images)
    for model, (images, maps) in read_study_maps(run.folder).items():
        truth, p, answered = _answers(run, model)
        row = {image: i for i, image in enumerate(answered)}
        heat = {row[image]: m for image, m in zip(images, maps, strict=True) if image in known}
        right = [i for i in heat if p[i].argmax() == truth[i]]
        wrong = [i for i in heat if p[i].argmax() != truth[i]]
        chosen = {
            "right answers, spread over the set": _spread(right),
            "wrong answers, spread over the set": _spread(wrong),
            "the surest wrong answers": [wrong[i] for i in np.argsort(-p[wrong].max(axis=1))],
        }
        looks = {
            heading: [_look(run, answered[i], heat[i], truth[i], p[i]) for i in rows]
            for heading, rows in chosen.items()
        }
        figures[f"attention_{run.models.index(model) + 1}"] = plots.draw_attention(looks)
    return figures


def _look(
    run: Run, image: str, heat: NDArray[np.float32], truth: int, p: NDArray[np.float64]
) -> Look:
    from leuko.judgement.pictures import Look

    picture, answer = run.cells[run.images.index(image)], int(p.argmax())
    return Look(
        picture, draw_map(picture, heat), run.classes[truth], run.classes[answer],
        float(p[answer]), image,
    )  # fmt: skip


def _spread(values: Sequence[T]) -> list[T]:
    """A few of many, evenly spaced."""
    n = min(MOST_LOOKS, len(values))
    return [values[len(values) * i // n] for i in range(n)]


def _draw_disputed(run: Run) -> Figure:
    """The labels that opinions dispute, the most certain first, as pictures."""
    from leuko.judgement import plots

    place = {image: i for i, image in enumerate(run.images)}
    cases = [c for c in run.results["labels"]["disputed"] if c["image"] in place][:MOST_DISPUTED]
    labels, suggested, scores, images = (
        [c[key] for c in cases] for key in ("label", "suggested", "score", "image")
    )
    by = [", ".join(c["by"]) for c in cases]
    pictures = run.cells[[place[image] for image in images]]
    return plots.draw_mistakes(pictures, labels, suggested, scores, images, by)


def _draw_classes(run: Run) -> dict[str, Figure]:
    """Samples and average pictures of every class that was found."""
    from leuko.judgement import plots

    label = {
        image: written
        for image, written in run.manifest.select("image", "label").iter_rows()
        if written is not None
    }
    label |= dict(run.predictions.select("image", "label").unique().sort("image").iter_rows())
    places = {
        c: [i for i, image in enumerate(run.images) if label.get(image) == c] for c in run.found
    }
    places = {c: rows for c, rows in places.items() if rows}
    # spread over the set, not its first images, which often come from one slide
    some = {c: [rows[len(rows) * i // 8] for i in range(min(8, len(rows)))]
            if len(rows) >= 8 else rows for c, rows in places.items()}  # fmt: skip
    counts = {c: len(rows) for c, rows in places.items()}
    stacks = {c: run.cells[rows].astype(np.float64) for c, rows in places.items()}
    return {
        "samples": plots.draw_samples(
            {c: run.cells[rows] for c, rows in some.items()},
            {c: [run.images[i] for i in rows] for c, rows in some.items()}, counts,
            {c: "dropped in cleaning" for c in places if c not in run.classes},
        ),
        "average_pictures": plots.draw_average_pictures(
            {c: s.mean(axis=0) for c, s in stacks.items()},
            {c: s.std(axis=0).mean(axis=2) for c, s in stacks.items()}, counts,
        ),
    }  # fmt: skip


def _stages(run: Run) -> list[Stage]:
    """The set as it was found and after each step of the cleaning that did something."""
    from leuko.judgement.plots import Stage

    if not run.steps:
        return [Stage("as found", run.results["data"]["counts"], run.results["data"]["images"])]
    first = run.steps[0]
    stages = [Stage("as found", first["counts_before"], first.get("images_before"))]
    for step in run.steps:
        dropped, renamed = (len(step.get(did) or ()) for did in ("dropped", "renamed"))
        factors = dict(step.get("factors") or {})
        if dropped or renamed or factors:  # a step that found nothing to do is in the table alone
            title = str(step["name"]).replace("_", " ")
            after = step["counts_after"], step.get("images_after")
            stages.append(Stage(title, *after, dropped, factors, renamed))
    return stages


# --- the page -------------------------------------------------------------------------------------


def write_report(run: Path) -> Path:
    """Writes ``figures/*.png``, ``figures/*.svg`` and ``report.html`` into a finished run folder.

    Args:
        run: The folder; its other files are read and not changed.

    Returns:
        The path of the page.

    Raises:
        DataError: A file of the run is missing or broken.
        StorageError: The page or a figure can't be written.
    """
    from leuko.judgement import plots

    record = read_run(Path(run))
    pictures = {}
    for name, figure in draw_figures(record).items():
        png, svg = plots.save_figure(figure, record.folder / "figures", name)
        pictures[name] = embed_figure(png, svg)
    page = _render(record, pictures)
    path = record.folder / "report.html"
    with explain_storage_faults(path):
        return write_atomically(path, page)


def _render(run: Run, pictures: Mapping[str, str]) -> str:
    return fill_template("report.html.j2", {**_facts(run), "figures": pictures})


def _facts(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    results, data, protocol = run.results, run.results["data"], run.results["protocol"]
    counts = data["counts"]
    lost = [c for c in run.found if c not in run.classes]
    rows = {m: findings.per_class(f, counts) for m, f in results["models"].items()}
    return {
        "data": data, "protocol": protocol, "results": results, "classes": run.classes,
        "best": results["best"], "models": results["models"], "baselines": results["baselines"],
        "title": _title(results), "command": describe_command(run.environment, results),
        "answer": findings.answer(results), "demo": data["layout"] == "demo",
        "per_class": rows,
        "warnings": findings.small_classes(rows[results["best"]]), "few": findings.FEW,
        "bins": BINS,
        "judged": findings.judged(results),
        "labels": results.get("labels"), "shown_disputes": MOST_DISPUTED,
        "disputes": findings.disputes(results["labels"]) if results.get("labels") else [],
        **_describe_attention(results["models"]),
        "limits": findings.limits(results, lost), "issues": _count_issues(run.manifest),
        "steps": run.steps, "stages": _stages(run), "found": run.found,
        "folds": _fold_sizes(run), "protocol_rows": [
            *describe_protocol(protocol),
            ("rule for the best", write_value(results.get("best_rule") or "not recorded")),
        ],
        "environment": flatten({k: v for k, v in run.environment.items() if k != "command"}),
        "times": flatten(results.get("times") or {}), "config": run.config,
        "hashes": hash_files(run.folder, HASHED),
        "mistakes": _count_mistakes(run), "side": run.cells.shape[1],
        "version": run.environment.get("leuko") or _toml(run.config).get("version") or "",
        "metric": (results["pairs"] or [{}])[0].get("metric", "accuracy"),
    }  # fmt: skip


def _describe_attention(models: Mapping[str, Any]) -> dict[str, Any]:
    """What each model looks at, by name of its figure; and the models that look elsewhere."""
    looked = [
        {"model": name, "figure": f"attention_{number}", **model["attention"],
         "sentence": describe_attention(name, model["attention"])}
        for number, (name, model) in enumerate(models.items(), start=1)
        if model.get("attention")
    ]  # fmt: skip
    return {"looked": looked, "elsewhere": [x for x in looked if x["verdict"] == ELSEWHERE]}


def _title(results: Mapping[str, Any]) -> str:
    models = list(results["models"])
    name = results["data"]["name"]
    return f"{findings.listing(models)} on {name}" if len(models) <= 4 else (
        f"{len(models)} networks on {name}"
    )  # fmt: skip


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _count_issues(manifest: pl.DataFrame) -> list[tuple[str, int, list[str]]]:
    """Per issue its code, how many rows have it, and the first few ids."""
    found: dict[str, list[str]] = {}
    for row in manifest.select("image", "issues").iter_rows(named=True):
        for code in row["issues"] or ():
            found.setdefault(str(code), []).append(str(row["image"]))
    return [(code, len(ids), ids[:5]) for code, ids in sorted(found.items())]


def _count_mistakes(run: Run) -> tuple[int, int]:
    """Wrong answers and all answers of the chosen model in its first repeat."""
    truth, p, _ = _answers(run, run.results["best"])
    return int((p.argmax(axis=1) != truth).sum()), len(truth)


def _fold_sizes(run: Run) -> list[dict[str, Any]]:
    """Per repeat and fold: images trained on, images tested, and the tested ones per class."""
    first = run.predictions.unique("image", keep="first", maintain_order=True)
    joined = run.splits.join(first.select("image", "label"), on="image", how="left")
    rows = []
    for (repeat, fold), part in joined.sort("repeat", "fold").group_by(
        "repeat", "fold", maintain_order=True
    ):
        test = part.filter(pl.col("part") == "test")
        counts = dict(test.group_by("label").len().iter_rows())
        rows.append({
            "repeat": repeat, "fold": fold, "train": part.height - test.height,
            "test": test.height, "counts": [int(counts.get(c, 0)) for c in run.classes],
        })  # fmt: skip
    return rows
