"""Says in words what the numbers of an evaluation say. Pure functions: no file, no figure.

As in ``findings``, every sentence is chosen by the numbers; where they can't tell, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leuko.judgement.evaluation import OWN, PLAIN
from leuko.judgement.findings import (
    FEW,
    listing,
    percent,
    quantity,
    triple,
    with_limits,
)


def tell_evaluation(results: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences: accuracy, what is left to a person, calibration, coverage."""
    n = results["n"]
    first = (
        f"Of {quantity(n, 'image')} of {quantity(len(results['common']), 'class', 'classes')} "
        f"{with_limits(results, 'accuracy')} are right; balanced accuracy "
        f"{with_limits(results, 'balanced_accuracy')}."
    )
    return [first, _tell_states(results), _tell_calibration(results), *_tell_coverage(results),
            _tell_order(results)]  # fmt: skip


def _tell_states(results: Mapping[str, Any]) -> str:
    named = results["pre_classified"]
    share = results["states"]["pre-classified"]["value"]
    left = (
        f"{percent(results['unidentified'])} % stay unidentified and "
        f"{percent(results['rejected'])} % are rejected"
    )
    if not named["n"]:
        return f"None is pre-classified: {left}."
    return (
        f"{percent(share)} % are pre-classified, and of these {with_limits(named, 'accuracy')} are "
        f"right; {left}."
    )


def _tell_calibration(results: Mapping[str, Any]) -> str:
    value, low, high = triple(results, "ece")
    floor = results["ece_floor"]
    told = (
        f"The calibration error (ECE) is {value:.3f} (95 % interval {low:.3f} to {high:.3f}); a "
        f"perfectly calibrated model would show {floor['mean']:.3f} on as many images by chance, "
        f"and in 95 of 100 cases at most {floor['p95']:.3f}"
    )
    if value <= floor["p95"]:
        return f"{told}: it can't be told from a calibrated one."
    return f"{told}: its probabilities are off by more than chance."


def _tell_coverage(results: Mapping[str, Any]) -> list[str]:
    found = results["coverage"]
    if found["target"] is None:
        return ["The model has no thresholds, so it gives no sets of classes."]
    told = (
        f"The sets of classes, of {found['set_size']:.2f} classes on average, are to hold the true "
        f"one in {percent(found['target'])} % and do in {percent(found['observed'])} %"
        f"{_range(found)}"
    )
    if found["band"] is None:
        return [f"{told}."]
    low, high = found["band"]
    inside = low <= found["observed"] <= high
    where = (
        "within what chance allows" if inside
        else "more than chance allows" if found["observed"] > high
        else "less than chance allows, as happens where cells differ from those of the training"
    )  # fmt: skip
    return [f"{told}: {where} ({percent(low)} to {percent(high)} % in 99 of 100 such samples)."]


def _range(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return ""
    return f" (95 % interval {percent(found['low'])} to {percent(found['high'])} %)"


def _tell_order(results: Mapping[str, Any]) -> str:
    risk = results["risk"]
    at = risk[OWN]["error_at_80"]
    told = (
        f"Were the least sure fifth left to a person, {percent(at['value'])} % of the rest would "
        f"be wrong (95 % interval {percent(at['low'])} to {percent(at['high'])} %), instead of "
        f"{percent(risk['full_error'])} % of all."
    )
    gap = risk["differences"][PLAIN]
    if gap["low"] <= 0 <= gap["high"]:
        return (
            f"{told} Looking at states first is neither shown better nor worse for that than the "
            f"highest probability alone (AURC {risk[OWN]['aurc']['value']:.4f} against "
            f"{risk[PLAIN]['aurc']['value']:.4f})."
        )
    word = "better" if gap["value"] < 0 else "worse"
    return (
        f"{told} Looking at states first is {word} for that than the highest probability alone "
        f"(AURC {risk[OWN]['aurc']['value']:.4f} against {risk[PLAIN]['aurc']['value']:.4f}; "
        f"difference {gap['value']:+.4f}, 95 % interval {gap['low']:+.4f} to {gap['high']:+.4f})."
    )


def tell_set(results: Mapping[str, Any]) -> list[str]:
    """What was judged and what wasn't, in sentences."""
    data = results["data"]
    said = [
        *tell_names(results),
        f"{quantity(data['images'], 'image')} in {quantity(data['rows'], 'row')}; "
        f"{quantity(data['answered'], 'image')} answered, "
        f"{quantity(len(data['set_aside']), 'image')} set aside.",
    ]
    if data["no_cell"]:
        said.append(
            f"No leukocyte was found in {quantity(len(data['no_cell']), 'image')}. What lies "
            "around the darkest stain, or in the middle, was answered as in training and counts in "
            "every figure; the state is rejected."
        )
    if data["several_cells"]:
        said.append(
            f"{quantity(len(data['several_cells']), 'field')} with one label "
            f"{'shows' if len(data['several_cells']) == 1 else 'show'} several leukocytes. The one "
            "that training would have taken is judged: the most certain one, or of equally certain "
            "ones that with the largest nucleus. The label may be that of another."
        )
    if results["absent"]:
        said.append(
            f"The set has no image of {listing(results['absent'])}. An answer in one of these "
            "classes is wrong; what the answers would be without them is told as forced."
        )
    for name, one in results["unknown"].items():
        answers = ", ".join(f"{c} {k:,}" for c, k in list(one["answers"].items())[:4])
        named = one["states"].get("pre-classified", 0)
        said.append(
            f"The model doesn't know {name}: {quantity(one['n'], 'image')}, of which it takes "
            f"{named:,} for certain. It says {answers}."
        )
    if data["groups"] == "given":
        said.append(
            "Groups are those that the set gives; it was not looked whether images show the same "
            "cell, so that intervals may be too narrow."
        )
    else:
        said.append(
            f"{quantity(results['groups'], 'group')}: images that show the same cell are resampled "
            "together."
        )
    few = {c: row["n"] for c, row in results["per_class"].items() if 0 < row["n"] < FEW}
    if few:
        told = ", ".join(f"{c} ({n})" for c, n in few.items())
        said.append(f"Fewer than {FEW} images: {told}. Figures of these classes say little.")
    return said


def tell_names(results: Mapping[str, Any]) -> list[str]:
    """What the set's classes are taken as, in sentences; nothing where all have their names."""
    renamed = [f"{c} as {common}" for c, common in results["names"].items() if c != common]
    return [f"Classes of the set are taken by other names: {', '.join(renamed)}."] * bool(renamed)
