"""What 20, 50 and 100 labelled cells of another laboratory give a model that never saw it.

    uv run python benchmarks/adaptation.py RUN ../shared/data/blood-cells --cache FOLDER
    uv run python benchmarks/adaptation.py RUN ../shared/data/blood-cells --cache FOLDER --drawn

RUN is the folder of the pretraining. `--drawn` is what choices were made on: the tenth of PBC that
the pretraining kept aside, turned into laboratories with another stain, lamp, focus, noise, camera
curve and scale, 5 % of the labels wrong. Without it, what is reported: the shipped starts, which
saw PBC only, on the Kaggle set; networks trained here on the Kaggle set only, on PBC; and the
starts on PBC itself, where there is nothing to gain. Five draws of labels each, about equally many
of each class and at most 60 % of one; tested on all cells that share no group with a labelled one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import polars as pl
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression

from leuko.data.pictures import cut_pictures
from leuko.engine import count_cores
from leuko.errors import AdaptationError
from leuko.judgement.comparison import bootstrap_weights
from leuko.judgement.metrics import balanced_accuracy, resampled
from leuko.learning.batches import turn_views
from leuko.learning.head import Head, answer_features, fit_head
from leuko.learning.inference import ExportedNetwork
from leuko.learning.starts import find_start
from leuko.plan import prepare
from leuko.settings import StudySettings
from leuko.use.adaptation import (
    CERTAIN,
    STRENGTHS,
    Examples,
    choose_strength,
    compare_layers,
    cross_answer,
    decide_change,
)
from leuko.watcher import Watcher

SIZE, LABELS, SEEDS = 96, (20, 50, 100), 5
FOUR = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
RULES = (0.5, 0.8, 0.9, 0.975)  # certainty at which a new layer is taken


@dataclass(frozen=True)
class Cells:
    """Pictures (N, S, S, 3), class names and groups."""

    pixels: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Cells:
        return Cells(self.pixels[rows], self.labels[rows], self.groups[rows])


@dataclass(frozen=True)
class Seen:
    """What a network with this last layer sees of cells: features (N, V, D), labels (N,)."""

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    head: Head
    classes: tuple[str, ...]


# --- cells and networks -----------------------------------------------------------------------


def read_kaggle(folder: Path, cache: Path) -> tuple[Cells, list[str]]:
    """The cells, and the ids of their images; found once."""
    place = cache / "cells-kaggle.npz"
    if not place.exists():
        cells, names = cut_kaggle(folder)
        np.savez(place, **vars(cells), images=np.array(names))
    with np.load(place) as file:
        cells = Cells(file["pixels"], file["labels"], file["groups"])
        return cells, file["images"].tolist()


def cut_kaggle(folder: Path) -> tuple[Cells, list[str]]:
    cleaned = prepare(folder, StudySettings(split="folds"), Watcher(), workers=count_cores())
    names, pixels, _ = cut_pictures(cleaned.manifest, view="cell", size=SIZE, light="matched")
    table = cleaned.manifest.table
    place = {name: i for i, name in enumerate(names)}
    labels = [label.lower() for label in table["label"]]
    rows = [place[name] for name in table["image"]]
    cells = Cells(pixels[rows], np.array(labels), np.array(table["group"].to_list()))
    return cells, table["image"].to_list()


def read_kept_aside(run: Path) -> Cells:
    """The tenth of PBC that the pretraining kept aside."""
    splits = pl.read_parquet(run / "splits.parquet").filter(pl.col("part") == "test")
    manifest = pl.read_parquet(run / "manifest.parquet").unique("image", keep="first")
    table = splits.join(manifest, on="image", how="left").sort("image")
    with np.load(run / "cells.npz", allow_pickle=False) as file:
        place = {str(name): i for i, name in enumerate(file["image"])}
        pixels = file["cells"]
    rows = [place[name] for name in table["image"]]
    return Cells(pixels[rows], np.array(table["label"]), np.array(table["group"]))


def change_laboratory(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, S, S, 3): one drawn laboratory for all cells, farther away than those of learning.py."""
    side = cells.shape[1]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), 0, rng.uniform(0.75, 1.3))
    border = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REFLECT}
    cells = np.stack([cv2.warpAffine(c, matrix, (side, side), **border) for c in cells])
    density = -np.log(np.maximum(cells, 1) / 255.0)
    stain = np.diag(rng.uniform(0.35, 1.2, 3)) + rng.uniform(-0.3, 0.3, (3, 3))
    light = np.exp(-np.maximum(density @ stain.T, 0)) * rng.uniform(0.65, 1.0, 3)
    light = gaussian_filter(light, (0, *[rng.uniform(0.5, 2.0)] * 2, 0))
    light = light ** rng.uniform(0.7, 1.4)
    noisy = light + rng.normal(0, rng.uniform(0.01, 0.06), cells.shape)
    return np.clip(noisy * 255 + 0.5, 0, 255).astype(np.uint8)


