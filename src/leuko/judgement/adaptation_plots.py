"""Draws what labelled cells of a new microscope gave: before and after, and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leuko.judgement.canvas import (
    BASELINE_COLOUR,
    MODEL_COLOURS,
    WIDTH,
    new_figure,
    styled,
)


@styled
def draw_curve(
    curve: Sequence[Mapping[str, Any]], before: Mapping[str, float], more: int
) -> Figure:
    """Balanced accuracy by number of labels, the old layer as a line.

    Args:
        curve: ``{labels, value, low, high}``, by rising labels.
        before: ``{value, low, high}`` of the old layer, which needs no label.
        more: Labels that there are in all.
    """
    figure = new_figure(WIDTH * 0.72, 2.9)
    axes = figure.subplots()
    labels = [p["labels"] for p in curve]
    value, low, high = (100 * before[key] for key in ("value", "low", "high"))
    axes.axhspan(low, high, color=BASELINE_COLOUR, alpha=0.12, lw=0)
    axes.axhline(value, color=BASELINE_COLOUR, lw=1.2, ls=(0, (4, 2)))
    colour = MODEL_COLOURS[0]
    axes.fill_between(
        labels, [100 * p["low"] for p in curve], [100 * p["high"] for p in curve], color=colour,
        alpha=0.15, lw=0,
    )  # fmt: skip
    axes.plot(labels, [100 * p["value"] for p in curve], "o-", color=colour, ms=4.5)
    axes.annotate("before", (1, value), (4, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", va="center", color=BASELINE_COLOUR)  # fmt: skip
    axes.annotate("fitted again", (labels[-1], 100 * curve[-1]["value"]), (0, 7), ha="right",
                  textcoords="offset points", color=colour)  # fmt: skip
    axes.set_xlim(0, max(more, labels[-1]) * 1.04)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("labelled cells that the layer was fitted to")
    axes.set_title("balanced accuracy, %, on cells that took no part in fitting", pad=8)
    axes.grid(axis="y")
    return figure
