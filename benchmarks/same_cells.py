"""Which fields of the raw blood-cells set show the same physical leukocyte.

    uv run python benchmarks/same_cells.py ../shared/data/blood-cells [pairs.csv]

Prints and writes `results/same_cells.md`: pairs, groups, contradicting labels, and the gap between
the pairs and everything else that was compared. A second file, with the ids of a pair in its first
two columns, is a truth to compare with; the demo set has one, which is found by itself.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from unittest.mock import patch

from leuko.data import likeness
from leuko.data.audit import Audit, find_issues
from leuko.data.likeness import Likeness, find_likenesses
from leuko.data.sources import scan
from provenance import head, write_results

REMARKS = """
How the thresholds of correlation and evidence were set: every pair of fields was also compared at
every shift with at least 7 % overlap (67,161 pairs, an exhaustive search that is no part of the
product), and every pair with a correlation above 0.8 was looked at as a picture. The fields overlap
in 46 pairs; the next best candidates of that search (191 and 305: correlation 0.60; 44 and 88:
0.91, but on 7 % overlap; 346 and 360: 0.81 on little) show different places. Of the 46, 33 show a
common leukocyte; in the other 13 the common part holds only red cells, or slivers of nuclei at the
border from which no cell can be recognised (BloodImage_00040 and 00041, not counted). The
thresholds were therefore chosen on this set, and the table below says nothing about how often they
err on another. The limit of the finest detail was set later, between drawn lymphocytes that look
alike (0.65 and less) and the pairs of this table and of the augmented set.

The search now in use tries no shifts: it proposes a pair where several landmarks agree on one
movement, of any kind, and registers it by an affine movement. The remaining distortion of the
pairs found is that of a stage which was moved by hand: no turn, no shear.
"""


def compare_all(audit: Audit) -> tuple[list[Likeness], list[Likeness]]:
    """Every pair that was registered: those that show one place, and the others."""
    sketches = [m.sketch for m in audit.measured.values()]
    with patch.multiple(likeness, CORRELATION=-1.0, EVIDENCE=-float("inf"), DETAIL=-1.0):
        outcomes = find_likenesses(sketches)
    accepted = [
        o
        for o in outcomes
        if o.score >= likeness.CORRELATION
        and o.evidence >= likeness.EVIDENCE
        and o.detail >= likeness.DETAIL
    ]
    kept = {(o.a, o.b) for o in accepted}
    return accepted, [o for o in outcomes if (o.a, o.b) not in kept]


def describe_gap(audit: Audit) -> list[str]:
    accepted, rejected = compare_all(audit)
    fields = len(audit.measured)
    pairs = audit.pairs
    names = list(audit.measured)
    best = sorted(rejected, key=lambda o: -o.score)[:3]
    told = "; ".join(f"{names[o.a]} and {names[o.b]}: {o.score:.2f}, evidence {o.evidence:.1f}"
                     for o in best)  # fmt: skip
    return [
        f"Of {fields * (fields - 1) // 2:,} pairs of fields {len(accepted) + len(rejected):,} were "
        f"registered because their landmarks agree on a movement. {len(accepted)} show one place "
        f"(lowest correlation {min(o.score for o in accepted):.2f}, evidence "
        f"{min(o.evidence for o in accepted):.1f}); {len(pairs)} of those show a common leukocyte "
        f"(lowest correlation {min(p.score for p in pairs):.2f}, evidence "
        f"{min(p.evidence for p in pairs):.1f}, largest distortion "
        f"{max(o.distortion for o in accepted):.3f}, lowest correlation of the finest detail "
        f"{min(o.detail for o in accepted):.2f}, whose limit is {likeness.DETAIL}).",
        f"Among the {len(rejected):,} others the highest correlation is "
        f"{max(o.score for o in rejected):.2f} and the highest evidence "
        f"{max(o.evidence for o in rejected):.1f}; the limits are {likeness.CORRELATION} and "
        f"{likeness.EVIDENCE}. The three highest: {told}.",
    ]


def read_truth(audit: Audit, given: Path | None) -> set[tuple[str, ...]] | None:
    """Known pairs: of the given file, or of the demo set's own."""
    root = audit.manifest.root
    places = [given] if given else [p / "pairs.csv" for p in (root, *root.parents[:2])]
    file = next((place for place in places if place.exists()), None)
    if file is None:
        return None
    with file.open(newline="", encoding="utf-8") as lines:
        return {tuple(sorted(list(row.values())[:2])) for row in csv.DictReader(lines)}


def describe_truth(audit: Audit, truth: set[tuple[str, ...]]) -> str:
    found = {tuple(sorted((p.a, p.b))) for p in audit.pairs}
    return (
        f"Known pairs: {len(truth)}; found {len(truth & found)}. Missed: "
        f"{sorted(truth - found) or 'none'}; others: {sorted(found - truth) or 'none'}."
    )


def tabulate(audit: Audit) -> list[str]:
    labels = {
        image: ", ".join(names) or "none"
        for image, names in audit.manifest.table.select("image", "labels").iter_rows()
    }
    lines = ["", "| group | images with their labels |", "|---|---|"]
    for k, group in enumerate(audit.groups, start=1):
        lines.append(f"| {k} | " + " · ".join(f"{i} ({labels[i]})" for i in group) + " |")
    lines += [
        "", "| a | b | kind | correlation | evidence | overlap | moved by (x, y), px |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for p in audit.pairs:
        middle = [320.0, 240.0, 1.0]
        x, y = (sum(m * c for m, c in zip(row, middle, strict=True)) for row in p.matrix)
        lines.append(
            f"| {p.a} | {p.b} | {p.kind} | {p.score:.3f} | {p.evidence:.1f} | {p.overlap:.2f} "
            f"| {x - 320:.0f}, {y - 240:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("truth", type=Path, nargs="?")
    arguments = parser.parse_args()
    manifest = scan(arguments.data)
    start = time.process_time()
    audit = find_issues(manifest)
    seconds = time.process_time() - start
    conflicts = [issue.detail for issue in audit.issues if issue.kind == "label_conflict"]
    lines = [
        *head("Fields of the raw blood-cells set that show the same leukocyte",
              "uv run python benchmarks/same_cells.py ../shared/data/blood-cells"),
        f"{len(audit.measured)} images; {len(audit.pairs)} pairs in {len(audit.groups)} groups "
        f"with {sum(map(len, audit.groups))} images; {seconds:.0f} s of processor time for the "
        "whole audit.",
        "", *describe_gap(audit),
        "", f"**Contradicting labels:** {'; '.join(conflicts) or 'none'}.",
        "", *REMARKS.strip().splitlines(),
        *tabulate(audit),
    ]  # fmt: skip
    print("\n".join(lines))
    if manifest.layout == "kaggle-raw" and len(audit.measured) == 367:
        write_results("same_cells.md", lines)
    truth = read_truth(audit, arguments.truth)
    if truth is not None:
        print(describe_truth(audit, truth), file=sys.stderr)


if __name__ == "__main__":
    main()
