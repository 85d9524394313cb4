"""How often the limits of a differential hold the truth: raw, and corrected for errors.

uv run python benchmarks/differential.py BUNDLE RUN/predictions.parquet COMMIT

RUN is the training run of the bundle: its predictions are of cells that weren't trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.judgement.calibration import apply_temperature
from leuko.judgement.metrics import exact_limits
from leuko.judgement.prevalence import correct_prevalence
from leuko.learning.bundle import load_bundle
from leuko.use.answers import PRE_CLASSIFIED
from leuko.use.kinds import LEUKOCYTE, sort_class
from leuko.use.predictor import decide

# A slide of mostly normal blood with some of everything; made up for this test, no reference range.
MIXTURE = {
    "neutrophil": 0.58, "lymphocyte": 0.25, "monocyte": 0.07, "eosinophil": 0.04,
    "basophil": 0.01, "ig": 0.02, "erythroblast": 0.01, "platelet": 0.02,
}  # fmt: skip
CELLS, SLIDES, DRAWS = 200, 1000, 200

Limits = NDArray[np.float64]  # (K, 2)


def limit(counts: NDArray[np.int64]) -> Limits:
    whole = int(counts.sum())
    return np.array([exact_limits(int(n), whole) for n in counts])


def print_table(
    names: list[str], truth: NDArray[np.float64], ways: dict[str, list[Limits]]
) -> None:
    heads = [f"{way} {what}" for way in ways for what in ("holds it", "width")]
    print("| class | true share | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * (len(heads) + 1))
    for k, name in enumerate(names):
        cells = []
        for limits in ways.values():
            low, high = np.array(limits)[:, k].T
            held = int(((low <= truth[k]) & (truth[k] <= high)).sum())
            a, b = exact_limits(held, len(limits))
            cells += [f"{100 * held / len(limits):.1f} ({100 * a:.1f}–{100 * b:.1f})"]
            cells += [f"{100 * float((high - low).mean()):.1f}"]
        print(f"| {name} | {100 * truth[k]:.1f} | " + " | ".join(cells) + " |")
    print()


def main(bundle: Path, predictions: Path, commit: str) -> None:
    facts = load_bundle(bundle).facts
    classes = facts.classes
    counted = np.array([sort_class(name) == LEUKOCYTE for name in classes])
    names = [name for name in classes if sort_class(name) == LEUKOCYTE]
    mixture = np.array([MIXTURE[name] for name in classes])
    truth = mixture[counted] / mixture[counted].sum()
    table = np.array(facts.training["metrics"]["confusion"])
    rng = np.random.default_rng(0)

    print("# Limits of a differential\n")
    print(
        "```\nuv run python benchmarks/differential.py BUNDLE RUN/predictions.parquet COMMIT\n```\n"
    )
    print(
        f"Commit {commit}; bundle {facts.architecture} of {facts.created}. {SLIDES:,} slides of "
        f"{CELLS} cells each, seed 0, {DRAWS} draws for each limit. How often, in %, the 95 % "
        "limits hold the true share (with the exact limits of that frequency), and how wide they "
        "are, in points. The mixture is made up.\n"
    )
    print("## Drawn from the model's own confusion\n")
    print(
        "True errors as in the confusion of the bundle (a fiftieth of a cell added to each "
        "entry). Each time a new test of as many cells, and a new slide. Raw: the likeliest class "
        "of each cell.\n"
    )
    rates = (table + 0.02) / (table + 0.02).sum(axis=1, keepdims=True)
    ways: dict[str, list[Limits]] = {"raw": [], "corrected": []}
    for _ in range(SLIDES):
        test = np.array([rng.multinomial(n, r) for n, r in zip(table.sum(1), rates, strict=True)])
        slide = rng.multinomial(CELLS, mixture @ rates)
        found = correct_prevalence(slide, test, counted, rng, draws=DRAWS)
        ways["raw"].append(limit(slide[counted]))
        ways["corrected"].append(np.stack([found.low, found.high], axis=1)[counted])
    print_table(names, truth, ways)

    rows = pl.read_parquet(predictions)
    y = np.array([classes.index(name) for name in rows["label"]])
    raw = rows.select([f"p_{name}" for name in classes]).to_numpy()
    calibrated = apply_temperature(raw, facts.decision.temperature)
    answer = calibrated.argmax(axis=1)
    sure = np.array([decide(p, facts.decision, classes)[1] == PRE_CLASSIFIED for p in calibrated])
    groups = rows["group"].to_numpy()
    print(f"## Real answers to {len(y):,} cells that weren't trained on\n")
    print(
        "Each time the cells are halved by groups: one half gives the confusion, from the other "
        "the slide is drawn with replacement. Likeliest: the likeliest class of each cell. "
        "Pre-classified: what `leuko differential` counts as raw, without unidentified cells. The "
        "thresholds of the bundle come from these cells. The second half is a sample too, which "
        "the limits don't know: the frequencies are a little too low.\n"
    )
    ways = {"likeliest": [], "pre-classified": [], "corrected": []}
    K = len(classes)
    for _ in range(SLIDES):
        unique = rng.permutation(np.unique(groups))
        first = np.isin(groups, unique[: len(unique) // 2])
        test = np.bincount(y[first] * K + answer[first], minlength=K * K).reshape(K, K)
        weights = mixture[y] / np.bincount(y[~first], minlength=K)[y] * ~first
        slide = rng.choice(len(y), CELLS, p=weights / weights.sum())
        seen = np.bincount(answer[slide], minlength=K)
        found = correct_prevalence(seen, test, counted, rng, draws=DRAWS)
        named = np.bincount(answer[slide][sure[slide]], minlength=K)
        ways["likeliest"].append(limit(seen[counted]))
        ways["pre-classified"].append(limit(named[counted]))
        ways["corrected"].append(np.stack([found.low, found.high], axis=1)[counted])
    print_table(names, truth, ways)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
