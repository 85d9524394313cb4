"""Draws numbers that were computed elsewhere.

Every ``draw_`` function takes plain arrays, mappings or tables and returns a ``Figure``;
``save_figure`` writes it as PNG and SVG, byte for byte the same each time. This module computes
no statistic, reads no file and knows no run. The look is in ``canvas``; what shows cells is in
``pictures``, what shows models beside each other in ``comparison_plots``; both can be had from
here too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from leuko.errors import ShapeError
from leuko.judgement.canvas import (
    BASELINE_COLOUR,
    INK,
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
    write_number,
)  # fmt: skip
from leuko.judgement.comparison_plots import (
    METRIC_TITLES,
    Difference,
    draw_comparison,
    draw_cost,
    draw_leak_meter,
)
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
    "METRIC_TITLES", "Difference", "Look", "Stage", "draw_attention", "draw_average_pictures",
    "draw_boxes", "draw_class_counts", "draw_comparison", "draw_confusions", "draw_cost",
    "draw_leak_meter", "draw_mistakes", "draw_reliability", "draw_samples",
    "draw_training_curves", "save_figure",
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
        renamed: Label rows whose label this step changed.
    """

    title: str
    counts: Mapping[str, int]
    images: int | None = None
    dropped: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)
    renamed: int = 0


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
            did = [rows_text] if stage.dropped else []
            if stage.renamed:
                did.append(f"{stage.renamed:,} label" + ("s" if stage.renamed != 1 else ""))
                did[-1] += " changed"
            facts[:0] = did or ["no row dropped"]
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
            "ECE {}  ({} to {})".format(*(write_number(v, 3) for v in (value, low, high))),
            (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", size=6.8,
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
