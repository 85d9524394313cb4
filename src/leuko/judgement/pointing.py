"""Does a model go by the cell? Answers and maps → shares with their limits, a verdict, words.

A model that goes by a mark in the corner, a scale bar or the colour of the background may be right
all the same, as long as the mark is there. Cover the cell, and it answers as before; cover all but
the cell, and it doesn't. An honest model does the opposite. That is the verdict. Where its map is
hot is told beside it and decides nothing: each place of a coarse map sees nearly the whole picture
(``results/explanation.md``). Knows answers, maps and masks; knows nothing of networks or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.judgement.comparison import Interval, bootstrap_weights, compare_pair, interval
from leuko.judgement.explanation import Aim
from leuko.judgement.predictions import Predictions

LEAST_CELLS = 20  # below, the limits are too wide for any verdict
CELL, ELSEWHERE, UNCLEAR, FEW = "on the cell", "elsewhere", "can't tell", "too few cells"


def judge_aim(
    aim: Aim, groups: Sequence[str], shape: Sequence[int], *, seed: int
) -> dict[str, Any]:
    """What ``attention`` of a model in ``results.json`` says.

    Args:
        aim: Of N cells that the model wasn't trained on.
        groups: N names; cells of one group are resampled together.
        shape: Of the maps, (h, w).
        seed: Decides the resamples.

    Returns:
        ``n``, ``groups``, ``map`` [h, w]; ``pointing`` (how often the hottest place lies on the
        cell) beside ``chance`` (of a place drawn blindly), ``over_chance`` (their difference) and
        ``middle`` (always pointing at the middle of the picture);
        ``energy`` (share of the heat on the cell) beside ``area`` (the cell's share of the
        picture) and ``over_area``. Each number is {value, low, high}, with 95 % limits by
        bootstrap over groups.
    """
    weights = bootstrap_weights(groups, np.random.default_rng(seed))
    unique = len(set(groups))
    pointing = _share(aim.hit, weights, unique)
    return {
        "n": len(aim.hit),
        "groups": unique,
        "map": [int(n) for n in shape],
        "pointing": asdict(pointing),
        "chance": asdict(_mean(aim.chance, weights)),
        "over_chance": asdict(_mean(aim.hit - aim.chance, weights)),
        "middle": asdict(_share(aim.middle, weights, unique)),
        "energy": asdict(_mean(aim.energy, weights)),
        "area": asdict(_mean(aim.area, weights)),
        "over_area": asdict(_mean(aim.energy - aim.area, weights)),
    }


def judge_cover(
    answers: NDArray[np.float64],
    alone: NDArray[np.float64],
    without: NDArray[np.float64],
    groups: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """What the answers need: the cell, or what lies around it.

    Args:
        answers: (N, K) probabilities of cells that the model wasn't trained on.
        alone: (N, K), of the same pictures with all but the cell covered.
        without: (N, K), with the cell covered.
        groups: N names; cells of one group are resampled together.
        seed: Decides the resamples.

    Returns:
        ``alone`` and ``without``: how many answers then stay what they were, averaged over the
        classes that were answered, so that a model which falls back on its commonest class keeps
        that one only; ``needs_cell``, the first less the second. Each is {value, low, high}, with
        95 % limits by bootstrap over groups. ``verdict``: ``on the cell`` if more answers stay
        without the surroundings than without the cell, ``elsewhere`` if fewer, both beyond the
        limits and with p < 0.05; else ``can't tell``, and ``too few cells`` below `LEAST_CELLS`.
    """
    before, images = answers.argmax(axis=1), tuple(map(str, range(len(answers))))
    seen, hidden = (
        Predictions(name, images, tuple(groups), before, p[None])
        for name, p in (("alone", alone), ("without", without))
    )
    kept = {
        p.name: interval("balanced_accuracy", before, p.probabilities, groups, rng=seed)
        for p in (seen, hidden)
    }
    pair = compare_pair(seen, hidden, metric="balanced_accuracy", rng=seed)
    verdict = {"better": CELL, "worse": ELSEWHERE, "tie": UNCLEAR}[pair.verdict]
    return {
        **{name: asdict(limits) for name, limits in kept.items()},
        "needs_cell": {"value": pair.difference, "low": pair.low, "high": pair.high},
        "verdict": FEW if len(answers) < LEAST_CELLS else verdict,
    }


def describe_attention(model: str, attention: Mapping[str, Any]) -> str:
    """The verdict on one model as a sentence or two."""
    shown = {
        key: "{value} % ({low} to {high} %)".format(
            **{k: f"{100 * v:.1f}" for k, v in attention[key].items()}
        )
        for key in ("alone", "without")
    }
    facts = (
        f"With all but the cell covered it keeps {shown['alone']} of its answers, with the cell "
        f"covered {shown['without']}: means over the classes that it answers in "
        f"{attention['n']} pictures."
    )
    return {
        CELL: f"{model} goes by the cell. {facts}",
        ELSEWHERE: f"{model} looks elsewhere than at the cell. {facts} Its answers may rest on "
        "something that goes with the classes in these pictures only, such as a mark, a border or "
        "the background. Look at its maps, and don't rely on it for other pictures.",
        UNCLEAR: f"Whether {model} goes by the cell can't be told from these pictures. {facts}",
        FEW: f"Too few cells to tell whether {model} goes by them. {facts}",
    }[attention["verdict"]]


def _mean(values: NDArray[np.float64], weights: NDArray[np.int32]) -> Interval:
    """The mean of (N,) values with its percentile limits over (B, N) resamples."""
    value = float(values.mean())
    draws = weights @ values / weights.sum(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(value, min(float(low), value), max(float(high), value))


def _share(hits: NDArray[np.float64], weights: NDArray[np.int32], groups: int) -> Interval:
    """The same of a share; where all cells are alike, resamples are too: exact limits instead."""
    found = _mean(hits, weights)
    beyond = float(0.025 ** (1 / groups))  # Clopper–Pearson for n of n
    if found.value == 1:
        return Interval(1.0, beyond, 1.0)
    if found.value == 0:
        return Interval(0.0, 0.0, 1 - beyond)
    return found
