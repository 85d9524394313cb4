"""Draws what is lost between laboratories. Numbers were computed elsewhere; see ``plots``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leuko.judgement.canvas import (
    BASELINE_COLOUR,
    INK,
    MARKERS,
    QUIET,
    RULE,
    WIDTH,
    dark,
    model_colours,
    new_figure,
    plain,
    short_names,
    styled,
)
from leuko.judgement.findings import points, triple

SHADES = LinearSegmentedColormap.from_list("share", ["#ffffff", "#b9cbe2", "#23508c"])


@styled
def draw_transfers(
    transfers: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    metric: str = "balanced_accuracy",
    way: str = "forced",
) -> Figure:
    """Home and away on one line per transfer and model; beside it the drop with its limits.

    Args:
        transfers: As in ``results.json``, those of one pair of sets one after the other.
        models: Every model of the run, for the colours; others are drawn as baselines.
        metric: Which to draw.
        way: "forced" or "free".
    """
    heads = list(dict.fromkeys((t["train"], t["test"]) for t in transfers))
    rows = len(transfers) + len(heads)
    figure = new_figure(WIDTH, 0.75 + 0.215 * rows)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1), sharey=True)
    colours, names = model_colours(models), short_names([t["model"] for t in transfers], 22)
    places, labels = [], []
    y = 0.0
    for head in heads:
        title = f"{plain(head[0], 46)} → {plain(head[1], 24)}"
        left.annotate(title, (0, y), (-4, 0), xycoords=("axes fraction", "data"), size=7.5,
                      textcoords="offset points", va="center", weight="bold")  # fmt: skip
        for t in (t for t in transfers if (t["train"], t["test"]) == head):
            y += 1
            colour = colours.get(t["model"], BASELINE_COLOUR)
            mark = MARKERS[list(models).index(t["model"]) % 7] if t["model"] in models else "o"
            _dumbbell(left, y, t, metric, way, colour, mark)
            _drop(right, y, triple(t["drop"][way], metric), colour, mark)
            places.append(y)
            labels.append((names[t["model"]], colour))
        y += 1.15
    left.set_yticks(places, [name for name, _ in labels])
    for tick, (_, colour) in zip(left.get_yticklabels(), labels, strict=True):
        tick.set_color(dark(colour))
    left.set_ylim(y - 0.6, -0.6)
    right.axvline(0, color=QUIET, lw=0.7)
    words = metric.replace("_", " ")
    left.set_title(f"{words}, %:  ○ home  → ● away", pad=10)
    right.set_title("drop: home minus away, points", pad=10)
    for axes in (left, right):
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    right.tick_params(axis="y", labelleft=False)
    right.margins(x=0.16)
    return figure


def _dumbbell(
    axes: Axes, y: float, t: Mapping[str, Any], metric: str, way: str, colour: str, mark: str
) -> None:
    ends = {}
    for side, face, shift in (("home", "white", -0.16), ("away", colour, 0.16)):
        value, low, high = (100 * v for v in triple(t[side][way], metric))
        ends[side] = value
        axes.plot([low, high], [y + shift] * 2, color=colour, lw=1.8, alpha=0.3)
        axes.plot(value, y, mark, ms=4.8, color=colour, mfc=face, zorder=3)
        for seed in t[side][way][metric]["seeds"]:
            axes.plot(100 * seed, y + shift, "|", ms=4, mew=0.7, color=colour, zorder=2)
    axes.plot([ends["home"], ends["away"]], [y, y], color=colour, lw=0.9, zorder=1)


def _drop(axes: Axes, y: float, drop: tuple[float, float, float], colour: str, mark: str) -> None:
    value, low, high = (100 * v for v in drop)
    shown = not low <= 0 <= high
    axes.plot([low, high], [y, y], color=colour, lw=1.6, alpha=0.8)
    axes.plot(value, y, mark, ms=4.6, color=colour, mfc=colour if shown else "white")
    axes.annotate(points(value / 100).lstrip("+"), (value, y), (0, 4), size=6.2, ha="center",
                  textcoords="offset points", color=INK)  # fmt: skip


@styled
def draw_answers(
    tables: Mapping[str, Any], truths: Sequence[str], answers: Sequence[str]
) -> Figure:
    """Confusions of networks that know more classes than they are asked about.

    Args:
        tables: Per model (C, K) counts: rows are the truth, columns the answers.
        truths: C names.
        answers: K names; those that aren't among the truths are drawn apart, to the right.
    """
    order = [*truths, *(c for c in answers if c not in truths)]
    columns = [list(answers).index(c) for c in order]
    C, K = len(truths), len(order)
    across = 1 if K > 5 and len(tables) < 2 else min(len(tables), 2 if K > 5 else 3)
    down = -(-len(tables) // across)
    cell = min(0.62, (WIDTH - 1.1) / across / K)
    figure = new_figure(1.1 + cell * K * across + 0.1 * across, down * (cell * C + 1.15))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    shown = short_names([*order], 17)
    size = max(4.2, min(7.2, 11 * cell))
    for axes, (model, table) in zip(grid.flat, tables.items(), strict=False):
        counts = np.asarray(table)[:, columns]
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap=SHADES, vmin=0, vmax=1, interpolation="none", aspect="auto")
        for i in range(C):
            for j in range(K):
                axes.text(j, i, f"{share[i, j]:.0%}\n{counts[i, j]:,}" if counts[i, j] else "0",
                          ha="center", va="center", size=size, linespacing=1.15,
                          weight="bold" if i == j else "normal",
                          color="white" if share[i, j] > 0.77 else INK if counts[i, j]
                          else "#a3aab4")  # fmt: skip
        axes.set_xticks(np.arange(K + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(C + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.2)
        axes.tick_params(which="both", length=0)
        axes.set_xticks(range(K), [shown[c] for c in order], rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(C), [shown[c] for c in truths])
        for side in axes.spines.values():
            side.set_visible(False)
        if K > C:
            axes.axvline(C - 0.5, color=QUIET, lw=1.2)
        axes.set_title(plain(model, 26))
    for axes in list(grid.flat)[len(tables) :]:
        axes.set_visible(False)
    figure.supxlabel("answered", fontsize=7.5)
    figure.supylabel("true", fontsize=7.5)
    return figure


@styled
def draw_recalls(
    transfers: Sequence[Mapping[str, Any]], models: Sequence[str], way: str = "forced"
) -> Figure:
    """Recall of every class at home (hollow) and away (filled), a panel per transfer.

    Args:
        transfers: Those of the trained models.
        models: Every model of the run, for the colours.
        way: "forced" or "free".
    """
    heads = list(dict.fromkeys((t["train"], t["test"]) for t in transfers))
    across = min(2, len(heads))
    down = -(-len(heads) // across)
    tallest = max(len(t["per_class"][way]) for t in transfers)
    lines = tallest * (len(models) * 0.13 + 0.12)
    figure = new_figure(WIDTH, down * (lines + 0.75))
    grid = figure.subplots(down, across, sharex=True, squeeze=False)
    colours = model_colours(models)
    for axes, head in zip(grid.flat, heads, strict=False):
        own = [t for t in transfers if (t["train"], t["test"]) == head]
        classes = list(own[0]["per_class"][way])
        for k, t in enumerate(own):
            colour, mark = colours[t["model"]], MARKERS[list(models).index(t["model"]) % 7]
            for row, c in enumerate(classes):
                y = row + (k - (len(own) - 1) / 2) * 0.7 / max(1, len(own))
                facts = t["per_class"][way][c]
                home, away = (100 * triple(facts, side)[0] for side in ("home", "away"))
                axes.plot([home, away], [y, y], color=colour, lw=0.9)
                axes.plot(home, y, mark, ms=3.8, color=colour, mfc="white")
                axes.plot(away, y, mark, ms=3.8, color=colour)
        counts = [own[0]["per_class"][way][c] for c in classes]
        shown = short_names(classes, 17)
        axes.set_yticks(
            range(len(classes)),
            [f"{shown[c]}\n{n['n_home']:,} | {n['n_away']:,}"
             for c, n in zip(classes, counts, strict=True)],
            fontsize=6.2,
        )  # fmt: skip
        for row in range(1, len(classes)):
            axes.axhline(row - 0.5, color=RULE, lw=0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlim(-3, 103)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{plain(head[0], 24)} → {plain(head[1], 18)}")
    for axes in list(grid.flat)[len(heads) :]:
        axes.set_visible(False)
    figure.supxlabel("recall, %:  ○ home  ● away", fontsize=7.5)
    return figure
