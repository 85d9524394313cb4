"""How the pretraining recipe was chosen: what helps on a microscope that training never saw.

    uv run python benchmarks/pretraining.py ../shared/data/pbc ../shared/data/blood-cells
    uv run python benchmarks/pretraining.py ../shared/data/pbc ../shared/data/blood-cells --norm
    uv run python benchmarks/pretraining.py ../shared/data/pbc ../shared/data/blood-cells --starts

Trains briefly on PBC (AlexNet, 64 px, at most 800 cells of a class; `--norm`: ResNet-18 with other
normalisation layers), and judges on a tenth of PBC and on the development third of the Kaggle set:
every third image that has a label, and all that share a group with one. The others take part in no
choice; what is reported of PBC → blood-cells is reported on them. About three minutes a row on one
core. `--starts` judges what ships with the package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from leuko.data.cuts import SURROUNDINGS, WINDOW
from leuko.data.pictures import cut_pictures
from leuko.data.splits import make_splits
from leuko.engine import count_cores
from leuko.judgement.comparison import interval
from leuko.judgement.metrics import exact_limits
from leuko.learning.batches import OTHER_LABORATORIES, Augmentation
from leuko.learning.fit import FitSettings, fit, predict
from leuko.learning.models import build, choose_precision
from leuko.learning.starts import answer, list_starts
from leuko.plan import prepare
from leuko.settings import StudySettings
from leuko.watcher import Watcher

SIZE, MOST, EPOCHS = 64, 800, 12
CHOSEN = replace(OTHER_LABORATORIES, cut_out=0.0)  # as it was when it was chosen
FORMER = replace(CHOSEN, contrast=0.25, saturation=0.4, stain=0.25, mixing=0.1)
AUGMENTATIONS = {
    "as within one laboratory": Augmentation(),
    "geometry and focus wide, colour not": replace(
        CHOSEN, brightness=0.05, contrast=0.08, saturation=0.08, stain=0.03, mixing=0,
        tint=0, shading=0,
    ),
    "colour half as wide": FORMER,
    "wide": CHOSEN,
    "still wider": replace(CHOSEN, mixing=0.3, saturation=0.7, scale=0.4, blur=1.5),
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Pictures (N, S, S, 3) for training and for judging, labels, groups, places in the set.

    Places count the images that have one label, also those that cleaning drops.
    """

    wide: np.ndarray
    plain: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    places: np.ndarray


def read_cells(folder: Path, recipe: str, size: int = SIZE, light: str = "matched") -> Cells:
    # As in a study: the groups are those of the audit.
    settings = StudySettings(recipe=recipe, split="folds")
    cleaned = prepare(folder, settings, Watcher(), workers=count_cores())
    table = cleaned.manifest.table
    side = round(size * SURROUNDINGS / WINDOW)
    names, plain, _ = cut_pictures(cleaned.found, view="cell", size=size, light=light)
    _, wide, _ = cut_pictures(
        cleaned.found, view="cell", size=side, window=SURROUNDINGS, light=light
    )
    rows = {name: i for i, name in enumerate(names)}
    order = np.array([rows[name] for name in table["image"]])
    labels = np.array([label.lower() for label in table["label"]])
    return Cells(wide[order], plain[order], labels, np.array(table["group"].to_list()), order)


def take(cells: Cells, rows: np.ndarray) -> Cells:
    return Cells(*(getattr(cells, one.name)[rows] for one in fields(Cells)))


def choose_third(cells: Cells) -> np.ndarray:
    """(N,) whether an image belongs to the development third, itself or by its group."""
    own = set(cells.groups[cells.places % 3 == 0].tolist())
    return np.array([group in own for group in cells.groups])


