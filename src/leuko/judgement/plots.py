"""Draws numbers that were computed elsewhere.

Every ``draw_`` function takes plain arrays, mappings or tables and returns a ``Figure``;
``save_figure`` writes it as PNG and SVG, byte for byte the same each time. This module computes
no statistic, reads no file and knows no run. The look is in ``canvas``; what shows cells is in
``pictures`` and can be had from here too.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from leuko.errors import ShapeError
from leuko.judgement.canvas import (
    BASELINE_COLOUR,
    INK,
    MARKERS,
    MODEL_COLOURS,
    QUIET,
    RULE,
    WASH,
    WIDTH,
    arrange,
    class_colours,
    dark,
    model_colours,
    new_figure,
    pale,
    plain,
    save_figure,
    short_names,
    styled,
)  # fmt: skip
from leuko.judgement.findings import points, triple
from leuko.judgement.metrics import ReliabilityCurve
from leuko.judgement.pictures import (
    Look,
    draw_attention,
    draw_average_pictures,
    draw_boxes,
    draw_mistakes,
    draw_samples,
)  # fmt: skip

__all__ = [
    "Difference", "Look", "Stage", "draw_attention", "draw_average_pictures", "draw_boxes",
    "draw_class_counts", "draw_comparison", "draw_confusions", "draw_cost", "draw_leak_meter",
    "draw_mistakes", "draw_reliability", "draw_samples", "draw_training_curves", "save_figure",
]  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """The set at one point of the cleaning.

    Attributes:
        title: What was done, in a few words.
        counts: Images per class afterwards.
        images: Images afterwards, those without a class included.
        dropped: Label rows that this step dropped.
        factors: How often each class is repeated in training; empty if it isn't.
    """

    title: str
    counts: Mapping[str, int]
    images: int | None = None
    dropped: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)


@styled
def draw_class_counts(stages: Sequence[Stage], classes: Sequence[str]) -> Figure:
    """Images per class before cleaning and after each step, a small panel a step.

    A bar that a step changed is drawn strongly, with its former length behind it.

    Args:
        stages: The first is the set as it was found.
        classes: Every class, in the order in which rows and colours are given.
    """
    rows, columns = arrange(len(stages), 6)
    figure = new_figure(WIDTH, rows * (0.62 + 0.2 * max(3, len(classes))))
    colours, names = class_colours(classes), short_names(classes, 17)
    top = max((n for s in stages for n in s.counts.values()), default=1) or 1
    for number, stage in enumerate(stages):
        axes = figure.add_subplot(rows, columns, number + 1)
        before = stages[number - 1].counts if number else stage.counts
        _bars(axes, stage, before, classes, colours)
        axes.set_xlim(0, top * (1.75 if columns > 3 else 1.35))
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_yticks(range(len(classes)), [])
        if number % columns == 0:
            axes.set_yticks(range(len(classes)), [names[c] for c in classes])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(NullLocator())
        axes.spines["bottom"].set_visible(False)
        title = "\n".join(textwrap.wrap(plain(stage.title, 40), 17)[:3])
        facts = [] if stage.images is None else [f"{stage.images:,} images"]
        if number:
            rows_text = f"−{stage.dropped:,} row" + ("s" if stage.dropped != 1 else "")
            facts.insert(0, rows_text if stage.dropped else "no row dropped")
        axes.set_title(
            "\n".join(facts), fontsize=6, fontweight="normal", color=QUIET, pad=3, linespacing=1.25
        )
        axes.annotate(
            title, (0, 1), (0, 20), xycoords="axes fraction",
            textcoords="offset points", weight="bold", size=7, va="bottom", linespacing=1.2,
        )  # fmt: skip
    return figure


def _bars(
    axes: Axes,
    stage: Stage,
    before: Mapping[str, int],
    classes: Sequence[str],
    colours: Mapping[str, str],
) -> None:
    """One panel of ``draw_class_counts``."""
    for row, c in enumerate(classes):
        now, was = stage.counts.get(c, 0), before.get(c, 0)
        changed = now != was
        if changed:
            axes.barh(row, was, height=0.66, color=WASH, edgecolor=RULE, linewidth=0.5)
        strong = 1.0 if changed or before is stage.counts or stage.factors else 0.55
        axes.barh(row, now, height=0.66, color=pale(colours[c], strong))
        text = f"{now:,}" + (f"  ({now - was:+,})".replace("-", "−") if changed else "")
        if c in stage.factors:
            text += f"  ×{stage.factors[c]:.3g}"
        axes.annotate(
            text, (max(now, was), row), (2.5, 0), textcoords="offset points", va="center",
            size=6.2, weight="bold" if changed else "normal", color=INK if strong == 1 else QUIET,
        )  # fmt: skip


# --- training ---------------------------------------------------------------------------------


@styled
def draw_training_curves(history: pl.DataFrame, models: Sequence[str]) -> Figure:
    """Loss and accuracy on the augmented training batches: every fold thin, their mean bold.

    Args:
        history: Columns model, repeat, fold, epoch, loss, accuracy (in [0, 1]).
        models: Which to draw, a column each, in the order in which colours are given.
    """
    names = short_names(models, {1: 40, 2: 30, 3: 22, 4: 18, 5: 18}.get(len(models), 15))
    colours, title = model_colours(models), 8 if len(models) <= 4 else 6.2
    rows = (("loss", "training loss"), ("accuracy", "training accuracy, %"))
    figure = new_figure(WIDTH, 3.3)
    grid = figure.subplots(2, max(1, len(models)), sharey="row", sharex="all", squeeze=False)
    for column, model in enumerate(models):
        part = history.filter(pl.col("model") == model).sort("repeat", "fold", "epoch")
        for row, (value, label) in enumerate(rows):
            axes: Axes = grid[row, column]
            scale = 100.0 if value == "accuracy" else 1.0
            for _, one in part.group_by("repeat", "fold", maintain_order=True):
                axes.plot(
                    one["epoch"], one[value] * scale, color=colours[model], lw=0.5, alpha=0.45
                )
            mean = part.group_by("epoch").agg(pl.col(value).mean()).sort("epoch")
            axes.plot(mean["epoch"], mean[value] * scale, color=colours[model], lw=1.7)
            if mean.height:
                last = float(mean[value][-1]) * scale
                axes.plot(mean["epoch"][-1], last, "o", ms=3, color=colours[model])
                shown = f"last {last:.1f} %" if scale == 100 else f"last {last:.2f}"
                axes.annotate(
                    shown, (1, 1 - row), (-2, -3 if row == 0 else 3), size=6.5, color=QUIET,
                    xycoords="axes fraction", textcoords="offset points", ha="right",
                    va="top" if row == 0 else "bottom",
                )  # fmt: skip
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if row == 0:
                axes.set_title(names[model], color=dark(colours[model]), fontsize=title)
            if column == 0:
                axes.set_ylabel(label)
    figure.supxlabel("epoch", fontsize=7.5)
    return figure


# --- judgement --------------------------------------------------------------------------------


@styled
def draw_confusions(confusions: Mapping[str, NDArray[Any]], classes: Sequence[str]) -> Figure:
    """One confusion matrix per model: rows are the truth, columns what the model said.

    Each field shows the count and, below it, its share of the row; the shade is that share.

    Args:
        confusions: Per model (K, K) counts.
        classes: K names.
    """
    K = len(classes)
    names = short_names(classes, 19)
    rows, columns = arrange(len(confusions), 3 if K <= 5 else 2)
    panel = (WIDTH - 1.0) / columns if columns > 1 else 3.4
    figure = new_figure(1.0 + panel * columns, rows * (panel + 0.25) + 0.75)
    grid = figure.subplots(rows, columns, sharex="all", sharey="all", squeeze=False)
    shades = LinearSegmentedColormap.from_list("share", ["#ffffff", "#b9cbe2", "#23508c"])
    size = max(4.4, min(8.0, panel * 72 / K / 3.6))
    for axes, (model, counts) in zip(grid.flat, confusions.items(), strict=False):
        counts = np.asarray(counts)
        if counts.shape != (K, K):
            raise ShapeError(
                f"The confusion of {model} has the shape {counts.shape}; expected ({K}, {K}), "
                "a row and a column for each class. Pass the classes it was counted with."
            )
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap=shades, vmin=0, vmax=1, interpolation="none")
        for i in range(K):
            for j in range(K):
                _write_field(axes, i, j, int(counts[i, j]), float(share[i, j]), size)
        axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(K + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="both", length=0)
        axes.set_xticks(range(K), [names[c] for c in classes], rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(K), [names[c] for c in classes])
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title(plain(model, 26))
    for axes in list(grid.flat)[len(confusions) :]:
        axes.set_visible(False)
    for column in range(columns):  # a panel without one below it keeps its own names
        lowest = max(r for r in range(rows) if r * columns + column < max(1, len(confusions)))
        grid[lowest, column].tick_params(axis="x", labelbottom=True)
    figure.supxlabel("predicted", fontsize=7.5)
    figure.supylabel("true", fontsize=7.5)
    return figure


def _write_field(axes: Axes, i: int, j: int, count: int, share: float, size: float) -> None:
    """The numbers of one field of a confusion matrix; nothing but a quiet 0 where it is empty."""
    colour = "white" if share > 0.77 else (INK if count else "#a3aab4")
    if not count:
        axes.text(j, i, "0", ha="center", va="center", size=size * 0.85, color=colour)
        return
    weight = "bold" if i == j else "normal"
    axes.text(j, i - 0.13, f"{count:,}", ha="center", va="center", size=size, color=colour,
              weight=weight)  # fmt: skip
    axes.text(j, i + 0.24, f"{share:.0%}" if share >= 0.01 else "<1%", ha="center", va="center",
              size=size * 0.72, color=colour)  # fmt: skip


@styled
def draw_reliability(
    bins: Mapping[str, ReliabilityCurve],
    ece: Mapping[str, tuple[float, float, float]],
    models: Sequence[str] | None = None,
) -> Figure:
    """Reliability diagrams: how often an answer was right against how sure the model was.

    Args:
        bins: Per model its bins, with the limits that are to be drawn.
        ece: Per model expected calibration error, lower and upper limit.
        models: Every model of the run, for the colours; default: those in ``bins``.
    """
    colours = model_colours(list(bins) if models is None else models)
    rows, columns = arrange(len(bins), 3 if len(bins) != 4 else 2)
    panel = WIDTH / max(columns, 2)
    figure = new_figure(panel * columns, rows * (panel + 0.55) if columns > 1 else 4.0)
    for number, (model, b) in enumerate(bins.items()):
        row, column = divmod(number, columns)
        inner = figure.add_gridspec(rows, columns)[row, column].subgridspec(
            2, 1, height_ratios=(4, 1), hspace=0.02
        )
        axes, strip = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
        colour = colours.get(model, BASELINE_COLOUR)
        axes.plot([0, 1], [0, 1], color=QUIET, lw=0.7, ls=(0, (4, 3)), zorder=1)
        spread = np.maximum([b.accuracy - b.low, b.high - b.accuracy], 0)
        axes.errorbar(b.confidence, b.accuracy, yerr=spread, fmt="none", ecolor=colour,
                      elinewidth=0.9, alpha=0.75)  # fmt: skip
        axes.plot(b.confidence, b.accuracy, "o", ms=3.6, color=colour)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=np.linspace(0, 1, 6), xticklabels=[])
        axes.grid()
        value, low, high = ece[model]
        axes.set_title(plain(model, 24), color=dark(colour), pad=15)
        axes.annotate(
            f"ECE {_number(value, 3)}  ({_number(low, 3)} to {_number(high, 3)})", (0, 1), (0, 4),
            xycoords="axes fraction", textcoords="offset points", size=6.8,
        )  # fmt: skip
        strip.bar(b.lower, b.count, b.upper - b.lower, align="edge", color=pale(colour, 0.4),
                  edgecolor="white", linewidth=0.5)  # fmt: skip
        for middle, count in zip((b.lower + b.upper) / 2, b.count, strict=True):
            strip.annotate(f"{count}", (middle, count), (0, 1), size=4.6, ha="center",
                           va="bottom", textcoords="offset points", color=QUIET)  # fmt: skip
        strip.set(xlim=(0, 1), xticks=np.linspace(0, 1, 6))
        strip.set_ylim(0, (int(b.count.max()) if len(b.count) else 1) * 1.5)
        strip.yaxis.set_major_locator(NullLocator())
        strip.spines["left"].set_visible(False)
        if column == 0:
            axes.set_ylabel("share of right answers")
            strip.set_ylabel("answers", color=QUIET, fontsize=6.5)
        strip.set_xlabel("probability of the answer")
    return figure


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """One pair of models: a minus b, with its 95 % interval, all in [-1, 1], and the verdict."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    verdict: str


