"""What leaves the house: page, PDF, table, FHIR; a reference beside it; the command itself."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fhir.resources.R4B.bundle import Bundle
from pypdf import PdfReader
from reportlab.pdfbase import pdfmetrics

import leuko
from leuko.cli import main
from leuko.data.drawing import draw_field
from leuko.data.image import encode_png, resize_image
from leuko.errors import (
    LabelTableError,
    NoImagesError,
    OutputError,
    SettingsError,
    StorageError,
    UnknownNameError,
)
from leuko.judgement.agreement import (
    Limited,
    limit_difference,
    measure_agreement,
    measure_detection,
)
from leuko.progress import Console
from leuko.storage import write_atomically
from leuko.use import differential_pdf
from leuko.use.differential import RESEARCH_USE, Differential, count_differential
from leuko.use.differential_page import write_comparison_page, write_page
from leuko.use.differential_pdf import write_pdf
from leuko.use.differential_table import write_comparison_csv, write_csv
from leuko.use.fhir import write_fhir
from leuko.use.reference import (
    Reference,
    Threshold,
    compare_slide,
    compare_slides,
    parse_threshold,
    read_reference,
)
from leuko.use.slides import Slides, find_slides
from small_bundle import make_bundle

HOSTILE = "=cmd|'/c calc'!A1<script>alert(1)</script>\x07\u202e&\udcff"
COUNTS = {"neutrophil": 120, "lymphocyte": 60, "basophil": 2, "erythroblast": 3, "platelet": 9}
NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.fixture
def hostile() -> Differential:
    """Every text that can come from outside says something nasty."""
    return count_differential(
        {**COUNTS, HOSTILE: 7}, slide=HOSTILE, unidentified={HOSTILE: 3}, rejected={HOSTILE: 2},
        set_aside=[(HOSTILE, HOSTILE)], reader=HOSTILE, signed=NOW, made=NOW,
    )  # fmt: skip


# --- the same on every paper ----------------------------------------------------------------------


def test_the_page_holds_no_script_and_loads_nothing(hostile: Differential):
    page = write_page(hostile, compare_slide(hostile, {HOSTILE: 5, "neutrophil": 100}), HOSTILE)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page
    assert page.count(RESEARCH_USE) == 2
    assert "\u202e" not in page
    page.encode()


def test_the_pdf_is_one_page_the_same_each_time_and_says_what_the_page_says(hostile: Differential):
    content = write_pdf(hostile)
    assert content == write_pdf(hostile)
    pages = PdfReader(io.BytesIO(content)).pages
    assert len(pages) == 1
    text = pages[0].extract_text()
    assert RESEARCH_USE in text
    assert "<script>" in text, "shown as it is written, not obeyed"
    assert "2026-03-01 09:30" in text


def test_page_and_pdf_say_in_words_what_is_a_code_elsewhere():
    found = count_differential(
        {"neutrophil": 1, "ig": 0, "platelet": 4}, pictures=1, unidentified={"doubt": 1},
        set_aside=[("in/a.txt", "not_an_image"), *((f"{i}.png", "truncated") for i in range(4))],
    )  # fmt: skip
    pdf = PdfReader(io.BytesIO(write_pdf(found))).pages[0].extract_text()
    for told in (write_page(found), pdf):
        words = " ".join(re.sub("<[^>]*>", " ", told).split())
        assert "1 leukocyte of 200 wanted · 1 picture ·" in words
        assert "Only 1 leukocyte was counted" in words
        assert "a.txt: expected JPEG, PNG, BMP or TIFF" in words
        assert "expected a complete file 4" in words
        assert not re.search("not_an_image|truncated|0.png|in/a.txt", words)
        assert "ig (immature granulocytes)." in words
    assert "1 leukocyte was counted" in write_fhir(found)["entry"][0]["resource"]["conclusion"]
    without = write_page(count_differential({"neutrophil": 1, "big": 2}))
    assert "immature" not in without


def test_the_terminal_shows_what_is_no_leukocyte(capsys):
    found = count_differential({"neutrophil": 1, "ig": 2, "platelet": 4}, slide="s")
    Console([]).conclude_differential(Slides((found,), (), {}, None, "", ()), None)
    told = capsys.readouterr().err
    assert "Not leukocytes, no part of the 100 %: platelet 4\n" in told
    assert "ig (immature granulocytes).\n" in told
    assert "s: 3 leukocytes of 200" in told


def test_very_many_classes_still_fit_on_one_page():
    found = count_differential({f"class {i} " + "x" * 60: i for i in range(60)})
    assert len(PdfReader(io.BytesIO(write_pdf(found))).pages) == 1


def test_no_cell_of_the_table_is_a_formula(hostile: Differential):
    differences = {hostile.slide: compare_slide(hostile, {"=1+1": 3, "neutrophil": 90})}
    rows = list(csv.DictReader(io.StringIO(write_csv([hostile], differences))))
    assert not any(value.startswith(("=", "+", "@")) for row in rows for value in row.values())
    assert {row["use"] for row in rows} == {RESEARCH_USE}
    by_class = {row["class"]: row for row in rows}
    assert by_class["neutrophil"]["count"] == "120"
    assert by_class["platelet"]["percent"] == ""
    assert by_class["'=1+1"]["sort"] == "reference only"
    assert {row["sort"] for row in rows} >= {"unidentified", "rejected", "set aside"}


def test_two_that_write_the_first_pdf_at_once_both_get_it(monkeypatch: pytest.MonkeyPatch):
    found = count_differential(COUNTS)
    expected = write_pdf(found)
    for name in (differential_pdf.PLAIN, differential_pdf.BOLD):  # as in a new process
        monkeypatch.delitem(pdfmetrics._fonts, name)
    register, half_done, other_ended = pdfmetrics.registerFont, threading.Event(), threading.Event()

    def pause(font: object) -> None:
        register(font)
        half_done.set()
        other_ended.wait(1)  # it can't end while it waits for the fonts

    monkeypatch.setattr(pdfmetrics, "registerFont", pause)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_pdf, found)
        assert half_done.wait(60)
        second = pool.submit(write_pdf, found)
        second.add_done_callback(lambda _: other_ended.set())
        assert second.result() == first.result() == expected


def test_a_differential_without_cells_can_be_written_too():
    found = count_differential({"neutrophil": 0, "erythroblast": 2})
    assert "there is no differential" in write_page(found)
    assert write_pdf(found).startswith(b"%PDF")
    assert "neutrophil,leukocyte,0,," in write_csv([found])
    told = write_fhir(found)
    Bundle.model_validate(told)
    assert "dataAbsentReason" in told["entry"][1]["resource"]
    assert compare_slide(found, {"neutrophil": 5})[0].difference.value is None


# --- FHIR -----------------------------------------------------------------------------------------


def test_fhir_is_valid_and_preliminary_until_signed(hostile: Differential):
    unsigned = count_differential(COUNTS, slide="s", reader="A. Reader", made=NOW)
    for found, status in ((unsigned, "preliminary"), (hostile, "final")):
        told = write_fhir(found)
        Bundle.model_validate_json(json.dumps(told))
        resources = [entry["resource"] for entry in told["entry"]]
        assert {r["status"] for r in resources} == {status}
        assert all(RESEARCH_USE in json.dumps(r) for r in resources)
    assert "issued" not in write_fhir(unsigned)["entry"][0]["resource"]
    assert "performer" not in write_fhir(unsigned)["entry"][1]["resource"]


def test_fhir_has_the_same_addresses_as_long_as_it_is_the_same_count():
    first = count_differential(COUNTS, slide="s", reader="A. Reader", made=NOW)
    last = count_differential(
        {**COUNTS, "blast": 3}, slide="renamed", reader="A. Reader", signed=NOW,
        made=NOW + timedelta(hours=1),
    )  # fmt: skip

    def address(found: Differential, key: str) -> dict[str, str]:
        entries = write_fhir(found, key=key)["entry"]
        return {entry["resource"]["code"]["text"]: entry["fullUrl"] for entry in entries}

    before, after = address(first, "slide 1, reading 1"), address(last, "slide 1, reading 1")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"blast per 100 leukocytes"}
    assert len(set(after.values())) == len(after)
    assert not set(address(first, "slide 1, reading 2").values()) & set(before.values())
    # Without a key, two counts of one slide are two.
    assert not set(address(first, "").values()) & set(address(last, "").values())


def test_fhir_has_codes_only_where_they_are_known():
    resources = [entry["resource"] for entry in write_fhir(count_differential(COUNTS))["entry"]]
    codes = {r["code"]["text"]: r["code"].get("coding", [{}])[0].get("code") for r in resources[1:]}
    assert codes == {
        "neutrophil per 100 leukocytes": "26511-6", "lymphocyte per 100 leukocytes": "26478-8",
        "basophil per 100 leukocytes": "30180-4", "erythroblast per 100 leukocytes": None,
    }  # fmt: skip
    report = resources[0]
    assert "platelet 9" in report["conclusion"]
    assert [r["reference"] for r in report["result"]] == [
        entry["fullUrl"] for entry in write_fhir(count_differential(COUNTS))["entry"][1:]
    ]
    share = resources[1]["valueQuantity"]
    assert (share["value"], share["code"]) == (65.93, "%")


# --- a reference count ----------------------------------------------------------------------------


def test_differences_have_the_limits_of_newcombes_method():
    # Newcombe 1998, table II, method 10: 56/70 - 48/80 has 0.0524 to 0.3339 with Wilson's limits.
    a, b = Limited(0.8, 0.6918, 0.8769), Limited(0.6, 0.4904, 0.7004)
    found = limit_difference(a, b)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=3e-4)


def test_agreement_is_that_of_bland_and_altman():
    measured, reference = [10.0, 12.0, 14.0, 16.0, 19.0], [11.0, 12.0, 13.0, 15.0, 16.0]
    found = measure_agreement(measured, reference)
    assert found.bias.value == pytest.approx(0.8)
    assert found.deviation == pytest.approx(1.48324)
    assert found.lower.value == pytest.approx(0.8 - 1.96 * 1.48324, abs=1e-4)
    assert found.bias.low < 0 < found.bias.high
    assert found.lower.low < found.lower.value < found.lower.high
    assert 0.9 < found.correlation.value < 1
    assert measure_agreement([5.0], [4.0]).deviation is None
    assert measure_agreement([5.0, 6.0], [4.0, 4.0]).correlation.value is None


def test_detection_counts_both_sides():
    found = measure_detection([True, True, False, False], [True, False, True, False])
    assert (found.positive, found.found, found.negative, found.passed) == (2, 1, 2, 1)
    assert found.sensitivity.value == 0.5
    assert measure_detection([True], [True]).specificity.value is None


def test_a_reference_may_be_long_or_wide_and_examiners_are_summed(tmp_path: Path):
    long, wide = tmp_path / "long.csv", tmp_path / "wide.csv"
    long.write_text("Slide;Class;Count\na;neutrophil;60\na;neutrophil;62\na;monocyte;8\nb;x;1\n")
    wide.write_text("slide,neutrophil,Monocyte,total\na,122,8,130\nb,,3,3\n")
    assert read_reference(long).slides == {"a": {"neutrophil": 122, "monocyte": 8}, "b": {"x": 1}}
    assert read_reference(wide).slides == {
        "a": {"neutrophil": 122, "Monocyte": 8}, "b": {"neutrophil": 0, "Monocyte": 3},
    }  # fmt: skip
    wide.write_text("class,count\nneutrophil,61.5\n")
    with pytest.raises(LabelTableError, match=r"neutrophil has '61.5'; expected a whole number"):
        read_reference(wide)
    wide.write_text("total\n3\n")
    with pytest.raises(LabelTableError, match="holds no reference count"):
        read_reference(wide)


def test_classes_are_matched_by_name_and_the_others_are_named():
    found = count_differential({"neutrophil": 60, "lymphocyte": 40, "ig": 0})
    rows = {
        d.label: d
        for d in compare_slide(found, {"NEUTROPHILS": 120, "Lymphocyte": 40, "band": 40, "RBC": 9})
    }
    assert list(rows) == ["neutrophil", "lymphocyte", "band", "ig"]
    assert rows["neutrophil"].difference.value == pytest.approx(0)
    assert rows["lymphocyte"].reference.value == pytest.approx(20)
    assert rows["lymphocyte"].beyond_chance
    assert rows["band"].count is None
    assert rows["ig"].reference_count is None


@pytest.fixture
def compared():
    rng = np.random.default_rng(3)
    found, slides = [], {}
    for i in range(12):
        share = 0.02 + 0.02 * i
        counts, seen = (
            rng.multinomial(200, [share, 1 - share]),
            rng.multinomial(400, [share, 1 - share]),
        )
        names = ("monocyte", "neutrophil")
        found.append(
            count_differential(dict(zip(names, counts.tolist(), strict=True)), slide=f"{i}<b>")
        )
        slides[f"{i}<b>"] = dict(zip(names, seen.tolist(), strict=True))
    slides["lost"] = {"monocyte": 1}
    thresholds = [Threshold("Monocytes", "above", 10.0)]
    return compare_slides(found, Reference("r.csv", slides), thresholds), found


def test_slides_become_a_method(compared):
    comparison, _ = compared
    monocyte, neutrophil = sorted(comparison.methods, key=lambda m: m.label)
    assert monocyte.agreement.slides == 12
    assert monocyte.agreement.bias.low < 0 < monocyte.agreement.bias.high
    assert monocyte.agreement.correlation.value > 0.9
    assert monocyte.by_chance >= 11
    (threshold, detection) = monocyte.detections[0]
    assert (threshold.percent, detection.positive + detection.negative) == (10, 12)
    assert detection.sensitivity.value > 0.7
    assert not neutrophil.detections
    assert "lost has no pictures" in comparison.left_out
    json.dumps(comparison.to_json(), allow_nan=False)


def test_a_class_that_the_table_leaves_out_is_no_zero_and_it_says_so():
    found = [
        count_differential({"neutrophil": 150, "monocyte": 40 - i, "ig": 5}, slide=name)
        for i, name in enumerate("ab")
    ]
    table = {
        "a": {"neutrophil": 150, "monocyte": 30},
        "b": {"neutrophil": 180, "band": 3},
    }
    comparison = compare_slides(found, Reference("r.csv", table))
    told = {text.split(":")[0]: text for text in comparison.left_out}
    assert "1 of 2 slides has it on one side only: write 0 in the reference" in told["monocyte"]
    assert told["ig"].endswith("the reference doesn't name it")
    assert told["band"].endswith("the model has no such class")
    counted = {m.label: m.agreement for m in comparison.methods}
    assert (counted["neutrophil"].slides, counted["monocyte"].slides) == (2, 1)
    assert counted["neutrophil"].correlation.value is None, "any two points lie on a line"
    table["b"]["monocyte"] = 0
    again = compare_slides(found, Reference("r.csv", table))
    assert {m.label: m.agreement.slides for m in again.methods}["monocyte"] == 2
    assert not any("monocyte" in text for text in again.left_out)
    third = count_differential({"neutrophil": 90, "monocyte": 60}, slide="c")
    table["c"] = {"neutrophil": 150, "monocyte": 10}
    page = write_comparison_page(
        compare_slides([*found, third], Reference("r", table)), [*found, third]
    )
    assert "<td>\u22120." in page, "a correlation below 0 has a true minus"


def test_a_comparison_can_be_read_by_people_and_programs(compared):
    comparison, found = compared
    page = write_comparison_page(comparison, found)
    assert "0&lt;b&gt;" in page
    assert "<b>" not in page
    assert "above 10 %" in page
    rows = list(csv.DictReader(io.StringIO(write_comparison_csv(comparison))))
    assert [row["class"] for row in rows] == ["neutrophil", "monocyte"]
    assert rows[1]["threshold"] == "10.0"
    assert rows[0]["use"] == RESEARCH_USE


def test_thresholds_are_read_strictly():
    assert parse_threshold("a=b=10", "above") == Threshold("a=b", "above", 10.0)
    for text in ("monocyte", "monocyte=", "=5", "monocyte=200", "monocyte=nan"):
        with pytest.raises(SettingsError, match="expected CLASS=PERCENT"):
            parse_threshold(text, "above")
    one = count_differential({"neutrophil": 5}, slide="a")
    with pytest.raises(UnknownNameError, match="Did you mean 'neutrophil'"):
        compare_slides(
            [one], Reference("r", {"a": {"neutrophil": 4}}), [Threshold("neutrofil", "above", 1)]
        )


def test_which_folders_are_slides(slides: Path):
    one, two = slides / "one", slides / "two"
    nameless = Reference("r", {"": {"x": 1}})
    both = Reference("r", {"one": {"x": 1}, "elsewhere": {"x": 1}})
    whole, notes = find_slides(slides, None, several=False)
    assert whole == {slides.name: slides}
    assert notes == [
        "The images lie in 2 folders (one, two) and are counted as one slide; --several counts "
        "each folder in it by itself."
    ]
    assert not find_slides(one, None, several=False)[1]
    assert not find_slides(slides, both, several=False)[1][1:], "empty holds no images, no more"
    assert find_slides(slides, None, several=True)[0] == {"one": one, "two": two}
    assert find_slides(slides, both, several=False)[0] == {"one": one, "two": two}
    assert find_slides(one, both, several=False)[0] == {"one": one}
    assert find_slides(one, nameless, several=False)[0] == {"one": one}
    with pytest.raises(LabelTableError, match="names no slide"):
        find_slides(slides, nameless, several=True)
    with pytest.raises(NoImagesError, match="expected one for each slide"):
        find_slides(one, None, several=True)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "small").path


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Two slides of drawn fields, one with a damaged file; and a folder without images."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(4)
    for slide, kinds in {"one": ("LYMPHOCYTE", "NEUTROPHIL"), "two": ("EOSINOPHIL",)}.items():
        (folder / slide).mkdir()
        for number in range(2):
            field = draw_field(rng, kinds, mark=False, blur=0.8).image
            picture = encode_png(resize_image(field, 240, 320))
            (folder / slide / f"{number}.png").write_bytes(picture)
    (folder / "two" / "broken.png").write_bytes(picture[:3000])
    (folder / "empty").mkdir()
    return folder


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_slide_from_the_command_line(model: Path, slides: Path, tmp_path: Path, capsys):
    before = list_files(slides)
    out = tmp_path / "out"
    words = ["differential", str(slides / "one"), "--model", str(model), "--out", str(out)]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["slide"] == "one"
    assert found["cells"] + found["unidentified"]["total"] == 4
    assert found["use"] == RESEARCH_USE
    assert "doesn't say how often" in found["correction"]["text"]
    assert list_files(out) == {
        "cells.csv", "differential.csv", "differential.html", "differential.pdf",
        "differential.json", "differential.fhir.json",
    }  # fmt: skip
    assert json.loads((out / "differential.json").read_text()) == found
    Bundle.model_validate_json((out / "differential.fhir.json").read_text())
    assert "Research use only" in told.err
    assert list_files(slides) == before, "nothing is written beside the inputs"
    assert main(words) == 2, "a folder that isn't empty is left alone"
    assert "isn't empty" in capsys.readouterr().err


def test_several_slides_with_a_reference(model: Path, slides: Path, tmp_path: Path, capsys):
    reference = tmp_path / "reference.csv"
    reference.write_text(
        "slide,LYMPHOCYTE,NEUTROPHIL,EOSINOPHIL\none,100,100,0\ntwo,0,20,180\nthree,1,1,1\n"
    )
    out = tmp_path / "out"
    words = ["differential", str(slides), "--model", str(model), "--reference", str(reference)]
    assert main([*words, "--above", "EOSINOPHIL=10", "--out", str(out)]) == 3
    told = capsys.readouterr().err
    assert "broken.png (truncated)" in told
    assert "empty holds no images" in told
    assert "three has no pictures" in told
    assert {"one/differential.pdf", "two/cells.csv", "comparison.html", "comparison.csv",
            "differentials.csv", "differentials.json"} <= list_files(out)  # fmt: skip
    assert main([*words, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [one["slide"] for one in found["slides"]] == ["one", "two"]
    assert found["comparison"]["reference"] == "reference.csv"


def test_the_library_gives_the_same_as_the_command(model: Path, slides: Path, capsys):
    found = leuko.differential(slides / "two", model=model, target=50)
    assert isinstance(found, Slides)
    assert (len(found), found[0].target, found[0].slide) == (1, 50, "two")
    assert main(["differential", str(slides / "two"), "--model", str(model)]) == 3
    printed = capsys.readouterr().out
    assert [r["count"] for r in csv.DictReader(io.StringIO(printed)) if r["sort"] == "leukocyte"] \
        == [str(row.count) for row in found[0].rows]  # fmt: skip


def test_after_a_full_disk_the_same_command_can_be_given_again(
    model: Path, slides: Path, tmp_path: Path, monkeypatch, capsys
):
    def fail(path: Path, content: bytes) -> Path:
        if path.suffix == ".pdf":
            raise StorageError("no space left")
        return write_atomically(path, content)

    words = ["differential", str(slides / "one"), "--model", str(model), "--out"]
    words.append(str(tmp_path / "out"))
    with monkeypatch.context() as full:
        full.setattr("leuko.use.slides.write_atomically", fail)
        assert main(words) == 1
    assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(words) == 0


def test_wrong_use_is_told_before_any_work(slides: Path, tmp_path: Path, capsys):
    one = str(slides / "one")
    assert main(["differential", one, "--out", str(tmp_path / "x.xlsx")]) == 2
    assert "written as .csv, .html" in capsys.readouterr().err
    assert main(["differential", one, "--scale", "-3"]) == 2
    assert main(["differential", one, "--above", "monocyte"]) == 2
    assert main(["differential", str(tmp_path / "nowhere")]) == 1
    assert "There is no" in capsys.readouterr().err
    reference = tmp_path / "r.csv"
    reference.write_text("slide,class,count\nelsewhere,neutrophil,5\n")
    assert main(["differential", str(slides), "--reference", str(reference)]) == 1
    assert "names the slides 'elsewhere'" in capsys.readouterr().err
    assert main(["differential", one, "--above", "monocyte=3"]) == 2
    assert "Leave --above and --below out" in capsys.readouterr().err
    with pytest.raises(OutputError, match="isn't empty"):
        Slides((), (), {}, None, "", ()).write(slides)
