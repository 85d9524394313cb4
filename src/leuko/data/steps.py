"""The kinds of cleaning steps: each looks at the rows and says which it drops or renames, and why.

A step changes nothing and knows no other step; `leuko.data.cleaning` runs them in the order of a
recipe. A row is a row of the manifest as a dict; ``decided`` in it is the person's word on that
image ("keep", "drop", "relabel"), if there is one.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

Rows = list[dict[str, Any]]
Drops = dict[int, str]  # position in the rows → reason
Renames = dict[int, tuple[list[str], str]]  # position → its new labels, reason

CONFLICT = "label_conflict"
# No person's word gives such a row the one label or the image that it lacks.
_UNUSABLE = ("unreadable", "no_image", "no_label", "many_labels")
_DASHES = r"\-‐–—"


@dataclass(frozen=True)
class Outcome:
    """What a step asks for.

    Attributes:
        drops: By position in the rows, the reason why a row goes.
        note: What else there is to know, such as a class that doesn't occur.
        factors: How many times as often each class is drawn in training.
        renames: By position, new labels for rows that stay.
        settled: By position, codes of issues that these drops and renames have put right.
    """

    drops: Drops
    note: str = ""
    factors: dict[str, float] = field(default_factory=dict)
    renames: Renames = field(default_factory=dict)
    settled: dict[int, set[str]] = field(default_factory=dict)


def count_labels(rows: Rows) -> dict[str, int]:
    """Rows with exactly one label, per class."""
    counts = Counter(row["label"] for row in rows if row["label"] is not None)
    return dict(sorted(counts.items()))


def normalise_spelling(label: str) -> str:
    """What the spellings of one class have in common: for comparing, not for showing.

    Case doesn't count, nor do outer blanks. Blanks, hyphens and underscores between words are one
    and the same, and nothing between two words of two letters or more ("pro-myelocyte" is
    "promyelocyte", but "A B" isn't "AB"). A plural's "s" at the end doesn't count after three
    letters or more ("RBCs"), unless it ends in -ss, -is or -us. Signs stay: "CD4+" isn't "CD4-".
    """
    key = unicodedata.normalize("NFKC", label).casefold().strip().strip("_").strip()
    key = re.sub(rf"(?<=[^\W_])[\s_{_DASHES}]+(?=[^\W_])", " ", key)
    key = re.sub(r"(?<=[^\W\d_]{2}) (?=[^\W\d_]{2})", "", key)
    return re.sub(r"(?<=[^\W\d_]{2}[^\W\d_siu])s$", "", key)


def find_settled(rows: Rows, drops: Drops, renames: Renames) -> dict[int, set[str]]:
    """Rows whose contradicting labels contradict no longer after these drops and renames.

    Groups that neither touches are left alone: that a row was dropped for another reason says
    nothing about which label was right.

    Returns:
        By position, {`CONFLICT`}.
    """
    settled: dict[int, set[str]] = {}
    for members in _gather_conflicts(rows).values():
        if not any(i in drops or i in renames for i in members):
            continue
        left = [i for i in members if i not in drops]
        labels = [set(renames[i][0] if i in renames else rows[i]["labels"]) for i in left]
        labelled = [some for some in labels if some]
        if not labelled or set.intersection(*labelled):
            settled |= {i: {CONFLICT} for i in left}
    return settled


def _gather_conflicts(rows: Rows) -> dict[str, list[int]]:
    """The rows with contradicting labels, by group."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if CONFLICT in row["issues"]:
            groups[row["group"]].append(i)
    return groups


def _find_codes(row: dict[str, Any], kinds: Collection[str]) -> list[str]:
    """The row's codes of these kinds; a code may go on after a colon, as in unreadable:empty."""
    return [code for code in row["issues"] if code.partition(":")[0] in kinds]


def _is_kept(row: dict[str, Any]) -> bool:
    return row.get("decided") == "keep"


def _tell_kept(number: int) -> str:
    return f"{number} more kept by a person's decision" if number else ""


def _spell_labels(rows: Rows, members: list[int]) -> list[str]:
    """The different labellings of some rows, but for none."""
    return sorted({" + ".join(sorted(set(rows[i]["labels"]))) for i in members} - {""})


def _drop_blank_labels(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    drops = {}
    for i, row in enumerate(rows):
        if not row["labels"]:
            why = "no label row names it" if row["label_written"] is None else "blank label"
            drops[i] = why + (", no image" if row["path"] is None else "")
    without = sum(rows[i]["path"] is None for i in drops)
    return Outcome(drops, f"{without} of {len(drops)} have no image either" if without else "")


def _drop_missing_images(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    return Outcome({i: "no image" for i, row in enumerate(rows) if row["path"] is None})


def _drop_unreadable(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    codes = (
        (i, next((issue for issue in row["issues"] if issue.startswith("unreadable:")), None))
        for i, row in enumerate(rows)
    )
    return Outcome({i: code for i, code in codes if code is not None})


def _drop_multiple_labels(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    return Outcome(
        {i: f"{len(row['labels'])} labels" for i, row in enumerate(rows) if len(row["labels"]) > 1}
    )


def _drop_conflicts(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    same: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        readable = row["width"] is not None
        same[row["sha256"] if readable else f"id:{row['image']}"].append(i)
    drops = {}
    for members in same.values():
        labels = _spell_labels(rows, members)
        if len(labels) > 1:
            for i in members:
                drops[i] = f"the same image is labelled {' and '.join(labels)}"
    return Outcome(drops)


def _drop_cell_conflicts(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    drops: Drops = {}
    spared = 0
    for members in _gather_conflicts(rows).values():
        labels = _spell_labels(rows, members)
        why = "its label contradicts that of another image of this cell"
        if len(labels) > 1:
            why = f"images of one cell are labelled {' and '.join(labels)}"
        for i in members:
            if rows[i].get("decided"):
                spared += 1
            else:
                drops[i] = why
    return Outcome(drops, _tell_kept(spared))


def _drop_repeated_rows(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    drops = {}
    # The first is the one that comes first in the table file, however the rows are ordered here.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["row"] is None, rows[i]["row"] or 0))
    for i in order:
        key = (rows[i]["image"], tuple(sorted(set(rows[i]["labels"]))))
        if key in first:
            drops[i] = f"listed before, in row {rows[first[key]]['row']}"
        first.setdefault(key, i)
    return Outcome(drops)


def _drop_exact_duplicates(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    same: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row["width"] is not None and row["labels"]:  # empty files say nothing by their bytes
            same[row["sha256"]].append(i)
    drops: Drops = {}
    contradicting = 0
    for members in same.values():
        if len(_spell_labels(rows, members)) > 1:
            contradicting += len(members)
            continue
        first = min(members, key=lambda i: (not _is_kept(rows[i]), i))
        reason = f"the same bytes as {rows[first]['image']}"
        drops |= {i: reason for i in members if i != first}
    # Keeping the first of them would choose a label.
    note = f"{contradicting} rows under different labels are left to drop_conflicts"
    return Outcome(drops, note if contradicting else "")


def _drop_issues(rows: Rows, *, seed: int, kinds: list[str]) -> Outcome:  # noqa: ARG001
    drops, spared = {}, 0
    for i, row in enumerate(rows):
        found = _find_codes(row, kinds)
        unusable = _find_codes(row, [kind for kind in kinds if kind in _UNUSABLE])
        codes = unusable if _is_kept(row) else found
        spared += bool(found) and not codes
        if codes:
            drops[i] = ", ".join(codes)
    return Outcome(drops, _tell_kept(spared))


def _keep_one_of_group(rows: Rows, *, seed: int, kinds: list[str]) -> Outcome:  # noqa: ARG001
    # By group and label: which of two labels is right is not for the larger picture to say.
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if _find_codes(row, kinds):
            groups[row["group"], tuple(sorted(set(row["labels"])))].append(i)

    def rank(i: int) -> tuple[bool, int, int]:
        row = rows[i]
        return _is_kept(row), (row["width"] or 0) * (row["height"] or 0), -i

    drops: Drops = {}
    spared = 0
    for members in groups.values():
        best = max(members, key=rank)
        others = [i for i in members if i != best]
        spared += sum(_is_kept(rows[i]) for i in others)
        reason = f"of its group {rows[best]['image']} is kept"
        drops |= {
            i: f"{', '.join(_find_codes(rows[i], kinds))}: {reason}"
            for i in others
            if not _is_kept(rows[i])
        }
    return Outcome(drops, _tell_kept(spared))


def _rename_spellings(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    counts = Counter(label.strip() for row in rows for label in row["labels"])
    chosen: dict[str, str] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        chosen.setdefault(normalise_spelling(label), label)
    renames: Renames = {}
    for i, row in enumerate(rows):
        new = [chosen[normalise_spelling(label)] for label in row["labels"]]
        if new != row["labels"]:
            renames[i] = new, "another spelling of the same class"
    return Outcome({}, renames=renames, settled=find_settled(rows, {}, renames))


def _drop_classes(rows: Rows, *, seed: int, classes: list[str]) -> Outcome:  # noqa: ARG001
    wanted = {name.strip().casefold() for name in classes}
    drops = {
        i: f"class {row['label']}"
        for i, row in enumerate(rows)
        if row["label"] is not None and row["label"].casefold() in wanted
    }
    found = {rows[i]["label"].casefold() for i in drops}
    absent = [name for name in classes if name.strip().casefold() not in found]
    return Outcome(drops, f"not in this set: {', '.join(absent)}" if absent else "")


def _delete_share(rows: Rows, *, seed: int, class_: str, share: float) -> Outcome:
    name = class_.strip().casefold()
    members = [i for i, row in enumerate(rows) if (row["label"] or "").casefold() == name]
    if not members:
        return Outcome({}, f"not in this set: {class_}")
    number = math.floor(share * len(members) + 0.5)

    # A hash instead of a generator: what is drawn depends on the seed and on each image's id
    # alone, not on the order of the rows or on the version of a library.
    def draw(i: int) -> tuple[bytes, str]:
        image = rows[i]["image"]
        return hashlib.sha256(f"{seed}\0{name}\0{image}".encode()).digest(), image

    chosen = sorted(members, key=draw)[:number]
    reason = f"drawn: {number} of {len(members)}, seed {seed}"
    return Outcome(dict.fromkeys(chosen, reason), f"{number} of {len(members)} {class_} drawn")


def _repeat_rare(rows: Rows, *, seed: int) -> Outcome:  # noqa: ARG001
    counts = count_labels(rows)
    most = max(counts.values(), default=0)
    factors = {name: round(most / n, 4) for name, n in counts.items()}
    spelt = ", ".join(f"{name} × {factor:.2f}" for name, factor in factors.items())
    return Outcome({}, f"drawn in training: {spelt}" if spelt else "", factors)


@dataclass(frozen=True)
class Kind:
    """A kind of step.

    Attributes:
        reason: What it is for, for people.
        apply: What does it.
        parameters: Which ones a recipe has to give.
        needs_audit: It acts on codes that only the audit gives, and would find nothing without.
    """

    reason: str
    apply: Callable[..., Outcome]
    parameters: tuple[str, ...] = ()
    needs_audit: bool = False


#: The kinds of steps; their parameters are all required.
KINDS: dict[str, Kind] = {
    "drop_blank_labels": Kind("nothing says what the image shows", _drop_blank_labels),
    "drop_missing_images": Kind("a label without an image", _drop_missing_images),
    "drop_unreadable": Kind("the image can't be read", _drop_unreadable),
    "drop_issues": Kind("an issue that the audit found", _drop_issues, ("kinds",), True),
    "drop_conflicts": Kind("one image under different labels", _drop_conflicts),
    "drop_cell_conflicts": Kind(
        "one cell under different labels", _drop_cell_conflicts, needs_audit=True
    ),
    "drop_repeated_rows": Kind("one image name listed again", _drop_repeated_rows),
    "drop_exact_duplicates": Kind("the same file under another name", _drop_exact_duplicates),
    "keep_one_of_group": Kind("copies of one picture", _keep_one_of_group, ("kinds",), True),
    "rename_spellings": Kind("one class is written in several ways", _rename_spellings),
    "drop_multiple_labels": Kind("a field with two or more leukocytes", _drop_multiple_labels),
    "drop_classes": Kind("a class that is left out", _drop_classes, ("classes",)),
    "delete_share": Kind("a share of a frequent class", _delete_share, ("class", "share")),
    "repeat_rare": Kind("rarer classes are trained several times over", _repeat_rare),
}
