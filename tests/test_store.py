"""The store, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from leuko.errors import StoreError
from leuko.service import arbitration, fields, portraits, reviews, shelf, signatures, tables
from leuko.service import store as store_module
from leuko.service.adapted import find_adaptation, keep_adaptation, read_bundle
from leuko.service.records import ADD, CONFIRM, DELETE, LABEL, REDO, SPLIT, UNDO, Wish
from leuko.service.refusals import Refusal
from leuko.service.store import Store
from leuko.service.waiting import Waiting
from stores import Cluster, fill, find_binaries, make_finding, make_picture

HOSTILE = "<img src=x onerror=alert(1)> '; DROP TABLE slides; -- ../../etc/passwd"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's programs aren't installed (Debian: apt-get install postgresql)")
    made = Cluster(binaries)
    yield made
    made.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'leuko.db'}"
    return request.getfixturevalue("cluster").make_database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


def wish(store: Store, slide: int, reading: int, kind: str, *cells: int, **more) -> Wish:
    found = reviews.load_reading(store, slide, reading).review
    target = {UNDO: found.undo, REDO: found.redo}.get(kind)
    values = {"seen": found.revision, "target": target, "by": "A", **more}
    return Wish(str(uuid4()), kind=kind, cells=cells, **values)


def do(store: Store, slide: int, reading: int, kind: str, *cells: int, findings=(), **more):
    asked = wish(store, slide, reading, kind, *cells, **more)
    return reviews.make_change(store, slide, reading, asked, findings)


def sign(store: Store, slide: int, reading: int, name: str = "A"):
    seen = reviews.load_reading(store, slide, reading).review.revision
    return signatures.sign(
        store, slide, reading, name=name, seen=seen, leave_unidentified=True
    )  # fmt: skip


def cells_of(store: Store, slide: int, reading: int) -> list[int]:
    return list(reviews.load_reading(store, slide, reading).review.cells)


# --- opening --------------------------------------------------------------------------------------


def test_the_steps_give_the_tables_that_the_code_expects(store: Store):
    with store.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_older_version_is_brought_up_to_date(url: str, version: int):
    store = Store.open(url)
    slide, reading = fill(store)
    before = reviews.load_reading(store, slide, reading).to_json()
    steps = {
        "sqlite": ["DROP TRIGGER events_stay", "DROP TRIGGER events_remain"],
        "postgresql": ["DROP FUNCTION refuse_event_alteration CASCADE"],
    }[url.partition(":")[0]]
    steps += ["UPDATE alembic_version SET version_num = '0002'"]  # as the second version left it
    if version == 1:
        steps += ["DROP TABLE adaptations", "UPDATE alembic_version SET version_num = '0001'"]
    with store.write() as connection:
        for step in steps:
            connection.execute(text(step))
    store.close()
    again = Store.open(url)
    assert reviews.load_reading(again, slide, reading).to_json() == before
    assert find_adaptation(again, reading) is None
    with pytest.raises((StoreError, DBAPIError), match="only added"), again.write() as connection:
        connection.execute(update(tables.events).values(by="somebody else"))
    again.close()


def test_the_last_adaptation_is_kept_with_its_reading(store: Store):
    slide, reading = fill(store)
    result = {"bundle": "b", "changed": True, "data": {"cells": 40}}
    for bundle in (b"old", b"newer"):
        keep_adaptation(
            store, slide, reading, bundle, by="Ada", revision=3, notes=["n"], result=result
        )
    kept = find_adaptation(store, reading)
    assert (kept.by, kept.revision, kept.notes, kept.result) == ("Ada", 3, ("n",), result)
    assert kept.size == 5
    assert read_bundle(store, reading) == b"newer"
    shelf.delete_slide(store, slide)
    assert find_adaptation(store, reading) is None
    with pytest.raises(Refusal):
        keep_adaptation(store, slide, reading, b"", by="", revision=3, notes=[], result=result)


def test_a_store_is_opened_again_with_all_that_was_in_it(url: str):
    first = Store.open(url)
    slide, reading = fill(first)
    do(first, slide, reading, LABEL, *cells_of(first, slide, reading)[:1], label="blast")
    before = reviews.load_reading(first, slide, reading).to_json()
    first.close()
    again = Store.open(url)
    assert reviews.load_reading(again, slide, reading).to_json() == before
    again.check()
    again.close()


def test_several_processes_may_open_an_empty_store_at_once(url: str):
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(Store.open, [url] * 4))
    assert fill(opened[0])[0] == 1
    assert [len(shelf.list_slides(one)) for one in opened] == [1] * 4
    for one in opened:
        one.close()


def test_a_newer_store_is_left_alone(url: str):
    store = Store.open(url)
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(StoreError, match=r"newer Leuko .*'9999'.* Nothing was changed"):
        Store.open(url)


def test_the_tables_of_another_program_are_left_alone(url: str):
    engine = store_module._connect(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE patients (id INTEGER)"))
    engine.dispose()
    with pytest.raises(StoreError, match="another program"):
        Store.open(url)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mysql://host/leuko", "begins with 'mysql'"),
        ("sqlite://", "needs a file"),
        ("postgresql://nobody@127.0.0.1:1/leuko", "can't be used"),
        ("nonsense://::", "can't be understood"),
    ],
)
def test_what_cant_be_a_store_is_refused_in_words(given: str, words: str):
    with pytest.raises(StoreError, match=words):
        Store.open(given)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path):
    place = tmp_path / "notes.txt"
    place.write_text("not a database " * 100)
    with pytest.raises(StoreError, match="can't be used"):
        Store.open(place)
    assert place.read_text() == "not a database " * 100


def test_the_password_is_never_shown():
    with pytest.raises(StoreError) as refused:
        Store.open("postgresql://leuko:secret@127.0.0.1:1/leuko")
    assert "secret" not in str(refused.value)


def test_sqlite_is_set_up_to_survive_a_power_cut(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store = Store.open()
    assert (tmp_path / "leuko" / "leuko.db").stat().st_mode & 0o777 == 0o600
    with store.read() as connection:
        asked = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                 ("journal_mode", "synchronous", "fullfsync", "foreign_keys",
                  "secure_delete")]  # fmt: skip
    assert asked == ["wal", 2, 1, 1, 1]
    store.close()


# --- changes --------------------------------------------------------------------------------------


def test_the_database_itself_refuses_to_alter_what_happened(store: Store):
    slide, reading = fill(store)
    do(store, slide, reading, CONFIRM, cells_of(store, slide, reading)[0])
    attempts = [
        update(tables.changes).values(by="somebody else"),
        delete(tables.changes).where(tables.changes.c.revision == 1),
        update(tables.events).values(by="somebody else"),
        delete(tables.events).where(tables.events.c.kind == "created"),
    ]
    sign(store, slide, reading)
    attempts.append(delete(tables.readings))
    attempts.append(delete(tables.slides))
    for attempt in attempts:
        with pytest.raises((StoreError, DBAPIError), match=r"only added|stays"), store.write() as c:
            c.execute(attempt)
    assert reviews.load_reading(store, slide, reading).review.revision == 3
    kinds = [entry["kind"] for entry in signatures.read_trail(store, slide, reading)]
    assert kinds == ["created", "field", "confirm", "sign", "images deleted"]


def test_a_repeated_request_does_nothing_twice(store: Store):
    slide, reading = fill(store)
    asked = wish(store, slide, reading, LABEL, cells_of(store, slide, reading)[0], label="blast")
    first = reviews.make_change(store, slide, reading, asked)
    again = reviews.make_change(store, slide, reading, asked)
    assert again.review.revision == first.review.revision == 2
    assert reviews.find_repeated(store, slide, reading, asked)
    other = Wish(asked.id, asked.seen, LABEL, asked.cells, "monocyte", by="A")
    with pytest.raises(Refusal, match="belongs to another change") as refused:
        reviews.make_change(store, slide, reading, other)
    assert (refused.value.status, refused.value.code) == (409, "id_reused")


def test_a_repeated_request_is_answered_even_after_the_signature(store: Store):
    slide, reading = fill(store)
    asked = wish(store, slide, reading, CONFIRM, cells_of(store, slide, reading)[0])
    reviews.make_change(store, slide, reading, asked)
    sign(store, slide, reading)
    assert reviews.make_change(store, slide, reading, asked).outline["state"] == "signed"
    with pytest.raises(Refusal, match="signed by A") as refused:
        do(store, slide, reading, CONFIRM, cells_of(store, slide, reading)[0])
    assert refused.value.status == 423


def test_two_stations_see_each_other_and_overwrite_nothing(url: str):
    one, two = Store.open(url), Store.open(url)
    slide, reading = fill(one)
    cell, other, third = cells_of(one, slide, reading)
    seen = reviews.load_reading(two, slide, reading).review.revision
    do(one, slide, reading, LABEL, cell, label="blast")
    with pytest.raises(Refusal) as refused:
        do(two, slide, reading, LABEL, cell, label="monocyte", seen=seen)
    assert refused.value.status == 409
    assert refused.value.to_json()["cells"][0]["label"] == "blast"
    after = do(two, slide, reading, LABEL, other, label="monocyte", seen=seen)
    # The answer shows what came before it too, so that `revision` says what was seen.
    assert {c.id: c.label for c in after.review.since(seen)} == {cell: "blast", other: "monocyte"}
    assert after.review.cells[third].changed == 0
    one.close()
    two.close()


def test_changes_of_many_at_once_are_all_there_and_in_one_order(url: str):
    stores = [Store.open(url) for _ in range(3)]
    slide, reading = fill(stores[0], cells=24)
    cells = cells_of(stores[0], slide, reading)

    def label(i: int) -> None:
        asked = Wish(str(uuid4()), 1, LABEL, (cells[i],), f"label {i}", by="A")
        reviews.make_change(stores[i % 3], slide, reading, asked)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(label, range(24)))
    found = reviews.load_reading(stores[0], slide, reading)
    assert [c.revision for c in found.changes] == list(range(1, 26))
    assert [found.review.cells[c].label for c in cells] == [f"label {i}" for i in range(24)]
    for store in stores:
        store.close()


def test_of_two_who_change_one_cell_at_once_one_is_told(url: str):
    stores = [Store.open(url) for _ in range(2)]
    slide, reading = fill(stores[0])
    cell = cells_of(stores[0], slide, reading)[0]

    def label(i: int) -> int:
        asked = Wish(str(uuid4()), 1, LABEL, (cell,), f"label {i}", by="A")
        try:
            reviews.make_change(stores[i % 2], slide, reading, asked)
        except Refusal as refusal:
            return refusal.status
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(label, range(8))) == [200] + [409] * 7
    for store in stores:
        store.close()


def test_added_and_split_cells_belong_to_one_reading(store: Store):
    slide, reading = fill(store)
    second = reviews.open_reading(store, slide, "B")
    field = shelf.read_slide(store, slide)["fields"][0]["id"]
    first = cells_of(store, slide, reading)[0]
    box = (1.0, 1.0, 9.0, 9.0)
    added = do(store, slide, reading, ADD, findings=[make_finding()], field=field, boxes=(box,))
    parts = [make_finding("monocyte"), make_finding("lymphocyte", at=10)]
    split = do(store, slide, reading, SPLIT, first, findings=parts, boxes=(box, box))
    made = [i for i in split.review.cells if split.review.cells[i].added]
    assert len(made) == 3
    assert split.review.cells[first].deleted
    assert added.review.cells[made[0]].counted
    assert len(cells_of(store, slide, second)) == 3
    undone = do(store, slide, reading, UNDO)
    assert [undone.review.cells[i].deleted for i in (first, *made)] == [False, False, True, True]
    redone = do(store, slide, reading, REDO)
    assert [redone.review.cells[i].deleted for i in (first, *made)] == [True, False, False, False]


def test_new_cells_lie_in_a_field_of_their_own_slide(store: Store):
    slide, reading = fill(store)
    other, _ = fill(store)
    foreign = shelf.read_slide(store, other)["fields"][0]["id"]
    box = (1.0, 1.0, 9.0, 9.0)
    with pytest.raises(Refusal, match=f"has no field {foreign}"):
        do(store, slide, reading, ADD, findings=[make_finding()], field=foreign, boxes=(box,))
    with store.write() as connection:  # as a store of before may have it
        (cell,) = shelf.insert_cells(connection, slide, foreign, [make_finding()], reading)
    with pytest.raises(Refusal, match=f"Cells of slide {slide} were kept with a field") as refused:
        shelf.delete_slide(store, other)
    assert refused.value.status == 423
    assert cell in cells_of(store, slide, reading)
    shelf.delete_slide(store, slide)
    shelf.delete_slide(store, other)


# --- fields ---------------------------------------------------------------------------------------


def test_a_field_reaches_every_reading(store: Store):
    slide, reading = fill(store, fields=1)
    second = reviews.open_reading(store, slide, "B")
    fields.add_field(store, slide, make_picture(7), key=None)
    for one, revision in ((reading, 2), (second, 1)):
        found = reviews.load_reading(store, slide, one)
        assert found.review.revision == revision
        assert len(found.review.since(revision - 1)) == 3
        assert found.review.undo is None


def test_a_repeated_upload_makes_one_field(store: Store):
    slide, _ = fill(store, fields=0)
    picture = make_picture(1)
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: fields.add_field(store, slide, picture, key="k"), range(6)))
    assert len(set(made)) == 1
    assert len(shelf.read_slide(store, slide)["fields"]) == 1
    with pytest.raises(Refusal, match=r"already, as field-1\.jpg") as refused:
        fields.add_field(store, slide, picture, key="another")
    assert refused.value.to_json()["error"]["field"] == made[0]
    with pytest.raises(Refusal, match="Idempotency-Key"):
        fields.add_field(store, slide, make_picture(2), key="k")


def test_names_are_only_text(store: Store):
    slide, reading = fill(store, name=HOSTILE, reader=HOSTILE)
    cell = cells_of(store, slide, reading)[0]
    do(store, slide, reading, LABEL, cell, label=HOSTILE[:90])
    assert shelf.read_slide(store, slide)["name"] == HOSTILE
    found = reviews.load_reading(store, slide, reading)
    assert found.review.cells[cell].label == HOSTILE[:90]
    assert found.outline["reader"] == HOSTILE


def test_what_isnt_there_is_said(store: Store):
    slide, reading = fill(store)
    for ask in (
        lambda: shelf.read_slide(store, 99),
        lambda: fields.read_image(store, slide, 99),
        lambda: reviews.load_reading(store, slide, 99),
        lambda: reviews.load_reading(store, 99, reading),
        lambda: reviews.load_reading(store, slide, reading, version=3),
        lambda: portraits.read_portrait(store, slide, reading, 99, None),
        lambda: fields.add_field(store, 99, make_picture(), key=None),
    ):
        with pytest.raises(Refusal) as refused:
            ask()
        assert refused.value.status == 404


# --- signatures -----------------------------------------------------------------------------------


def test_a_signature_locks_and_images_go(store: Store, url: str):
    slide, reading = fill(store)
    field = shelf.read_slide(store, slide)["fields"][0]["id"]
    cell = cells_of(store, slide, reading)[0]
    assert fields.read_image(store, slide, field) == b"an image 0"
    with pytest.raises(Refusal, match="1 cell is unidentified") as refused:
        signatures.sign(store, slide, reading, name="A", seen=1, leave_unidentified=False)
    assert refused.value.status == 422
    with pytest.raises(Refusal, match="revision 1, and 0 was looked at") as refused:
        signatures.sign(store, slide, reading, name="A", seen=0, leave_unidentified=True)
    assert refused.value.status == 409
    signed = sign(store, slide, reading, "Ada")
    assert signed.outline["signed"]["name"] == "Ada"
    for ask in (
        lambda: fields.read_image(store, slide, field),
        lambda: portraits.read_portrait(store, slide, reading, cell, None),
    ):
        with pytest.raises(Refusal) as refused:
            ask()
        assert refused.value.status == 410
    for ask in (
        lambda: fields.add_field(store, slide, make_picture(5), key=None),
        lambda: shelf.delete_slide(store, slide),
        lambda: sign(store, slide, reading),
    ):
        with pytest.raises(Refusal) as refused:
            ask()
        assert refused.value.status == 423
    if url.startswith("sqlite"):  # nothing of them is left in the files either
        place = Path(url.removeprefix("sqlite:///"))
        for file in place.parent.iterdir():
            assert b"an image" not in file.read_bytes()
            assert b"a portrait" not in file.read_bytes()


def test_images_stay_if_the_slide_says_so(store: Store):
    slide, reading = fill(store, keep_images=True)
    field = shelf.read_slide(store, slide)["fields"][0]["id"]
    sign(store, slide, reading)
    assert fields.read_image(store, slide, field) == b"an image 0"
    signatures.delete_images_now(store, slide, by="A")
    with pytest.raises(Refusal, match="were deleted"):
        fields.read_image(store, slide, field)
    with pytest.raises(Refusal, match="were deleted"):
        shelf.change_slide(store, slide, {"keep_images": True}, by="A")


def test_a_signed_reading_is_changed_as_a_new_version_only(store: Store):
    slide, reading = fill(store, keep_images=True)
    cell = cells_of(store, slide, reading)[0]
    do(store, slide, reading, LABEL, cell, label="blast")
    sign(store, slide, reading, "Ada")
    with pytest.raises(Refusal, match="no signed version 2"):
        reviews.load_reading(store, slide, reading, version=2)
    opened = signatures.open_version(store, slide, reading, name="Bea", reason="a mistake")
    assert (opened.outline["version"], opened.outline["state"]) == (2, "open")
    assert opened.review.undo is None
    do(store, slide, reading, LABEL, cell, label="monocyte")
    fields.add_field(store, slide, make_picture(8), key=None)
    first = reviews.load_reading(store, slide, reading, version=1)
    assert first.outline["signed"]["name"] == "Ada"
    assert first.review.cells[cell].label == "blast"
    assert len(first.review.cells) == 3
    assert len(cells_of(store, slide, reading)) == 6
    trail = signatures.read_trail(store, slide, reading)
    assert [entry["kind"] for entry in trail] == [
        "created", "field", "label", "sign", "version", "label", "field",
    ]  # fmt: skip
    assert trail[4]["by"] == "Bea"
    assert trail[4]["detail"] == {"reason": "a mistake"}
    assert [entry["version"] for entry in trail[1:]] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("written", [True, False], ids=["now", "before"])
def test_a_signed_version_knows_its_slide_as_it_was(
    store: Store, written: bool, monkeypatch: pytest.MonkeyPatch
):
    if not written:  # signatures once said nothing of their slide

        def forget(connection, change, *, reading, wish=None):
            detail = {k: v for k, v in change.detail.items() if k != "slide"}
            shelf.append(connection, replace(change, detail=detail), reading=reading, wish=wish)

        monkeypatch.setattr(signatures, "append", forget)
    aside = fields.Picture("bad.txt", b"", "f" * 64, aside=("not_an_image", "It is none."))
    slide, reading = fill(store, name="First", target=100, keep_images=True)
    shelf.change_slide(store, slide, {"name": "Smear"}, by="A")
    fields.add_field(store, slide, aside, key=None)
    sign(store, slide, reading)
    shelf.change_slide(store, slide, {"name": "Other", "target": 400}, by="A")
    shelf.change_slide(store, slide, {"name": "Another", "keep_images": False}, by="A")
    signatures.open_version(store, slide, reading, name="B", reason="a mistake")
    fields.add_field(store, slide, make_picture(7), key=None)
    sign(store, slide, reading)
    shelf.change_slide(store, slide, {"target": 50}, by="A")
    now = shelf.read_slide(store, slide)
    for version, name, target, files in ((1, "Smear", 100, 2), (2, "Another", 400, 3)):
        found = reviews.load_reading(store, slide, reading, version=version)
        then = found.recall(now)
        assert (then["name"], then["target"]) == (name, target)
        assert then["fields"] == now["fields"][:files]
        assert then["classes"] == now["classes"]
    signatures.open_version(store, slide, reading, name="B", reason="another mistake")
    assert reviews.load_reading(store, slide, reading).recall(now) == now


def test_two_readings_are_compared_and_settled(store: Store):
    slide, one = fill(store)
    two = reviews.open_reading(store, slide, "B")
    field = shelf.read_slide(store, slide)["fields"][0]["id"]
    first, second, third = cells_of(store, slide, one)
    do(store, slide, one, LABEL, first, label="blast")
    do(store, slide, one, CONFIRM, third)
    do(store, slide, two, DELETE, third)
    for reading, at in ((one, 50.0), (two, 52.0)):  # both add the same missed cell
        missed = make_finding("neutrophil", at=at)
        do(store, slide, reading, ADD, findings=[missed], field=field, boxes=(missed.box,))
    with pytest.raises(Refusal, match="isn't signed") as refused:
        arbitration.compare(store, slide, one, two)
    assert refused.value.status == 409
    sign(store, slide, one)
    sign(store, slide, two)
    assert shelf.read_slide(store, slide)["images_deleted"] is None  # they differ
    found = arbitration.compare(store, slide, one, two)
    assert found["cells"] == 3
    assert found["agreement"]["value"] == pytest.approx(1 / 3)
    assert [(d["a"]["label"], d["b"]["label"]) for d in found["differing"]] == [
        ("blast", "lymphocyte"), ("neutrophil", "no leukocyte"),
    ]  # fmt: skip
    third_reading = arbitration.open_arbitration(store, slide, (one, two), "C")
    cells = reviews.load_reading(store, slide, third_reading).review.cells
    assert len(cells) == 4
    assert (cells[first].state, cells[first].reason) == (
        "unidentified", "A: blast; B: lymphocyte",
    )  # fmt: skip
    assert cells[second].state == "unidentified"  # neither knew
    (missed,) = [c for c in cells.values() if c.added]
    assert (missed.label, missed.counted, missed.deleted) == ("neutrophil", True, False)
    assert portraits.read_portrait(store, slide, third_reading, missed.id, None)
    sign(store, slide, third_reading)
    assert shelf.read_slide(store, slide)["images_deleted"]


def test_a_slide_that_was_never_signed_can_be_deleted(store: Store):
    slide, reading = fill(store)
    do(store, slide, reading, CONFIRM, cells_of(store, slide, reading)[0])
    shelf.delete_slide(store, slide)
    with store.read() as connection:
        for table in tables.metadata.tables.values():
            assert connection.execute(select(table)).all() == []
    assert fill(store)[0] == slide + 1  # a number never comes again


def test_alike_cells_are_found_among_reviewed_ones(store: Store):
    slide, reading = fill(store, cells=6, keep_images=True)
    cells = cells_of(store, slide, reading)
    assert portraits.find_similar(store, slide, reading, cells[0], 5) == []
    do(store, slide, reading, CONFIRM, *cells[2:])
    found = portraits.find_similar(store, slide, reading, cells[0], 3)
    assert len(found) == 3
    assert found[0]["likeness"] >= found[1]["likeness"] >= found[2]["likeness"]
    assert found[0]["cell"] == cells[3]  # the other lymphocyte
    hidden = reviews.open_reading(store, slide, "B")
    assert portraits.find_similar(store, slide, hidden, cells[0], 3) == []


# --- waiting --------------------------------------------------------------------------------------


def test_whoever_waits_is_woken_by_their_own_and_by_other_processes(url: str):
    one, two = Store.open(url), Store.open(url)
    slide, reading = fill(one)
    cells = cells_of(one, slide, reading)

    async def wait(since: int, seconds: float) -> float:
        began = time.monotonic()
        await Waiting(one).wait(reading, since, seconds)
        return time.monotonic() - began

    async def wait_while(change) -> float:
        threading.Timer(0.3, change).start()
        return await wait(reviews.load_reading(one, slide, reading).review.revision, 10)

    assert asyncio.run(wait(0, 10)) < 5  # there is news already
    assert 0.4 < asyncio.run(wait(1, 0.5)) < 5
    for station in (one, two):
        took = asyncio.run(wait_while(lambda s=station: do(s, slide, reading, CONFIRM, cells[0])))
        assert 0.25 < took < 8  # of the 10 that it would wait
    took = asyncio.run(wait_while(one.hang_up))
    assert took < 8
    one.close()
    two.close()


# --- kill -9 --------------------------------------------------------------------------------------

REVIEWER = """
import sys
from uuid import uuid4
from leuko.service import reviews
from leuko.service.records import Wish
from leuko.service.store import Store
url, slide, reading, seed = sys.argv[1], *map(int, sys.argv[2:])
store = Store.open(url)
cells = list(reviews.load_reading(store, slide, reading).review.cells)
for step in range(100_000):
    seen = reviews.load_reading(store, slide, reading).review.revision
    wish = Wish(str(uuid4()), seen, "label", (cells[step % len(cells)],), f"{seed}-{step}")
    after = reviews.make_change(store, slide, reading, wish)
    print(wish.id, after.review.revision, flush=True)
"""


def test_nothing_that_was_confirmed_is_lost_when_the_process_is_killed(url: str):
    store = Store.open(url)
    slide, reading = fill(store)
    confirmed: list[tuple[str, int]] = []
    for kill in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", REVIEWER, url, str(slide), str(reading), str(kill)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(0.05 + 0.07 * kill)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait()
        whole = [line.split() for line in lines if len(line.split()) == 2]
        confirmed += [(name, int(revision)) for name, revision in whole]
        again = Store.open(url)
        changes = {c.id: c.revision for c in reviews.load_reading(again, slide, reading).changes}
        again.close()
        assert len(whole) > 0
        assert all(changes.get(name) == revision for name, revision in confirmed)
        # At most one more was written than answered.
        assert len(changes) - 1 - len(confirmed) <= kill + 1
    store.close()


def test_a_transaction_that_fails_leaves_nothing(store: Store):
    slide, _ = fill(store, fields=0)
    note = insert(tables.events).values(slide=slide, kind="x", by="", at="", detail={})

    def fail() -> None:
        with store.write() as connection:
            connection.execute(note)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.read() as connection:
        events = connection.execute(select(tables.events.c.kind)).scalars().all()
    assert events == ["created"]
