"""How fast Leuko answers, beside timm's script, PyTorch, a plain ONNX Runtime loop and OpenVINO.

    git clone --depth 1 https://github.com/huggingface/pytorch-image-models
    uv run python benchmarks/inference.py ../shared/data/pbc --peers FOLDER_OF_THE_CLONE

The same JPEG cells, the same network (EfficientNet-B0 at 96 pixels, eight classes) and the same two
threads for all. Leuko finds the cell, cuts it out, compares it with what cells are like, and
averages eight views; timm resizes the picture and looks once. So Leuko is measured with one view
too: the same bundle, written again with `views` 1. Everything takes turns within a round, so that
other work on the machine slows all alike; what counts is the median of the rounds' ratios.
Writes `results/inference.md`.

    uv run python benchmarks/inference.py ../shared/data/pbc --memory 100000

only measures memory, with one view, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np
import onnxruntime

from leuko.data.image import read_image
from leuko.data.pictures import cut_pictures
from leuko.data.portraits import describe_cell
from leuko.data.scales import estimate_scale
from leuko.data.sources import scan
from leuko.engine import count_cores
from leuko.learning.batches import make_input
from leuko.learning.bundle import CARD, MODEL, OPTIONAL, PARTS, Bundle, take_apart, write_bundle
from leuko.learning.inference import BATCH, INPUT, ExportedNetwork
from leuko.learning.models import build
from leuko.learning.parts import read_parts
from leuko.use.cutting import find_cells
from leuko.use.inputs import gather
from leuko.use.predictor import Predictor, load
from provenance import find_version, head, write_results

LEUKO = [str(Path(sys.executable).with_name("leuko")), "predict"]
BATCHES = (BATCH, 2 * BATCH)
BARE = "a plain ONNX Runtime loop"
Times = dict[str, list[float]]


def main(
    data: Path, peers: Path | None, images: int, rounds: int, starts: int, compiled: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chosen = choose(data, images)
        lay_out(chosen, folder / "cells")
        memory = measure_memory(chosen, [images, 2 * images, 3 * images])
        eight = load()
        one = Predictor(write_with_one_view(eight.bundle, folder / "one"))
        lines = [
            *tell_cold(measure_cold(folder, peers, rounds), images, rounds),
            *tell_warm(measure_warm(one, eight, folder / "cells", rounds, compiled), rounds),
            *tell_steps(measure_steps(one, chosen[:100]), len(chosen[:100])),
            *tell_first(measure_first(chosen[0], starts)),
            *tell_memory(memory, images),
        ]
    words = f"uv run python benchmarks/inference.py {data} --images {images} --rounds {rounds}"
    words += f" --starts {starts}" + (f" --peers {peers.name}" if peers else "")
    words += " --compile" if compiled else ""
    top = head("How fast Leuko answers", words)
    versions = ", ".join(
        f"{name} {find_version(name)}" for name in ("torch", "onnxruntime", "openvino")
    )
    if peers is not None:
        told = (peers / "timm/version.py").read_text("utf-8")
        versions += f", timm's repository {told.split(chr(39))[1]}"
    write_results("inference.md", [*top, versions + f"; {count_cores()} cores.", "", *lines])


def choose(data: Path, images: int) -> list[Path]:
    """Cells evenly spread over the set."""
    found = sorted(data.glob("*/*.jpg"))
    return [found[len(found) * i // images] for i in range(images)]


def lay_out(chosen: list[Path], folder: Path) -> None:
    for path in chosen:
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).symlink_to(path.resolve())


def write_with_one_view(bundle: Bundle, out: Path) -> Bundle:
    """The same network, asked once. Its temperature is that of eight views: only time counts."""
    prepared = replace(bundle.facts.preprocessing, views=1)
    weights, model = take_apart(bundle)
    return write_bundle(
        out, replace(bundle.facts, preprocessing=prepared), weights=weights, model=model,
        card=read_parts(bundle.path, PARTS, OPTIONAL)[CARD].decode(), reference=bundle.reference,
    )  # fmt: skip


def clock(work: Callable[[], Any]) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


def take_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each way in each round; the order is turned round each time."""
    times: Times = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            times[name].append(clock(ways[name]))
            print(name, round(times[name][-1], 2), flush=True)
    return times


