"""A review as values: cells, changes, and what follows from them.

    beginning (the machine's cells) + changes in order → cells as they are now

Nothing is ever overwritten: a change is added, and the present is worked out anew from all of them.
Undo takes the last change from the pile, redo puts it back; both are changes themselves. Only who
made a change undoes it, or does it again.

Knows readings; knows nothing of databases, requests or pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leuko.service.refusals import Refusal
from leuko.use.answers import PRE_CLASSIFIED, UNIDENTIFIED

REVIEWED = "reviewed"
COUNTED = (PRE_CLASSIFIED, REVIEWED)  # states of cells that a differential counts
OPEN, SIGNED = "open", "signed"

LABEL, CONFIRM, DELETE, RESTORE = "label", "confirm", "delete", "restore"
ADD, SPLIT, UNDO, REDO = "add", "split", "undo", "redo"
BY_PERSONS = (LABEL, CONFIRM, DELETE, RESTORE, ADD, SPLIT, UNDO, REDO)
FIELD, ARBITRATE, SIGN, VERSION = "field", "arbitrate", "sign", "version"

BY_HAND = "put back by a person"
LONGEST_NAME, LONGEST_LABEL = 255, 100

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Machine:
    """What the model said of a cell; it never changes.

    Attributes:
        label: The likeliest class; None where there was no cell.
        probability: Of that class, calibrated.
        probabilities: Of all classes.
        set: Classes that can't be excluded, the likeliest first.
        state: ``pre-classified``, ``unidentified`` or ``rejected``.
        reason: Why it isn't pre-classified.
    """

    label: str | None
    probability: float | None
    probabilities: Mapping[str, float]
    set: tuple[str, ...]
    state: str
    reason: str


@dataclass(frozen=True)
class Cell:
    """A cell as one reading sees it.

    Attributes:
        id: Within the store.
        field: Id of its picture.
        box: x0, y0, x1, y1 in px of the field.
        machine: What the model said.
        label: Present label; None is unidentified by a person, or nothing the machine could name.
        state: ``pre-classified``, ``unidentified``, ``rejected`` or ``reviewed``.
        reason: Why it isn't pre-classified or reviewed.
        deleted: It is no leukocyte, or was replaced, or was added and the addition undone.
        added: By a person, not found by the machine.
        changed: Revision at which a person last changed it; 0 for never.
    """

    id: int
    field: int
    box: Box
    machine: Machine
    label: str | None
    state: str
    reason: str = ""
    deleted: bool = False
    added: bool = False
    changed: int = 0

    @property
    def counted(self) -> bool:
        """Whether a differential counts it."""
        return not self.deleted and self.label is not None and self.state in COUNTED

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        machine = self.machine
        return {
            "id": self.id, "field": self.field, "box": list(self.box), "label": self.label,
            "machine": {
                "label": machine.label, "probability": machine.probability,
                "probabilities": dict(machine.probabilities), "set": list(machine.set),
                "state": machine.state, "reason": machine.reason,
            },
            "state": self.state, "reason": self.reason, "changed": self.changed,
            "deleted": self.deleted, "added": self.added,
        }  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One step of a reading.

    Attributes:
        id: Made by whoever asked, so that a repeated request is told from a second one.
        revision: Its place in the reading, from 1.
        kind: What was done.
        cells: That it is about.
        label: Of a change of kind ``label``; None makes cells unidentified.
        made: Cells that came into being with it (``add``, ``split``).
        target: The change that ``undo`` or ``redo`` is about.
        by: Name of the person, or empty.
        at: Time in UTC, ISO 8601.
        version: Of the reading to which it belongs, from 1.
        detail: The rest, as JSON.
    """

    id: str
    revision: int
    kind: str
    cells: tuple[int, ...] = ()
    label: str | None = None
    made: tuple[int, ...] = ()
    target: str | None = None
    by: str = ""
    at: str = ""
    version: int = 1
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            "id": self.id, "revision": self.revision, "kind": self.kind,
            "cells": list(self.cells), "label": self.label, "made": list(self.made),
            "change": self.target, "by": self.by, "at": self.at, "version": self.version,
            "detail": {k: v for k, v in self.detail.items() if k != TAKEN},
        }  # fmt: skip


