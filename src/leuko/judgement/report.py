"""One self-contained HTML page about a run, made from the run's files only.

The page needs no network, no JavaScript and no clock: the same files give the same bytes. What
is said in words comes from ``findings``, what is drawn from ``plots``. Everything that comes
from data passes through an escaping template.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.errors import DataError
from leuko.judgement import findings
from leuko.judgement.attention import read_study_maps
from leuko.judgement.explanation import draw_map
from leuko.judgement.metrics import BINS, reliability_curve
from leuko.judgement.pointing import ELSEWHERE, describe_aim
from leuko.storage import explain_storage_faults, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from leuko.judgement.pictures import Look
    from leuko.judgement.plots import Stage

T = TypeVar("T")
COLUMNS = {
    "manifest.parquet": ("image", "label", "issues"),
    "splits.parquet": ("repeat", "fold", "image", "part"),
    "history.parquet": ("model", "repeat", "fold", "epoch", "loss", "accuracy"),
    "predictions.parquet": ("model", "repeat", "image", "label"),
}
HASHED = ("config.toml", "manifest.parquet", "ledger.json", "splits.parquet", "cells.npz",
          "maps.npz", "history.parquet", "predictions.parquet", "results.json")  # fmt: skip
MOST_MISTAKES = 15
MOST_DISPUTED = 30
MOST_LOOKS = 5  # cells in a row
LARGEST_SVG = 400_000  # bytes; above, the PNG goes into the page


@dataclass(frozen=True)
class Run:
    """What a finished run folder holds, checked.

    Attributes:
        folder: Where it lies.
        results: ``results.json``.
        environment: ``environment.json``.
        config: ``config.toml`` as text.
        steps: The ledger's steps, in order.
        manifest, splits, history, predictions: The tables of the same names.
        images: Ids of the pictures in ``cells``, (N,).
        cells: (N, S, S, 3) uint8, as the networks saw them.
    """

    folder: Path
    results: dict[str, Any]
    environment: dict[str, Any]
    config: str
    steps: list[dict[str, Any]]
    manifest: pl.DataFrame
    splits: pl.DataFrame
    history: pl.DataFrame
    predictions: pl.DataFrame
    images: list[str]
    cells: NDArray[np.uint8]

    @cached_property
    def classes(self) -> list[str]:
        """The classes that were trained, in the order of ``results.json``."""
        return list(self.results["data"]["classes"])

    @cached_property
    def found(self) -> list[str]:
        """Every class there ever was: the trained ones first, then those dropped in cleaning."""
        before = self.steps[0]["counts_before"] if self.steps else {}
        return [*self.classes, *(c for c in before if c not in self.classes)]

    @cached_property
    def models(self) -> list[str]:
        """The trained models, in the order of ``results.json``."""
        return list(self.results["models"])


def read_run(folder: Path) -> Run:
    """Reads a finished run folder.

    Raises:
        DataError: A file is missing, broken or lacks a column; the message names it.
    """
    results = _read(folder, "results.json", lambda p: json.loads(p.read_text("utf-8")))
    _check_keys(folder / "results.json", results, ("data", "protocol", "baselines", "models",
                                                   "pairs", "best"))  # fmt: skip
    ledger = _read(folder, "ledger.json", lambda p: json.loads(p.read_text("utf-8")))
    _check_keys(folder / "ledger.json", ledger, ("steps",))
    tables = {name: _read(folder, name, pl.read_parquet) for name in COLUMNS}
    for name, table in tables.items():
        _check_keys(folder / name, table.columns, COLUMNS[name])
    wanted = [f"p_{c}" for c in results["data"]["classes"]]
    _check_keys(folder / "predictions.parquet", tables["predictions.parquet"].columns, wanted)
    images, cells = _read(folder, "cells.npz", _read_cells)
    config = _read(folder, "config.toml", lambda p: p.read_text("utf-8"))
    return Run(
        folder=folder, results=results, config=config, steps=list(ledger["steps"]),
        environment=_read(folder, "environment.json", lambda p: json.loads(p.read_text("utf-8"))),
        manifest=tables["manifest.parquet"], splits=tables["splits.parquet"],
        history=tables["history.parquet"], predictions=tables["predictions.parquet"],
        images=images, cells=cells,
    )  # fmt: skip


def _read(folder: Path, name: str, read: Callable[[Path], T]) -> T:
    """Reads one file of the run, or says which one is missing or broken."""
    path = folder / name
    try:
        return read(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing. Expected a finished run folder of leuko compare. Finish the run "
            f"with: leuko compare --resume {folder}"
        ) from error
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}). Expected the file as leuko "
            f"compare wrote it. Restore it, or write it again with: leuko compare --resume {folder}"
        ) from error


def _read_cells(path: Path) -> tuple[list[str], NDArray[np.uint8]]:
    with np.load(path, allow_pickle=False) as file:
        images, cells = [str(i) for i in file["image"]], file["cells"]
    if cells.ndim != 4 or cells.shape[-1] != 3 or cells.dtype != np.uint8:
        raise ValueError(f"cells has the shape {cells.shape}; expected (N, S, S, 3) uint8")
    if len(images) != len(cells):
        raise ValueError(f"{len(images)} ids for {len(cells)} cells")
    return images, cells


def _check_keys(path: Path, found: Any, wanted: tuple[str, ...] | list[str]) -> None:
    lacking = [k for k in wanted if k not in found]
    if lacking:
        raise DataError(
            f"{path} lacks {findings.listing(lacking)}. Expected a run folder of this version of "
            "Leuko. Repeat the run, or make the report with the version that wrote it."
        )


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
        dropped, factors = len(step.get("dropped") or ()), dict(step.get("factors") or {})
        if dropped or factors:  # a step that found nothing to do is in the table alone
            title = str(step["name"]).replace("_", " ")
            after = step["counts_after"], step.get("images_after")
            stages.append(Stage(title, *after, dropped, factors))
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


def embed_figure(png: Path, svg: Path) -> str:
    """The figure as a data URI: the drawing, unless it is so large that the picture is better."""
    small = svg.stat().st_size <= max(LARGEST_SVG, png.stat().st_size)
    pixels = b"data:image/png;base64" in svg.read_bytes()
    source, kind = (svg, "svg+xml") if small and not pixels else (png, "png")
    return f"data:image/{kind};base64," + base64.b64encode(source.read_bytes()).decode("ascii")


def _render(run: Run, pictures: Mapping[str, str]) -> str:
    return fill_template("report.html.j2", {**_facts(run), "figures": pictures})


def fill_template(name: str, facts: Mapping[str, Any]) -> str:
    """Fills a template of ``templates/``; autoescape is on for everything.

    Args:
        name: File name of the template.
        facts: Everything that it shows; to leave out a name that it uses is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("leuko.judgement", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=findings.percent, points=findings.points, number=_number, count=_count, p=_p_value
    )
    environment.globals.update(triple=findings.triple, quantity=findings.quantity)
    return environment.get_template(name).render(facts)