def compare(times: Times, a: str, b: str) -> str:
    """How many times as fast as `a` is `b`: median of the rounds, and their range."""
    ratios = [x / y for x, y in zip(times[a], times[b], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


# --- a whole process ------------------------------------------------------------------------------


def measure_cold(folder: Path, peers: Path | None, rounds: int) -> Times:
    cells = folder / "cells"

    def run(*words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
        assert done.returncode in (0, 3), done.stderr[-2000:]

    ways = {
        "`leuko predict`, 8 views": lambda: run(*LEUKO, str(cells), "--out", "8.csv"),
        "`leuko predict`, 1 view": lambda: run(
            *LEUKO, str(cells), "--model", str(folder / "one"), "--out", "1.csv"
        ),
    }
    if peers is not None:
        script = next(peers.rglob("inference.py")).resolve()
        weights = write_peer(folder / "timm.safetensors")
        words = [
            sys.executable, str(script), "--data-dir", str(cells), "--model", "efficientnet_b0",
            "--num-classes", "8", "--input-size", "3", "96", "96", "--device", "cpu",
            "--batch-size", "32", "--workers", "2", "--results-file", "timm.csv",
            "--no-console-results", "--label-type", "none", "--checkpoint", str(weights),
        ]  # fmt: skip
        ways["timm `inference.py`, 1 view"] = lambda: run(*words)

    def clean(work: Callable[[], Any]) -> Callable[[], Any]:
        def begin() -> None:
            for file in folder.glob("*.csv"):
                file.unlink()
            work()

        return begin

    return take_turns({name: clean(work) for name, work in ways.items()}, rounds)


def write_peer(path: Path) -> Path:
    """Weights for timm's network, without which its script would ask the internet for some.

    Random ones: its answers mean nothing, and take the same time.
    """
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("efficientnet_b0", num_classes=8).state_dict(), path)
    return path


def tell_cold(times: Times, images: int, rounds: int) -> list[str]:
    peer = next((name for name in times if name.startswith("timm")), None)
    rows = [
        f"| {name} | {median(seconds):.1f} | {compare(times, peer, name) if peer else '–'} |"
        for name, seconds in times.items()
    ]
    return [
        f"## A whole process, {images:,} JPEG cells, {rounds} rounds", "",
        "From the start of the process to its end, Python and libraries included.", "",
        "| process | median, s | times as fast as timm (range) |", "|---|---|---|", *rows, "",
    ]  # fmt: skip


# --- in a process that is warm --------------------------------------------------------------------


def measure_warm(
    one: Predictor, eight: Predictor, folder: Path, rounds: int, compiled: bool
) -> dict[str, Any]:
    prepared = one.bundle.facts.preprocessing
    _, cells, _ = cut_pictures(
        scan(folder), view="cell", size=prepared.size, light=prepared.light, window=prepared.window
    )
    items, _ = gather(folder)
    cores = count_cores()
    size, classes = prepared.size, len(one.classes)
    model = read_parts(one.bundle.path, PARTS, OPTIONAL)[MODEL]
    openvino = ExportedNetwork(model, size=size, classes=classes, engine="openvino")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(model, options)
    parts = {b: [cells[i : i + b] for i in range(0, len(cells), b)] for b in BATCHES}
    ways = {}
    for b in BATCHES:
        ways |= {
            f"PyTorch, eager, batches of {b}": run_eager(one.bundle, parts[b]),
            f"{BARE}, batches of {b}": partial(run_bare, session, parts[b]),
            f"Leuko's network, cells in memory, batches of {b}": partial(
                one.bundle.network.answer, cells, views=1, batch=b
            ),
        }
    ways |= {
        f"the same with OpenVINO, batches of {BATCH}": lambda: openvino.answer(cells, views=1),
        "Leuko from JPEG files, in threads": lambda: list(one.stream(items)),
        "Leuko from JPEG files, in processes": lambda: list(one.stream(items, workers=cores)),
    }
    if compiled and (work := run_compiled(one.bundle, parts[BATCHES[1]])):
        ways[f"PyTorch, torch.compile, batches of {BATCHES[1]}"] = work
    for work in ways.values():
        work()
    few = items[: len(items) // 4 * 4]
    some = [np.concatenate([p] * 8) for p in cells[: len(few)].reshape(-1, 2, *cells.shape[1:])]
    eights = {
        "ONNX Runtime": partial(run_bare, session, some),
        "files": lambda: list(eight.stream(few, workers=cores)),
    }
    return {
        "n": len(cells), "one": take_turns(ways, rounds),
        "eight": take_turns(eights, rounds), "few": len(few),
    }  # fmt: skip


def run_bare(session: Any, parts: list[Any]) -> None:
    for part in parts:
        session.run(None, {INPUT: part})


def run_eager(bundle: Bundle, parts: list[Any]) -> Callable[[], Any]:
    import torch

    network, mean, deviation = build_torch(bundle)

    def answer() -> None:
        with torch.inference_mode():
            for part in parts:
                network(make_input(torch.from_numpy(part), mean, deviation)).softmax(1).numpy()

    return answer


def run_compiled(bundle: Bundle, parts: list[Any]) -> Callable[[], Any] | None:
    """None without a C++ compiler."""
    import torch

    if shutil.which("g++") is None:
        return None
    network, mean, deviation = build_torch(bundle)
    compiled = torch.compile(network)
    whole = [p for p in parts if len(p) == len(parts[0])]  # another size would be compiled again

    def answer() -> None:
        with torch.inference_mode():
            for part in whole:
                compiled(make_input(torch.from_numpy(part), mean, deviation)).softmax(1).numpy()

    return answer


def build_torch(bundle: Bundle) -> tuple[Any, Any, Any]:
    import torch

    torch.set_num_threads(count_cores())
    facts = bundle.facts
    network = build(facts.architecture, len(facts.classes), size=facts.preprocessing.size, seed=0)
    weights, _ = take_apart(bundle)
    network.load_state_dict(
        {k: torch.from_numpy(v.astype("f4") if v.ndim else v) for k, v in weights.items()}
    )
    numbers = (torch.tensor(facts.preprocessing.mean), torch.tensor(facts.preprocessing.deviation))
    return network.eval().to(memory_format=torch.channels_last), *numbers


def tell_warm(found: dict[str, Any], rounds: int) -> list[str]:
    times, n = found["one"], found["n"]
    # The peers count with the batches that suit them.
    eager, bare = (
        min((name for name in times if name.startswith(kind)), key=lambda name: median(times[name]))
        for kind in ("PyTorch, eager", BARE)
    )
    rows = [
        f"| {name} | {n / median(seconds):.0f} | {compare(times, eager, name)} | "
        f"{compare(times, bare, name)} |"
        for name, seconds in times.items()
    ]
    compiled = [] if any("torch.compile" in name for name in times) else [
        "torch.compile was not run: it takes --compile and a C++ compiler.", "",
    ]  # fmt: skip
    return [
        f"## In a warm process, {n:,} cells, one view, {rounds} rounds", "",
        "Eager, and the bare session, are those with the faster batches of the two.", "",
        "| way | cells/s (median) | times as fast as eager (range) | share of the bare session |",
        "|---|---|---|---|", *rows, "", *compiled,
        f"With eight views Leuko from {found['few']:,} JPEG files reaches "
        f"{compare(found['eight'], 'ONNX Runtime', 'files')} of what the bare session does on as "
        "many views in memory: processes find and cut while the network is at work, and "
        "their start counts.", "",
    ]  # fmt: skip


# --- where the time goes --------------------------------------------------------------------------


def measure_steps(one: Predictor, chosen: list[Path]) -> dict[str, float]:
    """Milliseconds of processor time a picture, each step by itself, on one thread."""
    cv2.setNumThreads(1)  # as the commands do
    facts = one.bundle.facts.preprocessing
    network = ExportedNetwork(
        read_parts(one.bundle.path, PARTS, OPTIONAL)[MODEL], size=facts.size,
        classes=len(one.classes), threads=1,
    )  # fmt: skip
    seconds = dict.fromkeys(
        ("read and decode", "measure the scale (of a sample only)", "find the cells", "cut out",
         "describe, to tell what is no cell", "network, one view"), 0.0,
    )  # fmt: skip
    for path in chosen:
        marks = [process_time()]
        picture = read_image(path)
        marks.append(process_time())
        scale = estimate_scale(picture)
        marks.append(process_time())
        found = find_cells(picture, scale)
        marks.append(process_time())
        cells = np.stack([facts.cut(picture, cell) for cell in found])
        marks.append(process_time())
        for cell in cells:
            describe_cell(cell)
        marks.append(process_time())
        network.answer(cells, views=1)
        marks.append(process_time())
        for name, begin, end in zip(seconds, marks, marks[1:], strict=False):
            seconds[name] += end - begin
    return {name: 1000 * total / len(chosen) for name, total in seconds.items()}


def tell_steps(steps: dict[str, float], images: int) -> list[str]:
    rows = [f"| {name} | {value:.1f} |" for name, value in steps.items()]
    return [
        f"## Where the time goes, {images:,} pictures, one thread", "",
        "| step | ms of processor time a picture |", "|---|---|", *rows, "",
    ]  # fmt: skip


# --- the first answer -----------------------------------------------------------------------------


def measure_first(path: Path, starts: int) -> list[float]:
    def begin() -> None:
        done = subprocess.run([*LEUKO, str(path)], capture_output=True)
        assert done.returncode == 0

    begin()  # brings the files of Python and its libraries into memory
    return [clock(begin) for _ in range(starts)]


def tell_first(seconds: list[float]) -> list[str]:
    return [
        f"## The first answer, {len(seconds)} starts", "",
        f"`leuko predict ONE.jpg`, a whole process: median {median(seconds):.2f} s, at most "
        f"{max(seconds):.2f} s.", "",
    ]  # fmt: skip


# --- memory ---------------------------------------------------------------------------------------


def measure_memory(
    chosen: list[Path], marks: list[int], model: Predictor | None = None
) -> dict[int, int]:
    """MiB resident after so many images; they are files repeated, answered one by one."""
    model = model or load()
    items, _ = gather(chosen)
    found: dict[int, int] = {}
    many = [items[i % len(items)] for i in range(max(marks))]
    for done, _ in enumerate(model.stream(many), start=1):
        if done in marks:
            found[done] = read_resident()
            print(done, "images:", found[done], "MiB", flush=True)
    return found


def read_resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def tell_memory(found: dict[int, int], images: int) -> list[str]:
    rows = [f"| {n:,} | {mib:,} |" for n, mib in found.items()]
    return [
        "## Memory", "",
        f"`Predictor.stream` over {images:,} files, again and again, eight views; the growth "
        "counts, because OpenCV, Polars and the like are resident too. See also --memory.",
        "",
        "| images | resident, MiB |", "|---|---|", *rows, "",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--memory", type=int)
    given = parser.parse_args()
    if given.memory:
        steps = [n for n in (1000, 2000, 5000, 10_000, 20_000, 50_000) if n < given.memory]
        with tempfile.TemporaryDirectory() as folder:
            once = write_with_one_view(load().bundle, Path(folder) / "one-view")
            chosen = choose(given.data, given.images)
            measure_memory(chosen, [*steps, given.memory], Predictor(once))
    else:
        main(given.data, given.peers, given.images, given.rounds, given.starts, given.compile)
