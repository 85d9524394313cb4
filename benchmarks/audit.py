"""How long the audit takes and how much memory, and how both grow.

    uv run python benchmarks/audit.py ../shared/data/pbc
    uv run python benchmarks/audit.py ../shared/data/pbc --sizes 1000 3000 10000 30000 100000

Writes `results/audit.md`. The audit of the folder itself comes first; then sets of other sizes are
made from its images, audited, and removed. Every audit runs in a process of its own with two
workers; memory is the proportional set size of that process and of all its children together,
twice a second. `--peers FOLDER` holds packages to compare with (cleanvision).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leuko.data.likeness import FEWEST, choose_landmarks
from provenance import head, write_results

COMMAND = "uv run python benchmarks/audit.py ../shared/data/pbc"
WORKERS = 2
SIZES = (1_000, 3_000, 10_000)
MOST_COPIES = 8  # of one original, itself included, so that true pairs per image stay bounded
PARTS = ("scan", "measuring", "search", "comparing")
TOLD = ("exact_duplicate", "near_duplicate", "turned_copy", "same_cell", "label_conflict")
Outcome = tuple[dict[str, Any], float]  # what was found, and the peak memory in MiB
PEER = """
import json, sys, time
from cleanvision import Imagelab
start = time.perf_counter()
lab = Imagelab(data_path=sys.argv[1], verbose=False)
lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=2, verbose=False)
sets = {kind: lab.info[kind]["sets"] for kind in ("exact_duplicates", "near_duplicates")}
print(json.dumps({"seconds": time.perf_counter() - start,
                  "sets": {kind: len(found) for kind, found in sets.items()}}))
"""


# --- one audit, in a process of its own -----------------------------------------------------------


def audit_folder(folder: Path) -> dict[str, Any]:
    """Seconds of each part by the clock and of the processor, and what was found."""
    from leuko.data.audit import find_issues
    from leuko.data.sources import scan

    marks = {"begun": read_clocks()}
    manifest = scan(folder)
    marks["scan"] = read_clocks()
    amounts: dict[str, int] = {}

    def say(what: str, _: int, of: int) -> None:
        if what == "measuring images":
            marks["last"] = read_clocks()
        else:
            # The first of these is said when the search is over.
            marks.setdefault("search", read_clocks())
        amounts[what] = of

    audit = find_issues(manifest, workers=WORKERS, say=say)
    marks["comparing"] = read_clocks()
    marks.setdefault("search", marks["comparing"])
    marks["measuring"] = marks["last"]
    order = ["begun", *PARTS]
    spent = {
        part: (marks[part] - marks[before]).tolist()
        for before, part in zip(order, PARTS, strict=False)
    }
    return {
        "images": len(audit.measured),
        "spent": spent,
        "compared": amounts.get("comparing pictures", 0),
        "counts": audit.count(),
        "issues": [
            {"kind": i.kind, "images": list(i.images), "detail": i.detail}
            for i in audit.issues
            if i.kind in TOLD
        ],
    }


def read_clocks() -> NDArray[np.float64]:
    """(2,): seconds by the clock, and of the processor with all children, living and ended."""
    ticks = 0
    for child in list_family(os.getpid())[1:]:
        with suppress(OSError):  # it has ended just now
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    spent = sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")
    return np.array([time.perf_counter(), spent])


def run_watched(command: Sequence[str | Path], **environment: str) -> Outcome:
    """What the command prints as JSON in its last line, and its peak memory in MiB."""
    peak = 0.0
    with tempfile.TemporaryFile("w+") as answer:  # a pipe would fill up before it is read
        started = subprocess.Popen(
            [str(word) for word in command], stdout=answer, env={**os.environ, **environment}
        )
        while started.poll() is None:
            peak = max(peak, sum(map(read_memory, list_family(started.pid))))
            time.sleep(0.5)
        answer.seek(0)
        said = answer.read()
    if started.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {started.returncode}.")
    return json.loads(said.splitlines()[-1]), peak


def list_family(pid: int) -> list[int]:
    """The process and all that it started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return []
    return [pid, *(other for child in children for other in list_family(child))]


