"""Finds what is wrong with a set of images before any model is believed.

So far one question: **which fields show the same physical leukocyte?** A slide that was walked
twice gives two photographs of one cell, shifted, sometimes with other focus and exposure, often
many file numbers apart. Whoever splits such a set by file trains on the cells that are tested.

    fields → flattened pictures → landmarks → nearest neighbours → votes for a shift
           → correlation of what overlaps → leukocytes that lie on each other → pairs → groups

Landmarks are extrema of the flattened picture (red cells, platelets, nuclei), so that a cell that
is cut by the border is found by its neighbours. The search is by nearest neighbours in a tree:
no pair of images is compared unless two landmarks agree on one shift.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from leuko.data.image import read_image, resize_image
from leuko.data.leukocytes import Leukocyte, estimate_set_scales, find_leukocytes
from leuko.data.manifest import Manifest
from leuko.errors import ImageError

GRAIN = 1.72  # px per µm of the flattened pictures: 640 × 480 becomes 80 × 60
PATCH = 9  # px, half the side of the surroundings that describe a landmark (5 µm)
CORRELATION = 0.85  # of what overlaps: in the raw set true pairs ≥ 0.91, others ≤ 0.81
EVIDENCE = 6.5  # correlation weighed by the overlap, see `_weigh`: true ≥ 7.2, others ≤ 6.0
SCALE_SAMPLE = 60  # images of one size, evenly spaced: their median is certain to about 1 %
CERTAIN = 0.35  # score from which a leukocyte counts; low, because it has to be seen twice

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int_]


@dataclass(frozen=True)
class SameCell:
    """Two images that show the same physical leukocyte.

    Attributes:
        image_a: Id of the first image, in the order of the manifest.
        image_b: Id of the second.
        score: Correlation of the part that both show, in [0.85, 1]; 1 for identical files.
        evidence: Correlation weighed by the size of that part; infinite for
            identical files; above 6.5 it can't be chance.
        overlap: Share of the smaller image that both show, in (0, 1].
        shift: (dx, dy): a point (x, y) of image a lies at (x + dx, y + dy) of image b, in px of b.
        cells: Boxes (x0, y0, x1, y1) in image a of the leukocytes that both show.
        labels_a: Labels of the first image.
        labels_b: Labels of the second.
    """

    image_a: str
    image_b: str
    score: float
    evidence: float
    overlap: float
    shift: tuple[float, float]
    cells: tuple[tuple[float, float, float, float], ...]
    labels_a: tuple[str, ...] = ()
    labels_b: tuple[str, ...] = ()

    @property
    def conflict(self) -> bool:
        """Both images are labelled, and no label is common to them."""
        return bool(self.labels_a and self.labels_b) and not set(self.labels_a) & set(self.labels_b)


@dataclass
class _Field:
    """What is kept of one image."""

    image: str
    sha256: str | None
    labels: tuple[str, ...]
    flat: FloatArray  # (h, w), local mean 0 and local deviation about 1
    cells: list[Leukocyte]
    zoom: float  # px of the flattened picture per px of the field
    landmarks: IntArray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int_))  # y, x


def measure_set_scales(
    root: Path, rows: Iterable[tuple[str | Path, int, int]]
) -> dict[tuple[int, int], float]:
    """One scale for each picture size of a set, from up to `SCALE_SAMPLE` of its images.

    Args:
        root: Folder that the paths are relative to.
        rows: (path, width, height) of each image; files that can't be read are left out.

    Returns:
        {(height, width): pixels per µm}; hand the value to `find_leukocytes`.
    """
    by_size: dict[tuple[int, int], list[str | Path]] = defaultdict(list)
    for path, width, height in rows:
        by_size[height, width].append(path)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for same in by_size.values():
            for path in same[:: -(-len(same) // SCALE_SAMPLE)]:
                with suppress(ImageError):
                    yield read_image(root / path)

    return estimate_set_scales(pictures())


def find_same_cells(manifest: Manifest) -> list[SameCell]:
    """Finds the pairs of images that show the same physical leukocyte.

    Images that can't be read, and rows without an image, are left out.

    Args:
        manifest: Any set of fields or of single cells. Images of one size are taken to have one
            scale; their orientation has to be the same (turned copies are not found).

    Returns:
        One `SameCell` for each pair, ordered by the manifest. Three photographs of one cell give
        up to three pairs.
    """
    fields = _read_fields(manifest)
    found: dict[tuple[int, int], SameCell] = {}
    by_hash: dict[str, int] = {}
    for b, this in enumerate(fields):
        if this.sha256 is not None and (a := by_hash.setdefault(this.sha256, b)) != b:
            found[a, b] = _pair(fields[a], this, (1.0, np.inf, 1.0, (0, 0)), fields[a].cells)
    for (a, b), shifts in _vote(fields).items():
        if (a, b) in found:
            continue
        outcomes = [_correlate(fields[a].flat, fields[b].flat, shift) for shift in shifts]
        outcome = max(outcomes, key=lambda o: (o[1], o[3]))
        if outcome[0] < CORRELATION or outcome[1] < EVIDENCE:
            continue
        cells = _match_cells(fields[a], fields[b], outcome[3])
        if cells or outcome[2] > 0.9:  # copies of a picture count even if no cell was found
            found[a, b] = _pair(fields[a], fields[b], outcome, cells)
    return [found[key] for key in sorted(found)]


def group_same_cells(manifest: Manifest, pairs: Iterable[SameCell] | None = None) -> Manifest:
    """Writes the groups: images that show the same physical leukocyte share a group.

    What shared a group before still does; a joined group takes the first of the names.
    Contradicting labels within a pair add the issue ``label_conflict`` to both images.

    Args:
        manifest: The set.
        pairs: What `find_same_cells` found; None searches now.
    """
    pairs = list(find_same_cells(manifest) if pairs is None else pairs)
    table = manifest.table
    parent: dict[str, str] = {name: name for name in table["group"].unique().to_list()}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    groups: dict[str, list[str]] = defaultdict(list)
    for image, group in table.select("image", "group").iter_rows():
        groups[image].append(group)
    joined = [[*groups[pair.image_a], *groups[pair.image_b]] for pair in pairs]
    for names in [*joined, *groups.values()]:
        roots = sorted({root(name) for name in names})
        for other in roots[1:]:
            parent[other] = roots[0]
    conflicting = {i for pair in pairs if pair.conflict for i in (pair.image_a, pair.image_b)}
    issues = [
        [*had, "label_conflict"] if image in conflicting and "label_conflict" not in had else had
        for image, had in table.select("image", "issues").iter_rows()
    ]
    return manifest.with_table(
        table.with_columns(
            pl.Series("group", [root(name) for name in table["group"]], dtype=pl.String()),
            pl.Series("issues", issues, dtype=pl.List(pl.String())),
        )
    )


_Outcome = tuple[float, float, float, tuple[int, int]]  # score, evidence, overlap, (dy, dx)


def _pair(a: _Field, b: _Field, outcome: _Outcome, cells: list[Leukocyte]) -> SameCell:
    score, evidence, overlap, (dy, dx) = outcome
    boxes = tuple((c.x0, c.y0, c.x1, c.y1) for c in cells)
    shift = (dx / b.zoom, dy / b.zoom)
    return SameCell(a.image, b.image, score, evidence, overlap, shift, boxes, a.labels, b.labels)


def _read_fields(manifest: Manifest) -> list[_Field]:
    """Every readable image once, in the order of the manifest."""
    rows: dict[str, tuple[Path, str | None, set[str], tuple[int, int]]] = {}
    columns = ("image", "path", "sha256", "labels", "height", "width")
    for image, path, sha256, labels, height, width in manifest.table.select(columns).iter_rows():
        if path is not None and height is not None:
            row = rows.setdefault(
                image, (manifest.root / path, sha256, set(), (int(height), int(width)))
            )
            row[2].update(labels or ())
    sizes = [(file, width, height) for file, _, _, (height, width) in rows.values()]
    scales = measure_set_scales(manifest.root, sizes)
    fields = []
    for image, (file, sha256, labels, size) in rows.items():
        try:
            pixels = read_image(file)
        except ImageError:
            continue
        scale = scales.get(size) or estimate_set_scales([pixels])[pixels.shape[0], pixels.shape[1]]
        cells = [cell for cell in find_leukocytes(pixels, scale) if cell.score >= CERTAIN]
        flat = _flatten(pixels, GRAIN / scale)
        kept = _Field(image, sha256, tuple(sorted(labels)), flat, cells, GRAIN / scale)
        kept.landmarks = _find_landmarks(flat)
        fields.append(kept)
    return fields


def _flatten(pixels: NDArray[np.uint8], zoom: float) -> FloatArray:
    """(h, w): green density, small, without shading, exposure and contrast of the photograph."""
    height, width = (max(8, round(side * zoom)) for side in pixels.shape[:2])
    small = resize_image(pixels, height, width)[..., 1].astype(np.float32)
    density = -np.log(np.maximum(small, 4))
    density -= ndimage.gaussian_filter(density, 6.0)
    deviation = np.sqrt(ndimage.gaussian_filter(density**2, 8.0)) + 0.02
    flat: FloatArray = (density / deviation).astype(np.float32)
    return flat


def _find_landmarks(flat: FloatArray, most: int = 80) -> IntArray:
    """(n, 2) y, x of the strongest extrema, at least 3 px from the border."""
    smooth = np.abs(ndimage.gaussian_filter(flat, 1.5))
    peak = smooth == ndimage.maximum_filter(smooth, 5)
    peak[:3], peak[-3:], peak[:, :3], peak[:, -3:] = False, False, False, False
    at = np.argwhere(peak)
    order = np.argsort(-smooth[peak], kind="stable")[:most]
    return at[order]


def _describe(fields: list[_Field], parts: int = 16) -> tuple[FloatArray, IntArray, IntArray]:
    """Descriptors (n, parts) of all landmarks, their fields (n,) and places (n, 2)."""
    offsets = np.arange(-PATCH, PATCH + 1, 2)
    patches, owners, places = [], [], []
    for k, this in enumerate(fields):
        if not len(this.landmarks):
            continue
        smooth = np.pad(ndimage.gaussian_filter(this.flat, 1.0), PATCH)
        ys = this.landmarks[:, 0, None, None] + PATCH + offsets[None, :, None]
        xs = this.landmarks[:, 1, None, None] + PATCH + offsets[None, None, :]
        patches.append(smooth[ys, xs].reshape(len(this.landmarks), -1))
        owners.append(np.full(len(this.landmarks), k))
        places.append(this.landmarks)
    if not patches:
        return np.zeros((0, parts), np.float32), np.zeros(0, np.int_), np.zeros((0, 2), np.int_)
    stack = np.concatenate(patches)
    stack -= stack.mean(axis=0)
    # Sums by einsum and rounded axes: BLAS adds in another order with another number of threads.
    spread = np.einsum("ni,nj->ij", stack, stack, dtype=np.float64, optimize=False)
    _, axes = np.linalg.eigh(spread)  # principal components, the largest last
    axes = axes[:, -parts:].round(6).astype(np.float32)
    return (
        np.einsum("ni,ij->nj", stack, axes, optimize=False),
        np.concatenate(owners),
        np.concatenate(places),
    )


def _vote(fields: list[_Field], neighbours: int = 8) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """{(a, b): shifts (dy, dx)} on which at least two landmarks agree, with a < b.

    Votes are counted in cells of 4 px that overlap by half, so that none is split by a border.
    """
    points, owners, places = _describe(fields)
    if len(points) < 2:
        return {}
    # eps=1: the neighbours need not be the very nearest, since one vote more or less is no
    # matter; the search is eight times as fast.
    _, near = KDTree(points).query(points, k=min(len(points), neighbours + 1), eps=1.0)
    a = np.repeat(np.arange(len(points)), near.shape[1])
    b = near.ravel()
    forward = owners[a] < owners[b]
    backward = owners[a] > owners[b]
    first = np.concatenate([a[forward], b[backward]])
    second = np.concatenate([b[forward], a[backward]])
    links = np.unique(np.stack([first, second], axis=1), axis=0)
    shifts = places[links[:, 1]] - places[links[:, 0]]
    pairs = owners[links]
    votes: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for grid_y in (0, 2):
        for grid_x in (0, 2):
            bins = (shifts + np.array([grid_y, grid_x])) // 4
            keys, index, counts = np.unique(
                np.concatenate([pairs, bins], axis=1), axis=0, return_index=True, return_counts=True
            )
            for key, at in zip(keys[counts >= 2], index[counts >= 2], strict=True):
                votes[int(key[0]), int(key[1])].add((int(shifts[at, 0]), int(shifts[at, 1])))
    return votes


def _correlate(a: FloatArray, b: FloatArray, shift: tuple[int, int], reach: int = 2) -> _Outcome:
    """The best correlation within `reach` px of a shift."""
    best: _Outcome = (-1.0, -np.inf, 0.0, shift)
    smaller = min(a.size, b.size)
    for dy in range(shift[0] - reach, shift[0] + reach + 1):
        for dx in range(shift[1] - reach, shift[1] + reach + 1):
            part_a = a[max(0, -dy) : b.shape[0] - dy, max(0, -dx) : b.shape[1] - dx]
            part_b = b[max(0, dy) : a.shape[0] + dy, max(0, dx) : a.shape[1] + dx]
            if min(part_a.shape) < 8 or part_a.size < 0.07 * smaller:
                continue
            norm = float(np.sqrt((part_a**2).sum() * (part_b**2).sum()))
            score = float((part_a * part_b).sum()) / max(norm, 1e-6)
            evidence = _weigh(score, part_a.size)
            if evidence > best[1]:
                best = (score, evidence, part_a.size / smaller, (dy, dx))
    return best


def _weigh(score: float, size: int) -> float:
    """Fisher's z over its spread for `size` px, of which 25 count as one independent."""
    return float(np.arctanh(min(score, 0.99)) * np.sqrt(size / 25))


