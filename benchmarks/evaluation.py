"""What the shipped bundle is worth on cells that were kept from its training.

    uv run python benchmarks/evaluation.py RUN ../shared/data

RUN is the folder of the training; its manifest and splits tell which images were kept aside. The
images are read from the folder of the data. Judges them with `leuko.evaluate`, then draws halves by
groups twenty times: temperature and thresholds from one half, calibration and coverage on the
other. Last, the raw Kaggle set, most of which the bundle was trained on: it has to be noticed.
Writes `results/evaluation.md`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import leuko
from leuko.data.manifest import Manifest, read_manifest
from leuko.evaluation import Evaluation
from leuko.judgement.calibration import (
    apply_temperature,
    find_coverage_band,
    find_sets,
    fit_temperature,
    fit_thresholds,
)
from leuko.judgement.evaluation import OWN, PLAIN
from leuko.judgement.metrics import ece_noise_floor, measure
from provenance import head, write_results

RESPLITS = 20
ENOUGH = 100  # cells of a class from which its coverage is judged by itself
WRONG = 0.8  # coverage of the negative control's thresholds
PLACES = {"pbc": "pbc", "kaggle": "blood-cells/dataset-master/dataset-master"}

Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """One pair of halves.

    Attributes:
        n: Cells tested.
        ece, floor: Calibration error and its 95th percentile by chance.
        observed, band: Coverage, and where chance puts it.
        control: Coverage of thresholds that were made for another one.
        classes: Per class of enough cells, coverage and band.
    """

    n: int
    ece: float
    floor: float
    observed: float
    band: tuple[float, float]
    control: float
    classes: dict[str, tuple[float, tuple[float, float]]]


def main(run: Path, data: Path, bundle: Path | None) -> None:
    model = leuko.load(bundle)
    found = leuko.evaluate(model, take_held_out(run, data), groups="given")
    print(found.results["accuracy"], flush=True)
    kaggle = leuko.evaluate(model, data / PLACES["kaggle"], groups="given")
    decision = model.bundle.facts.decision
    assert decision.coverage is not None
    draws = draw_halves(found, decision.temperature, decision.coverage)
    command = f"uv run python benchmarks/evaluation.py RUN {data}"
    metrics = model.bundle.facts.training["metrics"]
    write_results("evaluation.md", [
        *head("The shipped bundle on cells kept from its training", command),
        *tell_figures(found.results, metrics), *tell_draws(draws, decision.coverage),
        *tell_risk(found.results), *tell_seen(kaggle.results),
    ])  # fmt: skip


def take_held_out(run: Path, data: Path) -> Manifest:
    """The images of the run that were tested on and not trained on, where they lie in the data."""
    manifest, splits = (
        read_manifest(run / "manifest.parquet"),
        pl.read_parquet(run / "splits.parquet"),
    )
    tested = splits.filter(pl.col("part") == "test")["image"]
    table = manifest.table.filter(pl.col("image").is_in(tested.to_list()))
    path = pl.col("path")
    for name, place in PLACES.items():
        path = path.str.replace(f"^{name}/", f"{place}/")
    table = table.with_columns(path.alias("path"))
    return replace(manifest.with_table(table), root=data.resolve(), name="held-out tenth")


def draw_halves(found: Evaluation, temperature: float, coverage: float) -> list[Draw]:
    """Twenty times: calibrate on a half of the groups, test on the other."""
    classes = found.results["bundle"]["classes"]
    y = np.array([classes.index(t) for t in found.truth], np.int64)
    raw = apply_temperature(found.probabilities, 1 / temperature)  # the bundle's temperature undone
    names = sorted(set(found.groups))
    place = {group: i for i, group in enumerate(names)}
    group_of = np.array([place[g] for g in found.groups])
    draws = []
    for number in range(RESPLITS):
        half = np.random.default_rng(number).permutation(len(names)) % 2
        draws.append(test_half(y, raw, half[group_of] == 0, classes, coverage))
    return draws


def test_half(
    y: Ints, raw: Float64, fitted: NDArray[np.bool_], classes: list[str], coverage: float
) -> Draw:
    own = fit_temperature(y[fitted], raw[fitted])
    calibrated = apply_temperature(raw, own)
    new, truth = calibrated[~fitted], y[~fitted]
    counts = [np.bincount(part, minlength=len(classes)) for part in (y[fitted], truth)]

    def cover(asked: float) -> NDArray[np.bool_]:
        thresholds = fit_thresholds(y[fitted], calibrated[fitted], asked)
        return find_sets(new, thresholds)[np.arange(len(truth)), truth]

    held = cover(coverage)
    return Draw(
        n=len(truth),
        ece=measure("ece", truth, new),
        floor=ece_noise_floor(new, 0).p95,
        observed=float(held.mean()),
        band=find_coverage_band(counts[0].tolist(), counts[1].tolist(), coverage),
        control=float(cover(WRONG).mean()),
        classes={
            name: (
                float(held[truth == k].mean()),
                find_coverage_band([int(counts[0][k])], [int(counts[1][k])], coverage),
            )
            for k, name in enumerate(classes)
            if (y == k).sum() >= ENOUGH
        },
    )


def show(value: dict[str, float], scale: float = 100) -> str:
    digits = 1 if scale == 100 else 3
    v, low, high = (f"{scale * value[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{v} ({low} to {high})"


def tell_figures(results: dict[str, Any], card: dict[str, Any]) -> list[str]:
    floor = results["ece_floor"]
    rows = [
        ("accuracy, %", "accuracy", 100), ("balanced accuracy, %", "balanced_accuracy", 100),
        ("macro-F1, %", "macro_f1", 100), ("AUROC", "auroc", 1), ("ECE", "ece", 1),
        ("class-wise ECE", "classwise_ece", 1), ("log loss, nats", "nll", 1),
        ("Brier score", "brier", 1),
    ]  # fmt: skip
    bundle = results["bundle"]
    return [
        f"Bundle `{bundle['id'][:12]}` ({bundle['architecture']}, {bundle['size']} px, "
        f"{bundle['views']} views) on {results['n']:,} images in {results['groups']:,} groups: the "
        "tenth of PBC and fifth of the Kaggle set that were kept from its training. 95 % intervals "
        "from the bootstrap over groups.", "",
        "| measure | `leuko evaluate` | on the card |", "|---|---|---|",
        *(f"| {title} | {show(results[key], scale)} | "
          f"{show(card[key], scale) if key in card else '–'} |" for title, key, scale in rows), "",
        "The card's ECE has temperature and thresholds from the other half of these cells; here "
        "the bundle's own are used, which come from all of them, as the warning says. Its pixels "
        "differ a little: the scale of a picture size is the median over the set at hand.", "",
        f"ECE {results['ece']['value']:.4f}; a perfectly calibrated model of these probabilities "
        f"would show {floor['mean']:.4f} on average and up to {floor['p95']:.4f} in 95 of 100 "
        "cases.", "",
        *(f"> {warning}" for warning in results["warnings"]), "",
    ]  # fmt: skip


def tell_draws(draws: list[Draw], coverage: float) -> list[str]:
    inside = sum(d.band[0] <= d.observed <= d.band[1] for d in draws)
    calm = sum(d.ece <= d.floor for d in draws)
    caught = sum(not d.band[0] <= d.control <= d.band[1] for d in draws)
    rows = []
    for name in draws[0].classes:
        own = [d.classes[name] for d in draws]
        seen = [one for one, _ in own]
        hits = sum(low <= one <= high for one, (low, high) in own)
        rows.append(
            f"| {name} | {100 * np.mean(seen):.1f} | {100 * min(seen):.1f} to "
            f"{100 * max(seen):.1f} | {hits} of {len(draws)} |"
        )
    seen = [d.observed for d in draws]
    low, high = draws[0].band
    return [
        f"## Calibration and coverage on cells that calibrated nothing, {len(draws)} pairs of "
        "halves", "",
        f"Temperature and thresholds from a half of the groups, tested on the other (n = "
        f"{min(d.n for d in draws)} to {max(d.n for d in draws)}). The band holds 99 of 100 "
        "samples of cells that are like those of the calibration (exact, Beta-binomial, summed "
        "over classes).", "",
        f"- ECE: {np.mean([d.ece for d in draws]):.4f} on average, {max(d.ece for d in draws):.4f} "
        f"at most; within the noise floor for its n (95th percentile, "
        f"{np.mean([d.floor for d in draws]):.4f} on average) in {calm} of {len(draws)}.",
        f"- Coverage, {coverage:.0%} asked: {100 * np.mean(seen):.1f} % on average, "
        f"{100 * min(seen):.1f} to {100 * max(seen):.1f}; within its band (in the first draw "
        f"{100 * low:.1f} to {100 * high:.1f} %) in {inside} of {len(draws)}.",
        f"- Negative control, thresholds made for {WRONG:.0%}: outside the band in {caught} of "
        f"{len(draws)}.", "",
        f"| class (≥ {ENOUGH} cells) | coverage, %, mean | range | within its band |",
        "|---|---|---|---|", *rows, "",
    ]  # fmt: skip


def tell_risk(results: dict[str, Any]) -> list[str]:
    risk = results["risk"]
    at, full = risk[OWN]["error_at_80"], risk["full_error"]
    return [
        "## What is left to a person", "",
        "| order of the answers | wrong at 80 % coverage, % | AURC, % |", "|---|---|---|",
        *(f"| {title} | {show(risk[order]['error_at_80'])} | "
          f"{100 * risk[order]['aurc']['value']:.2f} ({100 * risk[order]['aurc']['low']:.2f} to "
          f"{100 * risk[order]['aurc']['high']:.2f}) |"
          for order, title in ((OWN, "state, then probability"),
                               (PLAIN, "highest probability alone"))), "",
        f"All answers: {100 * full:.1f} % wrong; half of it is {50 * full:.2f} %, and at 80 % "
        f"coverage {100 * at['value']:.2f} % are. Difference of the two AURCs in points: "
        + " to ".join(f"{100 * risk['differences'][PLAIN][k]:+.3f}" for k in ("low", "high"))
        + " (95 % interval).", "",
        f"Pre-classified: {results['states']['pre-classified']['n']:,} of {results['n']:,}, of "
        f"which {show(results['pre_classified']['accuracy'])} % are right. Unidentified: "
        f"{100 * results['unidentified']:.1f} %; rejected: {100 * results['rejected']:.1f} %.", "",
    ]  # fmt: skip


def tell_seen(results: dict[str, Any]) -> list[str]:
    """The raw Kaggle set: most of it was trained on."""
    seen, data = results["seen"], results["data"]
    unseen = seen["unseen"]
    return [
        "## A set that the bundle was trained on", "",
        f"`leuko evaluate` on the raw Kaggle set, {data['answered']} images, "
        f"{len(data['set_aside'])} set aside with a reason: accuracy "
        f"{show(results['accuracy'])} %. What it prints first:", "",
        *(f"> {warning}" for warning in results["warnings"]), "",
        f"On the {unseen['n']} images of groups that it wasn't trained on: "
        f"{show(unseen['accuracy'])} %." if unseen else "", "",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path, help="[default: the one that ships]")
    given = parser.parse_args()
    main(given.run, given.data, given.bundle)