METRIC_TITLES = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy, %",
    "macro_f1": "macro F1, %",
}


@styled
def draw_comparison(
    models: Mapping[str, Mapping[str, tuple[float, float, float]]],
    baselines: Mapping[str, Mapping[str, tuple[float, float, float]]],
    pairs: Sequence[Difference],
    best: str | None = None,
    metric: str = "accuracy",
) -> Figure:
    """Models and baselines as dots with 95 % bars; below, the paired differences and verdicts.

    Args:
        models: Per model and metric (accuracy, balanced_accuracy, macro_f1): value, low, high,
            in [0, 1]. Their order gives the colours; they are drawn best accuracy first.
        baselines: The same for what knows no morphology; drawn apart.
        pairs: Paired differences of ``metric``; a filled dot has a verdict, a hollow one is a tie.
        best: The model that the rule chose; its name is bold.
        metric: What the pairs compare.
    """
    lines = len(models) + len(baselines) + (0.8 if baselines else 0)
    upper, lower = 0.55 + 0.25 * lines, (0.5 + 0.17 * len(pairs) if pairs else 0.0)
    figure = new_figure(WIDTH, upper + lower + (0.15 if pairs else 0))
    heights = (upper, lower) if pairs else (upper,)
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights, hspace=0.06)
    _dots(figure, rows[0].subgridspec(1, 3, wspace=0.04), models, baselines, best)
    if pairs:
        _differences(figure.add_subplot(rows[1]), pairs, list(models), metric)
    return figure


