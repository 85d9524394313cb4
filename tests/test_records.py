"""A review as values: whatever was done, nothing is lost, and undo is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leuko.service.records import (
    ADD,
    BY_HAND,
    CONFIRM,
    DELETE,
    FIELD,
    LABEL,
    REDO,
    RESTORE,
    REVIEWED,
    SIGN,
    SPLIT,
    UNDO,
    Cell,
    Change,
    Machine,
    Review,
    Wish,
    begin_cell,
    check_wish,
    clean_text,
    hinder_signature,
    replay,
)  # fmt: skip
from leuko.service.refusals import Refusal

SURE = Machine("neutrophil", 0.9, {"neutrophil": 0.9, "monocyte": 0.1}, ("neutrophil",),
               "pre-classified", "")  # fmt: skip
DOUBTFUL = replace(SURE, probability=0.5, state="unidentified", reason="2 classes")
NOTHING = Machine(None, None, {}, (), "rejected", "no leukocyte was found")
BOX = (0.0, 0.0, 10.0, 10.0)


def begin(cells: int = 4, spare: int = 0) -> list[Cell]:
    machines = [SURE, DOUBTFUL, SURE, NOTHING]
    found = [begin_cell(i, 1, BOX, machines[i % 4]) for i in range(cells)]
    return found + [begin_cell(cells + i, 1, BOX, SURE, added=True) for i in range(spare)]


class Reader:
    """Does what the store does: asks, and adds the change if it isn't refused."""

    def __init__(self, spare: int = 60) -> None:
        self.beginning = begin(4, spare)
        self.spare = list(range(4, 4 + spare))
        self.changes: list[Change] = []

    @property
    def review(self) -> Review:
        return replay(self.beginning, self.changes)

    def do(self, kind: str, cells: tuple[int, ...] = (), label: str | None = None) -> Review:
        review = self.review
        target = {UNDO: review.undo, REDO: review.redo}.get(kind)
        boxes = {ADD: (BOX,), SPLIT: (BOX, BOX)}.get(kind, ())
        name = f"change-{len(self.changes) + 1}"
        wish = Wish(name, review.revision, kind, cells, label, 1, boxes, target, "A")
        concerned = check_wish(review, wish)
        made = tuple(self.spare.pop() for _ in boxes)
        if target is not None:
            made = next(c.made for c in self.changes if c.id == target)
        self.changes.append(
            Change(name, review.revision + 1, kind, concerned, label, made, target, "A")
        )
        return self.review

    def arrive(self) -> None:
        self.changes.append(Change("field", self.review.revision + 1, FIELD, (0,)))

    def sign(self) -> None:
        self.changes.append(Change("sign", self.review.revision + 1, SIGN, by="A"))


steps = st.lists(
    st.tuples(
        st.sampled_from((LABEL, CONFIRM, DELETE, RESTORE, ADD, SPLIT, UNDO, REDO, UNDO, "arrive")),
        st.sets(st.integers(0, 12), min_size=1, max_size=3),
        st.sampled_from(("monocyte", "blast", None)),
    ),
    max_size=25,
)


def perform(reader: Reader, done: list) -> None:
    """All steps that aren't refused."""
    for kind, cells, label in done:
        known = tuple(i for i in sorted(cells) if i in reader.review.cells)
        if kind == "arrive":
            reader.arrive()
            continue
        if kind in (ADD, UNDO, REDO):
            known = ()
        elif kind == SPLIT:
            known = known[:1]
        try:
            reader.do(kind, known, label)
        except Refusal as refusal:
            assert refusal.status in (409, 422)  # noqa: PT017 - any other would be a fault


def plain(review: Review) -> dict[int, Cell]:
    """What is so, without when it last changed."""
    return {i: replace(cell, changed=0) for i, cell in review.cells.items()}


