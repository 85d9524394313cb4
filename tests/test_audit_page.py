"""The audit's page: whole, self-contained, escaped, small, and true to the numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leuko.data.image import decode_image, encode_jpeg
from leuko.data.issues import KINDS, Issue
from leuko.data.manifest import Manifest
from leuko.data.sources import scan
from leuko.errors import StorageError, UnknownNameError
from leuko.judgement import audit_page, canvas, plots, report
from leuko.judgement.album import Album
from leuko.judgement.audit_page import match_boxes, write_audit_page
from run_folder import write_run

HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "hr", "input", "link"}
METER = {
    "split": "5 folds", "n": 348, "classes": 4, "metric": "accuracy", "majority": 0.594,
    "verdict": f"A random split flatters the {HOSTILE}.",
    "rows": [
        {"who": f"nearest {HOSTILE}", "random": {"value": 0.71, "low": 0.66, "high": 0.76},
         "grouped": {"value": 0.68, "low": 0.63, "high": 0.73},
         "difference": {"value": 0.032, "low": 0.011, "high": 0.055}, "note": "by <thumbnail>"},
        {"who": "colour", "random": {"value": None, "low": None, "high": None},
         "grouped": {"value": 0.5, "low": 0.4, "high": 0.6}, "difference": None, "note": ""},
    ],
}  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and words of a page, the words also by the nearest id around them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.by_id: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> without a beginning"
        assert self._open.pop()[0] == tag, tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        for _, name in self._open:
            if name:
                self.by_id.setdefault(name, []).append(data)

    def values(self, tag: str, attribute: str) -> list[str]:
        return [v for t, a, v in self.attributes if (t, a) == (tag, attribute)]

    def text(self, name: str | None = None) -> str:
        words = self.words if name is None else self.by_id.get(name, [])
        return " ".join(" ".join(words).split())


def make_set(folder: Path, names: Sequence[str], labels: Sequence[str] = ("A", "B")) -> Manifest:
    """Noise pictures of 48 × 64 in class folders, the labels in turn."""
    for number, name in enumerate(names):
        place = folder / labels[number % len(labels)] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        place.write_bytes(encode_jpeg(pixels, 60))
    return scan(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_set(tmp_path_factory.mktemp("set"), [f"{n:03}.jpg" for n in range(40)])


def ids_of(manifest: Manifest) -> list[str]:
    return [str(image) for image in manifest.table["image"]]


def write(
    tmp_path: Path,
    manifest: Manifest,
    issues: Sequence[Issue] = (),
    groups: Sequence[Sequence[str]] = (),
    **other: Any,
) -> Page:
    known: dict[str, Any] = {"leukocytes": {}, "drawn": {}, **other}
    path = write_audit_page(tmp_path / "audit.html", manifest, issues, groups, **known)
    return Page(path.read_text("utf-8"))


def every_kind(ids: Sequence[str], word: str = "") -> list[Issue]:
    """One issue of every kind: of no image, of one, of two, of two with boxes, in turn."""
    issues = []
    for number, kind in enumerate(KINDS):
        images = tuple(ids[number % len(ids) :][: (0, 1, 2, 2)[number % 4]])
        evidence: dict[str, Any] = {}
        if number % 4 == 3:
            evidence = {"boxes": [[1, 2, 20, 30], [[5, 5, 25, 25]]], "suggested": f"C{word}"}
        issues.append(Issue(kind, images, f"Finding {number}{word}.", 1.0, evidence))
    return issues


def test_every_kind_has_its_words_and_its_pictures(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    page = write(tmp_path, small, every_kind(ids))
    for number, (name, kind) in enumerate(KINDS.items()):
        told = page.text(f"kind-{name}")
        for words in (kind.title, kind.meaning, kind.advice, f"Finding {number}."):
            assert words in told
        assert ("worth a look" in told) == (not kind.hard)
        assert f"#kind-{name}" in page.values("a", "href")
    assert "→ C" in page.text(f"kind-{list(KINDS)[3]}")
    assert page.values("rect", "class").count("marked") > 0
    assert f"{len(KINDS)} kinds of issues" in page.text()


def test_page_asks_nothing_of_a_network(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    found = {ids[0]: [(1, 2, 20, 30, 0.9)]}
    page = write(tmp_path, small, every_kind(ids), [ids[:3]], meter=METER, leukocytes=found)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert "://" not in value, (tag, name)
        if name in ("src", "href"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:40])
    style = (tmp_path / "audit.html").read_text("utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_every_reference_has_its_target(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    page = write(tmp_path, small, every_kind(ids), [ids[:2]], meter=METER,
                 leukocytes={i: [(1, 2, 20, 30, 0.9)] for i in ids})  # fmt: skip
    names = [value for _, name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    targets = [v[1:] for t in ("a", "use") for v in page.values(t, "href")]
    assert targets
    assert set(targets) <= set(names)


def test_a_picture_is_embedded_once_and_is_a_small_jpeg(small: Manifest, tmp_path: Path) -> None:
    import base64

    ids = ids_of(small)
    issues = [Issue("same_cell", (ids[0], ids[1]), "One."), Issue("blurred", (ids[0],), "Two.")]
    page = write(tmp_path, small, issues, [ids[:2]])
    uris = page.values("image", "href")
    assert len(uris) == 2
    assert len(page.values("use", "href")) == 5
    pixels = decode_image(base64.b64decode(uris[0].removeprefix("data:image/jpeg;base64,")))
    assert pixels.shape == (48, 64, 3)


def test_hostile_names_and_labels_appear_as_text(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(6)]
    plain = make_set(tmp_path / "plain", names, ["A", "B"])
    evil = make_set(tmp_path / "evil", [HOSTILE + n for n in names], [f"A{HOSTILE}", "B\"'"])
    pages = []
    for manifest, word in ((plain, ""), (evil, HOSTILE)):
        ids = ids_of(manifest)
        pages.append(write(
            tmp_path, manifest, every_kind(ids, word), [ids[:3]], meter=METER,
            leukocytes={i: [(1, 2, 20, 30, 0.9)] for i in ids}, command=["leuko", f"a{word}"],
            facts={f"numpy{word}": f"2{word}"},
        ))  # fmt: skip
    assert pages[0].tags == pages[1].tags
    assert [a[:2] for a in pages[0].attributes] == [a[:2] for a in pages[1].attributes]
    words = pages[1].text()
    for written in (f"A{HOSTILE}", f"{HOSTILE}0.jpg", f"C{HOSTILE}", f"numpy{HOSTILE}"):
        assert written in words


def test_same_inputs_give_same_bytes(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, small, every_kind(ids), [ids[:2]], meter=METER)
        pages.append((tmp_path / name / "audit.html").read_bytes())
    assert pages[0] == pages[1]
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["audit.html"]


def test_worst_come_first_and_the_rest_is_counted(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    issues = [Issue("blurred", (i,), f"Detail {n}.", n / 40) for n, i in enumerate(ids)]
    told = write(tmp_path, small, issues).text("kind-blurred")
    assert re.findall(r"Detail (\d+)\.", told) == [str(n) for n in range(39, 15, -1)]
    assert "and 16 more, in audit.json" in told


def test_issue_of_many_images_shows_some_and_counts_the_others(
    small: Manifest, tmp_path: Path
) -> None:
    ids = ids_of(small)
    page = write(tmp_path, small, [Issue("spelling", tuple(ids), "Many.")], [ids[:20]])
    assert "34 more without a picture" in page.text("kind-spelling")
    assert "20 images: 20 × A. 12 more without a picture" in page.text("groups")


def test_large_set_stays_small_and_tells_every_kind(
    small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_page, "MOST_CHARACTERS", 60_000)
    ids = ids_of(small)
    issues = [
        Issue(kind, (ids[(7 * n + k) % 40],), f"{kind} {n}.", 1 - n / 1000)
        for k, kind in enumerate(KINDS)
        for n in range(300)
    ]
    page = write(tmp_path, small, issues)
    assert 60_000 <= sum(map(len, page.values("image", "href"))) < 70_000
    for kind in KINDS:
        assert f"{kind} 23." in page.text(f"kind-{kind}")
        assert "and 276 more" in page.text(f"kind-{kind}")


def test_unreadable_file_is_a_box_with_its_reason(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "set", ["a.jpg", "b.jpg", "c.jpg"], ["A"])
    a, b, c = ids_of(manifest)
    (manifest.root / manifest.table["path"][0]).unlink()
    whole = (manifest.root / manifest.table["path"][1]).read_bytes()
    (manifest.root / manifest.table["path"][1]).write_bytes(whole[: len(whole) // 2])
    page = write(tmp_path, manifest, [Issue("unreadable", (a, b, c), "Bad.")], [[a, "unknown"]])
    assert "can't be read: not found" in page.text("kind-unreadable")
    assert "can't be read: truncated" in page.text("kind-unreadable")
    assert "no file" in page.text("groups")
    assert len(page.values("image", "href")) == 1


def test_empty_audit_says_that_nothing_was_found(small: Manifest, tmp_path: Path) -> None:
    page = write(tmp_path, small)
    assert "No issue was found in 40 images." in page.text()
    assert "image" not in page.tags
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {"found", "groups", "made"} <= ids
    assert not {"issues", "boxes", "leak"} & ids
    for kind in KINDS.values():
        assert kind.title in page.text("found")


def test_kinds_that_were_not_looked_for_are_not_called_absent(
    small: Manifest, tmp_path: Path
) -> None:
    issues = [Issue("blurred", (ids_of(small)[0],), "x")]
    page = write(tmp_path, small, issues, looked_for={"unreadable"})
    assert "Looked for and not found: Unreadable." in page.text("found")
    assert "Not looked for: Truncated or padded;" in page.text("found")
    assert page.text("found").count("Blurred") == 1


def test_verdict_is_made_from_the_numbers(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    issues = [
        Issue("label_conflict", (ids[0], ids[1]), "x"), Issue("blurred", (ids[1],), "y"),
        Issue("no_image", ("gone",), "z"), Issue("imbalance", (), "w"),
    ]  # fmt: skip
    assert (
        "4 kinds of issues in 2 of 40 images and 1 name without an image; 2 groups of images show "
        "one cell or come from one source each; 1 label conflict."
    ) in write(tmp_path, small, issues, [ids[:2], ids[3:6]]).text()
    told = write(tmp_path, small, issues[3:], [ids[:2]]).text()
    assert "1 kind of issue in the set as a whole; 1 group of images shows" in told


def test_sizes_of_groups_are_counted(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    groups = [ids[:2], ids[2:4], ids[4:10], ids[10:33]]
    told = write(tmp_path, small, (), groups).text("groups")
    assert "4 groups of images" in told
    assert "33 images in all" in told
    assert "2 2 4 5–9 1 6 20–49 1 23" in told


def test_boxes_are_drawn_where_they_lie_and_compared(small: Manifest, tmp_path: Path) -> None:
    ids = ids_of(small)
    found = {i: [(10.0, 8.0, 30.0, 28.0, 0.87)] for i in ids[:20]} | {ids[0]: []}
    drawn = {ids[0]: [(1.0, 1.0, 9.0, 9.0)], ids[1]: [(11.0, 8.0, 30.0, 28.0)]}
    page = write(tmp_path, small, leukocytes=found, drawn=drawn)
    told = page.text("boxes")
    assert "Of 2 boxes drawn by hand in 2 images, 1 were found" in told
    assert "and 1 missed" in told
    assert told.count("0.87") == 11
    assert page.values("svg", "viewbox")[0] == "0 0 64 48"
    rects = [dict(zip(("x", "y", "width", "height"), r, strict=True)) for r in zip(
        *(page.values("rect", a) for a in ("x", "y", "width", "height")), strict=True)]  # fmt: skip
    assert {"x": "10", "y": "8", "width": "20", "height": "20"} in rects
    assert {"x": "1", "y": "1", "width": "8", "height": "8"} in rects


def test_close_up_shows_the_cell_without_boxes(tmp_path: Path) -> None:
    path = tmp_path / "field.jpg"
    path.write_bytes(encode_jpeg(np.full((240, 320, 3), 200, np.uint8)))
    found = {"a": [(10.0, 10.0, 20.0, 20.0, 0.4), (250.0, 180.0, 320.0, 240.0, 0.9)]}
    album = Album({"a": path}, {"a": "A"}, found, {})
    marked = album.take("a", [(100.0, 60.0, 200.0, 140.0)], close=True)
    assert marked.picture.view == (75, 25, 150, 150)
    assert marked.frames == ()
    surest = album.take("a", close=True)
    assert surest.picture.view == (215, 135, 105, 105)  # at the border, moved inside
    whole = album.take("a")
    assert whole.picture.view == (0, 0, 320, 240)
    assert len(whole.frames) == 2
    assert len(album.pictures()) == 3


@pytest.mark.parametrize(
    ("found", "drawn", "matched"),
    [
        ([], [(0, 0, 10, 10)], 0),
        ([(0, 0, 10, 10, 1)], [], 0),
        ([(0, 0, 10, 5, 1)], [(0, 0, 10, 10)], 1),  # exactly a half
        ([(0, 0, 10, 4.9, 1)], [(0, 0, 10, 10)], 0),
        ([(0, 0, 10, 10, 1), (0, 0, 10, 9, 0.5)], [(0, 0, 10, 10)], 1),  # one box, one cell
        ([(0, 0, 0, 0, 1)], [(0, 0, 0, 0)], 0),
    ],
)
def test_matching_of_boxes(found: Any, drawn: Any, matched: int) -> None:
    assert match_boxes(found, drawn) == matched


def test_leak_meter_is_shown_with_its_numbers(small: Manifest, tmp_path: Path) -> None:
    page = write(tmp_path, small, meter=METER)
    told = page.text("leak")
    for words in ("+3.2 +1.1 to +5.5", "71.0 66.0–76.0", "348 images of 4 classes", "59.4 %",
                  f"nearest {HOSTILE}", "by <thumbnail>", METER["verdict"], "– –"):  # fmt: skip
        assert str(words) in told
    assert page.values("img", "src")[0].startswith("data:image/svg+xml;base64,")


def test_report_has_the_leak_meter_if_the_results_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in plots.__all__:  # the others are drawn in test_report
        if name.startswith("draw_") and name != "draw_leak_meter":
            monkeypatch.setattr(plots, name, lambda *_: canvas.new_figure(1, 1))
    run = write_run(tmp_path / "run", size=8, models={"alexnet": 1.5})
    facts = json.loads((run / "results.json").read_text("utf-8"))
    (run / "results.json").write_text(json.dumps(facts | {"leak_meter": METER}), "utf-8")
    page = Page(report.write_report(run).read_text("utf-8"))
    assert "+3.2 +1.1 to +5.5" in page.text("leak")
    assert "#leak" in page.values("a", "href")
    assert (run / "figures" / "leak_meter.png").is_file()


def test_unknown_kind_is_refused_with_a_suggestion(small: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'blurred'"):
        write(tmp_path, small, [Issue("blured", (), "x")])
    assert not (tmp_path / "audit.html").exists()


def test_folder_that_is_missing_is_named(small: Manifest, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone"):
        write(tmp_path / "gone", small)