def _dots(
    figure: Figure,
    grid: Any,
    models: Mapping[str, Mapping[str, tuple[float, float, float]]],
    baselines: Mapping[str, Mapping[str, tuple[float, float, float]]],
    best: str | None,
) -> None:
    """The upper half of ``draw_comparison``: three panels that share their rows."""
    colours, order = model_colours(list(models)), list(models)
    marks = {m: MARKERS[i % len(MARKERS)] for i, m in enumerate(order)}
    ranked = sorted(order, key=lambda m: -_order(models[m]["accuracy"][0]))
    flat = sorted(baselines, key=lambda m: -_order(baselines[m]["accuracy"][0]))
    gap = 0.8 if flat else 0.0
    middle = len(ranked) - 0.5 + gap / 2 - 0.1
    places = {m: float(i) for i, m in enumerate(ranked)}
    below = {m: len(ranked) + gap + i for i, m in enumerate(flat)}
    names = short_names([*ranked, *flat], 24)
    bottom = len(ranked) + len(flat) + gap - 0.5
    for column, (metric, title) in enumerate(METRIC_TITLES.items()):
        axes = figure.add_subplot(grid[column])
        for name, y in [*places.items(), *below.items()]:
            known = name in places
            value, low, high = (100 * v for v in (models if known else baselines)[name][metric])
            colour = colours[name] if known else BASELINE_COLOUR
            axes.plot([low, high], [y, y], color=colour, lw=1.6 if known else 1.1, alpha=0.8)
            axes.plot(value, y, marks.get(name, "o"), ms=4.6, color=colour,
                      mfc=colour if known else "white")  # fmt: skip
            axes.annotate(_number(value, 1), (value, y), (0, 4.5), size=6.5, ha="center",
                          textcoords="offset points", color=INK if known else QUIET,
                          weight="bold" if name == best else "normal")  # fmt: skip
        if flat:
            axes.axhline(len(ranked) - 0.45, color=RULE, lw=0.6)
        axes.set_ylim(bottom + 0.05, -0.75)
        axes.set_title(title)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks([*places.values(), *below.values()], [])
        if column == 0:
            axes.set_yticks(
                [*places.values(), *below.values()], [names[m] for m in (*ranked, *flat)]
            )
            for label, name in zip(axes.get_yticklabels(), (*ranked, *flat), strict=True):
                label.set_color(dark(colours.get(name, BASELINE_COLOUR)))
                label.set_fontweight("bold" if name == best else "normal")
            if flat:
                axes.annotate("know no morphology:", (0, middle), (-5, 0), size=6, ha="right",
                              va="center", xycoords=("axes fraction", "data"), style="italic",
                              textcoords="offset points", color=QUIET)  # fmt: skip


