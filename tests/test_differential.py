"""The differential: exact limits, the model's errors undone, what is flagged, who signed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leuko.errors import SettingsError, ShapeError
from leuko.judgement.prevalence import correct_prevalence
from leuko.learning.bundle import load_bundle
from leuko.use.answers import Answer, Predictions, SetAside
from leuko.use.differential import Differential, count_differential, count_predictions
from leuko.use.fhir import write_fhir
from leuko.use.kinds import find_code, order_classes, sort_class
from leuko.use.predictor import find_default
from leuko.use.record import Record, read_record
from leuko.use.sheet import lay_out

FIVE = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
RECORD = Record(
    bundle="b1", architecture="resnet18", created="2026-01-31", leuko="0.1.0", classes=FIVE,
    confusion=tuple(
        tuple(360 if i == j else 10 for j in range(5)) for i in range(5)
    ), cells=2000, unidentified=0.1, source="a set, 5 folds",
)  # fmt: skip


def flags(found: Differential) -> set[str]:
    return {flag.kind for flag in found.flags}


@pytest.mark.parametrize(
    ("count", "cells", "low", "high"),
    [(5, 100, 1.6, 11.3), (10, 200, 2.4, 9.0), (20, 400, 3.1, 7.6), (0, 100, 0.0, 3.6)],
)
def test_limits_are_those_of_the_books(count: int, cells: int, low: float, high: float):
    found = count_differential({"monocyte": count, "neutrophil": cells - count})
    row = next(row for row in found.rows if row.label == "monocyte")
    assert (round(row.low, 1), round(row.high, 1)) == (low, high)
    assert row.percent == pytest.approx(100 * count / cells)


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=12))
def test_percentages_sum_to_a_hundred_and_lie_within_their_limits(numbers: list[int]):
    found = count_differential({f"class {i}": n for i, n in enumerate(numbers)})
    assert found.cells == sum(numbers)
    if not found.cells:
        assert flags(found) == {"no_cells"}
        assert all(row.percent is None for row in found.rows)
        return
    assert sum(row.percent for row in found.rows) == pytest.approx(100)
    assert all(0 <= row.low <= row.percent <= row.high <= 100 for row in found.rows)


def test_platelets_are_no_part_of_it_and_nucleated_red_cells_are_given_per_100():
    counts = {"neutrophil": 60, "Lymphocytes": 40, "Platelets": 500, "erythroblast": 5}
    found = count_differential(counts)
    assert found.cells == 100
    assert {row.label: row.percent for row in found.rows} == {"neutrophil": 60, "Lymphocytes": 40}
    red, platelets = found.beside
    assert (red.label, red.per_100) == ("erythroblast", 5)
    assert 1.5 < red.low < 5 < 12 < red.high < 13
    assert (platelets.count, platelets.per_100) == (500, None)


def test_classes_are_known_in_several_spellings_and_codes_only_where_they_fit():
    assert sort_class("NRBC") == sort_class("Nucleated red blood cells") == "nucleated red cell"
    assert sort_class("giant_platelets") == "other"
    assert sort_class("something new") == "leukocyte"
    assert order_classes(["ig", "BASOPHIL", "Monocytes", "neutrophil"]) == [
        "neutrophil", "Monocytes", "BASOPHIL", "ig",
    ]  # fmt: skip
    assert find_code("NEUTROPHILS", ["NEUTROPHILS"]) == "26511-6"
    assert find_code("neutrophil", ["neutrophil", "band"]) is None
    assert find_code("ig", ["ig"]) is None


def test_a_planted_mixture_is_found_again():
    truth = np.array([0.02, 0.08, 0.3, 0.1, 0.5])
    rates = np.array(RECORD.confusion) / 400
    answers = dict(zip(FIVE, (truth @ rates * 20_000).round().astype(int).tolist(), strict=True))
    found = count_differential(answers, record=RECORD, likeliest=answers)
    for row in found.rows:
        planted = 100 * truth[FIVE.index(row.label)]
        assert row.corrected == pytest.approx(planted, abs=0.1)
        assert row.corrected_low < planted < row.corrected_high
    neutrophil = found.rows[0]
    assert neutrophil.percent < neutrophil.corrected_low, "the raw count has the errors in it"
    assert "correction_differs" in flags(found)
    assert "2,000 cells" in found.correction.text


def test_with_a_model_that_never_errs_the_corrected_limits_are_the_exact_ones():
    found = correct_prevalence([95, 5, 0], np.eye(3, dtype=int) * 10**7, [True] * 3, 0, draws=4000)
    assert found.value == pytest.approx([0.95, 0.05, 0.0], abs=1e-5)
    assert found.low == pytest.approx([0.887, 0.0164, 0.0], abs=0.003)
    assert found.high == pytest.approx([0.9836, 0.1128, 0.0362], abs=0.003)


def test_a_smaller_test_of_the_model_gives_wider_limits():
    answers, rates = [100, 100], np.array([[9, 1], [1, 9]])
    widths = [
        (f := correct_prevalence(answers, rates * n, [True, True], 1)).high[0] - f.low[0]
        for n in (1, 10, 1000)
    ]
    assert widths[0] > widths[1] > widths[2] > 0.13  # 0.142 is what the cells alone allow


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=3, max_size=3),
    st.lists(st.integers(0, 60), min_size=9, max_size=9),
)
def test_any_confusion_gives_shares_that_are_shares(answers: list[int], cells: list[int]):
    table = np.array(cells).reshape(3, 3) + np.eye(3, dtype=int)
    among = [True, True, False]
    if not answers[0] + answers[1]:
        with pytest.raises(ShapeError, match="nothing to correct"):
            correct_prevalence(answers, table, among, 0, draws=20)
        return
    found = correct_prevalence(answers, table, among, 0, draws=20)
    assert np.isfinite([found.value, found.low, found.high]).all()
    assert (found.value >= 0).all()
    assert (found.low <= found.high).all()


@pytest.mark.parametrize(
    ("cells", "target", "expected"),
    [(99, 200, "few_cells"), (100, 200, "few_cells"), (199, 200, "few_cells"), (200, 200, None),
     (300, 400, "below_target")],
)  # fmt: skip
def test_few_cells_are_warned_of(cells: int, target: int, expected: str | None):
    found = count_differential({"neutrophil": cells}, target=target)
    assert flags(found) == ({expected} if expected else set())
    if cells < 100:
        assert "fewer than 100" in found.flags[0].text


def test_many_unidentified_are_measured_by_the_models_own_test():
    counts = {"neutrophil": 180, "lymphocyte": 40}
    usual = count_differential(counts, record=RECORD, unidentified={"doubt": 22})
    assert "unidentified" in flags(usual)
    many = count_differential(counts, record=RECORD, unidentified={"doubt": 80})
    assert "many_unidentified" in flags(many)
    assert "27 %" in next(f.text for f in many.flags if f.kind == "many_unidentified")


def test_the_usual_share_is_of_cells_that_were_judged_as_in_use():
    bundle = load_bundle(find_default(), threads=1)
    record = read_record(bundle.facts, bundle.id)
    assert record.unidentified == pytest.approx(160 / (1440 - 7))  # results/evaluation.md
    assert bundle.facts.training["metrics"]["unidentified"] < 0.04, "what it was counted as"
    counts = {"neutrophil": 180, "lymphocyte": 20}
    found = count_differential(counts, record=record, unidentified={"doubt": 22})
    assert flags(found) & {"unidentified", "many_unidentified"} == {"unidentified"}
    assert "in the model's test 11 % were" in " ".join(f.text for f in found.flags)

    def read(**metrics: float) -> Record:
        return read_record(replace(bundle.facts, training={"metrics": metrics}), "another")

    assert read(unidentified=0.1, rejected=0.2).unidentified == pytest.approx(0.125)
    assert read(unidentified=0.5, rejected=1.0).unidentified is None
    before = read(unidentified=0.03)
    assert before.unidentified is None
    found = count_differential(counts, record=before, unidentified={"doubt": 80})
    assert "many_unidentified" not in flags(found)
    assert "isn't known: its bundle counted them in the test without those that are strange" in (
        " ".join(flag.text for flag in found.flags)
    )


def test_unusual_classes_and_those_that_the_model_lacks_are_named():
    four = replace(RECORD, classes=FIVE[1:], confusion=None, lack="it is so.")
    found = count_differential({"ig": 3, "erythroblast": 1, "neutrophil": 200}, record=four)
    texts = " ".join(flag.text for flag in found.flags)
    assert "ig: 3" in texts
    assert "erythroblast: 1" in texts
    assert "doesn't know basophil" in texts


def test_who_signs_makes_it_final():
    counts = {"neutrophil": 200}
    when = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert count_differential(counts).status == "preliminary"
    read = count_differential(counts, reader="A. Reader", record=RECORD, likeliest=counts)
    assert (read.status, read.signed) == ("preliminary", None)
    assert read.rows[0].corrected is None
    assert read.correction.text.startswith("Not corrected, because a person reviews the cells")
    done = count_differential(counts, reader="A. Reader", signed=when)
    assert (done.status, done.signed) == ("final", "2026-03-01T12:00:00+00:00")
    with pytest.raises(SettingsError, match="signed by nobody"):
        count_differential(counts, signed=when)
    with pytest.raises(SettingsError, match="time zone"):
        count_differential(counts, reader="A", signed=when.replace(tzinfo=None))
    with pytest.raises(ShapeError, match="-1 cells of 'x'"):
        count_differential({"x": -1})


def test_a_signature_says_no_more_than_what_was_reviewed():
    counts = {"neutrophil": 9, "lymphocyte": 4, "platelet": 5}
    when = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def sign(**reviewed: int) -> Differential:
        return count_differential(counts, reader="A", signed=when, record=RECORD, reviewed=reviewed)

    one = sign(neutrophil=1, platelet=5)
    assert (one.reviewed, one.to_json()["reviewed"]) == (1, 1), "of the 13 leukocytes"
    told = "12 of the 13 counted cells were not confirmed one by one; not corrected, because a"
    assert told in one.correction.text
    sheet = lay_out(one)
    assert sheet.status.endswith("; 1 of 13 counted cells confirmed one by one")
    assert "reviewed" not in sheet.status
    assert "not the model's errors" in sheet.foot[0], "they are in what nobody looked at"
    unknown = count_differential(counts, reader="A", signed=when, reviewed={"neutrophil": 1})
    assert "not the model's errors" in lay_out(unknown).foot[0], "of a bundle that isn't at hand"
    alone = count_differential(counts, reader="A", signed=when)
    assert "model" not in lay_out(alone).foot[0], "a person's own count"
    whole = lay_out(every := sign(neutrophil=9, lymphocyte=4))
    assert whole.status.startswith("Final: reviewed and signed by A")
    assert "model's errors" not in whole.foot[0] + every.correction.text
    assert "12 of the 13 counted cells" in write_fhir(one)["entry"][0]["resource"]["conclusion"]
    with pytest.raises(ShapeError, match="5 reviewed cells of 'lymphocyte', but 4 counted"):
        sign(lymphocyte=5)


def test_answers_of_a_model_are_counted_by_state():
    answers = [
        *[Answer("a", 1, label="neutrophil", state="pre-classified")] * 3,
        Answer("b", 1, label="monocyte", state="unidentified", reason="doubt"),
        Answer("c", 1, label="monocyte", state="rejected", reason="blurred"),
        Answer("d", reason="no leukocyte was found"),
    ]
    aside = (SetAside("e", "truncated", "It is."),)
    found = count_predictions(
        Predictions(FIVE, tuple(answers), aside, "b1"), record=RECORD, slide="s"
    )
    assert found.cells == 3
    assert [row.label for row in found.rows] == [
        "neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil",
    ]  # fmt: skip
    assert found.correction.answers == 4, "the doubtful cell counts, the rejected one doesn't"
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["use"] == "Research use only, not for diagnosis."
    assert told["unidentified"] == {"total": 1, "reasons": {"doubt": 1}}
    assert told["rejected"]["reasons"] == {"blurred": 1, "no leukocyte was found": 1}
    assert told["set_aside"] == [{"image": "e", "reason": "truncated"}]
    assert "set_aside" in flags(found)


def test_without_what_is_needed_nothing_is_corrected_and_it_says_why():
    counts = {"neutrophil": 200}
    assert "nothing is known" in count_differential(counts).correction.text
    lacking = replace(RECORD, confusion=None, lack="the bundle doesn't say.")
    found = count_differential(counts, record=lacking, likeliest=counts)
    assert found.correction.text == "Not corrected: the bundle doesn't say."
    assert not found.correction.done
