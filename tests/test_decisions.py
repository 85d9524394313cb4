"""A person's decisions: written for editing, read back unchanged, applied before all else."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from leuko.data.cleaning import Cleaned, Ledger, clean, write_clean
from leuko.data.decisions import COLUMNS, Decision, Decisions, read_decisions, write_decisions
from leuko.data.issues import Issue
from leuko.data.manifest import Manifest
from leuko.data.recipe import Recipe, RecipeStep
from leuko.data.sources import scan
from leuko.errors import LabelTableError, OutputError
from test_cleaning import audited, hash_files, make, reasons, row, write_set

HEAD = "image,decision,new_label,reason\n"


def decide(folder: Path, text: str) -> Path:
    path = folder / "decisions.csv"
    path.write_text(HEAD + text, "utf-8")
    return path


def run(manifest: Manifest, path: Path | Decisions, *steps: str, **parameters: object) -> Cleaned:
    recipe = Recipe("r", tuple(RecipeStep(kind, parameters) for kind in steps))
    return clean(manifest, recipe, decisions=path)


def left(cleaned: Cleaned) -> list[str]:
    return list(cleaned.manifest.table["image"])


# Writing


def test_one_row_per_flagged_image_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    manifest = make(row("b"), row("a", "E"), row("a", "N"), row("c"))
    issues = [
        Issue("label_conflict", ("a", "b"), "E and N."),
        Issue("blurred", ("b", "b"), "Little detail."),
        Issue("imbalance", (), "Of the whole set."),
    ]
    path = write_decisions(issues, manifest, tmp_path / "d.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.reader(file))
    assert tuple(table[0]) == COLUMNS
    assert table[1:] == [
        ["b", "N", "label_conflict, blurred", "E and N. Little detail.", "", "", ""],
        ["a", "E / N", "label_conflict", "E and N.", "", "", ""],
    ]
    read = read_decisions(path)
    assert (read.taken, read.undecided) == ((), 2)


def test_a_table_that_may_hold_decisions_is_never_overwritten(tmp_path: Path) -> None:
    path = decide(tmp_path, "a,drop,,\n")
    with pytest.raises(OutputError, match="may hold decisions"):
        write_decisions([], make(row("a")), path)
    assert "drop" in path.read_text()
    with pytest.raises(LabelTableError, match="'z', which isn't in set"):
        write_decisions([Issue("blurred", ("z",), "")], make(row("a")), tmp_path / "new.csv")


ODD = [
    "=1+1.png",
    "+a",
    "-a",
    "@a",
    "\ta",
    "\ra",
    " =a",
    "'a",
    "'=a",
    "a;=1",
    'a",=1',
    "ü\n=1",
    "a ",
]


def test_no_cell_begins_like_a_formula_and_ids_come_back(tmp_path: Path) -> None:
    manifest = make(*[row(image) for image in ODD])
    issues = [Issue("blurred", (image,), f"={image}") for image in ODD]
    path = write_decisions(issues, manifest, tmp_path / "d.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    for cells in table:
        assert not any(cell[:1] in tuple("=+-@\t\r") for cell in cells.values() if cell)
        cells["decision"] = "drop"
    # As a spreadsheet saves it: with the apostrophes, and quotation marks only where needed.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table[:-1])
    assert [d.image for d in read_decisions(path).taken] == ODD[:-1]
    assert left(run(manifest, path)) == ["a "]
    assert left(run(manifest, decide(tmp_path, "a ,keep,,\n"))) == ODD  # blanks at the end


# Reading


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_people_save_them(encoding: str, separator: str, tmp_path: Path) -> None:
    text = "Image,label,DECISION,new_label,reason\nä,N,Drop,,müde\nb,N,RELABEL,E,'tis\nc,N,,,\n"
    path = tmp_path / "d.csv"
    path.write_bytes(text.replace(",", separator).replace("\n", "\r\n").encode(encoding))
    read = read_decisions(path)
    drop, relabel = Decision("ä", "drop", "", "müde", 1), Decision("b", "relabel", "E", "'tis", 2)
    assert read.taken == (drop, relabel)
    assert read.to_json() == {
        "file": "d.csv",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "keep": 0,
        "drop": 1,
        "relabel": 1,
        "undecided": 1,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,kepe,,\n", r"row 1: no decision 'kepe'.*'keep'"),
        ("a,,,\nb,relabel,,why\n", "row 2 says relabel without a label"),
        ("a,keep,E,\n", "row 1 has the new label 'E' but says keep"),
        ("a,,E,\n", "row 1 has the new label 'E' but says nothing"),
        (",drop,,\n", "row 1 says drop but names no image"),
        ("a,drop,,\nb,,,\na,keep,,\n", "rows 1 and 3 contradict each other about 'a': drop and ke"),
        ("a,relabel,E,\na,relabel,M,\n", "rows 1 and 2 .*: relabel E and relabel M"),
        ("b,,,\nz,keep,,\n", r"decisions.csv, row 2: the image 'z' isn't in set"),
        ('a,relabel,"E, N",\n', r"row 1: the new label 'E, N' of 'a' is a list"),
    ],
)
def test_what_cannot_be_is_named_with_its_row(text: str, told: str, tmp_path: Path) -> None:
    path = decide(tmp_path, text)
    with pytest.raises(LabelTableError, match=told):
        clean(make(row("a"), row("b", "E")), "minimal", decisions=path)


def test_rows_that_agree_and_undecided_ones_of_other_sets_are_no_fault(tmp_path: Path) -> None:
    path = decide(tmp_path, "a,drop,,one\na,DROP,,two\nz,,,\n")
    cleaned = clean(make(row("a"), row("b")), "minimal", decisions=path)
    assert reasons(cleaned.ledger.steps[0]) == {"a": "one"}
    path.write_text("image,label\na,N\n")
    with pytest.raises(LabelTableError, match="no column 'decision'"):
        read_decisions(path)


# Applying


def test_the_first_step_of_the_ledger_names_each_row_and_the_file(tmp_path: Path) -> None:
    manifest = make(row("a"), row("b", "Eos"), row("b", ""), row("c"), row("d"), row("e", "Eos"))
    path = decide(
        tmp_path, "a,drop,,torn\nb,relabel,n,looks so\nc,keep,,\ne,relabel,Blast,\nd,,,\n"
    )
    cleaned = clean(manifest, "minimal", decisions=path)
    step = cleaned.ledger.steps[0]
    assert (step.name, step.reason) == ("apply_decisions", "a person decided so")
    assert step.parameters["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert step.parameters == cleaned.decisions.to_json()
    facts = {"row": 1, "image": "a", "label_written": "N", "reason": "torn"}
    assert step.dropped == [facts]
    told = [(r["row"], r["label_written"], r["old"], r["new"], r["reason"]) for r in step.renamed]
    assert told == [
        (2, "Eos", "Eos", "N", "looks so"),  # spelt as the set spells it
        (3, "", "", "N", "looks so"),
        (6, "Eos", "Eos", "Blast", "no reason given"),
    ]
    assert step.note == "kept: 1; new in this set: Blast"
    assert cleaned.manifest.counts() == {"Blast": 1, "N": 3}
    assert cleaned.manifest.table["label_written"].to_list() == ["Eos", "N", "N", "Eos"]
    assert cleaned.manifest.table["labels"].to_list()[0] == ["N"]
    assert cleaned.found.counts() == manifest.counts()
    assert Ledger.from_json(cleaned.ledger.to_json()) == cleaned.ledger
    assert clean(manifest, "minimal").decisions is None
    assert clean(manifest, "minimal").ledger.steps[0].name == "drop_blank_labels"


def test_a_label_that_is_confirmed_is_no_change(tmp_path: Path) -> None:
    cleaned = clean(make(row("a")), "minimal", decisions=decide(tmp_path, "a,relabel,n,sure\n"))
    step = cleaned.ledger.steps[0]
    assert (step.renamed, step.parameters["relabel"]) == ([], 1)


def test_keep_protects_from_the_audit_and_not_from_what_cannot_be_used(tmp_path: Path) -> None:
    keep = decide(tmp_path, "".join(f"{image},keep,,\n" for image in "abcdef"))
    rows = [row("a", issues=["blurred"]), row("b", issues=["unreadable:empty"]), row("c", "")]
    rows += [row("x", issues=["blurred"]), row("d"), row("e"), row("f")]
    kinds = ["blurred", "unreadable"]
    cleaned = run(audited(*rows), keep, "drop_issues", kinds=kinds)
    assert left(cleaned) == ["a", "c", "d", "e", "f"]
    assert cleaned.ledger.steps[1].note == "1 more kept by a person's decision"
    assert left(run(audited(*rows), keep, "drop_unreadable", "drop_blank_labels")) == list("axdef")


def test_keep_among_copies(tmp_path: Path) -> None:
    copies = [
        row(image, group="g", width=size, sha256="same", issues=["exact_duplicate"])
        for image, size in (("a", 5), ("b", 9), ("c", 7), ("d", 8))
    ]
    keep = decide(tmp_path, "a,keep,,\nc,keep,,\n")
    kinds = {"kinds": ["exact_duplicate"]}
    assert left(run(audited(*copies), keep, "keep_one_of_group", **kinds)) == ["a", "c"]
    keep = decide(tmp_path, "c,keep,,\n")
    assert left(run(make(*copies), keep, "drop_exact_duplicates")) == ["c"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", "x"),
        ("a,keep,,\n", "ax"),
        ("a,relabel,E,\n", "abx"),  # they agree now
        ("a,relabel,M,\n", "ax"),  # b is still in doubt
        ("a,drop,,\n", "bx"),
        ("x,drop,,\n", ""),
    ],
)
def test_a_conflict_lasts_until_a_person_settles_it(text: str, kept: str, tmp_path: Path) -> None:
    torn = {"issues": ["label_conflict"], "group": "one"}
    manifest = audited(row("a", "N", **torn), row("b", "E", **torn), row("x"), row("y"))
    cleaned = run(manifest, decide(tmp_path, text), "drop_cell_conflicts")
    assert left(cleaned) == [*kept, "y"]
    assert all("label_conflict" in issues for issues in manifest.table["issues"][:2])


def test_the_same_bytes_never_keep_two_labels(tmp_path: Path) -> None:
    manifest = make(row("a", sha256="s"), row("b", "E", sha256="s"), row("c"))
    both = decide(tmp_path, "a,keep,,\nb,keep,,\n")
    assert left(run(manifest, both, "drop_conflicts")) == ["c"]


def test_a_new_label_puts_right_what_was_wrong_with_the_old_one(tmp_path: Path) -> None:
    flags = ["many_labels", "likely_wrong_label", "blurred"]
    manifest = audited(row("a", "N, E", issues=flags), row("b", "E"))
    kinds = ["many_labels", "likely_wrong_label"]
    path = decide(tmp_path, "a,relabel,E,one cell is cut off\n")
    cleaned = run(manifest, path, "drop_issues", kinds=kinds)
    assert left(cleaned) == ["a", "b"]
    assert cleaned.manifest.table["issues"].to_list() == [["blurred"], []]


def test_new_labels_and_groups_survive_write_clean(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    before = hash_files(tmp_path / "set")
    found = scan(tmp_path / "set")
    names = {"N/a.png": "cell", "E/d.png": "cell"}
    group = found.table["image"].replace(names).alias("group")
    manifest = found.with_table(found.table.with_columns(group))
    path = decide(tmp_path, '"N/b, c.png",relabel,BLAST,seen\nBASOPHIL/e.png,drop,,\n')
    cleaned = clean(manifest, "minimal", decisions=path)
    out = write_clean(cleaned, tmp_path / "out")
    again = scan(out)
    assert dict(again.table.select("image", "label").iter_rows()) == {
        "E/d.png": "E",
        "N/a.png": "N",
        "N/b, c.png": "BLAST",
    }
    assert again.table["group"].to_list() == cleaned.manifest.table["group"].to_list()
    assert again.table["group"].to_list().count("cell") == 2
    step = json.loads((out / "ledger.json").read_text("utf-8"))["steps"][0]
    assert step["renamed"][0]["new"] == "BLAST"
    assert hash_files(tmp_path / "set") == before
