"""How fast Leuko trains from JPEG files, beside timm's and torchvision's training scripts.

    git clone --depth 1 --branch v1.0.28 https://github.com/huggingface/pytorch-image-models
    git clone --depth 1 https://github.com/pytorch/vision
    uv run python benchmarks/training.py ../shared/data/pbc --peers FOLDER_OF_BOTH_CLONES

Where the second clone is too large: Debian's source archive of pytorch-vision holds its script too,
in references/classification, which belongs into FOLDER/vision.

The peers run as they are, each in the settings of `LAYOUTS` (one training on two threads with
loading workers, or two trainings on one thread each), and the best counts. They do less than
Leuko: no rotation, no change of colour, no clipping, no average of the weights. All take turns
within a round, so that other work on the machine slows all alike. What counts is the images per
second of the whole machine: two trainings side by side count both.

The first epoch of Leuko holds finding, decoding and cutting the files; the peers' holds no
listing of files. Starting Python and building the network count for nobody.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np

from leuko.data.pictures import cut_pictures
from leuko.data.sources import scan
from leuko.engine import keep_freed_memory, map_jobs
from leuko.run import describe_environment

EPOCHS = 3
# Trainings side by side, threads of each, loading workers of each.
LAYOUTS = ((1, 2, 2), (1, 2, 1), (2, 1, 1), (2, 1, 0))
TIMM, TORCHVISION = "timm train.py", "torchvision train.py"
SCRIPTS = {
    TIMM: Path("pytorch-image-models/train.py"),
    TORCHVISION: Path("vision/references/classification/train.py"),
}
# Lines that begin an epoch's time, and lines that end it.
BEGINS = {
    TIMM: re.compile(r"Scheduled epochs|Skipping eval"),
    TORCHVISION: re.compile(r"^Start training|^Test: .*Acc@1"),
}
ENDS = {
    TIMM: re.compile(r"^Train: \d+ \[ *\d+/\d+ \(100%\)\]"),
    TORCHVISION: re.compile(r"^Epoch: \[\d+\] Total time"),
}


@dataclass(frozen=True)
class Case:
    """What is trained: name of the network, side in pixels, images per step, precision."""

    model: str
    size: int
    batch: int
    precision: str


@dataclass(frozen=True)
class Job:
    """One of Leuko's trainings on `threads` threads; a matrix product if there is no case."""

    case: Case | None
    pictures: Path
    threads: int
    seed: int
    precision: str = "float32"


def train(job: Job, _send: Any) -> list[float]:
    """Seconds of each epoch."""
    import torch

    from leuko.learning.fit import FitSettings, fit
    from leuko.learning.models import build

    torch.set_num_threads(job.threads)
    keep_freed_memory()
    assert job.case is not None
    with np.load(job.pictures) as file:
        pictures, labels = file["pictures"], file["labels"]
    network = build(job.case.model, int(labels.max()) + 1, size=job.case.size, seed=job.seed)
    settings = FitSettings(
        epochs=EPOCHS, batch=job.case.batch, precision=job.case.precision, balance=False
    )
    return [epoch.seconds for epoch in fit(network, pictures, labels, settings, seed=job.seed)]


def multiply(job: Job, _send: Any) -> float:
    """Largest GFLOP/s of a large matrix product."""
    import torch

    torch.set_num_threads(job.threads)
    a = torch.randn(2048, 2048).to(getattr(torch, job.precision))
    seconds = []
    for _ in range(8):
        begun = perf_counter()
        a @ a
        seconds.append(perf_counter() - begun)
    return 2 * 2048**3 / min(seconds) / 1e9


def run_jobs(work: Any, jobs: list[Job]) -> list[Any]:
    """Side by side, each in a process of its own as in a study."""
    done = map_jobs(work, jobs, workers=len(jobs), on_message=print)
    return [result for _, result in done]


def cut(images: Path, view: str, size: int) -> tuple[float, Any, Any]:
    """Seconds from files on disk to pictures in memory; the pictures; their labels."""
    begun = perf_counter()
    manifest = scan(images)
    ids, pictures, _ = cut_pictures(manifest, view=view, size=size, light="matched")
    seconds = perf_counter() - begun
    names = dict(manifest.table.select("image", "label").iter_rows())
    _, labels = np.unique([names[i] for i in ids], return_inverse=True)
    return seconds, pictures, labels.astype(np.int64)


