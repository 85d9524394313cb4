"""What a person decided about single images: a table that is written, edited and read back.

One row per image, with the columns ``image, label, issues, detail, decision, new_label, reason``.
The last three are the person's; of the others only ``image`` is read. A decision is ``keep``,
``drop``, ``relabel`` (to ``new_label``), or nothing: undecided, and nothing happens.

**Formulas.** A file name may begin like a formula, and a spreadsheet would run it. A cell that
begins with = + - @, a blank of any kind (tab and line ends too) or an apostrophe is therefore
written with an apostrophe before it, and every cell in quotation marks. Spreadsheets show that
apostrophe and save it again; reading takes one away where such a character follows it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leuko.data.issues import Issue
from leuko.data.manifest import Manifest
from leuko.data.steps import Drops, Outcome, Renames, Rows, find_settled
from leuko.data.tables import read_table
from leuko.errors import LabelTableError, OutputError, suggest
from leuko.storage import write_atomically

COLUMNS = ("image", "label", "issues", "detail", "decision", "new_label", "reason")
WORDS = ("keep", "drop", "relabel")
#: Codes that speak of the label, and are no longer true once a person has given another.
_OF_LABEL = {"blank_label", "no_label", "many_labels", "spelling", "likely_wrong_label",
             "disputed_label"}  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """What was decided about one image.

    Attributes:
        image: Its id, as in the manifest.
        word: "keep", "drop" or "relabel".
        new_label: The class that it is from now on; empty unless the word is "relabel".
        reason: The person's, for the ledger.
        row: 1-based below the header of the table; 0 if it comes from none.
    """

    image: str
    word: str
    new_label: str = ""
    reason: str = ""
    row: int = 0


@dataclass(frozen=True)
class Decisions:
    """The decisions of one table.

    Attributes:
        taken: One per image, in the order of the table.
        undecided: Rows without a decision.
        file: The table's name, without its folder.
        sha256: Of the table's bytes; empty if there is no table.
    """

    taken: tuple[Decision, ...]
    undecided: int = 0
    file: str = ""
    sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Which table it was, and how many of its rows say what."""
        words = Counter(decision.word for decision in self.taken)
        counts = {word: words[word] for word in WORDS} | {"undecided": self.undecided}
        return {"file": self.file, "sha256": self.sha256} | counts


