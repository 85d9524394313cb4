"""Does a model look at the cell? Maps and cells → shares with their limits, a verdict, words.

An honest model's hottest place lies on the cell more often than a place drawn blindly. A model
that goes by a mark in the corner, a scale bar or the colour of the background looks elsewhere, and
may be right all the same as long as the mark is there. Knows maps and masks; knows nothing of
networks or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.judgement.comparison import Interval, bootstrap_weights
from leuko.judgement.explanation import Aim

LEAST_CELLS = 20  # below, the limits are too wide for any verdict
MAJORITY = 0.5  # of cells whose hottest place has to lie on them, whatever chance would give
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
        picture) and ``over_area``; ``verdict``. Each number is {value, low, high}, with 95 %
        limits by bootstrap over groups.

        The verdict is ``elsewhere`` if, within its limits, the pointing is below chance or below
        one half, or the energy below the area; ``on the cell`` if the pointing is above chance
        and none of these; ``can't tell`` between the two, and ``too few cells`` below
        `LEAST_CELLS`.
    """
    weights = bootstrap_weights(groups, np.random.default_rng(seed))
    unique = len(set(groups))
    pointing = _share(aim.hit, weights, unique)
    over_chance = _mean(aim.hit - aim.chance, weights)
    over_area = _mean(aim.energy - aim.area, weights)
    if len(aim.hit) < LEAST_CELLS:
        verdict = FEW
    elif pointing.high < MAJORITY or over_chance.high < 0 or over_area.high < 0:
        verdict = ELSEWHERE
    elif over_chance.low > 0:
        verdict = CELL
    else:
        verdict = UNCLEAR
    return {
        "n": len(aim.hit),
        "groups": unique,
        "map": [int(n) for n in shape],
        "pointing": asdict(pointing),
        "chance": asdict(_mean(aim.chance, weights)),
        "over_chance": asdict(over_chance),
        "middle": asdict(_share(aim.middle, weights, unique)),
        "energy": asdict(_mean(aim.energy, weights)),
        "area": asdict(_mean(aim.area, weights)),
        "over_area": asdict(over_area),
        "verdict": verdict,
    }


def describe_aim(model: str, attention: Mapping[str, Any]) -> str:
    """The verdict on one model as a sentence or two."""
    shown = {
        key: "{value} % ({low} to {high} %)".format(
            **{k: f"{100 * v:.1f}" for k, v in attention[key].items()}
        )
        for key in ("pointing", "energy")
    }
    chance, middle, area = (
        f"{100 * attention[key]['value']:.1f} %" for key in ("chance", "middle", "area")
    )
    facts = (
        f"The hottest place of its map lies on the cell in {shown['pointing']} of "
        f"{attention['n']} pictures; a place drawn blindly would in {chance}, the middle of the "
        f"picture in {middle}. Of its heat {shown['energy']} lies on the cell, which is {area} of "
        "the picture."
    )
    return {
        CELL: f"{model} looks where the cell is. {facts}",
        ELSEWHERE: f"{model} looks elsewhere than at the cell. {facts} Its answers may rest on "
        "something that goes with the classes in these pictures only, such as a mark, a border or "
        "the background. Look at its maps, and don't rely on it for other pictures.",
        UNCLEAR: f"Whether {model} looks at the cell can't be told from these maps. {facts}",
        FEW: f"Too few cells to tell whether {model} looks at them. {facts}",
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