def _match_cells(a: _Field, b: _Field, shift: tuple[int, int]) -> list[Leukocyte]:
    """The leukocytes of a that lie, after the shift, on a leukocyte of b.

    Boxes are compared within the common part, because a border may cut one of them.
    """
    dy, dx = shift
    height, width = b.flat.shape
    matched = []
    for cell in a.cells:
        mine = _clip(_move(cell, a.zoom, dx, dy), 0, 0, width, height)
        for other in b.cells:
            theirs = _clip(
                _move(other, b.zoom, 0, 0), dx, dy, dx + a.flat.shape[1], dy + a.flat.shape[0]
            )
            if mine is not None and theirs is not None and _overlap(mine, theirs) > 0.4:
                matched.append(cell)
                break
    return matched


_Box = tuple[float, float, float, float]


def _move(cell: Leukocyte, zoom: float, dx: float, dy: float) -> _Box:
    return cell.x0 * zoom + dx, cell.y0 * zoom + dy, cell.x1 * zoom + dx, cell.y1 * zoom + dy


def _clip(box: _Box, x0: float, y0: float, x1: float, y1: float) -> _Box | None:
    clipped = (max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1))
    return clipped if clipped[2] - clipped[0] > 1 and clipped[3] - clipped[1] > 1 else None


def _overlap(a: _Box, b: _Box) -> float:
    """Intersection over union."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)
