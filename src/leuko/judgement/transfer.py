"""Judges networks at home and away: what is lost when they are taken to another laboratory.

Each network is judged twice on images of the classes that both laboratories have. ``forced``: the
answer is the likeliest of those classes. ``free``: it is the likeliest of all classes that the
network knows, so that one which the other laboratory doesn't have is wrong.

Home and away are judged by the same networks and on the same classes, so the drop is theirs, not
one of training or of easier classes. Its limits come from resampling the groups of both sides, and
from how far the drops of the networks differ. Knows no network and no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leuko.errors import ShapeError
from leuko.judgement.comparison import BLOCK, RESAMPLES, bootstrap_weights, limits_over_repeats
from leuko.judgement.metrics import Float64, IntArray, confusion, measure, resampled

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
WAYS = ("forced", "free")


@dataclass(frozen=True)
class Side:
    """What S networks said about the images of one side.

    Attributes:
        y_true: (N,) class indices, in [0, K).
        groups: N names; images of one group are resampled together.
        rows: Per network the images that it was asked about, indices into N. Away all networks
            are asked about all; at home each about those that it wasn't trained on.
        probabilities: Per network (n, K), in the order of its rows.
    """

    y_true: IntArray
    groups: tuple[str, ...]
    rows: tuple[IntArray, ...]
    probabilities: tuple[Float64, ...]

    @classmethod
    def from_rows(
        cls,
        images: Sequence[str],
        groups: Sequence[str],
        y_true: IntArray,
        seeds: IntArray,
        probabilities: Float64,
    ) -> Side:
        """Arranges answers in any order, one per image and network.

        All sequences have M entries, probabilities are (M, K).

        Raises:
            ShapeError: There are none.
        """
        if not len(y_true):
            raise ShapeError("Found no answers to judge; expected some. Finish the run.")
        place: dict[str, int] = {}
        index = np.array([place.setdefault(image, len(place)) for image in images])
        first = np.unique(index, return_index=True)[1]
        order = [np.flatnonzero(seeds == s) for s in np.unique(seeds)]
        return cls(
            np.asarray(y_true)[first].astype(np.int64),
            tuple(groups[i] for i in first),
            tuple(index[one] for one in order),
            tuple(np.asarray(probabilities, dtype=np.float64)[one] for one in order),
        )

    def force(self, kept: Sequence[int]) -> Side:
        """Only these classes can be answered: other columns go, the rest is made to sum to 1."""
        number = np.full(int(max(*kept, self.y_true.max())) + 1, -1)
        number[list(kept)] = np.arange(len(kept))
        forced = []
        for p in self.probabilities:
            part = p[:, list(kept)]
            total = part.sum(axis=1, keepdims=True)
            # Where nothing at all was given to these classes, the answer is an even guess.
            even = np.full_like(part, 1 / len(kept))
            forced.append(np.divide(part, total, out=even, where=total > 0))
        return replace(self, y_true=number[self.y_true], probabilities=tuple(forced))

    def pick(self, chosen: Any) -> Side:
        """Only the images of this mask (N,)."""
        new = np.cumsum(chosen) - 1
        keep = [chosen[rows] for rows in self.rows]
        return Side(
            self.y_true[chosen],
            tuple(g for g, has in zip(self.groups, chosen, strict=True) if has),
            tuple(new[rows[k]] for rows, k in zip(self.rows, keep, strict=True)),
            tuple(p[k] for p, k in zip(self.probabilities, keep, strict=True)),
        )

    def pool(self) -> tuple[IntArray, Float64]:
        """Truth and answers of all networks, one after the other."""
        truth = np.concatenate([self.y_true[rows] for rows in self.rows])
        return truth, np.concatenate(self.probabilities)


def judge_transfer(
    home: Side, away: Side, classes: Sequence[str], common: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Home, away and the drop of one model on one way from set to set.

    Args:
        home: Held-out images of where it was trained; of any class.
        away: Images of the other set; of common classes only.
        classes: K names that the networks can answer.
        common: Those that both sides have.
        seed: Decides the resamples.

    Returns:
        ``classes`` (common), ``answers`` (K), ``seeds``, ``n_home``, ``n_away``, ``groups_home``,
        ``groups_away``; ``home``, ``away`` and ``drop``, each {forced, free: {metric: {value, low,
        high, seeds: [one per network]}}}; ``per_class`` {forced, free: {CLASS: {n_home, n_away,
        home, away, drop}}} of the recall; ``confusion`` {home, away: {forced: C × C, free: C × K}},
        rows are the truth, answers of all networks together.
    """
    kept = [list(classes).index(c) for c in common]
    home = home.pick(np.isin(home.y_true, kept))
    told: dict[str, dict[str, Any]] = {part: {} for part in ("home", "away", "drop", "per_class")}
    tables: dict[str, dict[str, Any]] = {"home": {}, "away": {}}
    for way in WAYS:
        sides = (home.force(kept), away.force(kept)) if way == "forced" else (home, away)
        own = range(len(kept)) if way == "forced" else kept
        for part in ("home", "away", "drop"):
            told[part][way] = {}
        for metric in METRICS:
            for part, value in judge_drop(metric, *sides, seed=seed).items():
                told[part][way][metric] = value
        told["per_class"][way] = {
            c: _judge_class(sides[0], sides[1], k, seed) for c, k in zip(common, own, strict=True)
        }
        for part, side in zip(tables, sides, strict=True):
            tables[part][way] = confusion(*side.pool())[list(own)].tolist()
    return {
        "classes": list(common), "answers": list(classes), "seeds": len(away.rows),
        "n_home": len(home.y_true), "n_away": len(away.y_true),
        "groups_home": len(set(home.groups)), "groups_away": len(set(away.groups)),
        **told, "confusion": tables,
    }  # fmt: skip