def write_decisions(issues: Sequence[Issue], manifest: Manifest, path: str | Path) -> Path:
    """Writes the table for a person to fill in: one row per image that has an issue.

    UTF-8 with a byte-order mark, so that spreadsheets read it as such. The rows are in the order
    of the manifest; issues of the whole set, which name no image, aren't in it.

    Args:
        issues: As the audit found them.
        manifest: The set that was audited.
        path: Must not exist: it could hold someone's decisions.

    Returns:
        The path.

    Raises:
        OutputError: The file exists.
        LabelTableError: An issue names an image that the manifest doesn't.
        StorageError: It can't be written.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise OutputError(
            f"{path} exists already and may hold decisions; nothing was written. Name a new file."
        )
    of_image: dict[str, list[Issue]] = defaultdict(list)
    for issue in issues:
        for image in dict.fromkeys(issue.images):
            of_image[image].append(issue)
    labels: dict[str, dict[str, None]] = {}
    for image, some in manifest.table.select("image", "labels").iter_rows():
        labels.setdefault(image, {})[", ".join(some or ())] = None
    unknown = [image for image in of_image if image not in labels]
    if unknown:
        raise LabelTableError(
            f"the issues name {unknown[0]!r}, which isn't in {manifest.name}; expected issues of "
            "this set. Audit it again."
        )
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for image, written in labels.items():
        if found := of_image.get(image):
            kinds = ", ".join(dict.fromkeys(issue.kind for issue in found))
            details = " ".join(dict.fromkeys(issue.detail for issue in found))
            label = " / ".join(some for some in written if some)
            writer.writerow([*map(_guard, (image, label, kinds, details)), "", "", ""])
    return write_atomically(path, out.getvalue().encode("utf-8-sig"))


def _guard(cell: str) -> str:
    return f"'{cell}" if _is_special(cell[:1]) else cell


def _unguard(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and _is_special(cell[1:2]) else cell


def _is_special(first: str) -> bool:
    return bool(first) and (first in "=+-@'" or first.isspace())


def read_decisions(path: str | Path) -> Decisions:
    """Reads a table of decisions, with the separators and encodings that `read_table` understands.

    Needed are the columns ``image`` and ``decision``; the words are matched without case. Rows
    that say the same of one image count once.

    Raises:
        LabelTableError: It is no such table, a row says something that can't be, or two rows
            contradict each other; the message names them.
    """
    path = Path(path)
    table = read_table(path, [["image"], ["decision"]], optional=("new_label", "reason"))
    taken: dict[str, Decision] = {}
    undecided = 0
    for number, cells in zip(table.numbers, table.rows, strict=True):
        now = _read_row({k: _unguard(v) for k, v in cells.items()}, number, f"{path}, row {number}")
        if now is None:
            undecided += 1
            continue
        before = taken.setdefault(now.image, now)
        if (before.word, before.new_label) != (now.word, now.new_label):
            raise LabelTableError(
                f"{path}, rows {before.row} and {number} contradict each other about "
                f"{now.image!r}: {_spell(before)} and {_spell(now)}; expected one decision per "
                "image. Empty one of the two."
            )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Decisions(tuple(taken.values()), undecided, path.name, sha256)


def _read_row(cells: dict[str, str], number: int, where: str) -> Decision | None:
    word, new = cells["decision"].casefold(), cells.get("new_label", "")
    if word and word not in WORDS:
        raise LabelTableError(
            f"{where}: no decision {cells['decision']!r}; expected keep, drop, relabel or nothing. "
            f"{suggest(word, list(WORDS))}"
        )
    if word == "relabel" and not new:
        raise LabelTableError(
            f"{where} says relabel without a label; expected one in the column new_label. Add it."
        )
    if new and word != "relabel":
        raise LabelTableError(
            f"{where} has the new label {new!r} but says {word or 'nothing'}; expected relabel. "
            "Write relabel, or empty new_label."
        )
    if word and not cells["image"]:
        raise LabelTableError(
            f"{where} says {word} but names no image; expected its id in the column image. Add it."
        )
    return Decision(cells["image"], word, new, cells.get("reason", ""), number) if word else None


def _spell(decision: Decision) -> str:
    return f"{decision.word} {decision.new_label}".rstrip()


def match_decisions(decisions: Decisions, manifest: Manifest) -> dict[str, Decision]:
    """The decisions by image id, with each new label spelt as the set spells that class.

    Raises:
        LabelTableError: An image isn't in the manifest, or a new label is several.
    """
    images = set(manifest.table["image"])
    trimmed = {image.rstrip(): image for image in images}  # as tables are read
    spelling = {label.casefold(): label for label in manifest.classes()}
    matched = {}
    for decision in decisions.taken:
        where = f"{decisions.file or 'decisions'}, row {decision.row}"
        image = decision.image if decision.image in images else trimmed.get(decision.image)
        if image is None:
            raise LabelTableError(
                f"{where}: the image {decision.image!r} isn't in {manifest.name}; expected an id "
                "of this set, as the audit writes it. Correct it, or remove the row."
            )
        new = spelling.get(decision.new_label.casefold(), decision.new_label)
        if "," in new and new.casefold() not in spelling:
            raise LabelTableError(
                f"{where}: the new label {new!r} of {image!r} is a list; expected one class. "
                "Name one, or drop a picture that shows several cells."
            )
        matched[image] = Decision(image, decision.word, new, decision.reason, decision.row)
    return matched


def apply_decisions(rows: Rows, matched: dict[str, Decision]) -> Outcome:
    """What the decisions ask of the rows, as a step of cleaning.

    Contradicting labels that the decisions put right are settled, and so are a relabelled row's
    issues that speak of its label. ``label_written`` stays what the source says.

    Args:
        rows: Of the manifest.
        matched: From `match_decisions`.
    """
    drops: Drops = {}
    renames: Renames = {}
    settled: dict[int, set[str]] = {}
    for i, row in enumerate(rows):
        decision = matched.get(row["image"])
        reason = (decision.reason if decision else "") or "no reason given"
        if decision and decision.word == "drop":
            drops[i] = reason
        elif decision and decision.word == "relabel":
            settled[i] = set(_OF_LABEL)
            if row["labels"] != [decision.new_label]:
                renames[i] = [decision.new_label], reason
    for i, codes in find_settled(rows, drops, renames).items():
        settled[i] = settled.get(i, set()) | codes
    known = {label for row in rows for label in row["labels"]}
    new = sorted({labels[0] for labels, _ in renames.values()} - known)
    kept = sum(row["image"] in matched and matched[row["image"]].word == "keep" for row in rows)
    notes = [f"kept: {kept}"] * bool(kept) + [f"new in this set: {', '.join(new)}"] * bool(new)
    return Outcome(drops, "; ".join(notes), renames=renames, settled=settled)