def _order(value: float) -> float:
    return value if math.isfinite(value) else -1.0


def _differences(
    axes: Axes, pairs: Sequence[Difference], models: Sequence[str], metric: str
) -> None:
    """The lower half of ``draw_comparison``: one row a pair around zero."""
    colours = model_colours(models)
    names = short_names(list(dict.fromkeys(n for p in pairs for n in (p.a, p.b))), 20)
    axes.axvline(0, color=QUIET, lw=0.8)
    for y, pair in enumerate(pairs):
        winner = {"better": pair.a, "worse": pair.b}.get(pair.verdict)
        colour = colours.get(winner, INK) if winner else QUIET
        axes.plot([100 * pair.low, 100 * pair.high], [y, y], color=colour, lw=1.5)
        axes.plot(100 * pair.difference, y, "o", ms=4.4, color=colour,
                  mfc=colour if winner else "white")  # fmt: skip
        text = f"{names[winner]} better" if winner else "tie: the data can't tell"
        value = f"{100 * pair.difference:+.1f}".replace("-", "−")
        axes.annotate(f"{value}   {text}", (1, y), (6, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", size=6.8,
                      color=dark(colour) if winner else QUIET,
                      annotation_clip=False)  # fmt: skip
    axes.set_yticks(range(len(pairs)), [f"{names[p.a]} − {names[p.b]}" for p in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    what = METRIC_TITLES.get(metric, metric).removesuffix(", %")
    axes.set_title(f"paired difference in {what}, percentage points")


@styled
def draw_cost(
    accuracy: Mapping[str, tuple[float, float, float]],
    costs: Mapping[str, float],
    label: str,
) -> Figure:
    """Accuracy against what it costs, the cost on a logarithmic axis.

    Args:
        accuracy: Per model value, low, high, in [0, 1]; their order gives the colours.
        costs: Per model a positive number; models without one are left out.
        label: What the cost is, with its unit.
    """
    colours = model_colours(list(accuracy))
    figure = new_figure(4.6, 2.5)
    axes = figure.add_subplot()
    shown = [m for m in accuracy if m in costs and costs[m] > 0]
    names = short_names(shown, 24)
    for m in shown:
        value, low, high = (100 * v for v in accuracy[m])
        axes.plot([costs[m]] * 2, [low, high], color=colours[m], lw=1.2, alpha=0.7)
        mark = MARKERS[list(accuracy).index(m) % len(MARKERS)]
        axes.plot(costs[m], value, mark, ms=5, color=colours[m])
    axes.set_xscale("log")
    if shown:
        least, most = min(costs[m] for m in shown), max(costs[m] for m in shown)
        axes.set_xlim(least / 1.4, most * max(2.0, (most / least) ** 0.45))
        axes.xaxis.set_major_locator(FixedLocator(_steps(least / 1.4, most * 1.2)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid()
    axes.set(xlabel=label, ylabel="accuracy, %")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    below = -math.inf  # names close to each other move up, so that none covers another
    for m in sorted(
        (m for m in shown if math.isfinite(accuracy[m][0])), key=lambda m: accuracy[m][0]
    ):
        value = 100 * accuracy[m][0]
        at = (value - low) / (high - low) * 140  # points; the axes are about 140 high
        below = max(at, below + 9)
        axes.annotate(names[m], (costs[m], value), (6, below - at), textcoords="offset points",
                      size=7, va="center", color=dark(colours[m]))  # fmt: skip
    return figure


def _steps(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … between the two: ticks that a person can read on a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    inside = [s for s in steps if low <= s <= high]
    return inside if len(inside) <= 7 else [s for s in inside if f"{s:e}".startswith("1.0")]


@styled
def draw_leak_meter(meter: Mapping[str, Any]) -> Figure:
    """What a leak is worth: per reader its score in a random and in a grouped split.

    Args:
        meter: ``rows`` of ``who``, ``random``, ``grouped`` and ``difference`` (random minus
            grouped, on the images that share a group), each {value, low, high} in [0, 1] or
            null; ``metric``; ``majority``, the score of always naming the commonest class, or
            null.
    """
    rows = list(meter["rows"])
    names = short_names([str(row["who"]) for row in rows], 36)
    figure = new_figure(WIDTH, 0.85 + 0.42 * max(1, len(rows)))
    axes = figure.add_subplot()
    sides = (("random", "random split", "s", MODEL_COLOURS[1], -0.14),
             ("grouped", "groups kept together", "o", MODEL_COLOURS[0], 0.14))  # fmt: skip
    for key, title, mark, colour, offset in sides:
        scores = np.array([[100 * v for v in triple(row, key)] for row in rows]).reshape(-1, 3)
        places = np.arange(len(rows)) + offset
        axes.hlines(places, scores[:, 1], scores[:, 2], color=colour, lw=1.5, alpha=0.8)
        axes.plot(scores[:, 0], places, mark, ms=4.8, color=colour, label=title)
    if meter.get("majority") is not None:
        axes.axvline(100 * meter["majority"], color=QUIET, lw=0.8, ls=(0, (4, 3)),
                     label="commonest class", zorder=0)  # fmt: skip
    axes.annotate("gain with a partner, points", (1, 1), (6, 4), weight="bold", size=6.8,
                  xycoords="axes fraction", textcoords="offset points")  # fmt: skip
    for y, row in enumerate(rows):
        value, low, high = (points(v) for v in triple(row, "difference"))
        axes.annotate(f"{value}  ({low} to {high})", (1, y), (6, 0), va="center", size=6.8,
                      xycoords=("axes fraction", "data"), textcoords="offset points",
                      annotation_clip=False)  # fmt: skip
    axes.set_yticks(range(len(rows)), [names[str(row["who"])] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    what = str(meter.get("metric", "accuracy"))
    axes.set_xlabel(METRIC_TITLES.get(what, plain(what.replace("_", " "), 30)))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False,
                fontsize=6.8, borderaxespad=0.1, columnspacing=1.4, handletextpad=0.5)  # fmt: skip
    return figure
