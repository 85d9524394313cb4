"""Says in words what is lost between laboratories. Pure functions; see ``findings``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leuko.judgement.findings import FEW, listing, percent, points, quantity, triple

METRIC = "balanced_accuracy"  # class counts differ between laboratories; this one doesn't see it


def tell_transfers(results: Mapping[str, Any]) -> list[str]:
    """The range of the drops, then each way: its models, and what colour alone would lose."""
    told = results["laboratories"]
    every = [*told["transfers"], *told["leave_one_out"]]
    drops = [triple(t["drop"]["forced"], METRIC)[0] for t in every]
    # Of what is gained or lost, not of what is lost: where data are few a drop may be negative.
    ends = dict.fromkeys(points(-d) for d in (max(drops), min(drops)))
    said = [
        f"Away from home the balanced accuracy changes by {' to '.join(ends)} points, by model "
        "and way, if only the common classes can be answered."
    ]
    for pair in dict.fromkeys((t["train"], t["test"]) for t in every):
        own = [t for t in every if (t["train"], t["test"]) == pair]
        said.append(
            f"Trained on {pair[0]}, tested on {pair[1]} ({listing(own[0]['classes'])}; "
            f"{quantity(own[0]['n_away'], 'image')}): " + "; ".join(_tell(t) for t in own) + "."
        )
        colour = [
            t for t in told["baselines"]
            if (t["train"], t["test"]) == pair and t["model"] == "colour"
        ]  # fmt: skip
        if colour:
            said[-1] += (
                " The colour baseline, which knows no morphology, has "
                f"{percent(triple(colour[0]['home']['forced'], METRIC)[0])} % at home and "
                f"{percent(triple(colour[0]['away']['forced'], METRIC)[0])} % away."
            )
    return said


def _tell(t: Mapping[str, Any]) -> str:
    """One model: "resnet18 falls from 98.1 to 60.2 % balanced accuracy, …"."""
    home, away = (triple(t[side]["forced"], METRIC)[0] for side in ("home", "away"))
    drop, low, high = triple(t["drop"]["forced"], METRIC)
    if low > 0:
        what = f"falls from {percent(home)} to {percent(away)} % balanced accuracy, by {{gap}}"
    elif high < 0:
        what = f"rises from {percent(home)} to {percent(away)} % balanced accuracy, by {{gap}}"
    else:
        what = (
            f"has {percent(home)} % balanced accuracy at home and {percent(away)} % away: a drop "
            "of {gap} that these data can't tell from none"
        )
    free = triple(t["away"]["free"], METRIC)[0]
    also = ""
    if len(t["answers"]) > len(t["classes"]):
        also = f"; {percent(free)} % away if it may answer any class that it knows"
    if high < 0:
        drop, low, high = -drop, -high, -low
    gap = (
        f"{points(drop).lstrip('+')} points (95 % interval {points(low).lstrip('+')} to "
        f"{points(high).lstrip('+')})"
    )
    return f"{t['model']} {what.format(gap=gap)}{also}"


def tell_limits(results: Mapping[str, Any]) -> list[str]:
    """What these numbers don't say."""
    told, protocol = results["laboratories"], results["protocol"]
    every = [*told["transfers"], *told["leave_one_out"]]
    said = [
        f"{quantity(len(told['sets']), 'set')}. Each is one laboratory with its microscope, camera "
        "and stain; what is lost on the way to yet another one may be more or less.",
        "Each set's labels were given by other people, by rules that may differ. A drop is the "
        "sum of what the network doesn't recognise and of what the people call differently.",
        "At home the networks are judged on images that none of their groups was trained on. "
        "Files that are in two sets, and what shows the same cell as such a file, are not tested "
        "on. Copies of one picture in two sets whose files differ were not looked for.",
        "Classes are matched as the table of sets shows; whether they mean the same thing is for "
        "a person to judge.",
        "Research use only. Not for diagnosis.",
    ]
    if int(protocol["seeds"]) < 3:
        said.insert(1, (
            f"{quantity(int(protocol['seeds']), 'network')} per model and way: how far training "
            "again would move the figures is "
            + ("not known" if int(protocol["seeds"]) < 2 else "hardly known")
            + ". --seeds 3 or more measures it and widens the intervals."
        ))  # fmt: skip
    few = sorted({c for t in every for c, n in _counts(t).items() if n < FEW})
    if few:
        said.insert(1, (
            f"{listing(few)}: fewer than {FEW} images on one side of a way. What is said of "
            f"{'this class' if len(few) == 1 else 'these classes'} there is uncertain."
        ))  # fmt: skip
    if str(protocol.get("groups")) != "cell":
        said.insert(2, (
            "Which images of a set show the same cell was not looked for, so the figures at home "
            "may be too good, and the drop too large."
        ))  # fmt: skip
    return said


def _counts(t: Mapping[str, Any]) -> dict[str, int]:
    rows: Sequence[tuple[str, Mapping[str, Any]]] = list(t["per_class"]["forced"].items())
    return {c: min(int(n["n_home"]), int(n["n_away"])) for c, n in rows}
