"""Which images of a set show the same cell: duplicates, copies, second photographs; the groups.

Takes what was measured of each image and the manifest; knows no pixels.

    hashes ┬→ pairs → sets of images with one kind each → issues, contradicting labels, groups
    sketches ┘
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.data.issues import Issue
from leuko.data.leukocytes import Leukocyte
from leuko.data.likeness import Progress, find_likenesses
from leuko.data.manifest import Manifest
from leuko.data.measurements import Measured
from leuko.data.registration import Likeness

CERTAIN = 0.35  # score from which a leukocyte counts; low, because it has to be seen twice
SAME_PLACE = 0.4  # intersection over union of a cell and the other image's cell, carried over
STILL = 0.1  # distortion below which the stage was only shifted; true pairs stay below 0.04
IDENTICAL = 0.97  # correlation and overlap of a picture that was only re-encoded or scaled
NUDGE = 0.015  # of the long side: how far its corners then move at most
MOSTLY = 0.5  # overlap from which a turned picture is a copy even if no cell is seen twice

Box = tuple[float, float, float, float]
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Pair:
    """Two images that show the same cell, or are copies of each other.

    Attributes:
        a, b: Ids; a comes first in the manifest.
        kind: "exact_duplicate", "near_duplicate", "turned_copy" or "same_cell".
        score: Correlation of the part that both show, in [0.85, 1].
        evidence: The same weighed by its size, see `leuko.data.likeness`; infinite for identical
            pixels.
        overlap: Share of the smaller image that both show, in (0, 1].
        matrix: (2, 3): a point (x, y) of a lies at ``matrix @ (x, y, 1)`` in b; px.
        cells: Boxes in a, and the boxes in b that they lie on.
        conflict: Both are labelled, and no label is common to them.
    """

    a: str
    b: str
    kind: str
    score: float
    evidence: float
    overlap: float
    matrix: NDArray[np.float64]
    cells: tuple[tuple[Box, Box], ...]
    conflict: bool

    @property
    def mirrored(self) -> bool:
        """One of the two is a mirror image."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0)


def find_pairs(
    manifest: Manifest,
    measured: Mapping[str, Measured],
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Pair]:
    """Finds the pairs of images that show the same cell, or are copies of each other.

    Args:
        manifest: For labels, sizes and hashes.
        measured: From `leuko.data.measurements.measure_images`, of the same set.
        threads: For the search; they don't change the result.
        progress: Called with (pairs compared, pairs in all).

    Returns:
        Ordered by the manifest. Three photographs of one cell give up to three pairs; of many
        copies not every pair is found, but each copy with some others.
    """
    names = list(measured)
    labels = _gather_labels(manifest)
    sizes = _gather_sizes(manifest)
    first: dict[str, int] = {}
    stand_in = [first.setdefault(m.pixels, i) for i, m in enumerate(measured.values())]
    pairs = [
        Pair(
            names[i], names[k], "exact_duplicate", 1.0, np.inf, 1.0, np.eye(2, 3),
            tuple((box, box) for box in _boxes(measured[names[i]].leukocytes)),
            _contradict(labels[names[i]], labels[names[k]]),
        )
        for k, i in enumerate(stand_in)
        if i != k
    ]  # fmt: skip
    # Identical pictures would find each other and nothing else, so one of them stands for all.
    different = [i for i, k in enumerate(stand_in) if i == k]
    sketches = [measured[names[i]].sketch for i in different]
    for likeness in find_likenesses(sketches, threads=threads, progress=progress):
        a, b = names[different[likeness.a]], names[different[likeness.b]]
        cells = _match_cells(measured[a].leukocytes, measured[b].leukocytes, sizes[a], sizes[b],
                             likeness.matrix)  # fmt: skip
        kind = _name_kind(likeness, cells, sizes[a], sizes[b])
        if kind is not None:
            pairs.append(
                Pair(
                    a, b, kind, min(1.0, likeness.score), likeness.evidence, likeness.overlap,
                    likeness.matrix, cells, _contradict(labels[a], labels[b]),
                )
            )  # fmt: skip
    place = {name: i for i, name in enumerate(names)}
    return sorted(pairs, key=lambda pair: (place[pair.a], place[pair.b]))


