"""Across laboratories on small drawn sets: what is trained and tested on, results, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from leuko.data.drawing import draw_cell
from leuko.data.image import encode_png
from leuko.errors import DataError, ResumeError, SettingsError, UnknownNameError
from leuko.judgement.transfer_page import write_any_report
from leuko.laboratories import LaboratoryStudy
from leuko.routes import Exchange, count_shared, name_sets, plan_routes
from leuko.settings import resolve_laboratories, resolve_settings
from leuko.study import compare
from leuko.watcher import Watcher

# Groups as the sets give them: looking for copies takes longer than all the rest.
QUICK = {
    "models": ("alexnet",), "folds": 3, "seeds": 2, "epochs": 1, "views": 1, "groups": "given",
}  # fmt: skip
MAP = {"south": {"segs": "NEUTROPHIL"}}
PAIR = ("north", "south")


def write_laboratory(folder: Path, seed: int, tint: tuple[float, ...], **names: str) -> None:
    """Nine cells a class, in this laboratory's colours and words."""
    rng = np.random.default_rng(seed)
    for kind, name in names.items():
        (folder / name).mkdir(parents=True)
        for i in range(9):
            picture = (draw_cell(rng, kind, 96) * np.array(tint)).astype(np.uint8)
            (folder / name / f"{i}.png").write_bytes(encode_png(picture))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three laboratories; only south has monocytes, one picture of north is in west too."""
    root = tmp_path_factory.mktemp("laboratories")
    write_laboratory(
        root / "north", 0, (1, 1, 1), LYMPHOCYTE="LYMPHOCYTE", EOSINOPHIL="EOSINOPHIL",
        NEUTROPHIL="NEUTROPHIL",
    )  # fmt: skip
    write_laboratory(
        root / "south", 1, (0.8, 0.9, 1), LYMPHOCYTE="lymphocytes", EOSINOPHIL="eosinophil",
        MONOCYTE="monocyte", NEUTROPHIL="segs",
    )  # fmt: skip
    write_laboratory(root / "west", 2, (1, 0.8, 0.8), LYMPHOCYTE="Lymphocyte",
                     EOSINOPHIL="Eosinophil")  # fmt: skip
    shutil.copy(root / "north/LYMPHOCYTE/0.png", root / "west/Lymphocyte/0.png")
    return root


def plan(root: Path, *names: str, naming=None, **asked) -> Exchange:
    settings = resolve_laboratories({**QUICK, **asked})
    return plan_routes([root / n for n in names], settings, naming or {}, Watcher(), workers=1)


@pytest.fixture(scope="module")
def exchange(root) -> Exchange:
    return plan(root, "north", "south", "west", naming=MAP)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory) -> LaboratoryStudy:
    out = tmp_path_factory.mktemp("runs") / "first"
    return compare([root / n for n in PAIR], map=MAP, out=out, workers=1, **QUICK)


def without_times(results: dict) -> dict:
    results = json.loads(json.dumps(results))
    del results["times"]
    for cost in results["costs"].values():
        del cost["fit_seconds"], cost["images_per_second"]
    return results


# --- who is tested on what ------------------------------------------------------------------------


def test_each_way_and_all_but_one(exchange):
    assert [(r.name, r.targets) for r in exchange.routes] == [
        ("north", ("south", "west")), ("south", ("north", "west")), ("west", ("north", "south")),
        ("south + west", ("north",)), ("north + west", ("south",)), ("north + south", ("west",)),
    ]  # fmt: skip
    assert exchange.common == ["EOSINOPHIL", "LYMPHOCYTE"]
    assert exchange.routes[0].classes == ("EOSINOPHIL", "LYMPHOCYTE", "NEUTROPHIL")


def test_no_group_is_on_two_sides_of_a_trial_and_every_seed_holds_others_out(exchange):
    table = exchange.images
    for route in exchange.routes:
        trials = [t for t in exchange.trials if t.route == route]
        assert len(trials) == 2
        assert not set(trials[0].home) & set(trials[1].home)
        for t in trials:
            sides = [set(table[rows]["group"]) for rows in (t.train, t.home, t.away)]
            assert not sides[0] & sides[1]
            assert not (sides[0] | sides[1]) & sides[2]
            assert set(table[t.train]["set"]) <= set(route.sources)
            assert set(table[t.away]["set"]) == set(route.targets)
            assert set(table[t.away]["label"]) <= set(route.classes)


def test_a_file_that_two_sets_have_is_not_tested_on_and_trained_on_once(exchange):
    twin = exchange.images.filter(pl.col("sha256").is_duplicated())
    assert set(twin["set"]) == {"north", "west"}
    assert twin["group"].n_unique() == 1
    assert exchange.shared["north", "west"] == exchange.shared["west", "north"] == 1
    assert exchange.shared["north", "south"] == 0
    for t in exchange.trials:
        names = [exchange.images[rows]["sha256"].to_list() for rows in (t.train, t.home, t.away)]
        twice = [one.count(twin["sha256"][0]) for one in names]
        if "north" in t.route.sources or "west" in t.route.sources:
            assert twice[0] + twice[1] == 1
            assert twice[2] == 0
    assert any("1 image of west not tested on when north is" in note for note in exchange.notes)


def test_an_image_that_several_sources_have_is_missing_from_the_test_once(root, tmp_path):
    for name in ("north", "west"):
        shutil.copytree(root / name, tmp_path / name)
    rng = np.random.default_rng(9)
    write_laboratory(tmp_path / "third", 3, (1, 1, 0.9), LYMPHOCYTE="Lymphocyte",
                     EOSINOPHIL="Eosinophil")  # fmt: skip
    twin = encode_png(draw_cell(rng, "LYMPHOCYTE", 96))
    for place in ("north/LYMPHOCYTE", "west/Lymphocyte", "third/Lymphocyte"):
        (tmp_path / place / "twin.png").write_bytes(twin)
    several = plan(tmp_path, "north", "west", "third")
    route = next(r for r in several.routes if r.name == "north + west")
    away = next(t for t in several.trials if t.route == route).away
    assert count_shared(several.images, route.sources, "third") == 1
    assert len(away) == (several.images["set"] == "third").sum() - 1


def test_a_set_that_is_wholly_in_the_other_is_left_out_or_refused(root, tmp_path):
    shutil.copytree(root / "north", tmp_path / "copy")
    with pytest.raises(DataError, match="No two of these sets"):
        plan_routes(
            [root / "north", tmp_path / "copy"], resolve_laboratories(QUICK), {}, Watcher(),
            workers=1,
        )  # fmt: skip


def test_a_map_with_a_wrong_name_is_refused(root):
    with pytest.raises(UnknownNameError, match="Did you mean 'segs'"):
        plan(root, "north", "south", naming={"south": {"seg": "NEUTROPHIL"}})


def test_sets_of_one_name_get_the_folder_above(tmp_path):
    sets = [tmp_path / "a/cells", tmp_path / "b/cells", tmp_path / "c"]
    assert name_sets(sets) == ["a-cells", "b-cells", "c"]
    (tmp_path / "pbc.v2").mkdir()
    assert name_sets([tmp_path / "pbc.v2", tmp_path / "c"])[0] == "pbc.v2", "as it is called"
    with pytest.raises(SettingsError, match="named twice"):
        name_sets([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(SettingsError, match="two or more"):
        name_sets([])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"repeats": 2}, "--seeds"),
        ({"split": "given"}, "split is for one set"),
        ({"leak_meter": True}, "leuko audit"),
        ({"decisions": "d.csv"}, "leuko clean"),
        ({"seed_s": 2}, "Did you mean 'seeds'"),
    ],
)
def test_what_is_for_one_set_only_is_refused_for_several(asked: dict, says: str):
    with pytest.raises(SettingsError, match=says):
        resolve_laboratories(asked)


def test_what_is_for_several_sets_is_refused_for_one():
    with pytest.raises(SettingsError, match="seeds is for several sets"):
        resolve_settings({"seeds": 3})


# --- a whole run ----------------------------------------------------------------------------------


def test_results_say_home_away_and_drop_each_way(finished):
    told = finished.results["laboratories"]
    assert finished.results == json.loads((finished.folder / "results.json").read_text("utf-8"))
    assert set(told) >= {"sets", "common", "map", "transfers", "leave_one_out", "baselines"}
    assert told["map"] == MAP
    assert told["common"] == ["EOSINOPHIL", "LYMPHOCYTE", "NEUTROPHIL"]
    assert told["leave_one_out"] == []
    assert [(t["train"], t["test"]) for t in told["transfers"]] == [PAIR, PAIR[::-1]]
    north, south = told["transfers"]
    assert north["not_asked"] == {"monocyte": 9}
    assert north["answers"] == north["classes"]
    assert south["answers"] == ["EOSINOPHIL", "LYMPHOCYTE", "NEUTROPHIL", "monocyte"]
    # The recipe deletes a tenth of NEUTROPHIL, which is one of north's nine.
    assert (north["seeds"], north["n_home"], north["n_away"]) == (2, 17, 27)
    assert (south["seeds"], south["n_home"], south["n_away"]) == (2, 18, 26)
    for t in (north, south):
        for part in ("home", "away"):
            forced, free = (t[part][way]["accuracy"]["value"] for way in ("forced", "free"))
            assert forced >= free
    assert len(told["baselines"]) == 4


def test_answers_are_kept_one_per_image_network_and_side(finished):
    answers = pl.read_parquet(finished.folder / "predictions.parquet")
    splits = pl.read_parquet(finished.folder / "splits.parquet")
    own = answers.filter(pl.col("model") == "alexnet")
    asked = splits.filter(pl.col("part") != "train")
    assert own.height == asked.height
    assert own.join(asked, on=["train", "seed", "set", "image", "part"]).height == own.height
    unknown = own.filter(pl.col("train") == "north")["p_monocyte"]
    assert unknown.is_null().all()
    table = pl.read_csv(finished.folder / "laboratories.csv")
    assert table.height == 2 * 3 * 2 * (3 + 3)


def test_the_report_needs_nothing_else_and_can_be_made_again(finished):
    page = (finished.folder / "report.html").read_bytes()
    text = page.decode("utf-8")
    assert "north → south" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert "not tested on" in text
    for name in ("transfers-forced", "transfers-free", "recalls", "confusion-2", "samples-1"):
        assert (finished.folder / "figures" / f"{name}.png").is_file()
        assert f'id="figure-{name}"' in text
    assert write_any_report(finished.folder).read_bytes() == page


def test_a_run_that_was_stopped_goes_on_to_the_same_results(finished, root, tmp_path):
    run = shutil.copytree(finished.folder, tmp_path / "run")
    for name in ("results.json", "report.html", "fits/route-2/alexnet-r0-f1/result.json"):
        (run / name).unlink()
    kept = run / "fits/route-1/alexnet-r0-f0/result.json"
    before = kept.stat().st_mtime_ns
    again = compare(resume=run, workers=1)
    assert without_times(again.results) == without_times(finished.results)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"seeds": 3}, "seeds was 2, now 3"),
        ({"map": {"south": {"segs": "neutrophil"}}}, "map was"),
    ],
)
def test_resume_with_other_settings_is_refused(finished, asked: dict, says: str):
    with pytest.raises(ResumeError, match=says):
        compare(resume=finished.folder, **asked)


def test_resume_with_other_sets_is_refused(finished, root):
    for sets in ([root / "north", root / "west"], [root / "south", root / "north"], root / "north"):
        with pytest.raises(ResumeError, match="data was"):
            compare(sets, resume=finished.folder)
