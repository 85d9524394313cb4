"""One self-contained HTML page about what the audit found, with pictures.

Like the report it needs no network, no JavaScript and no clock: the same inputs give the same
bytes. What is wrong is found elsewhere; here is decided what is shown of it, and how much, so
that the page of a large set stays small. Everything is in ``audit.json``; the page shows the
worst.
"""

from __future__ import annotations

import shlex
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leuko.data.issues import KINDS, Issue, Kind
from leuko.data.manifest import Manifest
from leuko.errors import UnknownNameError, suggest
from leuko.judgement.album import Album, Box, Shot
from leuko.judgement.findings import disputes, listing, quantity
from leuko.judgement.page import embed_figure, fill_template, flatten, keep_percents
from leuko.storage import write_atomically

Leukocytes = Mapping[str, Sequence[tuple[float, float, float, float, float]]]
Drawn = Mapping[str, Sequence[Box]]

MOST_ISSUES = 24  # of one kind
MOST_TOGETHER = 6  # pictures of one issue
MOST_GROUPS, MOST_OF_GROUP = 6, 8
MOST_FIELDS, FIELD = 12, 320  # fields on the sheet of boxes, and their long side in px
MOST_CHARACTERS = 4_800_000  # of all pictures; with the words the page stays below 6 MB
MOST_WORDS = 300  # characters of a label or a sentence that comes from data
OVERLAP = 0.5  # intersection over union from which two boxes mean one cell
# Focus and class can't be judged on a cell that is 50 px wide on a thumbnail of a whole field.
CLOSE_UPS = {"blurred", "likely_wrong_label", "disputed_label", "label_conflict"}
SIZES = (2, 3, 4, 5, 10, 20, 50, 100)  # lower ends of the bins of group sizes


@dataclass
class Shown:
    """One issue as the page shows it."""

    issue: Issue
    detail: str
    suggested: str = ""
    more: int = 0  # images of it without a picture
    shots: list[Shot] = field(default_factory=list)


@dataclass
class Section:
    """One kind of issue that was found.

    Attributes:
        name: Its key.
        kind: Its words.
        issues: How many there are.
        images: How many images show it.
        shown: The worst of them.
    """

    name: str
    kind: Kind
    issues: int
    images: int
    shown: list[Shown] = field(default_factory=list)