def divide(home: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, at most `MOST` of a class, and the tenth to judge on; by group."""
    split = make_splits(
        home.labels.tolist(), home.groups.tolist(), folds=10, repeats=1, seed=0,
        images=[str(i) for i in range(len(home.labels))],
    )[0]  # fmt: skip
    classes = sorted(set(home.labels))
    train = [split.train[home.labels[split.train] == c][:MOST] for c in classes]
    return np.concatenate(train), split.test


def replace_normalisation(network: nn.Module) -> nn.Module:
    """GroupNorm of 16 channels a group in place of every BatchNorm."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            setattr(network, name, nn.GroupNorm(max(1, channels // 16), channels))
        else:
            replace_normalisation(child)
    return network


def judge(network: nn.Module, home: Cells, test: np.ndarray, away: Cells) -> list[str]:
    """Balanced accuracy at home; away, answers restricted to its classes: the same, accuracy, loss.

    Args:
        test: Rows of `home`; of `away` all count.
    """
    classes = sorted(set(home.labels))
    common = sorted(set(away.labels) & set(classes))
    p = predict(network, home.plain[test])
    truth = np.searchsorted(classes, home.labels[test])
    at_home = interval("balanced_accuracy", truth, p, home.groups[test].tolist())
    q = predict(network, away.plain)[:, [classes.index(c) for c in common]]
    q /= q.sum(1, keepdims=True)
    truth = np.searchsorted(common, away.labels)
    groups = away.groups.tolist()
    loss = -np.log(np.maximum(q[np.arange(len(q)), truth], 1e-6))
    loss = np.mean([loss[truth == k].mean() for k in range(len(common))])
    shown = [interval(m, truth, q, groups) for m in ("balanced_accuracy", "accuracy")]
    cells = [f"{v.value:.1%} ({v.low:.1%}–{v.high:.1%})" for v in (at_home, *shown)]
    return [*cells, f"{loss:.2f}"]


def tell_share(right: np.ndarray) -> str:
    low, high = exact_limits(int(right.sum()), len(right))
    return f"{right.mean():.1%} ({low:.1%}–{high:.1%})"


def judge_starts(away: Cells) -> None:
    """Pretrained on PBC only, tested on the Kaggle set as it is, without any adaptation."""
    common = sorted(set(away.labels))
    truth = np.searchsorted(common, away.labels)
    third = choose_third(away)
    answers = {}
    for model in list_starts():
        classes, p = answer(model, away.plain)
        answers[model] = p
    answers["mean of the three"] = np.mean(list(answers.values()), axis=0)
    print("| start | images | n | forced, balanced | forced, accuracy | free, accuracy | recall |")
    print("|---|---|---|---|---|---|---|")
    for model, p in answers.items():
        forced = p[:, [classes.index(c) for c in common]]
        forced = forced / forced.sum(1, keepdims=True)
        free = np.array([classes[k] for k in p.argmax(1)]) == away.labels
        for told, rows in (("the others", ~third), ("the development third", third)):
            groups = away.groups[rows].tolist()
            cells = []
            for metric in ("balanced_accuracy", "accuracy"):
                v = interval(metric, truth[rows], forced[rows], groups)
                cells.append(f"{v.value:.1%} ({v.low:.1%}–{v.high:.1%})")
            right = forced.argmax(1) == truth
            recall = ", ".join(
                f"{c} {right[rows & (truth == k)].mean():.0%} of {(rows & (truth == k)).sum()}"
                for k, c in enumerate(common)
            )
            print(
                f"| {model} | {told} | {rows.sum()} | {' | '.join(cells)} | "
                f"{tell_share(free[rows])} | {recall} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pbc", type=Path)
    parser.add_argument("kaggle", type=Path)
    parser.add_argument("--norm", action="store_true", help="compare normalisation layers")
    parser.add_argument("--starts", action="store_true", help="judge the shipped starts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.starts:
        judge_starts(read_cells(given.kaggle, "classic", 96))
        return
    home, away = read_cells(given.pbc, "minimal"), read_cells(given.kaggle, "classic")
    away = take(away, choose_third(away))
    train, test = divide(home)
    n = f"n = {len(test)} at home, {len(away.labels)} away"
    print(f"{len(train)} cells for training; {n}.\n")
    print("| | home, balanced | away, balanced | away, accuracy | away, loss |")
    print("|---|---|---|---|---|")
    name = "resnet18" if given.norm else "alexnet"
    same: Callable[[nn.Module], nn.Module] = lambda network: network  # noqa: E731
    trials = (
        {
            "BatchNorm": (CHOSEN, same),
            "GroupNorm": (CHOSEN, replace_normalisation),
        }
        if given.norm
        else {told: (augmentation, same) for told, augmentation in AUGMENTATIONS.items()}
    )
    labels = np.searchsorted(sorted(set(home.labels)), home.labels)
    for told, (augmentation, change) in trials.items():
        settings = FitSettings(
            epochs=EPOCHS, batch=64, precision=choose_precision(name, "auto"), size=SIZE,
            augmentation=augmentation, reach=WINDOW / SURROUNDINGS,
        )  # fmt: skip
        network = change(build(name, 8, size=SIZE, seed=0))
        for epoch in fit(network, home.wide[train], labels[train], settings, seed=0):
            print(f"{told}: epoch {epoch.number}, loss {epoch.loss:.3f}", file=sys.stderr)
        figures = judge(network, home, test, away)
        print(f"| {told} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