def judge_drop(metric: str, home: Side, away: Side, *, seed: int) -> dict[str, dict[str, Any]]:
    """One metric at home, away, and home minus away: each the mean over networks, with limits.

    The networks are paired: each has a home and an away value, and so a drop. The groups of the
    two sides are resampled independently of each other, because they are different images; what
    the networks' values differ by beyond that is training, and widens the limits as in
    `leuko.judgement.comparison.interval`.

    Where every answer is right (or wrong), resampling says nothing; there the draws are those whose
    2.5 % point is the exact (Clopper–Pearson) limit, with groups as n.

    Returns:
        ``home``, ``away``, ``drop``: {value, low, high, seeds}; the limits are None where a side
        has one group.
    """
    given = [
        _resample(metric, side, np.random.default_rng([seed, k]))
        for k, side in enumerate((home, away))
    ]
    (plain, draws), (plain_away, draws_away) = given
    parts = {
        "home": (plain, draws, 0.0),
        "away": (plain_away, draws_away, 0.0),
        "drop": (plain - plain_away, draws - draws_away, -1.0),
    }
    return {
        part: _summarise(values, drawn, least, np.random.default_rng([seed, 2]))
        for part, (values, drawn, least) in parts.items()
    }


def _judge_class(home: Side, away: Side, k: int, seed: int) -> dict[str, Any]:
    """The recall of one class: the accuracy on its images."""
    home, away = home.pick(home.y_true == k), away.pick(away.y_true == k)
    counts = {"n_home": len(home.y_true), "n_away": len(away.y_true)}
    if not all(len(rows) for side in (home, away) for rows in side.rows):
        nothing: dict[str, Any] = {"value": None, "low": None, "high": None, "seeds": []}
        return {**counts, "home": nothing, "away": nothing, "drop": nothing}
    return {**counts, **judge_drop("accuracy", home, away, seed=seed)}


def _resample(metric: str, side: Side, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """The metric per network (S,), and in B resamples of the side's groups (S, B)."""
    answers = [
        (side.y_true[rows], p) for rows, p in zip(side.rows, side.probabilities, strict=True)
    ]
    plain = np.array([measure(metric, y, p) for y, p in answers])
    if len(set(side.groups)) < 2:
        return plain, np.full((len(plain), RESAMPLES), np.nan)
    if plain.min() == 1.0 or plain.max() == 0.0:
        exact = _draw_exact(metric, side, rng)
        return plain, np.tile(exact if plain.min() == 1.0 else 1 - exact, (len(plain), 1))
    step = max(1, BLOCK // len(side.groups))
    parts = []
    for start in range(0, RESAMPLES, step):
        weights = bootstrap_weights(side.groups, rng, min(step, RESAMPLES - start))
        parts.append(
            np.stack(
                [
                    resampled(metric, y, p, weights[:, rows])
                    for (y, p), rows in zip(answers, side.rows, strict=True)
                ]
            )
        )
    return plain, np.concatenate(parts, axis=1)


def _draw_exact(metric: str, side: Side, rng: np.random.Generator) -> Float64:
    """(B,) of Beta(G, 1): its 2.5 % point is 0.025 ** (1 / G). Where need be, the classes' mean."""
    groups, y = np.asarray(side.groups), side.y_true
    sizes = [len(set(groups))]
    if metric != "accuracy":
        sizes = [len(set(groups[y == k])) for k in np.unique(y)]
    u = rng.random(RESAMPLES)
    return np.asarray(np.mean([u ** (1 / n) for n in sizes], axis=0))


def _summarise(
    plain: Float64, draws: Float64, least: float, rng: np.random.Generator
) -> dict[str, Any]:
    value = float(plain.mean())
    seeds = [float(v) for v in plain]
    if not np.isfinite(draws).any():
        return {"value": value, "low": None, "high": None, "seeds": seeds}
    low, high = limits_over_repeats(plain, draws, rng)
    return {
        "value": value, "low": max(least, min(low, value)), "high": min(1.0, max(high, value)),
        "seeds": seeds,
    }  # fmt: skip


def flatten_transfers(transfers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per transfer, model, way of judging, metric and class, as in ``laboratories.csv``."""
    rows = []
    for t in transfers:
        who = {"train": t["train"], "test": t["test"], "model": t["model"]}
        for way in WAYS:
            for metric in METRICS:
                parts = {part: t[part][way][metric] for part in ("home", "away", "drop")}
                counts = {"n_home": t["n_home"], "n_away": t["n_away"], "seeds": t["seeds"]}
                rows.append({**who, "judged": way, "metric": metric, "class": "", **_spread(parts),
                             **counts})  # fmt: skip
            for name, facts in t["per_class"][way].items():
                parts = {part: facts[part] for part in ("home", "away", "drop")}
                counts = {"n_home": facts["n_home"], "n_away": facts["n_away"],
                          "seeds": t["seeds"]}  # fmt: skip
                rows.append({**who, "judged": way, "metric": "recall", "class": name,
                             **_spread(parts), **counts})  # fmt: skip
    return rows


def _spread(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """home, home_low, home_high, away, …"""
    return {
        key: facts[what]
        for part, facts in parts.items()
        for key, what in ((part, "value"), (f"{part}_low", "low"), (f"{part}_high", "high"))
    }