@settings(deadline=None, max_examples=60)
@given(steps)
def test_no_cell_and_no_step_is_ever_lost(done):
    reader = Reader()
    perform(reader, done)
    review = reader.review
    assert set(review.cells) == {cell.id for cell in reader.beginning}
    assert all(review.cells[c.id].machine == c.machine for c in reader.beginning)
    assert review.revision == len(reader.changes)
    piled = [change.id for change in (*review.done, *review.undone)]
    assert len(piled) == len(set(piled))
    for change in review.done:  # cells that a counting change made are there
        for i in change.made:
            assert review.touched[i] >= change.revision
    assert {c.id for c in review.since(0)} == set(review.touched)


@settings(deadline=None, max_examples=60)
@given(steps, steps)
def test_the_present_is_the_replay_of_what_counts(done, more):
    """Taking undone steps out of the list gives the same cells as replaying the undoing."""
    reader = Reader()
    perform(reader, done)
    perform(reader, more)
    counting = [c for c in reader.changes if c.kind == FIELD or c in reader.review.done]
    assert plain(replay(reader.beginning, counting)) == plain(reader.review)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_undo_is_exact_and_redo_gives_it_back(done):
    reader = Reader()
    perform(reader, done)
    history = [plain(reader.review)]
    while reader.review.undo:
        reader.do(UNDO)
        history.append(plain(reader.review))
    assert history[-1] == plain(replay(reader.beginning, []))
    for expected in history[-2::-1]:
        assert reader.review.redo
        reader.do(REDO)
        assert plain(reader.review) == expected


def test_each_kind_does_what_it_says():
    reader = Reader()
    assert reader.do(LABEL, (0, 3), "blast").cells[3].counted
    assert reader.do(CONFIRM, (1,)).cells[1].state == REVIEWED
    assert reader.do(DELETE, (2,)).cells[2].deleted
    assert not reader.do(RESTORE, (2,)).cells[2].deleted
    back = reader.do(LABEL, (0,), None).cells[0]
    assert (back.label, back.state, back.reason, back.counted) == (
        None, "unidentified", BY_HAND, False,
    )  # fmt: skip
    split = reader.do(SPLIT, (2,))
    parts = reader.changes[-1].made
    assert split.cells[2].deleted
    assert [split.cells[i].counted for i in parts] == [True, True]
    undone = reader.do(UNDO)
    assert not undone.cells[2].deleted
    assert all(undone.cells[i].deleted for i in parts)
    assert {c.id for c in undone.since(undone.revision - 1)} == {2, *parts}


def test_a_new_step_ends_what_could_be_redone():
    reader = Reader()
    reader.do(LABEL, (0,), "blast")
    reader.do(UNDO)
    assert reader.do(CONFIRM, (0,)).redo is None


def test_a_field_that_arrives_changes_neither_undo_nor_redo():
    reader = Reader()
    reader.do(LABEL, (0,), "blast")
    reader.do(LABEL, (1,), "blast")
    reader.do(UNDO)
    reader.arrive()
    assert (reader.review.undo, reader.review.redo) == ("change-1", "change-2")
    assert reader.review.cells[0].changed == 1  # by a person; the field is no change of the cell
    assert reader.review.touched[0] == 4


def test_what_was_signed_is_never_undone():
    reader = Reader()
    reader.do(LABEL, (0,), "blast")
    reader.sign()
    assert reader.review.undo is None
    assert reader.review.cells[0].label == "blast"


