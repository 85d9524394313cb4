"""Class names of several laboratories: matched by themselves, by a map, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from leuko.data.vocabulary import match_classes, parse_naming, write_naming
from leuko.errors import SettingsError, UnknownNameError

CLASSES = {
    "kaggle": ["EOSINOPHIL", "NEUTROPHIL"],
    "pbc": ["eosinophil", "ig", "neutrophil"],
}


@pytest.mark.parametrize(
    "written", ["Immature Granulocytes", "immature-granulocyte", "IMMATURE_GRANULOCYTES"]
)
def test_case_spaces_hyphens_and_plural_do_not_matter(written: str):
    found = match_classes({"a": ["Immature granulocyte"], "b": [written]})
    assert found.shared(["a"], ["b"]) == ["Immature granulocyte"]


def test_classes_are_matched_by_their_names_and_called_as_in_the_first_set():
    found = match_classes(CLASSES)
    assert found.names["pbc"] == {
        "eosinophil": "EOSINOPHIL", "neutrophil": "NEUTROPHIL", "ig": "ig",
    }  # fmt: skip
    assert found.shared(["kaggle"], ["pbc"]) == ["EOSINOPHIL", "NEUTROPHIL"]
    matched, alone = found.describe()
    assert "NEUTROPHIL (kaggle NEUTROPHIL, pbc neutrophil)" in matched
    assert alone.endswith("without a counterpart: pbc ig")


def test_a_map_decides_first_and_the_rest_is_matched_by_name():
    found = match_classes(CLASSES, {"pbc": {"ig": "neutrophils"}})
    assert found.names["pbc"] == {
        "eosinophil": "EOSINOPHIL", "neutrophil": "neutrophils", "ig": "neutrophils",
    }  # fmt: skip
    assert found.names["kaggle"]["NEUTROPHIL"] == "neutrophils"


def test_a_map_may_name_a_class_that_cleaning_dropped():
    known = {"kaggle": ["BASOPHIL"], "pbc": []}
    assert match_classes(CLASSES, {"kaggle": {"BASOPHIL": "B"}}, known).names["kaggle"] == {
        "EOSINOPHIL": "EOSINOPHIL", "NEUTROPHIL": "NEUTROPHIL",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("naming", "says"),
    [
        ({"pcb": {"ig": "IG"}}, "Did you mean 'pbc'"),
        ({"pbc": {"neutrophill": "NEUTROPHIL"}}, "Did you mean 'neutrophil'"),
    ],
)
def test_unknown_names_get_a_suggestion(naming, says: str):
    with pytest.raises(UnknownNameError, match=says):
        match_classes(CLASSES, naming)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.toml", '[pbc]\nig = "IG"\n\n[kaggle]\nEOSINOPHIL = "eos"\n'),
        ("map.csv", "set,class,common\npbc,ig,IG\nkaggle,EOSINOPHIL,eos\n"),
        ("map.CSV", "\ufeffset;class;common\r\npbc;ig;IG\r\nkaggle;EOSINOPHIL;eos\r\n"),
    ],
)
def test_a_map_is_read_from_toml_and_csv(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text, "utf-8")
    found = parse_naming(str(tmp_path / name))
    assert found == {"pbc": {"ig": "IG"}, "kaggle": {"EOSINOPHIL": "eos"}}
    assert parse_naming(write_naming(found)) == found


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nowhere.toml", None, "There is no map"),
        ("broken.toml", "[pbc", "can't be read"),
        ("flat.toml", 'ig = "IG"', "isn't a map of classes"),
        ("number.toml", "[pbc]\nig = 3", "isn't a map of classes"),
        ("empty.csv", "set,class,common\n", "isn't a map of classes"),
        ("hole.csv", "set,class,common\npbc,ig,\n", "line 2: expected a value"),
        ("two.csv", "set,class,common\npbc,ig,A\npbc,ig,B\n", "two common names, A and B"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, name: str, text: str | None, says: str):
    if text is not None:
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(SettingsError, match=says):
        parse_naming(str(tmp_path / name))