def read_memory(pid: int) -> float:
    """Proportional set size in MiB: shared pages are divided among those who share them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# --- sets of any size -----------------------------------------------------------------------------


def make_set(files: Sequence[Path], size: int, folder: Path) -> None:
    """Writes `size` images: every original comes once before any comes a second time.

    From the second time on an image is turned by up to 12°, moved by up to 6 %, made up to 15 %
    brighter or darker, and encoded anew, each in its own way.
    """
    if size > MOST_COPIES * len(files):
        raise SystemExit(f"{size} images need more than {MOST_COPIES} copies of {len(files)}.")
    order = np.random.default_rng(0).permutation(len(files))
    for k in range(size):
        file = files[order[k % len(files)]]
        target = folder / file.parent.name / f"{k:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        if k < len(files):
            shutil.copyfile(file, target)
            continue
        rng = np.random.default_rng([1, k])
        picture = cv2.imread(str(file))
        cv2.imwrite(str(target), perturb(picture, rng), [cv2.IMWRITE_JPEG_QUALITY, 88])


def perturb(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-12, 12), 1.0)
    matrix[:, 2] += rng.uniform(-0.06, 0.06, 2) * [width, height]
    moved = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return np.clip(moved * rng.uniform(0.85, 1.15), 0, 255).astype(np.uint8)


def choose_base(files: Sequence[Path], size: int) -> list[Path]:
    """As many originals as are used about four times each, evenly from all classes.

    The same for every size, so that only the number of images changes.
    """
    base = min(len(files), max(1, -(-size // 4)))
    order = np.random.default_rng(2).permutation(len(files))
    return [files[i] for i in sorted(order[:base])]


def measure_growth(files: Sequence[Path], sizes: Sequence[int]) -> list[Outcome]:
    outcomes = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="leuko-growth-") as place:
            make_set(choose_base(files, size), size, Path(place))
            print(f"auditing {size:,} images, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            outcomes.append(run_watched([sys.executable, __file__, place, "--one"]))
    return outcomes


def tabulate_growth(outcomes: Sequence[Outcome], copies: str) -> list[str]:
    lines = [
        "## Growth", "", copies, "", "Seconds of processor time, all processes together:", "",
        f"| images | landmarks an image | {' | '.join(PARTS)} | all | ms an image "
        "| by the clock, s | pairs compared | an image | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for found, peak in outcomes:
        n, spent = found["images"], np.array([found["spent"][part] for part in PARTS])
        clock, whole = spent.sum(axis=0)
        parts = " | ".join(f"{seconds:.1f}" for seconds in spent[:, 1])
        lines.append(
            f"| {n:,} | {choose_landmarks(n)} | {parts} | {whole:.1f} | {1000 * whole / n:.1f} "
            f"| {clock:.0f} | {found['compared']:,} | {found['compared'] / n:.2f} | {peak:,.0f} |"
        )
    if len(outcomes) > 1:
        n = np.array([found["images"] for found, _ in outcomes], dtype=float)
        spent = np.array([[found["spent"][p][1] for p in PARTS] for found, _ in outcomes])
        slopes = [fit_exponent(n, column) for column in (*spent.T, spent.sum(axis=1))]
        memory = fit_exponent(n, np.array([peak for _, peak in outcomes]))
        lines += [
            f"| **exponent** | | {' | '.join(f'{s:.2f}' for s in slopes)} | | | | | {memory:.2f} |",
            "", "Exponent: slope of log seconds (or MiB) over log images, by least squares; "
            f"N log N has {fit_exponent(n, n * np.log(n)):.2f} over the same sizes, N² has 2.",
            f"Smaller sets are asked for more landmarks, larger ones for {FEWEST}, so that the "
            "search has more to do per image in the smaller ones, and this exponent is flattered.",
        ]  # fmt: skip
        equal = np.array([choose_landmarks(int(size)) == FEWEST for size in n])
        if equal.sum() > 1:
            few, whole = n[equal], spent[equal].sum(axis=1)
            lines.append(
                f"**From {few.min():,.0f} to {few.max():,.0f} images, {FEWEST} landmarks each: "
                f"{fit_exponent(few, whole):.2f}; N log N has "
                f"{fit_exponent(few, few * np.log(few)):.2f}.**"
            )
    return [*lines, ""]


def fit_exponent(n: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    return float(np.polyfit(np.log(n), np.log(np.maximum(values, 1e-3)), 1)[0])


# --- what it says of the folder -------------------------------------------------------------------


def describe_folder(folder: Path, peers: Path | None) -> list[str]:
    load = os.getloadavg()[0]
    found, peak = run_watched([sys.executable, __file__, folder, "--one"])
    spent = np.array([found["spent"][part] for part in PARTS])
    clock, whole = spent.sum(axis=0)
    parts = ", ".join(f"{part} {s[0]:.0f} s" for part, s in zip(PARTS, spent, strict=True))
    lines = [
        f"{found['images']:,} images, {WORKERS} workers: **{clock / 60:.1f} minutes, "
        f"{peak:,.0f} MiB at the peak, all processes together** ({parts}; {whole / 60:.1f} minutes "
        f"of processor time). Load of the machine before it began: {load:.1f}.", "",
        *compare_with_peer(folder, peers),
        "## What it finds", "",
        "Issues: " + ", ".join(f"{kind} {n}" for kind, n in found["counts"].items()) + ".", "",
    ]  # fmt: skip
    exact = [i["images"] for i in found["issues"] if i["kind"] == "exact_duplicate"]
    lines.append(
        f"- Exact duplicates: {len(exact)} sets with {sum(map(len, exact))} files. "
        + "; ".join(" = ".join(images) for images in exact)
        + "."
    )
    for kind, title in (("near_duplicate", "Near duplicates"), ("same_cell", "The same cell twice"),
                        ("turned_copy", "Turned copies")):  # fmt: skip
        sets = [i["images"] for i in found["issues"] if i["kind"] == kind]
        shown = "; ".join(" = ".join(images) for images in sets[:40])
        more = f"; and {len(sets) - 40} more" if len(sets) > 40 else ""
        lines.append(f"- {title}: {len(sets)} sets{': ' if sets else ''}{shown}{more}.")
    conflicts = [i["detail"] for i in found["issues"] if i["kind"] == "label_conflict"]
    lines += [f"- **Under two labels:** {'; '.join(conflicts) or 'none'}.", ""]
    lines += [*LOOKED_AT.strip().splitlines(), ""]
    return lines


def compare_with_peer(folder: Path, peers: Path | None) -> list[str]:
    if peers is None or not (peers / "cleanvision").is_dir():
        return ["No peer was measured: cleanvision was not there.", ""]
    path = os.pathsep.join([str(peers), os.environ.get("PYTHONPATH", "")])
    found, peak = run_watched([sys.executable, "-c", PEER, folder], PYTHONPATH=path)
    return [
        f"For scale, cleanvision's checks for exact and near duplicates alone, same run, two "
        f"processes: {found['seconds'] / 60:.1f} minutes, {peak:,.0f} MiB; "
        f"{found['sets']['exact_duplicates']} sets of exact and "
        f"{found['sets']['near_duplicates']} of near duplicates. It compares hashes of whole "
        "pictures, and looks for no turned copies and no second photographs.", "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--growth-only", type=Path, help="write the table of growth to this file")
    parser.add_argument("--one", action="store_true", help="audit this folder and print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(audit_folder(given.data)))
        return
    files = sorted(given.data.glob("*/*.jpg"))
    if given.growth_only:
        growth = tabulate_growth(measure_growth(files, given.sizes), COPIES.strip())
        given.growth_only.write_text("\n".join(growth), encoding="utf-8")
        return
    title = head("The audit: time, memory, growth", COMMAND)  # now: the checkout may change
    about = describe_folder(given.data, given.peers)
    growth = tabulate_growth(measure_growth(files, given.sizes), COPIES.strip())
    lines = [
        *title, "## PBC", "", *about, *growth,
        *REMARKS.strip().splitlines(),
    ]  # fmt: skip
    print("\n".join(lines))
    write_results("audit.md", lines)


COPIES = """
Sets made of PBC images. Each size uses a quarter as many originals, or all of them; an original
comes once as it is and then about three (at most seven) times turned by up to 12°, moved by up to
6 %, brighter or darker by up to 15 % and encoded anew, each copy in its own way. The number of true
copies of an image is therefore about the same in every size.
"""

REMARKS = """
Still larger sets: about an hour and 1 GB of temporary space for
`uv run python benchmarks/audit.py ../shared/data/pbc --sizes 100000 --growth-only growth.md`.
"""

LOOKED_AT = """
Looked at as pictures: all pairs under two labels, all turned copies, and the second photographs
that are named above (of three images the first two). None was seen to show two places. The turned
copies are cells that were photographed a second time, in other colours and with the slide turned.

Of the pairs under two labels only two are one cell with two labels: eosinophil/EO_225902 and
neutrophil/BNE_191112 (the same pixels), and ig/IG_236829 and neutrophil/BNE_669262 (photographed
twice). In the other six two neighbouring cells are seen in both pictures, and each picture is
labelled by the cell in its middle: the pictures belong on one side of a split, but their labels
don't contradict each other.
"""

if __name__ == "__main__":
    main()