def export_start(model: str) -> tuple[bytes, Head, tuple[str, ...]]:
    from leuko.learning.export import export_network, find_head
    from leuko.learning.models import build

    start = find_start(model)
    weights = {k: v.float() for k, v in load_file(start.path).items()}
    network = build(model, len(start.classes), size=SIZE, seed=0)
    network.load_state_dict(weights)
    name = find_head(network, len(start.classes)).name
    head = (weights[f"{name}.weight"].numpy(), weights[f"{name}.bias"].numpy())
    return export_network(network, size=SIZE), head, start.classes


def train_on_kaggle(model: str, cells: Cells) -> tuple[bytes, Head, tuple[str, ...]]:
    """From random weights, so that nothing of PBC is in it."""
    import torch

    from leuko.learning.export import export_network, find_head
    from leuko.learning.fit import FitSettings, fit
    from leuko.learning.models import build, choose_precision

    torch.set_num_threads(1)
    classes = tuple(sorted(set(cells.labels)))
    settings = FitSettings(
        epochs=40, batch=16, learning_rate=2e-3, precision=choose_precision(model, "auto")
    )
    network = build(model, len(classes), size=SIZE, seed=0)
    list(fit(network, cells.pixels, np.searchsorted(classes, cells.labels), settings, seed=0))
    name = find_head(network, len(classes)).name
    weights = {k: v.detach().float().cpu().numpy() for k, v in network.state_dict().items()}
    head = (weights[f"{name}.weight"], weights[f"{name}.bias"])
    return export_network(network.eval(), size=SIZE), head, classes


def see(
    cache: Path,
    key: str,
    make_network: Callable[[], tuple[bytes, Head, tuple[str, ...]]],
    make_cells: Callable[[], Cells],
    views: int,
) -> Seen:
    """Features, computed once; networks and features are kept in `cache`."""
    network = key.split("-")[0]
    layer, place = cache / f"{network}.npz", cache / f"{key}.npz"
    if not layer.exists():
        model, head, classes = make_network()
        (cache / f"{network}.onnx").write_bytes(model)
        np.savez(layer, weight=head[0], bias=head[1], classes=np.array(classes))
    with np.load(layer) as file:
        head, classes = (file["weight"], file["bias"]), tuple(file["classes"].tolist())
    if not place.exists():
        model = (cache / f"{network}.onnx").read_bytes()
        session = ExportedNetwork(model, size=SIZE, classes=len(classes), threads=1)
        cells = make_cells()
        found = [session.answer(v, views=1)[1] for v in turn_views(cells.pixels, views)]
        np.savez(place, features=np.stack(found, 1), labels=cells.labels, groups=cells.groups)
    with np.load(place) as file:
        labels = np.array([classes.index(str(label)) for label in file["labels"]])
        features = file["features"].astype(np.float64)
        return Seen(features, labels, file["groups"], head, classes)


# --- one draw of labels -----------------------------------------------------------------------


