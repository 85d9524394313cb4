"""Draws an evaluation. Numbers were computed elsewhere; see ``plots``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leuko.judgement.canvas import (
    BASELINE_COLOUR,
    INK,
    MODEL_COLOURS,
    QUIET,
    RULE,
    WIDTH,
    new_figure,
    pale,
    short_names,
    styled,
)


@styled
def draw_risk(
    curves: Mapping[str, Sequence[Sequence[float]]], full_error: float, coverage: float
) -> Figure:
    """What is wrong among the surest answers, against how many are kept.

    Args:
        curves: Per order, as it is to be called, pairs of coverage and risk in [0, 1]; the first
            is drawn strongly.
        full_error: The risk of all answers.
        coverage: Where a line is drawn.
    """
    figure = new_figure(WIDTH * 0.72, 3.0)
    axes = figure.add_subplot()
    top = full_error
    for number, (name, curve) in enumerate(curves.items()):
        x, y = np.asarray(curve, np.float64).T
        kept = x >= 0.05  # of a few answers the share jumps about
        top = max(top, float(y[kept].max(initial=0)))
        colour = BASELINE_COLOUR if number else MODEL_COLOURS[0]
        axes.plot(100 * x, 100 * y, color=colour, lw=1.0 if number else 1.7, label=name,
                  zorder=2 if number else 3)  # fmt: skip
    axes.axhline(100 * full_error, color=QUIET, lw=0.7, ls=(0, (4, 3)))
    axes.axvline(100 * coverage, color=RULE, lw=1.0, zorder=1)
    axes.annotate("all answers", (0, 100 * full_error), (2, 3), textcoords="offset points",
                  size=6.5, color=QUIET)  # fmt: skip
    axes.set(xlim=(0, 100), ylim=(0, max(0.5, 118 * top)))
    axes.set_xlabel("answers kept, the surest first, %")
    axes.set_ylabel("wrong among them, %")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid()
    axes.legend(frameon=False, fontsize=6.8, loc="center left", bbox_to_anchor=(0, 0.6))
    return figure


@styled
def draw_classes(per_class: Mapping[str, Mapping[str, Any]], coverage: Mapping[str, Any]) -> Figure:
    """Recall and precision of each class with their limits; beside it the coverage of its sets.

    Args:
        per_class: As in ``evaluation.json``, those classes that are to be drawn.
        coverage: ``coverage`` of the same; without a target only the left half is drawn.
    """
    classes = list(per_class)
    names = short_names(classes, 19)
    has_sets = coverage["target"] is not None
    figure = new_figure(WIDTH, 0.95 + 0.34 * max(1, len(classes)))
    panels = figure.subplots(1, 2 if has_sets else 1, sharey=True, squeeze=False)[0]
    left = panels[0]
    for row, name in enumerate(classes):
        facts = per_class[name]
        for shift, key, face in ((-0.15, "recall", True), (0.15, "precision", False)):
            _draw_limits(left, row + shift, facts[key], facts[f"{key}_limits"], MODEL_COLOURS[0],
                         filled=face)  # fmt: skip
    left.set_title("● recall   ○ precision, %")
    left.set_yticks(range(len(classes)), [f"{names[c]}  {per_class[c]['n']:,}" for c in classes])
    if has_sets:
        _draw_coverage(panels[1], classes, coverage)
    for axes in panels:
        for row in range(1, len(classes)):
            axes.axhline(row - 0.5, color=RULE, lw=0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(max(0.0, axes.dataLim.x0 - 1), 101)
    return figure


def _draw_coverage(axes: Axes, classes: Sequence[str], coverage: Mapping[str, Any]) -> None:
    """The right half of ``draw_classes``."""
    for row, name in enumerate(classes):
        facts = coverage["per_class"].get(name)
        if facts is None:
            continue
        if facts["band"] is not None:
            low, high = (100 * v for v in facts["band"])
            axes.barh(row, high - low, left=low, height=0.62, color=pale(BASELINE_COLOUR, 0.28))
        _draw_limits(axes, row, facts["observed"], (facts["low"], facts["high"]),
                     MODEL_COLOURS[1], filled=True)  # fmt: skip
    axes.axvline(100 * coverage["target"], color=INK, lw=0.8)
    axes.set_title("● sets that hold the class, %   ▬ by chance")
    axes.tick_params(axis="y", labelleft=False)


def _draw_limits(
    axes: Axes, y: float, value: float, limits: Sequence[float | None], colour: str, *, filled: bool
) -> None:
    low, high = limits
    if low is not None and high is not None:
        axes.plot([100 * low, 100 * high], [y, y], color=colour, lw=1.4, alpha=0.5)
    axes.plot(100 * value, y, "o", ms=4.2, color=colour, mfc=colour if filled else "white")
