"""The audit: what is wrong with a set of images, before any model is believed.

    manifest → what its rows say ┐
       files → measurements ─────┼→ issues, groups → the manifest with both
               annotations ──────┘

One table of issues; each kind is found by one small function, here or in `leuko.data.copies` and
`leuko.data.quality`. Likely wrong and disputed labels need models; `leuko.inspection` adds them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from leuko.data.annotations import Box, read_boxes
from leuko.data.copies import (
    Pair,
    describe_conflicts,
    describe_copies,
    find_pairs,
    join_groups,
)
from leuko.data.issues import KINDS, Issue
from leuko.data.manifest import Manifest
from leuko.data.measurements import Measured, measure_images
from leuko.data.quality import judge_leukocytes, judge_light
from leuko.data.steps import normalise_spelling
from leuko.errors import AnnotationError

IMBALANCE = 10  # times as many images of the most frequent as of the rarest class
DAMAGE = ("truncated", "damaged", "checksum")  # reasons of the decoder that mean a broken file
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"), "PNG": ("png",), "BMP": ("bmp", "dib"),
    "TIFF": ("tif", "tiff"),
}  # fmt: skip
# A set's own groups of copies are believed if at least this share of their images is linked to
# another of the group by what the pictures show.
BELIEVED = 0.5
ENOUGH = 20  # images in groups, below which the set's own groups are not judged

Say = Callable[[str, int, int], None]  # what is done, done, in all


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        manifest: The set with groups joined, and with a code in ``issues`` for each issue of a row.
        issues: In the order of `leuko.data.issues.KINDS`, the worst of a kind first.
        groups: Images that show the same cell or come from one source, two and more.
        pairs: What the groups rest on.
        scores: One row per measured image: ``image`` and a column per kind that is a matter of
            degree, in [0, 1].
        measured: Per image what the issues rest on.
        drawn: Boxes of white cells that a person drew, where the set has some.
        looked_for: The kinds that were looked for.
    """

    manifest: Manifest
    issues: tuple[Issue, ...]
    groups: tuple[tuple[str, ...], ...]
    pairs: tuple[Pair, ...]
    scores: pl.DataFrame
    measured: Mapping[str, Measured]
    drawn: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    looked_for: frozenset[str] = frozenset(KINDS)

    def count(self) -> dict[str, int]:
        """Issues per kind, of the kinds that occur."""
        found = Counter(issue.kind for issue in self.issues)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def count_images(self) -> int:
        """Images that are there, whether they can be read or not."""
        return self.manifest.table.filter(pl.col("path").is_not_null())["image"].n_unique()

    def to_json(self) -> dict[str, Any]:
        """As ``leuko audit --json`` prints it."""
        return {
            "name": self.manifest.name,
            "layout": self.manifest.layout,
            "images": self.count_images(),
            "rows": len(self.manifest),
            "counts": self.manifest.counts(),
            "looked_for": [kind for kind in KINDS if kind in self.looked_for],
            "issues": [issue.to_json() for issue in self.issues],
            "groups": [list(group) for group in self.groups],
        }


def find_issues(
    manifest: Manifest,
    *,
    folds: int = 5,
    workers: int = 1,
    say: Say | None = None,
) -> Audit:
    """Looks for every kind of issue that needs no model.

    Args:
        manifest: As `leuko.data.sources.scan` gives it.
        folds: That a study would use; classes with fewer groups are named.
        workers: Processes; they change the time, never the result.
        say: Called with what is being done, how much of it is done, and how much there is.

    Returns:
        The audit; the manifest in it is marked as audited.
    """
    measured = measure_images(
        manifest, workers=workers, progress=say and (lambda n, m: say("measuring images", n, m))
    )
    pairs = find_pairs(
        manifest, measured, threads=workers,
        progress=say and (lambda n, m: say("comparing pictures", n, m)),
    )  # fmt: skip
    drawn = read_drawn(manifest)
    trusted, doubts = judge_given_groups(manifest, pairs)
    manifest = join_groups(manifest, pairs, trust_given=trusted)
    labels = gather_labels(manifest)
    lights, light_scores = judge_light(measured)
    cells, cell_scores = judge_leukocytes(measured, labels)
    issues = [
        *check_files(manifest, measured),
        *check_rows(manifest),
        *check_spelling(manifest),
        *describe_copies(pairs),
        *describe_conflicts(manifest, pairs),
        *doubts,
        *check_split(manifest),
        *check_boxes(labels, drawn),
        *cells,
        *lights,
        *check_classes(manifest, folds),
    ]
    scores = pl.DataFrame({"image": list(measured), **light_scores, **cell_scores})
    audit = Audit(
        manifest, (), list_groups(manifest), tuple(pairs), scores, measured, drawn,
        frozenset(KINDS) - {"likely_wrong_label", "disputed_label"},
    )  # fmt: skip
    return add_issues(replace(audit, manifest=replace(manifest, audited=True)), issues)


