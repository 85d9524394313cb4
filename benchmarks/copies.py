"""What the audit makes of the augmented blood-cells set, and what its file names don't say.

    uv run python benchmarks/copies.py ../shared/data/blood-cells [--sheet sheet.jpg]

Writes `results/copies.md`. The truth is found without the audit: `originals.py` registers every
file to every raw field. `--sheet` draws files with one number beside files with one original, to
look at. About 8 minutes on one core.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colour_leak import tabulate_colour
from leuko.data.audit import Audit, find_issues
from leuko.data.copies import join_sets
from leuko.data.image import read_image
from leuko.data.sources import scan
from originals import describe_truth, find_originals, repeat_the_makers_split
from provenance import head, write_results

NAME = re.compile(r"_(\d+)_\d+\.jpeg")
SPLITS = ("TRAIN", "TEST", "TEST_SIMPLE")
SHUFFLES = 2000

Names = NDArray[np.str_]


@dataclass(frozen=True)
class Files:
    """Columns of N entries: what is known of each file of the augmented set.

    Attributes:
        image: Id in the manifest.
        split, label: Folders it lies in.
        number: The first one of its name.
        original: The raw field it was made from.
        source: The same, with second photographs of one cell joined.
        group: As the audit found it.
    """

    image: Names
    split: Names
    label: Names
    number: Names
    original: Names
    source: Names
    group: Names

    def pick(self, rows: NDArray[np.bool_]) -> Files:
        return Files(**{name: column[rows] for name, column in vars(self).items()})


def count_pairs(*columns: Names) -> int:
    """Pairs of files that agree in every column."""
    counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


# --- the truth ------------------------------------------------------------------------------------


def gather(audit: Audit, origins: dict[str, str], second: list[tuple[str, str]]) -> Files:
    used = set(origins.values())
    joined = join_sets([(o, o) for o in sorted(used)] + [p for p in second if set(p) <= used])
    source = {original: min(members) for members in joined for original in members}
    rows = list(audit.manifest.table.select("image", "split", "label", "group").iter_rows())
    images = np.array([row[0] for row in rows])
    original = np.array([origins[image] for image in images])
    numbers = [NAME.fullmatch(image.rpartition("/")[2]) for image in images]
    return Files(
        images,
        *(np.array([row[k] for row in rows]) for k in (1, 2)),
        np.array([m[1] if m else "" for m in numbers]),
        original,
        np.array([source[o] for o in original]),
        np.array([row[3] for row in rows]),
    )


# --- the numbers ----------------------------------------------------------------------------------


def tabulate_numbers(files: Files, raw: Path) -> list[str]:
    rng = np.random.default_rng(0)
    labels, test = repeat_the_makers_split(raw)
    lines = [
        "## The numbers in the file names are no sources", "",
        "`_SOURCE_N.jpeg` is widely read as \"view N of source SOURCE\". Pairs of files with the "
        "same first number, within each split and class:", "",
        "| split | class | files | numbers up to | fields of that class in the split | pairs with "
        "one number | of these with one original | by chance (95 % range) | pairs with one "
        "original |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for split in SPLITS:
        for label in np.unique(files.label):
            some = files.pick((files.split == split) & (files.label == label))
            same = count_pairs(some.number, some.original)
            shuffled = [count_pairs(rng.permutation(some.number), some.original)
                        for _ in range(SHUFFLES)]  # fmt: skip
            low, high = np.percentile(shuffled, [2.5, 97.5])
            side = {field for field in labels if (field in test) == (split != "TRAIN")}
            fields = sum(labels[field] == label for field in side)
            chance = f"{np.mean(shuffled):.1f} ({low:.0f}–{high:.0f})"
            lines.append(
                f"| {split} | {label} | {len(some.image)} | {max(map(int, some.number))} "
                f"| {fields} | {count_pairs(some.number):,} | {same} | {chance} "
                f"| {count_pairs(some.original):,} |"
            )
    return [*lines, "", f"Chance: the numbers shuffled among the files, {SHUFFLES:,} times.", "",
            *NUMBERS.strip().splitlines(), ""]  # fmt: skip


NUMBERS = """
Why: the maker's notebook draws from Keras' `ImageDataGenerator.flow(..., save_to_dir=...)`, one
image at a time, with its default `shuffle=True`. Keras of that time (2.0.4, file
`keras/preprocessing/image.py`, lines 707–719 and 810–813) shuffles the images anew for every pass
and names a file by the position in the pass and a random number below 10,000. The first number
therefore runs from 0 to the number of sources less one, as the table shows, and means another
source in each pass. (A name that is drawn twice replaces the earlier file: of 10,000 draws for
TRAIN 9,957 files are left.)