def _facts(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    results, data, protocol = run.results, run.results["data"], run.results["protocol"]
    counts = data["counts"]
    lost = [c for c in run.found if c not in run.classes]
    return {
        "data": data, "protocol": protocol, "results": results, "classes": run.classes,
        "best": results["best"], "models": results["models"], "baselines": results["baselines"],
        "title": _title(results), "command": describe_command(run.environment, results),
        "answer": findings.answer(results), "demo": data["layout"] == "demo",
        "per_class": {m: findings.per_class(f, counts) for m, f in results["models"].items()},
        "warnings": findings.small_classes(findings.tested(results)), "few": findings.FEW,
        "bins": BINS,
        "judged": findings.judged(results),
        "labels": results.get("labels"), "shown_disputes": MOST_DISPUTED,
        "disputes": findings.disputes(results["labels"]) if results.get("labels") else [],
        **_describe_attention(results["models"]),
        "limits": findings.limits(results, lost), "issues": _count_issues(run.manifest),
        "steps": run.steps, "stages": _stages(run), "found": run.found,
        "folds": _fold_sizes(run), "protocol_rows": [
            *describe_protocol(protocol),
            ("rule for the best", _text(results.get("best_rule") or "not recorded")),
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
         "sentence": describe_aim(name, model["attention"])}
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


def describe_command(environment: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The command of the run as a person would type it; empty if it was not recorded."""
    command = environment.get("command") or results["protocol"].get("command") or ""
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


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


PROTOCOL_NAMES = {
    "folds": "folds", "repeats": "repeats", "groups": "kept together in a split", "view": "view",
    "size": "picture side, pixels", "seed": "seed", "recipe": "cleaning recipe",
    "init": "weights at the start", "epochs": "epochs", "models": "models",
    "threads": "threads",
}  # fmt: skip


def describe_protocol(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The whole protocol, known settings first and by their words, then the rest by its names."""
    order = [*(k for k in PROTOCOL_NAMES if k in protocol)]
    order += [k for k in protocol if k not in PROTOCOL_NAMES and k != "command"]
    rows = []
    for key in order:
        name = PROTOCOL_NAMES.get(key, key.replace("_", " "))
        value = protocol[key]
        if isinstance(value, dict):
            rows += [(f"{name}: {k}", v) for k, v in flatten(value)]
        else:
            rows.append((name, _text(value)))
    return rows


def _text(value: Any) -> str:
    """A value of JSON as a person reads it."""
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def flatten(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of name and text."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{above} · {key}" if above else str(key)
        if isinstance(value, dict):
            rows += flatten(value, name)
        else:
            rows.append((name.replace("_", " "), _text(value)))
    return rows


def hash_files(folder: Path, files: Sequence[str]) -> list[tuple[str, str]]:
    """Name and SHA-256 of those of the files that are in the folder."""
    names = [n for n in files if (folder / n).is_file()]
    return [(n, hashlib.sha256((folder / n).read_bytes()).hexdigest()) for n in names]


def _number(value: float | None, digits: int = 3) -> str:
    """A plain number; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    """Three digits; never 0."""
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def _count(value: float | None) -> str:
    """A large count in a short form: 11.2 M."""
    if value is None or not np.isfinite(value) or value == 0:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
