"""Draws models beside each other: what they reach, what they cost, what a leak is worth.

Takes numbers that were computed elsewhere, as ``plots`` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from leuko.judgement.canvas import (
    BASELINE_COLOUR,
    INK,
    MARKERS,
    MODEL_COLOURS,
    QUIET,
    RULE,
    WIDTH,
    dark,
    model_colours,
    new_figure,
    plain,
    short_names,
    styled,
    write_number,
)
from leuko.judgement.findings import points, triple


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
            axes.annotate(write_number(value, 1), (value, y), (0, 4.5), size=6.5, ha="center",
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
        axes.annotate(f"{points(pair.difference)}   {text}", (1, y), (6, 0),
                      xycoords=("axes fraction", "data"),
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