Whoever groups by this number splits at random.
"""


# --- the audit ------------------------------------------------------------------------------------


def judge(found: Names, truth: Names) -> str:
    """Pairwise precision and recall with 95 % limits, from resampled sources."""
    sources, of = np.unique(truth, return_inverse=True)
    groups, found_of = np.unique(found, return_inverse=True)
    table = np.zeros((len(sources), len(groups)))
    np.add.at(table, (of, found_of), 1)
    hits = (table * (table - 1) / 2).sum(axis=1)
    wrong = (table * (table.sum(axis=0) - table)).sum(axis=1) / 2  # half of each pair to each side
    true = table.sum(axis=1) * (table.sum(axis=1) - 1) / 2
    drawn = np.random.default_rng(0).integers(0, len(sources), (2000, len(sources)))
    cells = []
    for bad, whole in ((wrong.sum(), hits + wrong), (true.sum() - hits.sum(), true)):
        if whole.sum() == 0:
            cells.append("–")
            continue
        several = int((whole > 0).sum())
        if bad == 0:
            cells.append(f"1 ({0.025 ** (1 / several):.3f}–1)")
            continue
        with np.errstate(invalid="ignore"):
            draws = hits[drawn].sum(axis=1) / whole[drawn].sum(axis=1)
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        cells.append(f"{hits.sum() / whole.sum():.4f} ({low:.3f}–{high:.3f})")
    return f"{count_pairs(found):,} | {count_pairs(truth):,} | {cells[0]} | {cells[1]}"


def tabulate_audit(files: Files) -> list[str]:
    lines = [
        "| split | class | files | truth | pairs found | true pairs | precision | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split in SPLITS:
        for label in ("all", *np.unique(files.label)):
            some = files.pick((files.split == split) & ((files.label == label) | (label == "all")))
            truths = {"one cell": some.source}
            if label == "all":
                number = np.char.add(some.label, some.number)
                truths |= {"one original": some.original, "one number": number}
            for name, truth in truths.items():
                cells = judge(some.group, truth)
                lines.append(f"| {split} | {label} | {len(some.image)} | {name} | {cells} |")
    return lines


def describe_faults(files: Files) -> list[str]:
    """Sources that the audit joined or tore apart, within a split."""
    mixed, torn = [], []
    for split in SPLITS:
        some = files.pick(files.split == split)
        for group in np.unique(some.group):
            inside = np.unique(some.source[some.group == group])
            if len(inside) > 1:
                mixed.append(f"{split}: {' + '.join(inside)}")
        for source in np.unique(some.source):
            parts = np.unique(some.group[some.source == source], return_counts=True)[1]
            if len(parts) > 1:
                sizes = " + ".join(map(str, sorted(parts.tolist(), reverse=True)))
                members = " and ".join(np.unique(some.original[some.source == source]))
                torn.append(f"{split}: {members} in parts of {sizes}")
    return [
        f"- Groups that hold several sources: {len(mixed)}{': ' if mixed else ''}"
        f"{'; '.join(mixed)}.",
        f"- Sources that lie in several groups: {len(torn)}{': ' if torn else ''}"
        f"{'; '.join(torn)}.",
    ]


def tabulate_leaks(files: Files, raw: Path, second: list[tuple[str, str]]) -> list[str]:
    """Originals of TEST and TEST_SIMPLE whose cell is in TRAIN, through a second photograph."""
    train = files.pick(files.split == "TRAIN")
    lines = [
        "| original in TEST | class | files in TEST | in TEST_SIMPLE | the same cell in TRAIN "
        "| class | files | files of TEST and TEST_SIMPLE that the audit joined with TRAIN |",
        "|---|---|---|---|---|---|---|---|",
    ]
    test = files.pick(files.split != "TRAIN")
    leaking = np.unique(test.original[np.isin(test.source, train.source)])
    for original in leaking:
        here = test.original == original
        there = train.source == test.source[here][0]
        joined = int(np.isin(test.group[here], train.group[there]).sum())
        lines.append(
            f"| {original} | {test.label[here][0]} | {(here & (test.split == 'TEST')).sum()} "
            f"| {(here & (test.split == 'TEST_SIMPLE')).sum()} "
            f"| {', '.join(np.unique(train.original[there]))} "
            f"| {', '.join(np.unique(train.label[there]))} | {there.sum()} "
            f"| {joined} of {here.sum()} |"
        )
    counts = []
    for split in ("TEST", "TEST_SIMPLE"):
        some = files.pick(files.split == split)
        touched = np.isin(some.source, train.source)
        counts.append(
            f"{len(np.unique(some.original[touched]))} of {len(np.unique(some.original))} "
            f"originals and {touched.sum()} of {len(touched)} files of {split}"
        )
    simple, plain = (files.pick(files.split == s) for s in ("TEST_SIMPLE", "TEST"))
    shared = int(np.isin(simple.original, plain.original).sum())
    names, times = np.unique(simple.original, return_counts=True)
    twice = [
        f"{', '.join(simple.image[simple.original == name])} ({name})" for name in names[times > 1]
    ]
    missing = sorted(set(plain.original) - set(names))
    labels, drawn = repeat_the_makers_split(raw)
    across = sorted(
        tuple(sorted(pair, key=drawn.__contains__, reverse=True))
        for pair in second
        if set(pair) <= set(labels) and len(set(pair) & drawn) == 1
    )
    told = "; ".join(f"{a} ({b})" for a, b in across)
    return [
        f"No original is in TRAIN and in TEST. But {' and '.join(counts)} show a cell that TRAIN "
        "shows in its other photograph:", "", *lines, "",
        f"In the full set it has to be {len({a for a, _ in across})} of the {len(drawn)} fields of "
        f"TEST, by the maker's split and the pairs of results/same_cells.md: {told}. (In brackets "
        "the photograph in TRAIN.)", "",
        f"TEST_SIMPLE holds the fields of TEST without augmentation: {shared} of its "
        f"{len(simple.image)} files have an original that TEST has too. It is no second test set. "
        f"{len(names)} different fields are in it: {'; '.join(twice) or 'none'} are one picture "
        f"under two names, and {', '.join(missing) or 'none'} are missing.", "",
    ]  # fmt: skip


# --- all of it ------------------------------------------------------------------------------------


def draw_sheet(files: Files, root: Path, path: Path) -> None:
    """Rows of six files with one number, and below each, six with one original."""
    from PIL import Image

    rows = []
    for split, label in (("TRAIN", "MONOCYTE"), ("TRAIN", "NEUTROPHIL"), ("TEST", "LYMPHOCYTE")):
        some = files.pick((files.split == split) & (files.label == label))
        for column in (some.number, some.original):
            values, counts = np.unique(column, return_counts=True)
            chosen = some.image[column == values[counts.argmax()]][:6]
            tiles = [read_image(root / image)[::2, ::2] for image in chosen]
            tiles += [np.full_like(tiles[0], 255)] * (6 - len(tiles))
            rows.append(np.hstack(tiles))
    Image.fromarray(np.vstack(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    raw = next(arguments.data.rglob("JPEGImages")).parent
    print("auditing", file=sys.stderr)
    second = [(p.a, p.b) for p in find_issues(scan(raw)).pairs]
    manifest = scan(next(arguments.data.rglob("TEST_SIMPLE")).parent)
    start = time.process_time()
    audit = find_issues(manifest)
    audited = time.process_time() - start
    paths = [manifest.root / path for path in manifest.table["path"]]
    fields = sorted((raw / "JPEGImages").glob("*.jpg"))
    start = time.process_time()
    origins = find_originals(paths, fields)
    seconds = time.process_time() - start
    missed = [path.name for path, o in zip(paths, origins, strict=True) if o.field < 0]
    if missed:
        raise SystemExit(f"No original was found for {', '.join(missed)}.")
    of = {
        image: fields[o.field].stem
        for image, o in zip(manifest.table["image"], origins, strict=True)
    }
    files = gather(audit, of, second)
    counts = ", ".join(f"{kind} {n}" for kind, n in audit.count().items())
    told = [issue.detail for issue in audit.issues if issue.kind == "wrong_group"]
    lines = [
        *head("The augmented blood-cells set: copies, numbers, leaks",
              "uv run python benchmarks/copies.py ../shared/data/blood-cells"),
        f"{len(files.image):,} of the 12,515 files of dataset2, all of TEST_SIMPLE, one in five of "
        "TEST and one in eight of TRAIN.", "",
        *describe_truth(
            files.original, files.label, files.split, origins, len(fields), raw, seconds
        ),
        *tabulate_numbers(files, raw),
        "## The audit", "",
        f"{audited:.0f} s of processor time. Issues: {counts}. It says of the numbers: "
        f"{'; '.join(told) or 'nothing'}.", "",
        *SETTINGS.strip().splitlines(), "", *tabulate_audit(files), "",
        *describe_faults(files), "",
        "## Test cells in the training part", "", *tabulate_leaks(files, raw, second),
        *tabulate_colour(manifest, files),
    ]  # fmt: skip
    print("\n".join(lines))
    if len(files.image) == 1801:
        write_results("copies.md", lines)
    if arguments.sheet:
        draw_sheet(files, manifest.root, arguments.sheet)


SETTINGS = """
Pairs of files of one split that the audit puts into one group, against three truths: one cell (the
original, with those second photographs joined that results/same_cells.md lists, where both are in
use; this is what a group means), one original, and one number of the file name. Limits: 2,000
resamples of sources; where there is no error, the exact limit with the number of sources as n.

**These are not independent estimates.** How landmarks are found and how many have to agree was set
while looking at how many true pairs of this set, TRAIN and TEST alike, became candidates. The
limits of correlation and evidence were set on the raw set, whose fields these files are made from.
After an earlier state of this table (one cell in TRAIN: recall 0.916) the number of landmarks was
raised.
"""

if __name__ == "__main__":
    main()
