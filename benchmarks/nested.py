"""Which fine-tuning recipe the Kaggle set itself would choose: nested cross-validation.

    uv run python benchmarks/nested.py ../shared/data/blood-cells RUN

The outer folds are those of `leuko compare`. Within the training part of each, every recipe is
tried by an inner cross-validation, split by group too; what it does best there, by accuracy, is
trained on the whole part and judged on the outer fold, which took no part in the choice. So the
figure of "chosen inside" is an honest one of choosing and training together. The recipe that
ships is judged on the same folds; nothing was ever chosen there. What was trained stays in RUN, and
the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.cleaning import Cleaned
from leuko.data.splits import make_splits
from leuko.engine import count_cores
from leuko.judgement.comparison import compare_pair, interval
from leuko.judgement.metrics import accuracy
from leuko.judgement.predictions import Predictions
from leuko.learning.folds import FoldJob, FoldResult
from leuko.plan import Plan, prepare
from leuko.preparation import make_jobs, open_run, run_jobs
from leuko.progress import Console
from leuko.settings import StudySettings

SHIPPED = "as shipped"
RECIPES: dict[str, dict[str, Any]] = {
    SHIPPED: {},
    "128 px": {"size": 128},
    "128 px, half of it at 96": {"size": 128, "small": 0.5},
    "rate 0.0005": {"learning_rate": 5e-4},
    "statistics frozen": {"frozen": True},
    "16 epochs": {"epochs": 16},
    "no label smoothing": {"label_smoothing": 0.0},
    "varied widely": {"augmentation": "wide"},
}
INNER = 3  # folds


def open_recipe(
    data: Cleaned, run: Path, recipe: str, models: Sequence[str], watcher: Console
) -> tuple[Plan, list[FoldJob]]:
    """A run folder of its own for each recipe, with the same folds, and the outer jobs."""
    folder = run / recipe.replace(",", "").replace(" ", "-")
    asked = {**RECIPES[recipe], "models": tuple(models), "leak_meter": False}
    known = (folder / "config.toml").exists()
    with open_run(
        data, {} if known else asked, defaults={}, out=None if known else folder,
        resume=folder if known else None, workers=count_cores(), watcher=watcher, command=(),
    ) as (made, plan):  # fmt: skip
        return plan, make_jobs(made, plan)


def make_inner(plan: Plan, outer: FoldJob) -> list[FoldJob]:
    """The jobs of one outer fold's training part, which see nothing else."""
    labels = plan.cleaned.manifest.table["label"].to_list()
    rows = outer.train
    splits = make_splits(
        [labels[i] for i in rows], [plan.groups[i] for i in rows],
        folds=INNER, repeats=1, seed=outer.fold + 1, images=[plan.names[i] for i in rows],
    )  # fmt: skip
    return [
        replace(
            outer, train=rows[s.train], test=rows[s.test], fold=s.fold,
            part=f"inner-{outer.fold}",
        )
        for s in splits
    ]  # fmt: skip


def gather(
    jobs: Sequence[FoldJob], done: dict[Path, FoldResult], N: int, K: int
) -> NDArray[np.float64]:
    """(N, K) answers of jobs whose test parts don't overlap; NaN for rows that none tested."""
    p = np.full((N, K), np.nan)
    for job in jobs:
        p[job.test] = done[job.folder].probabilities
    return p


def show(metric: str, plan: Plan, p: NDArray[np.float64]) -> str:
    found = interval(metric, plan.labels, p, plan.groups)
    return f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--models", default=",".join(StudySettings().models))
    parser.add_argument(
        "--recipes", default=";".join(RECIPES), help="besides the shipped one, between semicolons"
    )
    given = parser.parse_args()
    models = given.models.split(",")
    recipes = list(dict.fromkeys([SHIPPED, *given.recipes.split(";")]))
    if unknown := set(recipes) - set(RECIPES):
        parser.error(f"no recipe {', '.join(unknown)}; expected some of {', '.join(RECIPES)}")
    watcher = Console([])
    given.run.mkdir(parents=True, exist_ok=True)
    data = prepare(given.data, StudySettings(), watcher, workers=count_cores())
    made = {r: open_recipe(data, given.run, r, models, watcher) for r in recipes}
    plan = made[recipes[0]][0]
    assert all(p.splits_table.equals(plan.splits_table) for p, _ in made.values())
    N, K = len(plan.names), len(plan.classes)
    inner = {
        (recipe, outer.model, outer.fold): make_inner(plan, outer)
        for recipe, (_, jobs) in made.items()
        for outer in jobs
    }
    work = [job for jobs in inner.values() for job in jobs]
    work.sort(key=lambda job: job.part)  # fold by fold
    done = run_jobs(work, given.run, workers=count_cores(), watcher=watcher)

    scores = {}
    for key, jobs in inner.items():
        p = gather(jobs, done, N, K)
        seen = ~np.isnan(p[:, 0])
        scores[key] = accuracy(plan.labels[seen], p[seen])
    outer = {(r, j.model, j.fold): j for r, (_, jobs) in made.items() for j in jobs}
    folds = sorted({fold for _, _, fold in outer})
    chosen = {}
    for model in models:
        for fold in folds:
            own = [scores[recipe, model, fold] for recipe in recipes]
            chosen[model, fold] = recipes[int(np.argmax(own))]  # of two alike the first: as shipped
    wanted = {(recipe, *place) for place, recipe in chosen.items()}
    wanted |= {(SHIPPED, *place) for place in chosen}
    last = run_jobs(
        [outer[key] for key in sorted(wanted)], given.run, workers=count_cores(),
        watcher=Console([]),  # which counts the jobs of one run
    )  # fmt: skip
    print(f"| model | {' | '.join(recipes)} | chosen |\n|---|{'---|' * (len(recipes) + 1)}")
    for model in models:
        means = [np.mean([scores[r, model, f] for f in folds]) for r in recipes]
        votes = Counter(chosen[model, f] for f in folds)
        told = ", ".join(f"{name} {count}×" for name, count in votes.most_common())
        print(f"| {model} | {' | '.join(f'{x:.1%}' for x in means)} | {told} |")
    print(f"\nn = {N}, {len(set(plan.groups))} groups.\n")
    print("| model | chosen inside: accuracy | balanced | as shipped: accuracy | balanced | gain |")
    print("|---|---|---|---|---|---|")
    for model in models:
        picked = gather([outer[chosen[model, f], model, f] for f in folds], last, N, K)
        plain = gather([outer[SHIPPED, model, f] for f in folds], last, N, K)
        a, b = (
            Predictions(name, tuple(plan.names), tuple(plan.groups), plan.labels, p[None])
            for name, p in (("chosen", picked), (SHIPPED, plain))
        )
        pair = compare_pair(a, b)
        cells = [
            show(metric, plan, p) for p in (picked, plain)
            for metric in ("accuracy", "balanced_accuracy")
        ]  # fmt: skip
        print(
            f"| {model} | {' | '.join(cells)} | {100 * pair.difference:+.1f} "
            f"({100 * pair.low:+.1f} to {100 * pair.high:+.1f}), p = {pair.p:.2f}: "
            f"{pair.verdict} |"
        )


if __name__ == "__main__":
    main()