def _name_kind(
    likeness: Likeness, cells: Sequence[object], size_a: tuple[int, int], size_b: tuple[int, int]
) -> str | None:
    """The kind of a pair; None if both show the same place, but no cell of interest twice."""
    moved = _carry(_corners((0, 0, *size_a)), likeness.matrix)
    away = np.abs(moved - _corners((0, 0, *size_b))).max() / max(size_b)
    if min(likeness.score, likeness.overlap) >= IDENTICAL and away <= NUDGE:
        return "near_duplicate"
    shifted = not likeness.mirrored and likeness.distortion < STILL
    if shifted:
        return "same_cell" if cells or likeness.overlap > 0.9 else None
    return "turned_copy" if cells or likeness.overlap >= MOSTLY else None


# --- cells seen twice -----------------------------------------------------------------------------


def _match_cells(
    cells_a: Iterable[Leukocyte],
    cells_b: Iterable[Leukocyte],
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    matrix: NDArray[np.float64],
) -> tuple[tuple[Box, Box], ...]:
    """The leukocytes of a that lie on a leukocyte of b; compared within the common part."""
    frame = _around(_carry(_corners((0, 0, *size_a)), matrix))
    others = [(box, _clip(box, frame)) for box in _boxes(cells_b)]
    matched = []
    for box in _boxes(cells_a):
        carried = _clip(_around(_carry(_corners(box), matrix)), (0, 0, *size_b))
        for other, seen in others:
            if carried and seen and _measure_overlap(carried, seen) > SAME_PLACE:
                matched.append((box, other))
                break
    return tuple(matched)


def _boxes(cells: Iterable[Leukocyte]) -> list[Box]:
    return [(c.x0, c.y0, c.x1, c.y1) for c in cells if c.score >= CERTAIN]


def _corners(box: Box) -> NDArray[np.float64]:
    x0, y0, x1, y1 = box
    return np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]], dtype=np.float64)