@pytest.mark.parametrize(
    ("kind", "cells", "status", "code"),
    [
        (LABEL, (), 422, "invalid"),
        (LABEL, (0, 0), 422, "invalid"),
        (LABEL, (99,), 422, "unknown_cell"),
        (CONFIRM, (3,), 422, "no_label"),
        (RESTORE, (0,), 422, "not_deleted"),
        (DELETE, (2,), 422, "deleted"),
        (REDO, (), 409, "conflict"),
        ("paint", (0,), 422, "unknown_kind"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, cells, status, code):
    reader = Reader()
    reader.do(DELETE, (2,))
    with pytest.raises(Refusal) as refused:
        reader.do(kind, cells, "blast")
    assert (refused.value.status, refused.value.code) == (status, code)
    assert len(reader.changes) == 1


def test_cells_say_themselves_in_which_field_they_lie():
    reader = Reader()
    for kind, cells, boxes in ((SPLIT, (0,), (BOX, BOX)), (LABEL, (0,), ()), (DELETE, (0, 1), ())):
        asked = Wish("a", 0, kind, cells, "blast", 2, boxes)
        with pytest.raises(Refusal, match="lies in field 1, and the request names field 2") as told:
            check_wish(reader.review, asked)
        assert (told.value.status, told.value.code) == (422, "other_field")
        assert check_wish(reader.review, replace(asked, field=1)) == cells
        assert check_wish(reader.review, replace(asked, field=None)) == cells
    reader.do(DELETE, (2,))
    with pytest.raises(Refusal, match="names field 2"):
        check_wish(reader.review, Wish("a", 1, UNDO, field=2, target="change-1", by="A"))


def test_nothing_is_overwritten_unseen():
    reader = Reader()
    seen = reader.review.revision
    reader.do(LABEL, (0,), "blast")
    wish = Wish("b", seen, LABEL, (0, 1), "monocyte")
    with pytest.raises(Refusal) as refused:
        check_wish(reader.review, wish)
    body = refused.value.to_json()
    assert refused.value.status == 409
    assert body["error"]["code"] == "conflict"
    assert body["revision"] == 1
    assert {c["id"]: c["label"] for c in body["cells"]} == {0: "blast", 1: "neutrophil"}
    assert check_wish(reader.review, replace(wish, cells=(1,))) == (1,)  # another cell is free
    assert check_wish(reader.review, replace(wish, seen=1)) == (0, 1)
    with pytest.raises(Refusal, match="revision 2 was seen"):
        check_wish(reader.review, replace(wish, seen=2))


def test_undo_of_what_somebody_else_did_meanwhile_is_refused():
    reader = Reader()
    reader.do(LABEL, (0,), "blast")
    reader.do(LABEL, (1,), "blast")
    with pytest.raises(Refusal) as refused:
        check_wish(reader.review, Wish("u", 1, UNDO, target="change-1"))
    assert refused.value.status == 409
    assert [c["id"] for c in refused.value.to_json()["cells"]] == [1]


def test_undo_says_what_can_be_undone_now_and_is_for_ones_own_changes():
    reader = Reader()
    reader.do(LABEL, (0,), "blast")
    reader.do(LABEL, (1,), "monocyte")
    with pytest.raises(Refusal, match="before this undo arrived") as late:
        check_wish(reader.review, Wish("u", 2, UNDO, target="change-1", by="A"))
    assert "change-" not in str(late.value)  # an id says nothing to a person
    told = late.value.to_json()
    assert (told["undo"], told["redo"]) == ("change-2", None)
    with pytest.raises(Refusal, match=r"by A, .*: 1 cell was called monocyte") as others:
        check_wish(reader.review, Wish("u", 2, UNDO, target="change-2", by="B"))
    assert others.value.facts["concerned"] == [1]
    reader.do(UNDO)
    with pytest.raises(Refusal, match="by A"):
        check_wish(reader.review, Wish("r", 3, REDO, target="change-2", by="B"))
    assert check_wish(reader.review, Wish("r", 3, REDO, target="change-2", by="A")) == (1,)


def test_a_signature_waits_for_doubtful_cells():
    reader = Reader()
    (reason,) = hinder_signature(reader.review, leave_unidentified=False)
    assert "1 cell is unidentified" in reason
    assert "_" not in reason  # the page shows it to a person
    assert hinder_signature(reader.review, leave_unidentified=True) == []
    reader.do(DELETE, (0, 1, 2))
    assert "No cell is counted" in hinder_signature(reader.review, leave_unidentified=False)[0]
    assert not any(cell.counted for cell in reader.review.cells.values())


@given(st.text(max_size=300))
def test_text_from_outside_is_one_line_that_any_database_takes(text):
    cleaned = clean_text(text, 100)
    assert len(cleaned) <= 100
    assert cleaned.isprintable()
    cleaned.encode()


def test_markup_stays_the_text_that_it_is():
    assert clean_text("<img src=x onerror=alert(1)>\n", 100) == "<img src=x onerror=alert(1)>"
    assert clean_text("a\x00b\ud800\u202ec", 100) == "a�b��c"