TAKEN = "taken"  # detail of an arbitration: {cell: [label, state, reason, deleted]}
SLIDE = "slide"  # detail of a signature: {name, target, fields: [{id, name, set_aside}]}


@dataclass(frozen=True)
class Review:
    """Where a reading stands after some changes.

    Attributes:
        cells: By id; cells whose addition was undone are there as deleted ones.
        revision: Of the last change.
        touched: Revision at which anything, a person or the arrival of a field, last concerned a
            cell; cells that were there from the beginning are missing.
        done: Changes that count and can be undone, the last one next.
        undone: Changes that can be done again, the last one next.
    """

    cells: Mapping[int, Cell]
    revision: int
    touched: Mapping[int, int]
    done: tuple[Change, ...]
    undone: tuple[Change, ...]

    def since(self, revision: int) -> list[Cell]:
        """Cells that something happened to after a revision."""
        return [self.cells[i] for i, at in sorted(self.touched.items()) if at > revision]

    @property
    def undo(self) -> str | None:
        """Id of the change that undo would take back."""
        return self.done[-1].id if self.done else None

    @property
    def redo(self) -> str | None:
        """Id of the change that redo would put back."""
        return self.undone[-1].id if self.undone else None


def begin_cell(id: int, field: int, box: Box, machine: Machine, *, added: bool = False) -> Cell:
    """A cell as the machine leaves it; an added one isn't there until a change makes it."""
    return Cell(
        id, field, box, machine, machine.label, machine.state, machine.reason,
        deleted=added, added=added,
    )  # fmt: skip


def replay(beginning: Iterable[Cell], changes: Sequence[Change]) -> Review:
    """Works out where a reading stands.

    Args:
        beginning: All its cells, from `begin_cell`.
        changes: In the order of their revisions, from the first.
    """
    cells = {cell.id: cell for cell in beginning}
    touched: dict[int, int] = {}
    changed: dict[int, int] = {}
    done: list[Change] = []
    undone: list[Change] = []
    fixed: list[Change] = []
    for change in changes:
        if change.kind == UNDO:
            concerned = done.pop()
            undone.append(concerned)
        elif change.kind == REDO:
            concerned = undone.pop()
            done.append(concerned)
        elif change.kind in BY_PERSONS:
            concerned = change
            done.append(change)
            undone.clear()
        else:
            concerned = change
            fixed.append(change)
            if change.kind == SIGN:  # what was signed is changed anew, never undone
                fixed += done
                done, undone = [], []
        for i in (*concerned.cells, *concerned.made):
            if i not in cells:  # its field was looked at again since
                continue
            touched[i] = change.revision
            if change.kind in BY_PERSONS:
                changed[i] = change.revision
    for change in sorted((*fixed, *done), key=lambda c: c.revision):
        _apply(cells, change)
    present = {i: replace(c, changed=changed[i]) if i in changed else c for i, c in cells.items()}
    revision = changes[-1].revision if changes else 0
    return Review(present, revision, touched, tuple(done), tuple(undone))


def _apply(cells: dict[int, Cell], change: Change) -> None:
    """Does one change that counts."""
    if change.kind == FIELD:  # its cells are there from the beginning
        return
    for i in change.cells:
        cell = cells[i]
        if change.kind == LABEL and change.label is None:
            cell = replace(cell, label=None, state=UNIDENTIFIED, reason=BY_HAND)
        elif change.kind == LABEL:
            cell = replace(cell, label=change.label, state=REVIEWED, reason="")
        elif change.kind == CONFIRM:
            cell = replace(cell, state=REVIEWED, reason="")
        elif change.kind in (DELETE, SPLIT):
            cell = replace(cell, deleted=True)
        elif change.kind == RESTORE:
            cell = replace(cell, deleted=False)
        elif change.kind == ARBITRATE:
            label, state, reason, deleted = change.detail[TAKEN][str(i)]
            cell = replace(cell, label=label, state=state, reason=reason, deleted=deleted)
        cells[i] = cell
    for i in change.made:
        cells[i] = replace(cells[i], deleted=False)