def draw_labels(seen: Seen, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """About equally many of each class, at most 60 % of one; and all cells of other groups."""
    y, left = seen.labels, {}
    for k in np.unique(y):  # other photographs of one cell come last
        order = rng.permutation(np.flatnonzero(y == k))
        firsts = np.unique(seen.groups[order], return_index=True)[1]
        later = np.setdiff1d(np.arange(len(order)), firsts)
        left[k] = order[np.concatenate([later, np.sort(firsts)])].tolist()
    least = {k: len(rows) * 0.4 for k, rows in left.items()}
    chosen: list[int] = []
    while len(chosen) < n:
        open_ones = [k for k, rows in left.items() if len(rows) - 1 >= least[k]]
        for k in rng.permutation(open_ones)[: n - len(chosen)]:
            chosen.append(left[k].pop())
    test = ~np.isin(seen.groups, seen.groups[chosen])
    return np.array(chosen), np.flatnonzero(test)


def compare_ways(seen: Seen, given: np.ndarray, y: np.ndarray, test: np.ndarray) -> dict:
    """(N_test, K) answers by way, and whether `adapt` took the new layer."""
    x, new = seen.features[given].mean(1), seen.features[test].mean(1)
    there, K = np.unique(y), len(seen.classes)
    before = answer_features(seen.features[test], seen.head)
    forced = np.zeros_like(before)
    forced[:, there] = before[:, there] / before[:, there].sum(1, keepdims=True)
    means = np.stack([x[y == k].mean(0) for k in there])
    apart = ((new[:, None] - means) ** 2).sum(-1)
    nearest = np.zeros_like(before)
    nearest[np.arange(len(new)), there[apart.argmin(1)]] = 1
    middle, spread = x.mean(0), x.std(0) + 1e-6
    plain = LogisticRegression(max_iter=2000, class_weight="balanced")
    plain.fit((x - middle) / spread, y)
    logistic = np.zeros_like(before)
    logistic[:, there] = plain.predict_proba((new - middle) / spread)
    answers = {
        "nothing": before, "nothing, forced to the classes there": forced,
        "nearest class mean": nearest, "logistic regression": logistic,
        "bias only": answer_features(
            seen.features[test], fit_head(seen.features[given], y, seen.head, 100.0)
        ),
    }  # fmt: skip
    cells = Examples(seen.features[given], y, tuple(seen.groups[given].tolist()))
    try:
        counts = np.bincount(y, minlength=K)
        if (counts[there] < 5).any():
            raise AdaptationError("too few")
        old = np.repeat(answer_features(cells.features, seen.head)[None], 4, axis=0)
        judged = compare_layers(cells, old, cross_answer(cells, seen.head))
        taken = decide_change(judged, len(there))[0]
        fitted = fit_head(cells.features, y, seen.head, choose_strength(cells, seen.head))
        always = answer_features(seen.features[test], fitted)
    except AdaptationError:
        return {"answers": answers, "taken": None}
    answers["new layer always"] = always
    answers["leuko adapt"] = always if taken else before
    told = (judged.before.value, judged.after.value)
    return {"answers": answers, "taken": taken, "certainty": judged.certainty, "told": told}


def run_draw(task: tuple[Seen, int, int, float]) -> dict:
    seen, n, seed, wrong = task
    rng = np.random.default_rng([n, seed])
    given, test = draw_labels(seen, n, rng)
    y = seen.labels[given].copy()
    flip = rng.random(len(y)) < wrong
    y[flip] = rng.choice(np.unique(seen.labels), flip.sum())
    return {"test": test, "n": n, **compare_ways(seen, given, y, test)}


# --- tables -----------------------------------------------------------------------------------


def limits(seen: Seen, draws: Sequence[dict], way: str, without: np.ndarray | None = None) -> str:
    """The mean over the draws of balanced accuracy; groups of the whole set are resampled."""
    weights = bootstrap_weights(seen.groups.tolist(), np.random.default_rng(0), 1000)
    values, resamples = [], []
    for draw in draws:
        rows = np.ones(len(draw["test"]), bool)
        if without is not None:
            rows = ~without[draw["test"]]
        test, p = draw["test"][rows], draw["answers"][way][rows]
        values.append(balanced_accuracy(seen.labels[test], p))
        resamples.append(resampled("balanced_accuracy", seen.labels[test], p, weights[:, test]))
    low, high = np.nanquantile(np.mean(resamples, axis=0), [0.025, 0.975])
    return (
        f"{np.mean(values):.1%} ({low:.1%}–{high:.1%}; draws {min(values):.0%}–{max(values):.0%})"
    )


def report(told: str, seen: Seen, pool: ProcessPoolExecutor, without: np.ndarray | None) -> None:
    tasks = [(seen, n, seed, 0.0) for n in LABELS for seed in range(SEEDS)]
    done = list(pool.map(run_draw, tasks))
    print(f"\n### {told}\n")
    print(f"| way | {' | '.join(f'{n} labels' for n in LABELS)} |")
    print("|---|" + "---|" * len(LABELS))
    by_number = {n: [d for d in done if d["n"] == n] for n in LABELS}
    for way in max(done, key=lambda d: len(d["answers"]))["answers"]:
        row = [
            limits(seen, by_number[n], way) if way in by_number[n][0]["answers"] else "refused"
            for n in LABELS
        ]
        print(f"| {way} | {' | '.join(row)} |")
    fine = {n: draws for n, draws in by_number.items() if draws[0]["taken"] is not None}
    if without is not None:
        row = [limits(seen, fine[n], "leuko adapt", without) for n in fine]
        print(f"| leuko adapt, without disputed labels in the test | {' | '.join(row)} |")
    for n, draws in fine.items():
        y = [seen.labels[d["test"]] for d in draws]
        gain = [
            balanced_accuracy(t, d["answers"]["leuko adapt"])
            - balanced_accuracy(t, d["answers"]["nothing"])
            for t, d in zip(y, draws, strict=True)
        ]
        off = [
            d["told"][1] - balanced_accuracy(t, d["answers"]["new layer always"])
            for t, d in zip(y, draws, strict=True)
        ]
        print(
            f"\n{n} labels: taken in {sum(d['taken'] for d in draws)} of {len(draws)} draws; gains "
            f"on the test {', '.join(f'{100 * g:+.1f}' for g in gain)} points; cross-validation "
            f"said {100 * np.mean(off):+.1f} points more than the test; n = "
            f"{min(map(len, y))}–{max(map(len, y))}."
        )
    print(flush=True)


def choose(cells: Cells, cache: Path, models: Sequence[str], pool: ProcessPoolExecutor) -> None:
    """What the drawn laboratories say of the strength and of when to take a new layer."""
    tasks = []
    for model in models:
        for lab in range(6):
            rng = np.random.default_rng(9000 + lab)
            rows = [rng.permutation(np.flatnonzero(cells.labels == c))[:50]
                    for c in sorted(set(cells.labels))]  # fmt: skip
            part = cells.take(np.concatenate(rows))
            seen = see(
                cache, f"start_{model}-drawn{lab}", lambda m=model: export_start(m),
                lambda p=part, r=rng: Cells(change_laboratory(p.pixels, r), p.labels, p.groups), 1,
            )  # fmt: skip
            if lab % 2:  # a set of four classes
                rows = np.isin([seen.classes[k] for k in seen.labels], FOUR)
                seen = Seen(seen.features[rows], seen.labels[rows], seen.groups[rows], seen.head,
                            seen.classes)  # fmt: skip
            tasks += [(seen, n, s, 0.05) for n in LABELS for s in range(3)]
    done = list(zip(tasks, pool.map(run_draw, tasks), strict=True))
    print("| way | " + " | ".join(f"{n} labels" for n in LABELS) + " |")
    print("|---|" + "---|" * len(LABELS))
    fine = [(t, d) for t, d in done if d["taken"] is not None]

    def mean(values: Sequence[float]) -> str:
        return f"{np.mean(values):.1%} ({len(values)})" if len(values) else "–"

    def score(task: tuple, draw: dict, way: str) -> float:
        return balanced_accuracy(task[0].labels[draw["test"]], draw["answers"][way])

    for way in fine[0][1]["answers"]:
        print(f"| {way} | " + " | ".join(
            mean([score(t, d, way) for t, d in fine if d["n"] == n]) for n in LABELS
        ) + " |")  # fmt: skip
    fixed = list(pool.map(try_strengths, [t for t, _ in fine]))
    for i, strength in enumerate(STRENGTHS):
        print(f"| strength {strength:g} / N, always | " + " | ".join(
            mean([f[i] for f, (_, d) in zip(fixed, fine, strict=True) if d["n"] == n])
            for n in LABELS
        ) + " |")  # fmt: skip
    gains = np.array([score(t, d, "new layer always") - score(t, d, "nothing") for t, d in fine])
    sure = np.array([d["certainty"] for _, d in fine])
    print("\n| taken if certain by | taken | mean gain, points | worse than before | worst |")
    print("|---|---|---|---|---|")
    for rule in RULES:
        got = np.where(sure >= rule, gains, 0)
        print(f"| {rule:g} | {np.mean(sure >= rule):.0%} | {100 * got.mean():+.1f} | "
              f"{np.sum(got < 0)} of {len(got)} | {100 * got.min():+.1f} |")  # fmt: skip
    print(f"\nThe rule is {CERTAIN:g}.")


def try_strengths(task: tuple[Seen, int, int, float]) -> list[float]:
    seen, n, seed, wrong = task
    rng = np.random.default_rng([n, seed])
    given, test = draw_labels(seen, n, rng)
    y = seen.labels[given].copy()
    flip = rng.random(len(y)) < wrong
    y[flip] = rng.choice(np.unique(seen.labels), flip.sum())
    heads = [fit_head(seen.features[given], y, seen.head, s / len(y)) for s in STRENGTHS]
    return [
        balanced_accuracy(seen.labels[test], answer_features(seen.features[test], h)) for h in heads
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("kaggle", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--models", default="alexnet,efficientnet_b0,resnet18")
    parser.add_argument("--disputed", type=Path, help="disputed.csv of a study of the Kaggle set")
    parser.add_argument("--drawn", action="store_true")
    parser.add_argument("--ways", default="away,back,home", help="to blood-cells, to PBC, at home")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    models = given.models.split(",")
    with ProcessPoolExecutor(count_cores()) as pool:
        if given.drawn:
            choose(read_kept_aside(given.run), given.cache, models, pool)
            return
        kaggle, names = read_kaggle(given.kaggle, given.cache)
        without = None
        if given.disputed:
            without = np.isin(names, pl.read_csv(given.disputed)["image"].to_numpy())

        def four() -> Cells:
            pbc = read_kept_aside(given.run)
            return pbc.take(np.isin(pbc.labels, FOUR))

        for model in models if "away" in given.ways else ():
            start = see(given.cache, f"start_{model}-kaggle", lambda m=model: export_start(m),
                        lambda: kaggle, 8)  # fmt: skip
            report(f"PBC → blood-cells, {model}", start, pool, without)
        for model in models if "back" in given.ways else ():
            trained = see(given.cache, f"kaggle_{model}-pbc",
                          lambda m=model: train_on_kaggle(m, kaggle), four, 8)  # fmt: skip
            report(f"blood-cells → PBC, four classes, {model}", trained, pool, None)
        for model in models if "home" in given.ways else ():
            home = see(given.cache, f"start_{model}-home", lambda m=model: export_start(m),
                       lambda: read_kept_aside(given.run), 1)  # fmt: skip
            report(f"PBC → PBC, {model}: nothing to gain", home, pool, None)


if __name__ == "__main__":
    main()