def write_audit_page(
    path: Path,
    manifest: Manifest,
    issues: Sequence[Issue],
    groups: Sequence[Sequence[str]],
    *,
    leukocytes: Leukocytes,
    drawn: Drawn,
    meter: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    looked_for: Collection[str] | None = None,
    opinions: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page; an older one of that name stays until the new one is whole.

    Args:
        path: The HTML file.
        manifest: The set; its root and paths give the image files, which are read for pictures.
        issues: All that were found.
        groups: Ids of images of one cell or source, groups of 2 and more.
        leukocytes: Per image the boxes that were found, with a score in [0, 1] as fifth number;
            empty for an image in which nothing was found, no entry for one that wasn't searched.
        drawn: Per image the leukocyte boxes that came with the set, drawn by hand.
        meter: What a leak is worth, as in ``results.json`` under ``leak_meter``; see
            `leuko.judgement.plots.draw_leak_meter`.
        command: What was typed.
        facts: Versions and settings for the foot; may be nested.
        looked_for: Kinds that were looked for; None: all of `KINDS`.
        opinions: ``labels`` of a study's ``results.json``, with its folder's name as ``run``.

    Returns:
        The path.

    Raises:
        UnknownNameError: An issue is of a kind that isn't in `KINDS`.
        StorageError: The page can't be written.
    """
    for name in sorted({issue.kind for issue in issues} - set(KINDS)):
        raise UnknownNameError(f"{name!r} is no kind of issue. {suggest(name, list(KINDS))}")
    files, labels = _read_rows(manifest)
    album = Album(files, labels, leukocytes, drawn)
    # the sheet and the groups first: they are small, and what is left is shared by the issues
    sheet = _lay_out_sheet(album)
    largest = _show_groups(groups, album)
    sections = _make_sections(issues)
    _show_issues(sections, issues, album)
    found = {section.name for section in sections}
    asked = set(KINDS) if looked_for is None else set(looked_for) | found
    page = fill_template("audit.html.j2", {
        "title": f"Audit of {manifest.name}", "manifest": manifest, "images": len(files),
        "label_rows": int(manifest.table["row"].is_not_null().sum()),
        "classes": Counter(manifest.counts()).most_common(), "demo": manifest.layout == "demo",
        "verdict": _summarise(files, sections, issues, groups), "sections": sections,
        "clean": [k.title for name, k in KINDS.items() if name in asked - found],
        "skipped": [k.title for name, k in KINDS.items() if name not in asked],
        "groups": groups, "sizes": _count_sizes(groups), "largest": largest,
        "sheet": sheet, "boxes": _count_boxes(leukocytes, drawn), "fields": len(leukocytes),
        "pictures": album.pictures(), "meter": meter or {},
        "meter_figure": _draw_meter(meter) if meter else "",
        "labels": opinions, "disputes": disputes(opinions) if opinions else [],
        "command": shlex.join(map(str, command)), "facts": flatten(facts or {}),
    })  # fmt: skip
    # a file name may hold bytes that are no text: they become "?", and the page is still written
    return write_atomically(path, page.encode("utf-8", errors="replace"))


# --- the set --------------------------------------------------------------------------------------


def _read_rows(manifest: Manifest) -> tuple[dict[str, Path], dict[str, str]]:
    """File and label of each image; several labels as they are written, with "|" between."""
    files: dict[str, Path] = {}
    written: dict[str, list[str]] = {}
    columns = ("image", "path", "label_written", "labels")
    for image, path, label, parsed in manifest.table.select(columns).iter_rows():
        label = ", ".join(parsed) if label is None and parsed else label
        if path is not None:
            files.setdefault(image, manifest.root / path)
        known = written.setdefault(image, [])
        if label is not None and label not in known:
            known.append(label)
    labels = {
        image: _cut(" | ".join(text.strip() or "(blank)" for text in known)) or "(no label)"
        for image, known in written.items()
    }
    return files, labels


def _cut(text: str) -> str:
    return text if len(text) <= MOST_WORDS else text[: MOST_WORDS - 1] + "…"


def _summarise(
    files: Mapping[str, Path],
    sections: Sequence[Section],
    issues: Sequence[Issue],
    groups: Sequence[Sequence[str]],
) -> str:
    """The verdict in one sentence, made from the numbers."""
    flagged = {image for issue in issues for image in issue.images}
    pictured = len(flagged & files.keys())
    said = []
    if sections:
        where = [f"{pictured:,} of {quantity(len(files), 'image')}"] if pictured else []
        if flagged - files.keys():
            where.append(quantity(len(flagged - files.keys()), "name") + " without an image")
        kinds = quantity(len(sections), "kind of issue", "kinds of issues")
        said.append(f"{kinds} in {listing(where or ['the set as a whole'])}")
    else:
        said.append(f"No issue was found in {quantity(len(files), 'image')}")
    if groups:
        said.append(
            "1 group of images shows one cell or comes from one source" if len(groups) == 1 else
            f"{len(groups):,} groups of images show one cell or come from one source each"
        )  # fmt: skip
    conflicts = sum(issue.kind == "label_conflict" for issue in issues)
    if conflicts:
        said.append(quantity(conflicts, "label conflict"))
    return "; ".join(said) + "."


# --- issues ---------------------------------------------------------------------------------------


def _make_sections(issues: Sequence[Issue]) -> list[Section]:
    """One for each kind that was found, in the order of `KINDS`."""
    by_kind: dict[str, list[Issue]] = {name: [] for name in KINDS}
    for issue in issues:
        by_kind[issue.kind].append(issue)
    return [
        Section(name, KINDS[name], len(found), len({i for issue in found for i in issue.images}))
        for name, found in by_kind.items()
        if found
    ]


def _show_issues(sections: Sequence[Section], issues: Sequence[Issue], album: Album) -> None:
    """Fills the sections, the worst issue of every kind first, then the second of every kind, …

    So a kind with many pictures doesn't use up the room of those that come after it. Where there
    is no room left, an issue is told without pictures.
    """
    ranked = sorted(issues, key=lambda issue: -issue.score)  # stable: as found among equals
    worst = {s.name: [i for i in ranked if i.kind == s.name][:MOST_ISSUES] for s in sections}
    for rank in range(MOST_ISSUES):
        for section in sections:
            if rank < len(worst[section.name]):
                section.shown.append(_show_issue(worst[section.name][rank], album))


def _show_issue(issue: Issue, album: Album) -> Shown:
    boxes = list(issue.evidence.get("boxes") or ())
    room = album.size() < MOST_CHARACTERS and any(i in album.files for i in issue.images)
    pictured = issue.images if room else ()
    shots = [
        album.take(image, _boxes_of(boxes, number), close=issue.kind in CLOSE_UPS)
        for number, image in enumerate(pictured[:MOST_TOGETHER])
    ]
    suggested = str(issue.evidence.get("suggested") or "")
    detail = keep_percents(_cut(issue.detail))
    return Shown(issue, detail, _cut(suggested), len(issue.images) - len(shots), shots)


def _boxes_of(boxes: Sequence[Any], number: int) -> list[Sequence[float]]:
    """The boxes of one image: none, a single one, or a list of them."""
    own = boxes[number] if number < len(boxes) else None
    if not own:
        return []
    return [own] if isinstance(own[0], int | float) else list(own)


# --- groups and boxes -----------------------------------------------------------------------------


def _show_groups(
    groups: Sequence[Sequence[str]], album: Album
) -> list[tuple[str, int, list[Shot]]]:
    """The largest groups: their labels with counts, images without a picture, pictures."""
    shown = []
    for group in sorted(groups, key=len, reverse=True)[:MOST_GROUPS]:
        labels = Counter(album.labels.get(image, "(no label)") for image in group)
        words = "; ".join(f"{n} × {label}" for label, n in labels.most_common(MOST_OF_GROUP))
        shots = [album.take(image) for image in group[:MOST_OF_GROUP]]
        shown.append((words, len(group) - len(shots), shots))
    return shown


def _count_sizes(groups: Sequence[Sequence[str]]) -> list[tuple[str, int, int]]:
    """Per bin of sizes: its name, how many groups, how many images in them; no empty bin."""
    rows = []
    for low, above in zip(SIZES, (*SIZES[1:], None), strict=True):
        sizes = [len(g) for g in groups if len(g) >= low and (above is None or len(g) < above)]
        name = f"{low} and more" if above is None else (
            str(low) if above == low + 1 else f"{low}–{above - 1}"
        )  # fmt: skip
        if sizes:
            rows.append((name, len(sizes), sum(sizes)))
    return rows


def _lay_out_sheet(album: Album) -> list[Shot]:
    """Fields spread evenly over the set, in the order of the manifest, with boxes and scores."""
    fields = [i for i in album.files if i in album.leukocytes or i in album.drawn]
    count = min(MOST_FIELDS, len(fields))
    if not any(album.leukocytes.get(i) or album.drawn.get(i) for i in fields):
        return []
    chosen = [fields[(2 * k + 1) * len(fields) // (2 * count)] for k in range(count)]
    return [album.take(image, scores=True, side=FIELD) for image in chosen]


def _count_boxes(leukocytes: Leukocytes, drawn: Drawn) -> dict[str, int]:
    """Boxes drawn by hand in searched images: how many, found again, and found beyond them."""
    images = [image for image in drawn if image in leukocytes]
    found = sum(len(leukocytes[image]) for image in images)
    by_hand = sum(len(drawn[image]) for image in images)
    matched = sum(match_boxes(leukocytes[image], drawn[image]) for image in images)
    return {"images": len(images), "drawn": by_hand, "matched": matched,
            "missed": by_hand - matched, "beyond": found - matched}  # fmt: skip


def match_boxes(
    found: Iterable[Sequence[float]], drawn: Sequence[Sequence[float]], least: float = OVERLAP
) -> int:
    """How many drawn boxes were found: one found box each, the surest chooses first.

    Args:
        found: Boxes x0, y0, x1, y1 with a score as the fifth number.
        drawn: Boxes x0, y0, x1, y1.
        least: Intersection over union of a match.
    """
    left = list(drawn)
    for box in sorted(found, key=lambda b: -b[4]):
        best = max(left, key=lambda other: _overlap(box, other), default=None)
        if best is not None and _overlap(box, best) >= least:
            left.remove(best)
    return len(drawn) - len(left)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both) if areas > both else 0.0


def _draw_meter(meter: Mapping[str, Any]) -> str:
    """The leak meter's figure as a data URI."""
    from leuko.judgement import plots

    with tempfile.TemporaryDirectory() as folder:
        return embed_figure(*plots.save_figure(plots.draw_leak_meter(meter), Path(folder), "leak"))