@dataclass(frozen=True)
class Wish:
    """A change that somebody asks for.

    Attributes:
        id: As for `Change`.
        seen: The last revision that they have seen.
        kind: One of `BY_PERSONS`.
        cells: That it is about.
        label: For ``label``.
        field: In which a cell is added; of any other kind the cells say where they lie.
        boxes: Of the cells to be made by ``add`` (one) or ``split`` (two or more).
        target: For ``undo`` and ``redo``.
        by: Name of the person.
    """

    id: str
    seen: int
    kind: str
    cells: tuple[int, ...] = ()
    label: str | None = None
    field: int | None = None
    boxes: tuple[Box, ...] = ()
    target: str | None = None
    by: str = ""

    def to_json(self) -> dict[str, Any]:
        """What has to be the same in a repeated request; `seen` needn't."""
        return {
            "kind": self.kind, "cells": list(self.cells), "label": self.label,
            "field": self.field, "boxes": [list(box) for box in self.boxes],
            "target": self.target, "by": self.by,
        }  # fmt: skip


def check_wish(review: Review, wish: Wish) -> tuple[int, ...]:
    """Refuses what can't be done, or would overwrite what the asking person hasn't seen.

    Returns:
        The cells that the change is about; for undo and redo those of their target.

    Raises:
        Refusal: 409 if somebody else was there first, 422 if it makes no sense.
    """
    if wish.seen > review.revision:
        raise Refusal(
            422, "unknown_revision",
            f"The request says revision {wish.seen} was seen; this reading is at "
            f"{review.revision}. Load the reading again.",
        )  # fmt: skip
    if wish.kind in (UNDO, REDO):
        concerned = _check_pile(review, wish)
        _check_field(review, wish, concerned)
        return concerned
    _check_shape(wish)
    if unknown := [i for i in wish.cells if i not in review.cells]:
        raise Refusal(
            422, "unknown_cell", f"This reading has no cell {unknown[0]}. Load the reading again."
        )
    _check_field(review, wish, wish.cells)
    if any(review.touched.get(i, 0) > wish.seen for i in wish.cells):
        raise conflict(
            review, wish,
            "Somebody else changed this since you last saw it. Look at how it is now, and decide "
            "again.",
        )  # fmt: skip
    for cell in (review.cells[i] for i in wish.cells):
        _check_cell(cell, wish.kind)
    return wish.cells


def conflict(review: Review, wish: Wish, message: str, **facts: Any) -> Refusal:
    """The refusal that shows how the cells are now, and what can be undone."""
    known = [review.cells[i] for i in wish.cells if i in review.cells]
    shown = {cell.id: cell for cell in (*known, *review.since(wish.seen))}
    return Refusal(
        409, "conflict", message, revision=review.revision, undo=review.undo, redo=review.redo,
        cells=[cell.to_json() for cell in shown.values()], **facts,
    )  # fmt: skip


def _check_pile(review: Review, wish: Wish) -> tuple[int, ...]:
    pile = review.done if wish.kind == UNDO else review.undone
    if not pile or pile[-1].id != wish.target:
        now = "it would be about another one now" if pile else "nothing is left for it now"
        raise conflict(
            review, wish, f"The reading was changed before this {wish.kind} arrived, and {now}. "
            "Look at how the reading is, and decide again.",
        )  # fmt: skip
    last = pile[-1]
    if last.by != wish.by:  # nobody's decision goes unseen because another person pressed a key
        concerned = (*last.cells, *last.made)
        raise conflict(
            review, replace(wish, cells=concerned),
            f"The last change is by {last.by or 'somebody without a name'}, and {wish.kind} is for "
            f"one's own changes: {_tell(last)}. Look at {'it' if len(concerned) == 1 else 'them'}; "
            "to have it otherwise, decide anew.", concerned=list(concerned),
        )  # fmt: skip
    return last.cells


