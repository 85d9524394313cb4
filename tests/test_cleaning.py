"""Recipes and their ledger: every dropped row has a name and a reason, and nothing is changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leuko.data.cleaning import Ledger, clean, write_clean
from leuko.data.image import encode_png
from leuko.data.manifest import SCHEMA, Manifest, read_manifest, write_manifest
from leuko.data.recipe import RECIPES, Recipe, RecipeStep, load_recipe, parse_recipe
from leuko.data.sources import scan
from leuko.data.steps import KINDS, normalise_spelling
from leuko.errors import (
    LeukoError,
    NoImagesError,
    OutputError,
    RecipeError,
    StorageError,
    UnknownNameError,
)


def row(image: str, label: str | None = "N", **changes: Any) -> dict[str, Any]:
    labels = [part.strip() for part in (label or "").split(",") if part.strip()]
    made = dict.fromkeys(SCHEMA) | {"image": image, "path": f"{image}.png", "sha256": image}
    made |= {"width": 9, "height": 9, "label_written": label, "labels": labels, "group": image}
    made |= {"label": labels[0] if len(labels) == 1 else None, "issues": []}
    return made | changes


def make(*rows: dict[str, Any], audited: bool = False) -> Manifest:
    numbered = [{**r, "row": n} if r["row"] is None else r for n, r in enumerate(rows, start=1)]
    table = pl.DataFrame(numbered, schema=SCHEMA)
    return Manifest(table, Path("/r"), "set", "csv", audited=audited)


def audited(*rows: dict[str, Any]) -> Manifest:
    return make(*rows, audited=True)


def apply(manifest: Manifest, kind: str, seed: int = 0, **parameters: Any) -> tuple[list[str], Any]:
    recipe = Recipe("one", (RecipeStep(kind, parameters),))
    cleaned = clean(manifest, recipe, seed)
    return cleaned.manifest.table["image"].to_list(), cleaned.ledger.steps[0]


def reasons(step: Any) -> dict[str, str]:
    return {drop["image"]: drop["reason"] for drop in step.dropped}


def test_the_real_set_gives_the_known_figures(real_data: Path) -> None:
    cleaned = clean(scan(real_data / "blood-cells"), "classic", seed=0)
    steps = {step.name: step for step in cleaned.ledger.steps}
    start = cleaned.ledger.steps[0]
    assert (start.rows_before, start.images_before) == (411, 367)
    blank = steps["drop_blank_labels"].dropped
    assert len(blank) == 44
    assert sum("no image" in drop["reason"] for drop in blank) == 43
    missing = steps["drop_missing_images"].dropped
    assert [(drop["image"], drop["label_written"]) for drop in missing] == [
        ("BloodImage_00116", "MONOCYTE")
    ]
    dropped = {name: len(step.dropped) for name, step in steps.items()}
    assert dropped == {
        "drop_blank_labels": 44,
        "drop_missing_images": 1,
        "drop_unreadable": 0,
        "drop_conflicts": 0,
        "drop_repeated_rows": 0,
        "drop_multiple_labels": 15,
        "drop_classes": 3,
        "delete_share": 21,
        "repeat_rare": 0,
    }
    four = {"EOSINOPHIL": 88, "LYMPHOCYTE": 33, "MONOCYTE": 20, "NEUTROPHIL": 207}
    assert steps["drop_classes"].counts_after == four
    assert steps["drop_classes"].images_after == 348
    assert cleaned.manifest.counts() == four | {"NEUTROPHIL": 186}
    assert steps["repeat_rare"].images_after == len(cleaned.manifest) == 327
    assert steps["repeat_rare"].factors["MONOCYTE"] == pytest.approx(186 / 20)
    assert cleaned.balance


def test_the_order_of_classic_is_the_users() -> None:
    kinds = [step.kind for step in load_recipe("classic").steps]
    asked = ["drop_blank_labels", "drop_multiple_labels", "drop_classes", "delete_share"]
    asked.append("repeat_rare")
    assert [kind for kind in kinds if kind in asked] == asked


# Each step


def test_blank_labels_and_missing_images() -> None:
    manifest = make(row("a"), row("b", ""), row("c", None), row("d", "", path=None))
    kept, step = apply(manifest, "drop_blank_labels")
    assert kept == ["a"]
    assert reasons(step) == {
        "b": "blank label",
        "c": "no label row names it",
        "d": "blank label, no image",
    }
    assert (step.rows_before, step.rows_after, step.images_before, step.images_after) == (
        4,
        1,
        3,
        1,
    )
    kept, step = apply(manifest, "drop_missing_images")
    assert kept == ["a", "b", "c"]


def test_unreadable_and_multiple() -> None:
    bad = row("b", issues=["spelling", "unreadable:truncated"])
    kept, step = apply(make(row("a"), bad, row("c", "N, N"), row("d", "N,E")), "drop_unreadable")
    assert kept == ["a", "c", "d"]
    assert reasons(step) == {"b": "unreadable:truncated"}
    kept, step = apply(make(row("a"), row("c", "N, N"), row("d", "N,E")), "drop_multiple_labels")
    assert kept == ["a"]
    assert reasons(step) == {"c": "2 labels", "d": "2 labels"}


def test_conflicts_by_name_and_by_bytes() -> None:
    manifest = make(
        row("a", "N"),
        row("a", "E"),
        row("b", "N", sha256="same"),
        row("c", "E, N", sha256="same"),
        row("d", "N", sha256="twin"),
        row("e", "N", sha256="twin"),
        row("f", "N", sha256="0", width=None),  # unreadable: bytes say nothing
        row("g", "E", sha256="0", width=None),
        row("h", "N"),
        row("h", ""),
    )
    kept, step = apply(manifest, "drop_conflicts")
    assert kept == ["d", "e", "f", "g", "h", "h"]
    assert reasons(step)["a"] == "the same image is labelled E and N"
    assert reasons(step)["b"] == "the same image is labelled E + N and N"


def test_repeated_rows_keep_the_first_in_the_table() -> None:
    late, early = row("a", "N", row=9), row("a", "N", row=2)
    kept, step = apply(make(late, early, row("b", row=5)), "drop_repeated_rows")
    assert kept == ["a", "b"]
    assert [drop["row"] for drop in step.dropped] == [9]
    assert "row 2" in step.dropped[0]["reason"]


def test_classes_are_matched_without_case_and_may_be_absent() -> None:
    manifest = make(row("a", "Basophil"), row("b", "N"))
    kept, step = apply(manifest, "drop_classes", classes=["BASOPHIL ", "blast"])
    assert kept == ["b"]
    assert step.note == "not in this set: blast"
    _, step = apply(manifest, "delete_share", **{"class": "blast", "share": 0.5})
    assert (step.dropped, step.note) == ([], "not in this set: blast")


def test_a_share_is_drawn_by_seed_and_not_by_order() -> None:
    rows = [row(f"n{i:02}", "Neutrophil") for i in range(25)] + [row("e", "E")]
    take = {"class": "NEUTROPHIL", "share": 0.1}
    first, step = apply(make(*rows), "delete_share", **take)
    assert len(step.dropped) == 3  # 2.5 is rounded up
    assert "e" in first
    again, _ = apply(make(*rows[::-1]), "delete_share", **take)
    assert again == first[::-1]
    draws = {tuple(apply(make(*rows), "delete_share", seed=s, **take)[0]) for s in range(20)}
    assert len(draws) > 15
    for share, number in ((0, 0), (0.0, 0), (0.019, 0), (0.02, 1), (1, 25)):
        _, step = apply(make(*rows), "delete_share", **(take | {"share": share}))
        assert len(step.dropped) == number


def test_every_image_is_drawn_about_equally_often() -> None:
    rows = make(*[row(f"n{i}") for i in range(20)])
    take = {"class": "N", "share": 0.5}
    times = dict.fromkeys(rows.table["image"], 0)
    for seed in range(200):
        for drop in apply(rows, "delete_share", seed=seed, **take)[1].dropped:
            times[drop["image"]] += 1
    assert min(times.values()) > 65
    assert max(times.values()) < 135  # five standard deviations


def test_repeat_rare_drops_and_copies_nothing() -> None:
    manifest = make(row("a"), row("b"), row("c"), row("d", "E"))
    kept, step = apply(manifest, "repeat_rare")
    assert kept == ["a", "b", "c", "d"]
    assert step.factors == {"E": 3.0, "N": 1.0}
    assert not clean(manifest, "minimal").balance


def test_minimal_keeps_every_usable_row() -> None:
    rows = [row("a"), row("b", "BASOPHIL"), row("c", "N, E"), row("d", ""), row("e", path=None)]
    rows += [row("f", issues=["unreadable:empty"]), row("g"), row("g")]
    cleaned = clean(make(*rows), "minimal")
    assert cleaned.manifest.table["image"].to_list() == ["a", "b", "g"]
    assert cleaned.manifest.table["image"].is_unique().all()


# Steps that act on what the audit found


def test_steps_that_need_the_audit_refuse_a_set_without() -> None:
    rows = [row("a", issues=["blurred"]), row("b")]
    with pytest.raises(
        RecipeError, match=r"\(drop_issues\), and set was never audited.*leuko.audit"
    ):
        apply(make(*rows), "drop_issues", kinds=["blurred"])
    names = r"drop_cell_conflicts, drop_issues, keep_one_of_group"
    with pytest.raises(RecipeError, match=rf"'strict'.*\({names}\)"):
        clean(make(*rows), "strict")
    assert apply(audited(*rows), "drop_issues", kinds=["blurred"])[0] == ["b"]


def test_whether_it_was_audited_survives_parquet_and_cleaning(tmp_path: Path) -> None:
    cleaned = clean(audited(row("a"), row("b", "E")), "strict")
    write_manifest(cleaned.manifest, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").audited
    facts = {"version": 1, "root": "/r", "name": "set", "layout": "csv", "notes": []}
    metadata = {"leuko": json.dumps(facts)}  # as written before there was an audit
    make(row("a")).table.write_parquet(tmp_path / "old.parquet", metadata=metadata)
    assert not read_manifest(tmp_path / "old.parquet").audited


def test_issues_are_matched_by_kind() -> None:
    rows = [row("a", issues=["unreadable:empty", "blurred"]), row("b", issues=["unusual_colour"])]
    rows += [row("c", issues=["same_cell"]), row("d")]
    kept, step = apply(audited(*rows), "drop_issues", kinds=["blurred", "unreadable", "same_cell"])
    assert kept == ["b", "d"]
    assert reasons(step) == {"a": "unreadable:empty, blurred", "c": "same_cell"}


def test_exact_duplicates_keep_the_first_and_choose_no_label() -> None:
    manifest = make(
        row("b", sha256="twin"),
        row("a", sha256="twin"),
        row("c", sha256="torn"),
        row("d", "E", sha256="torn"),
        row("e", sha256="0", width=None),  # unreadable: bytes say nothing
        row("f", sha256="0", width=None),
        row("g", sha256="half"),
        row("h", "", sha256="half"),
    )
    kept, step = apply(manifest, "drop_exact_duplicates")
    assert kept == ["b", "c", "d", "e", "f", "g", "h"]
    assert reasons(step) == {"a": "the same bytes as b"}
    assert step.note == "2 rows under different labels are left to drop_conflicts"


def test_conflicts_that_the_audit_found_go_whole() -> None:
    torn = {"issues": ["label_conflict", "same_cell"], "group": "one"}
    rows = [row("a", "N", **torn), row("b", "E", **torn), row("c", "N", group="one"), row("d")]
    kept, step = apply(audited(*rows), "drop_cell_conflicts")
    assert kept == ["c", "d"]
    assert reasons(step)["a"] == "images of one cell are labelled E and N"
    # That the other label's class is left out doesn't make this one right.
    rows += [row("e", "Blast"), row("f", "Blasts")]
    first = RecipeStep("drop_classes", {"classes": ["E"]})
    steps = first, RecipeStep("rename_spellings"), RecipeStep("drop_cell_conflicts")
    cleaned = clean(audited(*rows), Recipe("r", steps))
    assert cleaned.manifest.table["image"].to_list() == ["c", "d", "e", "f"]


def test_of_a_group_of_copies_the_largest_stays() -> None:
    copy = {"issues": ["near_duplicate"]}
    manifest = audited(
        row("a", group="g", width=5, **copy),
        row("b", group="g", width=8, **copy),
        row("c", group="g", width=8, **copy),
        row("d", group="g", width=20, issues=["same_cell"]),  # a second photograph
        row("e", group="g"),
        row("f", group="h", **copy),  # its copies went before
        row("g", "E", group="g", width=4, **copy),  # which label is right isn't ours to say
        row("i", group="k", issues=["turned_copy"]),
        row("j", group="k", issues=["turned_copy"], height=10),
    )
    kept, step = apply(manifest, "keep_one_of_group", kinds=["near_duplicate", "turned_copy"])
    assert kept == ["b", "d", "e", "f", "g", "j"]
    assert reasons(step)["c"] == "near_duplicate: of its group b is kept"


# Spelling


def test_one_spelling_per_class_the_commonest_or_the_first() -> None:
    labels = ["EOSINOPHILS", "eosinophil", "eosinophil", "Eosinophil ", "band-cell", "Band_Cells"]
    rows = [
        row(str(i), label) | {"labels": [label], "label": label} for i, label in enumerate(labels)
    ]
    rows.append(row("two", "Band Cell, Eosinophils"))
    kept, step = apply(make(*rows), "rename_spellings")
    assert len(kept) == 7
    assert [(r["image"], r["old"], r["new"]) for r in step.renamed] == [
        ("0", "EOSINOPHILS", "eosinophil"),
        ("3", "Eosinophil ", "eosinophil"),
        ("4", "band-cell", "Band Cell"),
        ("5", "Band_Cells", "Band Cell"),
        ("two", "Band Cell, Eosinophils", "Band Cell, eosinophil"),
    ]
    assert step.renamed[1]["label_written"] == "Eosinophil "
    assert step.counts_before["eosinophil"] == 2
    assert step.counts_after == {"Band Cell": 2, "eosinophil": 4}


@pytest.mark.parametrize(
    "words",
    [
        ["CD4+", "CD4-", "CD4"],
        ["A B", "AB"],
        ["BA", "BAS"],
        ["grade 1 2", "grade 12", "grade 1"],
        ["LYMPHOCYTE", "LYMPHOBLAST"],
        ["monocyte", "promonocyte"],
        ["T", "TS"],
        ["basophil", "basophilic"],
        ["mitosi", "mitosis"],
        ["thrombu", "thrombus"],
    ],
)
def test_different_words_stay_different(words: list[str]) -> None:
    assert len({normalise_spelling(word) for word in words}) == len(words)
    rows = [row(f"{word}{i}", word) for word in words for i in range(3)]
    assert not apply(make(*rows), "rename_spellings")[1].renamed


@pytest.mark.parametrize(
    "words", [["RBC", "RBCs", "rbc "], ["pro-myelocyte", "Promyelocytes"], ["T-cell", "T  Cells"]]
)
def test_spellings_of_one_word_are_one(words: list[str]) -> None:
    assert len({normalise_spelling(word) for word in words}) == 1


def test_a_plural_is_no_conflict_once_it_is_renamed() -> None:
    torn = {"issues": ["label_conflict"], "group": "one"}
    rows = [row("a", "Blast", **torn), row("b", "Blasts", **torn), row("c", "Blast")]
    assert apply(audited(*rows), "drop_cell_conflicts")[0] == ["c"]
    steps = (RecipeStep("rename_spellings"), RecipeStep("drop_cell_conflicts"))
    cleaned = clean(audited(*rows), Recipe("r", steps))
    assert cleaned.manifest.counts() == {"Blast": 3}
    assert cleaned.found.counts() == {"Blast": 2, "Blasts": 1}


def test_strict_on_a_set_with_everything() -> None:
    manifest = audited(
        row("a"),
        row("b", ""),
        row("c", "n"),
        row("d", sha256="a"),
        row("e", issues=["damaged"]),
        row("f", issues=["no_leukocyte"]),
        row("g", group="g", issues=["same_cell"]),
        row("h", group="g", issues=["same_cell"]),
        row("i", group="i", issues=["turned_copy"]),
        row("j", group="i", issues=["turned_copy"]),
        row("k", issues=["likely_wrong_label", "blurred"]),
        row("l", "BASOPHIL"),
        row("m", "N, N"),
    )
    cleaned = clean(manifest, "strict")
    assert cleaned.manifest.table["image"].to_list() == ["a", "c", "g", "h", "i", "k", "l"]
    assert cleaned.manifest.counts() == {"BASOPHIL": 1, "N": 6}
    assert cleaned.balance


def test_nothing_left_is_an_error_that_shows_the_ledger() -> None:
    with pytest.raises(NoImagesError, match=r"drop_blank_labels dropped the last rows(?s:.)*rows"):
        clean(make(row("a", "")), "classic")
    with pytest.raises(NoImagesError, match="there were no rows"):
        clean(make(), "classic")


# Recipes as data


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "my.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "my.toml") == recipe
    odd = Recipe('a"b\\\n', (RecipeStep("drop_classes", {"classes": ["ü\x7f", "a\tb"]}),))
    assert parse_recipe(odd.to_toml(), name="x") == odd


def test_every_kind_of_step_is_in_a_recipe_that_people_can_copy() -> None:
    steps = [step for name in RECIPES for step in load_recipe(name).steps]
    assert {step.kind for step in steps} == set(KINDS)


def test_only_strict_needs_the_audit() -> None:
    assert [name for name in RECIPES if load_recipe(name).needs_audit] == ["strict"]


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("steps = 3", RecipeError, "no list of steps"),
        ("", RecipeError, "no list of steps"),
        ("[[steps]", RecipeError, "is no TOML"),
        ("step = []", UnknownNameError, "'steps'"),
        ("[[steps]]\nclass = 'N'", RecipeError, "step 1 has no kind"),
        ("[[steps]]\nkind = 'drop_blanks'", UnknownNameError, "'drop_blank_labels'"),
        ("[[steps]]\nkind = 'repeat_rare'\nx = 1", UnknownNameError, "no parameters"),
        (
            "[[steps]]\nkind = 'delete_share'\nclass = 'N'\nshares = 0.1",
            UnknownNameError,
            "'share'",
        ),
        ("[[steps]]\nkind = 'delete_share'\nclass = 'N'", RecipeError, "lacks 'share'"),
        ("[[steps]]\nkind = 'delete_share'\nclass = 'N'\nshare = 10", RecipeError, "from 0 to 1"),
        ("[[steps]]\nkind = 'delete_share'\nclass = 'N'\nshare = nan", RecipeError, "from 0 to 1"),
        ("[[steps]]\nkind = 'delete_share'\nclass = 'N'\nshare = true", RecipeError, "from 0 to 1"),
        ("[[steps]]\nkind = 'drop_classes'\nclasses = 'N'", RecipeError, "a list of class names"),
        ("[[steps]]\nkind = 'drop_classes'\nclasses = []", RecipeError, "a list of class names"),
        ("[[steps]]\nkind = 'drop_issues'\nkinds = ['blured']", UnknownNameError, "'blurred'"),
        ("[[steps]]\nkind = 'drop_issues'\nkinds = []", RecipeError, "a list of kinds of issues"),
        ("[[steps]]\nkind = 'drop_issues'", RecipeError, "lacks 'kinds'"),
        ("[[steps]]\nkind = 'keep_one_of_group'\nkinds = [3]", RecipeError, "kinds of issues"),
        ("[[steps]]\nkind = 'apply_decisions'", UnknownNameError, "no step of the kind"),
    ],
)
def test_wrong_recipes_are_named(text: str, error: type[LeukoError], told: str) -> None:
    with pytest.raises(error) as caught:
        parse_recipe(text, name="mine")
    assert told in str(caught.value)


def test_recipe_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'classic'"):
        load_recipe("clasic")
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe4'")
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path / "latin.toml")


# The ledger, and what is written


def test_ledger_round_trip_and_text() -> None:
    manifest = make(row("a"), row("b", ""), row("c", "BASOPHIL"), row("d", "E"))
    ledger = clean(manifest, "classic").ledger
    assert Ledger.from_json(ledger.to_json()) == ledger
    lines = ledger.describe().splitlines()
    assert lines[0].split() == ["step", "dropped", "rows", "images", "BASOPHIL", "E", "N"]
    assert lines[1].split() == ["(as", "read)", "4", "4", "1", "1", "1"]
    assert lines[2].split() == ["drop_blank_labels", "1", "3", "3", "1", "1", "1"]
    assert "delete_share: not in this set: NEUTROPHIL" in lines
    assert all("renamed" in step for step in json.loads(ledger.to_json())["steps"])
    for wrong in ("", "[]", '{"steps": [{"a": 1}], "recipe": "x", "seed": 0}'):
        with pytest.raises(RecipeError, match="ledger"):
            Ledger.from_json(wrong)


def test_ledger_with_new_labels_and_one_from_before_there_were_any() -> None:
    manifest = make(row("a", "Blast"), row("b", "Blasts"), row("c", "Blast"))
    ledger = clean(manifest, Recipe("r", (RecipeStep("rename_spellings"),))).ledger
    assert Ledger.from_json(ledger.to_json()) == ledger
    lines = ledger.describe().splitlines()
    assert lines[0].split()[:4] == ["step", "dropped", "renamed", "rows"]
    assert lines[2].split() == ["rename_spellings", "1", "3", "3", "3", "0"]
    assert lines[3] == "rename_spellings: 'Blasts' → 'Blast' (1 ×)"
    old = json.loads(clean(manifest, "minimal").ledger.to_json())
    for step in old["steps"]:
        del step["renamed"]
    read = Ledger.from_json(json.dumps(old))
    assert read == clean(manifest, "minimal").ledger


def write_set(folder: Path) -> None:
    for i, name in enumerate(["N/a.png", "N/b, c.png", "E/d.png", "BASOPHIL/e.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = pl.Series(range(i, i + 300)).to_numpy().astype("uint8").reshape(10, 10, 3)
        (folder / name).write_bytes(encode_png(pixels))


def hash_files(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_write_clean_is_read_again_by_scan(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    before = hash_files(tmp_path / "set")
    cleaned = clean(scan(tmp_path / "set"), "classic", seed=3)
    out = write_clean(cleaned, tmp_path / "new" / "out")
    names = {file.name for file in out.iterdir()}
    assert names == {"manifest.parquet", "labels.csv", "ledger.json", "recipe.toml"}
    assert hash_files(tmp_path / "set") == before
    assert read_manifest(out / "manifest.parquet").table.equals(cleaned.manifest.table)
    assert json.loads((out / "ledger.json").read_text())["seed"] == 3
    assert load_recipe(out / "recipe.toml") == cleaned.recipe
    for given in (out, out / "labels.csv"):
        again = scan(given)
        assert again.root == (tmp_path / "set").resolve()
        for column in ("image", "path", "sha256", "label", "group"):
            assert again.table[column].equals(cleaned.manifest.table[column]), column


@pytest.mark.parametrize("label", ["A, B", 'say "N"', '"', "a;b|c"])
def test_odd_class_names_survive_write_clean(label: str, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    (tmp_path / "set" / "N").rename(tmp_path / "set" / label)
    cleaned = clean(scan(tmp_path / "set"), "minimal")
    again = scan(write_clean(cleaned, tmp_path / "out"))
    assert again.counts() == cleaned.manifest.counts() == {"BASOPHIL": 1, "E": 1, label: 2}
    assert not any(again.table["issues"].to_list())


def test_several_labels_survive_write_clean(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "l.csv").write_text('image,label\nN/a.png,"N, E"\nE/d.png,E\n')
    cleaned = clean(scan(tmp_path / "l.csv"), Recipe("none", ()))
    again = scan(write_clean(cleaned, tmp_path / "out"))
    assert again.table["labels"].to_list() == [["N", "E"], ["E"]]


def test_a_cleaned_set_is_cleaned_again_without_loss(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / "set" / "NEUTROPHIL").mkdir(parents=True, exist_ok=True)
        pixels = pl.Series(range(i, i + 300)).to_numpy().astype("uint8").reshape(10, 10, 3)
        (tmp_path / "set" / "NEUTROPHIL" / f"{i:02}.png").write_bytes(encode_png(pixels))
    cleaned = clean(scan(tmp_path / "set"), "classic")
    assert len(cleaned.manifest) == 18
    again = scan(write_clean(cleaned, tmp_path / "out"))
    assert any("cleaned by the recipe 'classic'; use --recipe prepared" in n for n in again.notes)
    prepared = clean(again, "prepared")
    assert prepared.manifest.table["image"].equals(cleaned.manifest.table["image"])
    assert prepared.balance


def test_write_clean_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = clean(make(row("a")), "minimal")
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("out", "file", "link", "file/out"):
        with pytest.raises(OutputError, match="folder"):
            write_clean(cleaned, tmp_path / name)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        write_clean(cleaned, tmp_path / "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "link", "out"]