def measure_leuko(case: Case, images: Path, folder: Path, jobs: int) -> dict[str, float]:
    """Images per second: first epoch as a field and as a cell, and all later ones."""
    cell_seconds, _, _ = cut(images, "cell", case.size)
    field_seconds, pictures, labels = cut(images, "field", case.size)
    path = folder / "pictures.npz"
    np.savez(path, pictures=pictures, labels=labels)
    seconds = run_jobs(train, [Job(case, path, 2 // jobs, k) for k in range(jobs)])
    first = max(each[0] for each in seconds)
    return {
        "first": jobs * len(labels) / (field_seconds + first),
        "first, cells cut out": jobs * len(labels) / (cell_seconds + first),
        "later": sum(len(labels) * (EPOCHS - 1) / sum(each[1:]) for each in seconds),
    }


def command(
    peer: str, script: Path, case: Case, images: Path, out: Path, workers: int
) -> list[str]:
    """A peer's own options, the leanest that train the same network on the same pictures."""
    size = str(case.size)
    common = [sys.executable, str(script), "--device", "cpu", "--model", case.model, "--opt",
              "adamw", "--lr", "0.002", "--weight-decay", "0.05", "--epochs", str(EPOCHS),
              "--batch-size", str(case.batch), "--workers", str(workers)]  # fmt: skip
    if peer == TORCHVISION:
        return [*common, "--data-path", str(images.parent), "--label-smoothing", "0.1",
                "--print-freq", "100000", "--train-crop-size", size, "--val-resize-size", size,
                "--val-crop-size", size]  # fmt: skip
    lean = ["--val-split", "", "--val-interval", "1000", "--color-jitter", "0", "--log-interval",
            "100000", "--warmup-epochs", "0", "--opt-kwargs", "fused=True", "--output", str(out),
            "--data-dir", str(images.parent), "--input-size", "3", size, size, "--num-classes",
            str(sum(p.is_dir() for p in images.iterdir()))]  # fmt: skip
    if case.model.startswith("efficientnet"):
        lean += ["--channels-last"]
    if case.precision == "bfloat16":
        lean += ["--amp", "--amp-dtype", "bfloat16"]
    return [*common, *lean]


def time_epochs(peer: str, line: list[str], threads: int, folder: Path) -> list[float]:
    """Seconds of each epoch of one run, by the clock at which its lines come.

    Raises:
        RuntimeError: The script failed; the message is the last that it said.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    begun, seconds, said = perf_counter(), [], []
    with subprocess.Popen(
        line, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for text in process.stdout:
            said.append(text.strip())
            if BEGINS[peer].search(text):
                begun = perf_counter()
            elif ENDS[peer].search(text):
                seconds.append(perf_counter() - begun)
    if process.returncode or len(seconds) != EPOCHS:
        raise RuntimeError(" ".join(said[-1:]) or f"ended with {process.returncode}")
    return seconds


def measure_peer(
    peer: str, script: Path, case: Case, images: Path, folder: Path, layout: tuple[int, int, int]
) -> dict[str, float]:
    """Images per second in the first epoch and in all later ones."""
    runs, threads, workers = layout
    count = sum(1 for _ in images.rglob("*.jpg"))
    results: list[list[float] | RuntimeError] = []

    def work(index: int) -> None:
        out = folder / f"out{index}"
        out.mkdir(exist_ok=True)
        try:
            line = command(peer, script, case, images, out, workers)
            results.append(time_epochs(peer, line, threads, out))
        except RuntimeError as error:
            results.append(error)
        shutil.rmtree(out)

    pool = [Thread(target=work, args=(i,)) for i in range(runs)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    for result in results:
        if isinstance(result, RuntimeError):
            raise result
    seconds = [result for result in results if isinstance(result, list)]
    return {
        "first": sum(count / each[0] for each in seconds),
        "later": sum(count * (EPOCHS - 1) / sum(each[1:]) for each in seconds),
    }


def choose_images(source: Path, target: Path, count: int) -> Path:
    """Copies the first images of each class, alike in number, as ``train/CLASS/NAME``."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for index, folder in enumerate(classes):
        share = count // len(classes) + (index < count % len(classes))
        files = sorted(folder.glob("*.jpg"))[:share]
        for part, chosen in (("train", files), ("val", files[:1])):
            (target / part / folder.name).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, target / part / folder.name)
    return target / "train"


def find_limits(precision: str) -> float:
    """GFLOP/s of a large matrix product on two cores, the better of the two ways to use them."""
    nowhere = Path()
    layouts = (
        [Job(None, nowhere, 2, 0, precision)],
        [Job(None, nowhere, 1, k, precision) for k in (0, 1)],
    )
    return max(sum(run_jobs(multiply, jobs)) for jobs in layouts)


def count_operations(case: Case) -> dict[str, float]:
    """GFLOP of training on one image (three forward passes): Leuko's network, and the peers'."""
    import torchvision

    from leuko.learning.models import build, count_flops

    ours = build(case.model, 8, size=case.size, seed=0)
    theirs = getattr(torchvision.models, case.model)(num_classes=8)
    return {
        "leuko": 3e-9 * count_flops(ours, case.size),
        "peer": 3e-9 * count_flops(theirs, case.size),
    }


def measure(case: Case, args: argparse.Namespace, images: Path, folder: Path) -> list[str]:
    """One case: rounds in which all take turns; rows of the table."""
    found: dict[tuple[str, Any, str], list[float]] = defaultdict(list)
    failed: dict[tuple[str, Any], str] = {}
    limits = []
    for _ in range(args.rounds):
        limits.append(find_limits(case.precision))
        for jobs in (2, 1):
            rates = measure_leuko(case, images, folder, jobs)
            tell("leuko", (jobs, 2 // jobs, 0), rates)
            for when, rate in rates.items():
                found["leuko", (jobs, 2 // jobs, 0), when].append(rate)
        for peer, script in SCRIPTS.items():
            for layout in args.layouts:
                reason = refuse(peer, args.peers, case)
                try:
                    if reason:
                        raise RuntimeError(reason)
                    path = (args.peers / script).resolve()
                    rates = measure_peer(peer, path, case, images, folder, layout)
                except RuntimeError as error:
                    failed[peer, layout] = str(error)
                    print(f"{peer} {layout}: {error}", file=sys.stderr, flush=True)
                    continue
                tell(peer, layout, rates)
                for when, rate in rates.items():
                    found[peer, layout, when].append(rate)
    return list(write_rows(case, found, failed, max(limits)))


def tell(who: str, layout: tuple[int, int, int], rates: dict[str, float]) -> None:
    """Says each measurement as it is made, with the load: the table comes at the end of a case."""
    words = ", ".join(f"{when} {rate:.0f}" for when, rate in rates.items())
    print(f"{who} {layout}: {words}; load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)


def refuse(peer: str, peers: Path | None, case: Case) -> str:
    """Why a peer can't be measured; empty if it can."""
    if peers is None or not (peers / SCRIPTS[peer]).is_file():
        return f"not measured: no {SCRIPTS[peer]} in --peers; see how to get it in this script"
    if peer == TORCHVISION and case.precision == "bfloat16":
        return "can't: its --amp is for CUDA only"
    if peer == TIMM and case.model == "alexnet":
        return "can't: timm has no AlexNet"
    return ""


def write_rows(case: Case, found: Any, failed: Any, limit: float) -> Any:
    """The best layout of each, by the median over rounds of the later epochs."""
    operations = count_operations(case)
    base: dict[str, float] = {}
    for who in ("leuko", *SCRIPTS):
        layouts = [layout for name, layout, when in found if name == who and when == "later"]
        head = f"| {case.model} | {case.size} | {case.batch} | {case.precision} | {who} "
        if not layouts:
            reason = next(text for (name, _), text in failed.items() if name == who)
            yield head + f"| {reason} | | | | | |"
            continue
        best = max(layouts, key=lambda layout: median(found[who, layout, "later"]))
        rates = {w: median(v) for (n, k, w), v in found.items() if n == who and k == best}
        if who == "leuko":
            base = rates
        reach = rates["later"] * operations["leuko" if who == "leuko" else "peer"] / limit
        cells = rates.get("first, cells cut out")
        first = f"{rates['first']:.0f}" + (f" ({cells:.0f})" if cells else "")
        ratios = [f"{base[w] / rates[w]:.2f}" if who != "leuko" else "" for w in ("first", "later")]
        layout = f"{best[0]} x {best[1]}" + (f", {best[2]} loading" if who != "leuko" else "")
        yield head + (
            f"| {layout} | {first} | {rates['later']:.0f} | {ratios[0]} | {ratios[1]} "
            f"| {reach:.0%} of {limit:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder of classes with JPEG files")
    parser.add_argument("--peers", type=Path, help="folder with both clones")
    parser.add_argument("--count", type=int, default=1536, help="images, a multiple of the batch")
    parser.add_argument("--models", nargs="+", default=["resnet18", "efficientnet_b0", "alexnet"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 96])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS,
                        type=lambda text: tuple(int(n) for n in text.split(",")),
                        help="trainings,threads,loading workers: 1,2,2 ...")  # fmt: skip
    args = parser.parse_args()
    machine = describe_environment([])
    print(f"{machine['processor']}, torch {machine['torch']}, {args.count} images, {args.rounds} "
          f"rounds of {EPOCHS} epochs; load before: {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| model | size | batch | precision | who | trainings x threads | first epoch, images/s "
          "(cells cut out) | later | Leuko / it, first | later | of the matrix product's GFLOP/s "
          "|\n|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = choose_images(args.images, folder / "set", args.count)
        for precision in args.precisions:
            for model in args.models:
                for size in args.sizes:
                    for batch in args.batches:
                        case = Case(model, size, batch, precision)
                        for row in measure(case, args, images, folder):
                            print(row, flush=True)
    print(f"\nLoad after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