def _tell(change: Change) -> str:
    """What was done, in words: ``2 cells were called monocyte``."""
    number = len(change.cells or change.made)
    done = {
        LABEL: f"called {change.label or UNIDENTIFIED}", CONFIRM: "confirmed",
        DELETE: "called no leukocyte", RESTORE: "brought back", ADD: "added", SPLIT: "split",
    }  # fmt: skip
    return f"{number} {'cell was' if number == 1 else 'cells were'} {done[change.kind]}"


def _check_shape(wish: Wish) -> None:
    """What a kind needs, whatever the reading."""
    if wish.kind not in BY_PERSONS:
        raise Refusal(
            422, "unknown_kind",
            f"There is no change of kind {wish.kind[:40]!r}. Known: {', '.join(BY_PERSONS)}.",
        )  # fmt: skip
    if len(set(wish.cells)) != len(wish.cells):
        raise Refusal(422, "invalid", "A cell is named twice. Name each cell once.")
    expected = {
        ADD: (not wish.cells and len(wish.boxes) == 1 and wish.field is not None,
              "no cell, a field and one box"),
        SPLIT: (len(wish.cells) == 1 and len(wish.boxes) >= 2, "one cell and two or more boxes"),
    }  # fmt: skip
    fine, words = expected.get(wish.kind, (bool(wish.cells), "at least one cell"))
    if not fine:
        raise Refusal(422, "invalid", f"A change of kind {wish.kind} needs {words}.")


def _check_field(review: Review, wish: Wish, concerned: Sequence[int]) -> None:
    """A field that contradicts the cells: what was cut from one would be kept with another."""
    if wish.field is None or wish.kind == ADD:
        return
    for cell in (review.cells[i] for i in concerned):
        if cell.field != wish.field:
            raise Refusal(
                422, "other_field",
                f"Cell {cell.id} lies in field {cell.field}, and the request names field "
                f"{wish.field}. Leave the field out: only a change of kind {ADD} needs one.",
            )  # fmt: skip


def _check_cell(cell: Cell, kind: str) -> None:
    if kind == RESTORE and not cell.deleted:
        raise Refusal(422, "not_deleted", f"Cell {cell.id} isn't deleted. Load the reading again.")
    if kind != RESTORE and cell.deleted:
        raise Refusal(422, "deleted", f"Cell {cell.id} is deleted. Restore it first.")
    if kind == CONFIRM and cell.label is None:
        raise Refusal(
            422, "no_label", f"Cell {cell.id} has no label to confirm. Give it one, or delete it."
        )


def hinder_signature(review: Review, *, leave_unidentified: bool) -> list[str]:
    """Why a reading can't be signed yet, in sentences; none if it can."""
    waiting = [c for c in review.cells.values() if c.state == UNIDENTIFIED and not c.deleted]
    reasons = []
    if waiting and not leave_unidentified:
        reasons.append(
            f"{len(waiting)} {'cell is' if len(waiting) == 1 else 'cells are'} unidentified. "
            "Give each a class, say that it is no leukocyte, or leave the doubtful cells out of "
            "the count."
        )
    if not any(cell.counted for cell in review.cells.values()):
        reasons.append("No cell is counted. Add fields that show leukocytes, or label cells.")
    return reasons


def clean_text(text: str, longest: int) -> str:
    """Text from outside as one line of text: no control character, no surrogate, not too long."""
    shown = "".join(c if c.isprintable() else "�" for c in text.strip())
    return shown[:longest]
