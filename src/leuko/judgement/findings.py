"""Says in words what the numbers of a run say. Pure functions: no file, no figure, no HTML.

Every sentence is chosen by the numbers, so that none can be false for other numbers; where the
data can't tell, the sentence says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.judgement.metrics import exact_limits

FEW = 30  # groups of images of a class below which its figures carry a warning


def triple(model: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
    """Value, low and high of a metric; NaN for what is missing or null."""
    found = model.get(metric) or {}
    value, low, high = (found.get(k) for k in ("value", "low", "high"))
    return _float(value), _float(low), _float(high)


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def percent(value: float | None, digits: int = 1) -> str:
    """0.8624 as "86.2"; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference in percentage points with its sign, if it has one; a true minus sign."""
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def quantity(number: int, one: str, many: str | None = None) -> str:
    """Number and noun: "1 image", "348 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    names = list(names)
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def find_mistakes(
    y_true: NDArray[np.integer[Any]], probabilities: NDArray[np.floating[Any]], most: int
) -> NDArray[np.intp]:
    """Rows with a wrong answer, the surest first; ties keep the order of the rows."""
    said, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(-sure, kind="stable")
    wrong: NDArray[np.intp] = order[(said != y_true)[order]]
    return wrong[:most]


# --- the answer ---------------------------------------------------------------------------------


def with_limits(model: Mapping[str, Any], metric: str) -> str:
    """ "86.2 % (95 % interval 82.1 to 89.9 %)"."""
    value, low, high = triple(model, metric)
    return f"{percent(value)} % (95 % interval {percent(low)} to {percent(high)} %)"


def judged(results: Mapping[str, Any]) -> int:
    """Images that the chosen model answered: all of the set, or the test part of a given split."""
    return int(results["models"][results["best"]].get("n", results["data"]["images"]))


def tested(results: Mapping[str, Any]) -> dict[str, int]:
    """Images per class that were judged."""
    rows = results["models"][results["best"]]["per_class"]
    counts = results["data"]["counts"]
    return {c: min(int(row["n"]), int(counts.get(c, row["n"]))) for c, row in rows.items()}