def add_issues(audit: Audit, issues: Iterable[Issue]) -> Audit:
    """The audit with more issues: sorted into the list, and their codes written on the rows."""
    order = {kind: i for i, kind in enumerate(KINDS)}
    found = sorted([*audit.issues, *issues], key=lambda i: (order[i.kind], -i.score, i.images))
    codes: dict[str, list[str]] = defaultdict(list)
    for issue in found:
        for image in issue.images:
            if issue.kind not in codes[image]:
                codes[image].append(issue.kind)
    table = audit.manifest.table
    written = [
        [*had, *(code for code in codes[image] if code not in had)]
        for image, had in table.select("image", "issues").iter_rows()
    ]
    column = pl.Series("issues", written, dtype=pl.List(pl.String()))
    manifest = audit.manifest.with_table(table.with_columns(column))
    return replace(audit, manifest=manifest, issues=tuple(found))


def list_groups(manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    """The groups of two and more images, in the order of the manifest."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for image, group in manifest.table.select("image", "group").iter_rows():
        groups[group][image] = None
    return tuple(tuple(images) for images in groups.values() if len(images) > 1)


def gather_labels(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The labels of each image with a file: those of the row that names the most."""
    labels: dict[str, tuple[str, ...]] = {}
    for image, path, named in manifest.table.select("image", "path", "labels").iter_rows():
        if path is not None:
            labels[image] = max(labels.get(image, ()), tuple(named or ()), key=len)
    return labels


def read_drawn(manifest: Manifest) -> dict[str, list[Box]]:
    """Boxes of white cells from ``Annotations/*.xml`` beside the images, where there are some."""
    drawn = {}
    folder = manifest.root / "Annotations"
    if not folder.is_dir():
        return {}
    for image in manifest.table["image"].unique(maintain_order=True):
        with suppress(AnnotationError, OSError, ValueError):
            if (file := folder / f"{image}.xml").is_file():
                drawn[image] = [b for b in read_boxes(file) if b.name.casefold() == "wbc"]
    return drawn


# --- kinds ----------------------------------------------------------------------------------------


def check_files(manifest: Manifest, measured: Mapping[str, Measured]) -> list[Issue]:
    """Files that can't be read, are broken or padded, or are of another format than they say."""
    issues = []
    paths = dict(manifest.table.select("image", "path").iter_rows())
    for row in manifest.unreadable():
        broken = row["reason"] in DAMAGE
        kind = "damaged" if broken else "unreadable"
        issues.append(Issue(kind, (row["image"],), f"can't be decoded: {row['reason']}"))
    readable = manifest.table.filter(pl.col("path").is_not_null() & pl.col("width").is_not_null())
    for image in readable["image"].unique(maintain_order=True):
        if image not in measured:
            detail = "could be read when the set was scanned, and can't now"
            issues.append(Issue("unreadable", (image,), detail))
    for image, m in measured.items():
        if m.trailing:
            detail = f"{m.trailing:,} bytes after the end of the picture"
            issues.append(Issue("damaged", (image,), detail))
        suffix = paths[image].rpartition(".")[2].lower()
        if m.format in EXTENSIONS and suffix not in EXTENSIONS[m.format]:
            issues.append(Issue("wrong_extension", (image,), f"{m.format} named .{suffix}"))
    return issues


def check_rows(manifest: Manifest) -> list[Issue]:
    """Labels without image, images without label, more than one label."""
    issues = []
    seen: set[tuple[str, str]] = set()
    columns = ("image", "path", "row", "labels", "label_written")
    for image, path, row, labels, written in manifest.table.select(columns).iter_rows():
        where = f"row {row}: " if row is not None else ""
        if labels and path is None:
            found = "no_image", f"{where}{', '.join(labels)}, but no image"
        elif not labels and path is not None:
            found = "no_label", f"{where}blank label" if row is not None else "no row names it"
        elif len(labels) > 1:
            found = "many_labels", f"{where}{written}"
        else:
            continue
        if (found[0], image) not in seen:
            seen.add((found[0], image))
            issues.append(Issue(found[0], (image,), found[1]))
    return issues


def check_spelling(manifest: Manifest) -> list[Issue]:
    """Classes that are written in several ways; one issue per class, with the rarer spellings."""
    images: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    columns = ("image", "labels", "label_written")
    for image, labels, written in manifest.table.select(columns).iter_rows():
        for label in _list_spellings(labels or (), written or ""):
            found = images[normalise_spelling(label)][label]
            found[image] = found.get(image, 0) + 1
    issues = []
    for same in images.values():
        counts = {spelling: sum(found.values()) for spelling, found in same.items()}
        spellings = sorted(counts, key=lambda s: (-counts[s], s))
        if len(spellings) > 1:
            odd = dict.fromkeys(image for s in spellings[1:] for image in same[s])
            told = ", ".join(f"{s!r} {counts[s]}" for s in spellings)
            detail = f"one class in {len(spellings)} spellings: {told}"
            issues.append(Issue("spelling", tuple(odd), detail))
    return issues


def _list_spellings(labels: Sequence[str], written: str) -> list[str]:
    """The labels of one row as its source writes them, where they are still the same labels."""
    parts = [written] if len(labels) == 1 else written.split(",")
    parts = [part.strip() for part in parts if part.strip()]
    same = list(map(normalise_spelling, parts)) == list(map(normalise_spelling, labels))
    return parts if same else list(labels)


def judge_given_groups(manifest: Manifest, pairs: Sequence[Pair]) -> tuple[bool, list[Issue]]:
    """Whether the set's own groups are what they claim to be, where that can be seen.

    Only the augmented Kaggle set claims that a group is one source picture, so that its images
    must look alike. Elsewhere a group may be a slide or a patient, which no picture shows.
    """
    if manifest.layout != "kaggle-augmented":
        return True, []
    group = dict(manifest.table.select("image", "group").iter_rows())
    sizes = Counter(group.values())
    grouped = [image for image, name in group.items() if sizes[name] > 1]
    if len(grouped) < ENOUGH:
        return True, []
    linked = {i for p in pairs if group[p.a] == group[p.b] for i in (p.a, p.b)}
    share = len(linked) / len(grouped)
    if share >= BELIEVED:
        return True, []
    detail = (
        f"the numbers in the file names join {len(grouped)} images into groups, but only "
        f"{len(linked)} of them ({share:.0%}) look like another one of their group: the numbers "
        "don't say which source an image was made from"
    )
    return False, [Issue("wrong_group", (), detail, 1 - share)]


def check_split(manifest: Manifest) -> list[Issue]:
    """Groups that are in several parts of the set's own split."""
    parts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for image, group, part in manifest.table.select("image", "group", "split").iter_rows():
        if part is not None:
            parts[group][part].append(image)
    return [
        Issue(
            "split_leak",
            tuple(image for images in found.values() for image in images),
            " and ".join(f"{len(images)} in {part}" for part, images in sorted(found.items())),
        )
        for found in parts.values()
        if len(found) > 1
    ]


def check_boxes(
    labels: Mapping[str, Sequence[str]], drawn: Mapping[str, Sequence[Box]]
) -> list[Issue]:
    """Images with another number of drawn white cells than of labels."""
    issues = []
    for image, boxes in drawn.items():
        named = len(labels.get(image, ()))
        if named and len(boxes) != named:
            shown = [[[b.x0, b.y0, b.x1, b.y1] for b in boxes]]
            detail = f"{len(boxes)} drawn, {named} labelled"
            issues.append(Issue("box_count", (image,), detail, evidence={"boxes": shown}))
    return issues


def check_classes(manifest: Manifest, folds: int) -> list[Issue]:
    """Classes too rare beside the others, or too small for so many folds."""
    usable = manifest.table.filter(
        pl.col("label").is_not_null() & pl.col("path").is_not_null() & pl.col("width").is_not_null()
    )
    if not len(usable):
        return []
    written = Counter(usable["label"].to_list())
    chosen: dict[str, str] = {}  # one spelling of each class, the most frequent
    for label in sorted(written, key=lambda label: (-written[label], label)):
        chosen.setdefault(normalise_spelling(label), label)
    counts: Counter[str] = Counter()
    groups: dict[str, set[str]] = defaultdict(set)
    for label, group in usable.select("label", "group").iter_rows():
        counts[chosen[normalise_spelling(label)]] += 1
        groups[chosen[normalise_spelling(label)]].add(group)
    issues = []
    most, least = max(counts, key=lambda c: counts[c]), min(counts, key=lambda c: counts[c])
    ratio = counts[most] / counts[least]
    if ratio >= IMBALANCE:
        detail = f"{most} has {counts[most]} images, {least} {counts[least]}: {ratio:.0f} times"
        issues.append(Issue("imbalance", (), detail, float(np.clip(1 - 1 / ratio, 0, 1))))
    for name in sorted(counts):
        if (found := len(groups[name])) < folds:
            detail = f"{name} has {found} groups of images; {folds} folds need {folds}"
            issues.append(Issue("small_class", (), detail, 1 - found / folds))
    return issues