def _carry(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _around(points: NDArray[np.float64]) -> Box:
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def _clip(box: Box, frame: Box) -> Box | None:
    x0, y0, x1, y1 = (
        max(box[0], frame[0]), max(box[1], frame[1]), min(box[2], frame[2]), min(box[3], frame[3]),
    )  # fmt: skip
    return (x0, y0, x1, y1) if x1 - x0 > 4 and y1 - y0 > 4 else None


def _measure_overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


# --- sets of images -------------------------------------------------------------------------------


def join_sets(pairs: Iterable[tuple[Item, Item]]) -> list[list[Item]]:
    """Everything that is linked, directly or through others, as sets in order of appearance."""
    above: dict[Item, Item] = {}

    def find(item: Item) -> Item:
        above.setdefault(item, item)
        while above[item] != item:
            above[item] = above[above[item]]
            item = above[item]
        return item

    for a, b in pairs:
        root, other = find(a), find(b)
        above[other] = root
    sets: dict[Item, list[Item]] = defaultdict(list)
    for item in list(above):
        sets[find(item)].append(item)
    return list(sets.values())


def describe_copies(pairs: Sequence[Pair]) -> list[Issue]:
    """One issue for each set of images that are duplicates, copies or second photographs.

    A set has one kind: exact duplicates by themselves; of the others "turned_copy" if any of its
    pairs is one, else "same_cell" if any is, else "near_duplicate".
    """
    issues = []
    exact = [p for p in pairs if p.kind == "exact_duplicate"]
    others = [p for p in pairs if p.kind != "exact_duplicate"]
    for members in (exact, others):
        by_image: dict[str, list[Pair]] = defaultdict(list)
        for pair in members:
            by_image[pair.a].append(pair)
        for images in join_sets((p.a, p.b) for p in members):
            inside = [pair for image in images for pair in by_image[image]]
            issues.append(_describe_set(images, inside))
    return issues


def _describe_set(images: Sequence[str], pairs: Sequence[Pair]) -> Issue:
    kinds = {pair.kind for pair in pairs}
    kind = next(
        k for k in ("turned_copy", "same_cell", "near_duplicate", "exact_duplicate") if k in kinds
    )
    worst = min(pairs, key=lambda pair: pair.score)
    if kind == "exact_duplicate":
        detail = f"{len(images)} files with the same pixels"
    else:
        more = " or more" if len(pairs) > 1 else ""
        told = f"{len(pairs)} pairs" if len(pairs) > 1 else _tell_movement(worst)
        detail = (
            f"{len(images)} images; {told}; what they share correlates by {worst.score:.2f}{more}, "
            f"over {min(p.overlap for p in pairs):.0%}{more} of the picture"
        )
    boxes: dict[str, list[list[float]]] = {image: [] for image in images}
    for pair in pairs:
        for one, other in pair.cells:
            for image, box in ((pair.a, one), (pair.b, other)):
                rounded = [round(v, 1) for v in box]
                if rounded not in boxes[image]:
                    boxes[image].append(rounded)
    return Issue(kind, tuple(images), detail, worst.score, {"boxes": [boxes[i] for i in images]})


def _tell_movement(pair: Pair) -> str:
    shift = pair.matrix[:, 2]
    if pair.kind == "turned_copy":
        mirrored = np.linalg.det(pair.matrix[:, :2]) < 0
        x, y = pair.matrix[:, 0] * (-1 if mirrored else 1)
        angle = np.degrees(np.arctan2(y, x))
        return f"{'mirrored and ' if mirrored else ''}turned by about {angle:.0f}°"
    return f"moved by ({shift[0]:+.0f}, {shift[1]:+.0f}) px"


def describe_conflicts(manifest: Manifest, pairs: Sequence[Pair]) -> list[Issue]:
    """Contradicting labels: of one image, of one content, or of images that show one cell."""
    labels = _gather_labels(manifest)
    written: dict[str, list[str]] = defaultdict(list)
    for image, label in manifest.table.select("image", "label_written").iter_rows():
        written[image].append(label or "no label")
    issues = []
    for pair in pairs:
        if pair.conflict:
            boxes = [[list(c[k]) for c in pair.cells] for k in (0, 1)]
            detail = f"{pair.a} is {_join(labels[pair.a])}, {pair.b} is {_join(labels[pair.b])}"
            issues.append(
                Issue("label_conflict", (pair.a, pair.b), detail, pair.score, {"boxes": boxes})
            )
    told = {image for issue in issues for image in issue.images}
    flagged = manifest.table.filter(pl.col("issues").list.contains("label_conflict"))
    for image in dict.fromkeys(flagged["image"]):
        if image not in told:
            detail = f"{image} is labelled {' and '.join(dict.fromkeys(written[image]))}"
            issues.append(Issue("label_conflict", (image,), detail))
    return issues


def join_groups(manifest: Manifest, pairs: Sequence[Pair], *, trust_given: bool) -> Manifest:
    """Writes the groups: images that show the same cell or come from one source share one.

    Args:
        manifest: The set; its own groups are joined with those found.
        pairs: From `find_pairs`.
        trust_given: False: the set's own groups are wrong, and only what was found counts.

    Returns:
        The set with ``group`` filled: the group of the first image of the manifest that is in it.
    """
    table = manifest.table
    images = table["image"].to_list()
    links: list[tuple[str, str]] = [(image, image) for image in images]
    if trust_given:
        first: dict[str, str] = {}
        for image, group in table.select("image", "group").iter_rows():
            links.append((first.setdefault(group, image), image))
    links += [(pair.a, pair.b) for pair in pairs]
    name = {
        image: (members[0] if not trust_given else None)
        for members in join_sets(links)
        for image in members
    }
    if trust_given:  # groups keep the set's own names
        given = dict(reversed(list(table.select("image", "group").iter_rows())))
        name = {i: given[members[0]] for members in join_sets(links) for i in members}
    groups = pl.Series("group", [name[image] for image in images], dtype=pl.String())
    return manifest.with_table(table.with_columns(groups))


def _gather_labels(manifest: Manifest) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = defaultdict(set)
    for image, some in manifest.table.select("image", "labels").iter_rows():
        labels[image].update(some or ())
    return labels


def _gather_sizes(manifest: Manifest) -> dict[str, tuple[int, int]]:
    rows = manifest.table.select("image", "width", "height").iter_rows()
    return {image: (width, height) for image, width, height in rows if width is not None}


def _contradict(a: set[str], b: set[str]) -> bool:
    return bool(a and b) and not a & b


def _join(labels: set[str]) -> str:
    return " + ".join(sorted(labels))