def answer(results: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences: the best, whether the data can tell, and over the baseline."""
    models, best = results["models"], results["best"]
    n = judged(results)
    first = (
        f"{best} reaches an accuracy of {with_limits(models[best], 'accuracy')} and a balanced "
        f"accuracy of {with_limits(models[best], 'balanced_accuracy')} on {quantity(n, 'image')} "
        f"of {quantity(len(results['data']['classes']), 'class', 'classes')}, each judged by a "
        "network that was not trained on it."
    )
    return [first, *_by_group(models[best]), *_verdicts(results), _over_colour(results)]


def _by_group(model: Mapping[str, Any]) -> list[str]:
    """The figure that counts cells where a set holds many pictures of each."""
    found = model.get("by_group")
    if not found:
        return []
    return [
        f"Many images share a group. With one answer per group, the mean over its images, the "
        f"accuracy is {with_limits(found, 'accuracy')}, n = {found['n']}."
    ]


def seen_from(pair: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The pair with ``model`` as a: sign, limits and verdict turned where it was b."""
    if pair["a"] == model:
        return dict(pair)
    turned = {"better": "worse", "worse": "better", "tie": "tie"}
    return {
        **pair, "a": pair["b"], "b": pair["a"], "difference": -_float(pair["difference"]),
        "low": -_float(pair["high"]), "high": -_float(pair["low"]),
        "verdict": turned[pair["verdict"]],
    }  # fmt: skip


def _verdicts(results: Mapping[str, Any]) -> list[str]:
    """What the paired tests say about the chosen model against each other one."""
    best, rule = results["best"], str(results.get("best_rule") or "").strip()
    if len(results["models"]) == 1:
        return ["Only one model was trained, so there is nothing to compare it with."]
    own = [seen_from(p, best) for p in results["pairs"] if best in (p["a"], p["b"])]
    own = [p for p in own if p["b"] in results["models"]]
    by: dict[str, list[str]] = {"better": [], "tie": [], "worse": []}
    for p in own:
        gap = (
            f"{points(p['difference'])} points, 95 % interval {points(p['low'])} to "
            f"{points(p['high'])}"
        )
        by[p["verdict"]].append(f"{p['b']} ({gap})")
    said = []
    if by["better"]:
        said.append(f"It is better than {listing(by['better'])}.")
    if by["tie"]:
        said.append(f"It ties with {listing(by['tie'])}: these data can't tell them apart.")
    if by["worse"]:
        said.append(f"It is worse than {listing(by['worse'])}.")
    if rule and (by["tie"] or by["worse"]):
        said.append(rule if rule.endswith(".") else f"{rule}.")
    return [" ".join(said)] if said else []


def _over_colour(results: Mapping[str, Any]) -> str:
    """What the chosen network adds over a baseline that sees colours but no shapes."""
    best, colour = results["best"], results["baselines"].get("colour")
    if not colour:
        return "No colour baseline was run, so what shape adds over colour is not known."
    start = (
        "The colour baseline, which knows no morphology, reaches an accuracy of "
        f"{with_limits(colour, 'accuracy')}"
    )
    pairs = [p for p in results.get("over_colour", []) if {p["a"], p["b"]} == {best, "colour"}]
    if not pairs:
        return f"{start}. The two were not compared in pairs."
    pair = seen_from(pairs[0], best)
    gap = (
        f"{points(pair['difference'])} points (95 % interval {points(pair['low'])} to "
        f"{points(pair['high'])})"
    )
    return {
        "better": f"{start}; {best} is better by {gap}.",
        "tie": f"{start}; the difference of {best} to it in accuracy is {gap}, a tie: "
        "these data don't show that the network is right more often.",
        "worse": f"{start}; {best} is worse: {gap}. "
        "Here the network is right less often than colour alone.",
    }[pair["verdict"]]


def disputes(labels: Mapping[str, Any]) -> list[str]:
    """How many labels are disputed and by whom, and whether a person's decisions were applied."""
    cases, n = labels["disputed"], labels["n"]
    kinds = {o["kind"] for o in labels["opinions"] if not o["reason"]}
    rule = (
        f"it prefers another class, and gives the label less than {percent(labels['threshold'], 0)}"
        " % once its probabilities are calibrated"
    )
    if not kinds:
        said = ["No opinion is good enough to dispute a label; the table says why."]
    elif not cases:
        said = [
            f"None of {quantity(n, 'label')} is disputed: where an opinion prefers another "
            f"class, it still gives the label {percent(labels['threshold'], 0)} % or more."
        ]
    else:
        first = "is disputed" if len(cases) == 1 else "are disputed"
        said = [
            f"{len(cases):,} of {quantity(n, 'label')} {first} by at least one opinion: {rule}."
        ]
    if cases and "foreign" in kinds:
        counts = [
            sum(set(c["kinds"]) == wanted for c in cases)
            for wanted in ({"own", "foreign"}, {"own"}, {"foreign"})
        ]
        said.append(
            f"{counts[0]} of them by models of the study and by a foreign one, {counts[1]} by "
            f"models of the study alone, {counts[2]} by a foreign one alone."
        )
    elif "foreign" not in {o["kind"] for o in labels["opinions"]}:
        said.append(
            "No model that never saw this laboratory was asked: errors that are frequent enough to "
            "be learnt aren't seen."
        )
    return [*said, decided(labels["decisions"])]


def decided(decisions: Mapping[str, Any]) -> str:
    """Whether a person's decisions were applied."""
    if not decisions["applied"]:
        return (
            "No decisions file was applied: every label is the one that the set has, after the "
            "steps of cleaning."
        )
    counts = listing([f"{decisions.get(w, 0)} {w}" for w in ("relabel", "drop", "keep")])
    return (
        f"The decisions in {decisions.get('file') or 'the given table'} were applied ({counts}): "
        "the labels judged here are those after it."
    )


# --- classes --------------------------------------------------------------------------------------


def per_class(model: Mapping[str, Any], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and n of each class, with the exact limits of the recall.

    Limits are those of the number of groups, not of the answers: repeats judge an image again and
    add no new image, and images of one cell are answered alike. Where images of a group are less
    alike than that, they are a little too wide.
    """
    rows = []
    known = model.get("groups_per_class") or {}  # runs of before know the images alone
    for name, facts in model["per_class"].items():
        n = min(int(facts["n"]), int(counts.get(name, facts["n"])))
        groups = min(n, int(known.get(name, n)))
        recall = _float(facts["recall"])
        low, high = exact_limits(recall * groups if math.isfinite(recall) else 0, groups)
        rows.append(
            {
                "name": name, **facts, "n": n, "groups": groups, "low": low, "high": high,
                "few": groups < FEW,
            }
        )  # fmt: skip
    return rows


def small_classes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One warning for each class with fewer than 30 groups: how wide its limits are.

    Args:
        rows: Of `per_class`, of any model.
    """
    said = []
    for row in rows:
        if row["few"]:
            n, groups = row["n"], row["groups"]
            right = round(0.8 * groups)
            low, high = exact_limits(right, groups)
            of = "" if groups == n else f" of {quantity(groups, 'group')}"
            said.append(
                f"{row['name']} has {quantity(n, 'image')}{of}. If {right} of {groups} were "
                f"recognised, the exact 95 % limits of that recall would be {percent(low, 0)} to "
                f"{percent(high, 0)} %, {percent(high - low, 0)} points apart. Its row says little."
            )
    return said


def limits(results: Mapping[str, Any], lost: Sequence[str]) -> list[str]:
    """What these numbers don't say; ``lost`` are the classes that cleaning dropped whole."""
    data, counts = results["data"], tested(results)
    smallest = min(counts, key=lambda c: (counts[c], c))
    said = [
        f"One set: {data['name']}, {quantity(judged(results), 'image')} judged. Intervals "
        "say how far the figures would move with other images of the same origin. They say "
        "nothing about another microscope, camera, stain or laboratory.",
        f"The smallest class is {smallest} with {quantity(counts[smallest], 'image')}; no "
        "statement about it can be finer than its limits in the table of classes.",
        "Labels are taken as they are written, after cleaning. A wrong label counts as a mistake "
        "of the model that disagrees with it.",
        "Research use only. Not for diagnosis.",
    ]
    if lost:
        said.insert(2, (
            f"{listing(lost)} was dropped in cleaning: these models don't know it and give such "
            "a cell the name of another class."
        ) if len(lost) == 1 else (
            f"{listing(lost)} were dropped in cleaning: these models don't know them and give "
            "such a cell the name of another class."
        ))  # fmt: skip
    folds = "--split folds " if results["protocol"].get("split") == "given" else ""
    if int(results["protocol"].get("repeats", 1)) < 2 and len(results["models"]) > 1:
        said.insert(1, (
            "There was one repeat, so the verdicts are about the networks as they were trained "
            "here: training the same family again could move them. In simulations, two equal "
            "families whose training runs vary by 2 points of accuracy (standard deviation) were "
            "told apart in 18 % of such studies. "
            f"{folds}--repeats 3 measures this and widens the intervals."
        ))  # fmt: skip
    if str(results["protocol"].get("groups")) != "cell":
        said.insert(2, (
            "Which images show the same cell was not looked for. If one of two such images was "
            "trained on and the other tested, the figures are too good."
        ))  # fmt: skip
    return said
