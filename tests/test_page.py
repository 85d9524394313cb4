"""The laboratory's page in a real browser, before the real service: what a person does with it.

The cells are drawn; what the shipped model says of them is as good as any other beginning.
"""

from __future__ import annotations

import base64
import csv
import io
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from leuko.data.drawing import draw_field
from leuko.errors import LeukoError
from leuko.service.app import create_app
from leuko.service.server import listen, make_server
from leuko.service.settings import ServiceSettings
from leuko.service.store import Store
from leuko.use.predictor import Predictor
from running_service import Service
from small_bundle import CLASSES, make_bundle

CHROMIUM = os.environ.get("LEUKO_TEST_CHROMIUM") or shutil.which("chromium")
HOSTILE = "<img src=x onerror=document.title='broken'>"
KINDS = ("NEUTROPHIL", "LYMPHOCYTE", "EOSINOPHIL", "NEUTROPHIL", "LYMPHOCYTE")
VIEWS = ("gallery", "fields", "cell", "trail")

expect.set_options(timeout=60_000)  # a machine may be busy with other tests

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("service"), None)
    running.wait_until_ready()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A person before the page; whatever the page complains of fails the test."""

    def __init__(self, browser: Browser, url: str, reader: str = "Ada Meyer", **facts: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **facts)
        self.context.add_init_script(f"localStorage.setItem('leuko.reader', '{reader}')")
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.url = url
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        # A refusal such as 409 is an answer; that the page breaks its own policy is a fault.
        if "Content Security Policy" in message.text:
            self.faults.append(message.text)

    def go(self, where: str) -> Page:
        """Shows a view of a reading, such as ``3/7/gallery``, or the start with an empty one."""
        self.page.goto(f"{self.url}/#/" + (f"slides/{where}" if where else ""))
        if where.endswith("gallery"):
            self.page.wait_for_selector(".tile[tabindex='0']")
        return self.page

    def close(self) -> None:
        self.context.close()
        assert not self.faults


@pytest.fixture
def visit(browser: Browser, service: Service) -> Iterator[Visit]:
    opened = Visit(browser, service.url)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{service.url}/api/v1/", timeout=60) as client:
        yield client


def draw(count: int) -> list[tuple[str, bytes]]:
    """Fields as JPEG, five leukocytes each."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        image = draw_field(rng, KINDS, mark=False, blur=0.8).image
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=90)
        found.append((f"field {number + 1}.jpg", out.getvalue()))
    return found


def drop(page: Page, files: list[tuple[str, bytes]]) -> None:
    """Lets files fall onto the page, as a mouse does."""
    coded = [(name, base64.b64encode(data).decode()) for name, data in files]
    carried = page.evaluate_handle(
        """(files) => {
            const carried = new DataTransfer();
            for (const [name, coded] of files) {
                const bytes = Uint8Array.from(atob(coded), (letter) => letter.charCodeAt(0));
                carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
            }
            return carried;
        }""",
        coded,
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": carried})


@pytest.fixture(scope="module")
def slide(browser: Browser, service: Service, api: httpx.Client) -> dict[str, Any]:
    """A slide as a person begins it: 22 fields dropped, and a file that is none among them."""
    opened = Visit(browser, service.url, reader="")
    page = opened.go("")
    drop(page, [*draw(22), (f"{HOSTILE}.jpg", b"no picture")])
    page.get_by_text("23 images chosen.").wait_for()
    page.get_by_label("Name of the slide").fill(f"Smear {HOSTILE}")
    page.get_by_label("Your name").fill("Ada Meyer")
    page.get_by_text("Keep the images after signing.").click()
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("23 of 23 images done").wait_for(timeout=400_000)
    bad = page.locator(".files .aside")
    expect(bad).to_have_count(1)
    expect(bad).to_contain_text(HOSTILE)
    expect(bad.locator(".note")).to_contain_text("set aside: ")
    assert page.locator("main img").count() == 0
    assert page.title() != "broken"
    opened.close()
    (made,) = api.get("slides").json()
    return api.get(f"slides/{made['id']}").json()


class Review:
    """A reading of one's own, seen through the interface that programs use."""

    def __init__(self, api: httpx.Client, slide: dict[str, Any], reader: str) -> None:
        made = api.post(f"slides/{slide['id']}/readings", json={"reader": reader}).json()
        self.api = api
        self.path = f"slides/{slide['id']}/readings/{made['id']}"
        self.where = f"{slide['id']}/{made['id']}"

    def cells(self) -> dict[int, dict[str, Any]]:
        return {cell["id"]: cell for cell in self.api.get(self.path).json()["cells"]}

    def change(self, kind: str, *cells: int, **facts: Any) -> None:
        """As another person does, who has seen everything."""
        revision = self.api.get(self.path).json()["revision"]
        body = {"id": str(uuid4()), "revision": revision, "kind": kind, "cells": cells, **facts}
        self.api.post(f"{self.path}/changes", json=body).raise_for_status()

    def having(self, state: str) -> list[int]:
        return [i for i, cell in self.cells().items() if cell["state"] == state]


@pytest.fixture
def review(api: httpx.Client, slide: dict[str, Any], request: pytest.FixtureRequest) -> Review:
    return Review(api, slide, request.node.name[:60])


def tile(page: Page, cell: int) -> Any:
    return page.locator(f"#tile-{cell}")


def group(page: Page, name: str) -> Any:
    return page.locator(f"section[data-place='{name}']")


def other(label: str) -> str:
    return "lymphocyte" if label != "lymphocyte" else "monocyte"


# --- the way from images to a signed differential -------------------------------------------------


def test_a_hundred_cells_with_five_wrong_are_signed_in_fifteen_actions(
    visit: Visit, review: Review
) -> None:
    cells = review.cells()
    doubtful, sure = review.having("unidentified"), review.having("pre-classified")
    assert len(cells) >= 100
    assert doubtful
    wrong = [*doubtful[:2], *sure[::30][:3]]  # wherever they are
    page = visit.go(f"{review.where}/gallery")
    actions = 0

    def press(key: str) -> None:
        nonlocal actions
        page.keyboard.press(key)
        actions += 1

    def click(what: Any) -> None:
        nonlocal actions
        what.click()
        actions += 1

    press("Control+a")  # the doubtful ones: the page begins there
    press("Enter")
    expect(group(page, "unidentified").locator(".tile")).to_have_count(0)
    for cell in wrong:
        label = other(cells[cell]["label"])
        click(tile(page, cell))
        press(label[0])
        expect(group(page, label).locator(f"#tile-{cell}")).to_be_visible()
    press("Control+Enter")
    expect(page.locator(".progress")).to_contain_text(f"{len(cells)} of {len(cells)} cells")
    click(page.get_by_role("button", name="Sign …"))
    page.get_by_role("dialog").wait_for()
    press("Enter")  # the name is known
    expect(page.locator(".actions .signed")).to_contain_text("Signed by Ada Meyer")
    assert actions <= 15

    now = review.cells()
    assert all(now[cell]["label"] == other(cells[cell]["label"]) for cell in wrong)
    assert {cell["state"] for cell in now.values()} == {"reviewed"}
    expect(page.locator(".bar")).to_be_hidden()


def test_twenty_real_fields_become_a_signed_differential(
    visit: Visit, api: httpx.Client, real_data: Path
) -> None:
    folder = real_data / "blood-cells" / "dataset-master" / "dataset-master" / "JPEGImages"
    files = [(path.name, path.read_bytes()) for path in sorted(folder.glob("*.jpg"))[:20]]
    page = visit.go("")
    drop(page, files)
    page.get_by_label("Name of the slide").fill("Smear 19")
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("20 of 20 images done").wait_for(timeout=200_000)
    page.keyboard.press("Enter")  # on to the cells
    page.wait_for_selector(".tile:focus")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Sign …").click()
    page.get_by_label("out of the count").check()
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(page.locator(".actions .signed")).to_contain_text("Signed by Ada Meyer")
    with page.expect_download() as saved:
        page.locator("a[data-file='differential.csv']").click()
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text())))
    assert {row["status"] for row in rows} == {"final"}
    counted = sum(int(row["count"]) for row in rows if row["sort"] == "leukocyte")
    assert page.locator(".progress strong").text_content() == str(counted)
    # The images weren't to be kept, and are gone.
    slide = page.url.split("/slides/")[1].split("/")[0]
    first = api.get(f"slides/{slide}").json()["fields"][0]["id"]
    assert api.get(f"slides/{slide}/fields/{first}/image").status_code == 410
    page.reload()
    expect(page.locator(".tile .gone").first).to_be_visible()


def test_a_signed_differential_is_saved_as_csv(
    visit: Visit, review: Review, api: httpx.Client
) -> None:
    body = {"name": "Ada Meyer", "revision": api.get(review.path).json()["revision"]}
    api.post(f"{review.path}/signature", json={**body, "leave_unidentified": True})
    page = visit.go(f"{review.where}/gallery")
    with page.expect_download() as saved:
        page.locator("a[data-file='differential.csv']").click()
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text())))
    written = {row["class"]: int(row["count"]) for row in rows if row["sort"] == "leukocyte"}
    counted = api.get(f"{review.path}/differential").json()["reviewed"]["rows"]
    assert written == {row["label"]: row["count"] for row in counted}
    assert {row["status"] for row in rows} == {"final"}


def test_what_was_signed_changes_only_as_a_new_version(
    visit: Visit, review: Review, api: httpx.Client
) -> None:
    page = visit.go(f"{review.where}/gallery")
    page.get_by_role("button", name="Sign …").click()
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(page.locator("dialog .wrong")).to_contain_text("leave the doubtful cells out of the")
    expect(page.locator("dialog .wrong")).not_to_contain_text("leave_unidentified")
    page.get_by_label("out of the count").click()
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(page.locator(".actions .signed")).to_be_visible()
    before = review.cells()
    page.locator(".tile").first.focus()
    page.keyboard.press("l")
    expect(page.locator("#notices")).to_contain_text("signed")
    assert review.cells() == before
    page.locator(".actions").get_by_role("button", name="New version").click()
    page.get_by_role("button", name="Begin the new version").click()
    expect(page.locator("dialog .wrong")).to_contain_text("reason")
    page.get_by_label("Reason").fill("Two cells were swapped.")
    page.get_by_role("button", name="Begin the new version").click()
    expect(page.locator(".bar")).to_be_visible()
    page.locator(".tile").first.focus()
    page.keyboard.press("4")
    expect(page.locator(".history")).to_contain_text("Two cells were swapped.")
    expect(page.locator(".history")).to_contain_text("Signed")


def test_images_are_looked_at_again_when_the_last_one_has_come(
    visit: Visit, browser: Browser, api: httpx.Client
) -> None:
    files = [
        (name, enlarge(data, part))
        for (name, data), part in zip(draw(3), (1, 0.8, 0.72), strict=True)
    ]
    new = api.post("slides", json={"name": "Smear of three", "reader": "Ada Meyer"}).json()
    place, where = f"slides/{new['id']}", f"{new['id']}/{new['readings'][0]['id']}"
    for name, data in files:
        api.post(f"{place}/fields", files={"file": (name, data)}).raise_for_status()
    page = visit.go(f"{where}/gallery")
    begun = {tile.get_attribute("id") for tile in page.locator(".tile").all()}
    again = api.post(f"{place}/scale").json()
    assert again["field"] is not None
    path = f"{place}/readings/{new['readings'][0]['id']}"
    now = {f"tile-{cell['id']}" for cell in api.get(path).json()["cells"]}
    for gone in begun - now:
        expect(page.locator(f"#{gone}")).to_have_count(0)
    for come in now - begun:
        expect(page.locator(f"#{come}")).to_be_attached()

    page = visit.go("")
    drop(page, files)
    page.get_by_label("Name of the slide").fill("Smear of three more")
    page.get_by_role("button", name="Begin").click()
    page.get_by_text("3 of 3 images done").wait_for()
    expect(page.get_by_role("link", name="Review the cells")).to_be_focused()
    made = api.get("slides").json()[0]
    assert made["name"] == "Smear of three more"
    assert api.post(f"slides/{made['id']}/scale").json() == {"field": None, "left": 0}
    found = api.get(f"slides/{made['id']}").json()["fields"]
    for field in found:
        row = page.locator(".files li", has_text=field["name"])
        expect(row.locator(".note")).to_have_text(f"{len(field['cells'])} cells")
    page.goto(f"{visit.url}/#/slides/{made['id']}/{made['readings'][0]['id']}/trail")
    expect(page.locator(".history")).to_contain_text("at the scale of all images")


def enlarge(data: bytes, part: float) -> bytes:
    """The same number of pixels for less of a field."""
    image = Image.open(io.BytesIO(data))
    size = image.size
    out = io.BytesIO()
    image.crop((0, 0, round(size[0] * part), round(size[1] * part))).resize(size).save(
        out, "JPEG", quality=90
    )
    return out.getvalue()


def test_a_busy_service_is_asked_again_and_an_image_can_be_cancelled(
    visit: Visit, api: httpx.Client
) -> None:
    new = api.post("slides", json={"name": "Smear 18", "reader": "Ada Meyer"}).json()
    page = visit.go(f"{new['id']}/images/{new['readings'][0]['id']}")
    keys = []

    def refuse_once(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) > 1:
            route.continue_()
            return
        busy = {"error": {"code": "busy", "message": "Too many wait. Try again."}}
        route.fulfill(status=503, headers={"Retry-After": "1"}, json=busy)

    page.route("**/fields", refuse_once)
    (first, second) = draw(2)
    drop(page, [first])
    expect(page.locator(".files .done")).to_contain_text("cells")
    assert len(set(keys)) == 1  # the same image, whatever happened to the first answer
    page.unroute("**/fields")
    drop(page, [("the same.jpg", first[1])])
    expect(page.locator(".files li").last).to_contain_text("is here already as field 1.jpg")
    page.route("**/fields", _hold)
    drop(page, [second])
    page.get_by_role("button", name="Cancel field 2.jpg").click()
    expect(page.locator(".files .cancelled")).to_contain_text("field 2.jpg")
    page.unroute_all(behavior="ignoreErrors")
    page.reload()
    expect(page.locator(".files li")).to_have_count(1)


# --- changing cells -------------------------------------------------------------------------------


def test_cells_are_moved_by_keys_and_nothing_is_lost_by_a_reload(
    visit: Visit, review: Review
) -> None:
    doubtful = review.having("unidentified")
    page = visit.go(f"{review.where}/gallery")
    first = int(page.locator(".tile[tabindex='0']").get_attribute("data-id"))
    assert first in doubtful  # the most doubtful one waits first
    page.keyboard.press("m")
    expect(group(page, "monocyte").locator(f"#tile-{first}")).to_be_visible()
    second = int(page.locator(".tile:focus").get_attribute("data-id"))
    assert second != first
    assert second in doubtful
    page.keyboard.press("Delete")
    expect(group(page, "deleted").locator(f"#tile-{second}")).to_be_visible()
    page.reload()
    expect(group(page, "monocyte").locator(f"#tile-{first}")).to_be_visible()
    expect(group(page, "deleted").locator(f"#tile-{second}")).to_be_visible()
    page.locator(".tile:focus").wait_for()
    page.keyboard.press("z")
    expect(group(page, "unidentified").locator(f"#tile-{second}")).to_be_visible()
    page.keyboard.press("z")
    expect(group(page, "unidentified").locator(f"#tile-{first}")).to_be_visible()
    page.keyboard.press("y")
    expect(group(page, "monocyte").locator(f"#tile-{first}")).to_be_visible()
    page.keyboard.press("u")
    expect(group(page, "unidentified").locator(f"#tile-{first}")).to_be_visible()


def test_the_trail_says_in_which_field_and_from_what_to_what(visit: Visit, review: Review) -> None:
    cell = review.having("pre-classified")[0]
    facts = review.cells()[cell]
    fields = review.api.get(review.path.split("/readings")[0]).json()["fields"]
    name = next(field["name"] for field in fields if field["id"] == facts["field"])
    review.change("label", cell, label="monocyte", by="Ben Roth")
    last = review.api.get(review.path).json()["undo"]
    review.change("undo", change=last, by="Ben Roth")
    review.change("label", cell, label="blast", by="Ben Roth")
    review.change("label", cell, label="basophil", by="Ben Roth")
    page = visit.go(f"{review.where}/trail")
    told = page.locator(".history p:not(.hint)")
    expect(told.nth(0)).to_have_text(f"{name}: blast → basophil")
    expect(told.nth(1)).to_have_text(f"{name}: {facts['label']} → blast")
    expect(told.nth(2)).to_have_text(f"Undone: {name}: {facts['label']} → monocyte")
    told.nth(0).get_by_role("link").click()
    page.wait_for_url(f"**/cell/{cell}")


def test_no_answer_is_called_certain(visit: Visit, review: Review) -> None:
    page = visit.go(f"{review.where}/gallery")
    said = page.evaluate(
        "import('./elements.js').then((e) => [1, 0.9967, 0.994, 0.5, 0.001, 0].map(e.likely))"
    )
    assert said == [">\u00a099", ">\u00a099", "99", "50", "<\u00a01", "0"]
    captions = " ".join(page.locator(".tile .caption").all_text_contents())
    assert ">\u00a099\u00a0%" in captions
    assert "100\u00a0%" not in captions


def test_nucleated_red_cells_are_shown_with_their_limits(visit: Visit, review: Review) -> None:
    review.change("label", *review.having("pre-classified")[:3], label="erythroblast")
    page = visit.go(f"{review.where}/gallery")
    found = review.api.get(f"{review.path}/differential").json()["reviewed"]["beside"]
    (row,) = [one for one in found if one["label"] == "erythroblast"]
    expect(page.get_by_role("row", name="erythroblast")).to_contain_text(
        f"{row['per_100']:.1f} ({row['low']:.1f}–{row['high']:.1f}) per 100"
    )


def test_cells_are_moved_by_mouse(visit: Visit, review: Review) -> None:
    sure = [i for i, c in review.cells().items() if c["state"] == "pre-classified"
            and c["label"] == "neutrophil"][:4]  # fmt: skip
    page = visit.go(f"{review.where}/gallery")
    tile(page, sure[0]).drag_to(page.locator(".bar [data-place='basophil']"))
    expect(group(page, "basophil").locator(f"#tile-{sure[0]}")).to_be_visible()
    for cell in sure[1:3]:
        tile(page, cell).click(modifiers=["Control"])
    expect(page.locator(".tile[aria-selected='true']")).to_have_count(2)
    page.locator(".bar [data-place='monocyte']").click()
    expect(group(page, "monocyte").locator(f"#tile-{sure[1]}")).to_be_visible()
    expect(group(page, "monocyte").locator(f"#tile-{sure[2]}")).to_be_visible()
    # a frame drawn round two neighbours, then dragged onto a class
    tile(page, sure[1]).scroll_into_view_if_needed()
    a, b = (
        group(page, "monocyte").locator(".tiles").bounding_box(),
        tile(page, sure[2]).bounding_box(),
    )
    page.mouse.move(a["x"] + a["width"] - 4, a["y"] + 10)
    page.mouse.down()
    page.mouse.move(a["x"] + 10, b["y"] + b["height"] / 2, steps=6)
    page.mouse.up()
    chosen = page.locator(".tile[aria-selected='true']")
    assert chosen.count() >= 2
    count = chosen.count()
    tile(page, sure[1]).drag_to(page.locator(".bar [data-place='eosinophil']"))
    expect(group(page, "eosinophil").locator(f"#tile-{sure[2]}")).to_be_visible()
    now = review.cells()
    assert sum(c["changed"] > 0 and c["label"] == "eosinophil" for c in now.values()) == count


def test_a_hostile_label_is_text(visit: Visit, review: Review) -> None:
    page = visit.go(f"{review.where}/gallery")
    cell = int(page.locator(".tile[tabindex='0']").get_attribute("data-id"))
    page.keyboard.press("o")
    page.get_by_label("What is it?").fill(HOSTILE)
    page.keyboard.press("Enter")
    expect(page.locator("section.group h2", has_text=HOSTILE)).to_be_visible()
    expect(page.locator(".counts")).to_contain_text(HOSTILE)
    expect(page.locator(".bar")).to_contain_text(HOSTILE)
    page.goto(f"{visit.url}/#/slides/{review.where}/cell/{cell}")
    expect(page.locator(".verdict strong")).to_have_text(HOSTILE)
    page.goto(f"{visit.url}/#/slides/{review.where}/trail")
    expect(page.locator(".history")).to_contain_text(HOSTILE)
    assert page.locator("img[src='x']").count() == 0
    assert page.title() == f"Smear {HOSTILE} · Trail · Leuko"


def test_cells_are_added_and_split_without_a_mouse(visit: Visit, review: Review) -> None:
    before = review.cells()
    page = visit.go(f"{review.where}/fields")
    page.locator(".canvas .box").first.wait_for()
    page.get_by_role("button", name="Add a cell").focus()
    for key in ("Enter", "ArrowRight", "ArrowDown", "Shift+ArrowUp", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".mode")).to_be_hidden()
    (added,) = [c for i, c in review.cells().items() if i not in before]
    assert added["added"]
    assert added["machine"]["label"] in added["machine"]["probabilities"]
    expect(page.locator(f".box[data-id='{added['id']}']")).to_be_focused()
    page.get_by_role("button", name="Split").focus()
    for key in ("Enter", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".mode")).to_be_hidden()
    now = review.cells()
    halves = [c for i, c in now.items() if i not in before and i != added["id"]]
    assert now[added["id"]]["deleted"]
    assert len(halves) == 2


def test_a_missed_cell_is_drawn_with_the_mouse(visit: Visit, review: Review) -> None:
    before = review.cells()
    page = visit.go(f"{review.where}/fields")
    page.locator(".canvas .box").first.wait_for()
    page.get_by_role("button", name="Add a cell").click()
    area = page.locator(".canvas").bounding_box()
    page.mouse.move(area["x"] + 30, area["y"] + 30)
    page.mouse.down()
    page.mouse.move(area["x"] + 150, area["y"] + 130, steps=4)
    page.mouse.up()
    expect(page.locator(".mode")).to_be_hidden()
    (added,) = [c for i, c in review.cells().items() if i not in before]
    x0, y0, x1, y1 = added["box"]
    field = next(f for f in review.api.get(review.path.partition("/readings")[0]).json()["fields"]
                 if f["id"] == added["field"])  # fmt: skip
    unit = field["width"] / area["width"]
    assert (x1 - x0, y1 - y0) == pytest.approx((120 * unit, 100 * unit), abs=4)


def test_a_change_outlives_a_broken_line(visit: Visit, review: Review) -> None:
    page = visit.go(f"{review.where}/gallery")
    cell = int(page.locator(".tile[tabindex='0']").get_attribute("data-id"))
    sent = []

    def break_off(route: Route) -> None:
        sent.append(route.request.post_data_json["id"])
        if len(sent) == 1:
            route.fetch()  # it arrives, but the answer is lost
        if len(sent) < 3:
            route.abort()
        else:
            route.continue_()

    page.route("**/changes", break_off)
    page.keyboard.press("m")
    expect(page.locator("#notices .warn")).to_contain_text("doesn't answer")
    expect(group(page, "monocyte").locator(f"#tile-{cell}")).to_be_visible()
    expect(page.locator("#notices .warn")).to_have_count(0)
    assert len(set(sent)) == 1
    assert review.cells()[cell]["label"] == "monocyte"
    trail = review.api.get(f"{review.path}/trail").json()
    assert sum(entry["kind"] == "label" for entry in trail) == 1


def test_a_slide_that_was_signed_offers_to_delete_its_images_only(
    visit: Visit, api: httpx.Client
) -> None:
    made = api.post(
        "slides", json={"name": "Smear to keep", "reader": "Ada Meyer", "keep_images": True}
    ).json()
    ((name, data),) = draw(1)
    api.post(f"slides/{made['id']}/fields", files={"file": (name, data)}).raise_for_status()
    where = f"{made['id']}/{made['readings'][0]['id']}"
    path = f"slides/{made['id']}/readings/{made['readings'][0]['id']}"
    row = visit.go("").locator(".slide", has_text="Smear to keep")
    expect(row.get_by_role("button", name="Delete the slide")).to_be_visible()

    def sign() -> None:
        cells = api.get(path).json()["cells"]
        seen = api.get(path).json()["revision"]
        body = {"id": str(uuid4()), "revision": seen, "kind": "label", "label": "blast"}
        api.post(f"{path}/changes", json={**body, "cells": [cells[0]["id"]]}).raise_for_status()
        seen += 1
        body = {"name": "Ada Meyer", "revision": seen, "leave_unidentified": True}
        api.post(f"{path}/signature", json=body).raise_for_status()

    sign()
    api.post(f"{path}/versions", json={"name": "Ada Meyer", "reason": "Once more."})
    visit.page.reload()
    expect(row.get_by_role("button", name="Second reading")).to_be_visible()
    expect(row.get_by_role("button", name="Delete")).to_have_count(0)  # one reading is open
    sign()
    page = visit.go(f"{where}/gallery")
    expect(page.locator("a[data-file='set.zip']")).to_be_visible()
    visit.go("")
    row.get_by_role("button", name="Delete the images").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete the images").click()
    expect(row.get_by_role("button", name="Delete")).to_have_count(0)
    assert api.get(f"slides/{made['id']}").json()["images_deleted"]
    visit.go(f"{where}/gallery")
    expect(page.locator("a[data-file='cells.csv']")).to_be_visible()
    expect(page.locator("a[data-file='set.zip']")).to_have_count(0)
    expect(page.locator(".exports")).to_contain_text("it needs the images, and they are deleted")
    refused = api.delete(f"slides/{made['id']}").json()["error"]["message"]
    assert "keep_images" not in refused


# --- two people -----------------------------------------------------------------------------------


def test_two_browsers_see_each_other_and_lose_nothing(
    visit: Visit, browser: Browser, service: Service, review: Review
) -> None:
    second = Visit(browser, service.url, reader="Ben Roth")
    page, others = visit.go(f"{review.where}/gallery"), second.go(f"{review.where}/gallery")
    one, two = review.having("unidentified")[:2]
    tile(page, one).click()
    page.keyboard.press("m")
    expect(group(others, "monocyte").locator(f"#tile-{one}")).to_be_visible()
    # Now the second one doesn't hear of it in time.
    others.route("**/changes?since=*&wait=*", lambda route: _hold(route))
    tile(others, one).click()
    others.keyboard.press("b")
    expect(group(page, "basophil").locator(f"#tile-{one}")).to_be_visible()
    tile(page, two).click()
    page.keyboard.press("e")
    expect(group(page, "eosinophil").locator(f"#tile-{two}")).to_be_visible()
    tile(others, two).click()
    others.keyboard.press("l")
    expect(others.locator("#notices .warn")).to_contain_text(
        "Ada Meyer changed this cell a moment ago: it is eosinophil now"
    )
    expect(group(others, "eosinophil").locator(f"#tile-{two}")).to_be_visible()
    assert review.cells()[two]["label"] == "eosinophil"
    others.keyboard.press("l")  # seen, and decided again
    expect(group(page, "lymphocyte").locator(f"#tile-{two}")).to_be_visible()
    others.unroute_all(behavior="ignoreErrors")
    second.close()


def test_changes_are_kept_under_the_name_of_who_makes_them(
    browser: Browser, service: Service, review: Review
) -> None:
    visit = Visit(browser, service.url, reader="")
    page = visit.go(f"{review.where}/gallery")
    one, two = review.having("unidentified")[:2]
    you = page.locator("#reader")
    expect(you).to_contain_text("no name yet")
    tile(page, one).click()
    page.keyboard.press("m")
    page.get_by_role("button", name="Cancel").click()  # without a name nothing is changed
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert review.cells()[one]["state"] == "unidentified"
    tile(page, one).click()
    page.keyboard.press("m")
    page.get_by_label("Your name").fill("Ben Roth")
    page.get_by_role("button", name="Go on").click()
    expect(group(page, "monocyte").locator(f"#tile-{one}")).to_be_visible()
    tile(page, two).click()
    page.keyboard.press("b")  # not asked again
    expect(group(page, "basophil").locator(f"#tile-{two}")).to_be_visible()
    expect(you).to_have_text("You: Ben Roth")
    page.get_by_role("button", name="Sign …").click()
    expect(page.get_by_label("Your name")).to_have_value("Ben Roth")
    page.get_by_role("button", name="Cancel").click()
    you.click()
    page.get_by_label("Your name").fill("Bea Roth")
    page.get_by_role("button", name="Go on").click()
    expect(you).to_have_text("You: Bea Roth")
    trail = review.api.get(f"{review.path}/trail").json()
    assert [entry["by"] for entry in trail if entry["kind"] == "label"] == ["Ben Roth"] * 2
    visit.close()


def test_the_name_to_sign_with_is_never_that_of_the_reading(
    browser: Browser, service: Service, review: Review
) -> None:
    visit = Visit(browser, service.url, reader="")
    page = visit.go(f"{review.where}/gallery")
    page.get_by_role("button", name="Sign …").click()
    expect(page.get_by_label("Your name")).to_have_value("")
    visit.close()


def test_undo_leaves_what_another_person_changed(visit: Visit, review: Review) -> None:
    one, two = review.having("unidentified")[:2]
    page = visit.go(f"{review.where}/gallery")
    review.change("label", one, label="monocyte", by="Ben Roth")
    expect(group(page, "monocyte").locator(f"#tile-{one}")).to_be_visible()
    page.keyboard.press("z")
    expect(page.locator("#notices .warn")).to_contain_text(
        "The last change is by Ben Roth, and undo is for one's own changes: "
        "1 cell was called monocyte."
    )
    expect(tile(page, one)).to_be_focused()
    assert review.cells()[one]["label"] == "monocyte"
    tile(page, two).click()
    page.keyboard.press("b")
    expect(group(page, "basophil").locator(f"#tile-{two}")).to_be_visible()
    page.keyboard.press("z")
    expect(group(page, "unidentified").locator(f"#tile-{two}")).to_be_visible()


def test_undo_works_after_a_refused_change(visit: Visit, review: Review) -> None:
    one, two = review.having("unidentified")[:2]
    page = visit.go(f"{review.where}/gallery")
    page.route("**/changes?since=*&wait=*", lambda route: _hold(route))
    tile(page, one).click()
    page.keyboard.press("m")
    expect(group(page, "monocyte").locator(f"#tile-{one}")).to_be_visible()
    review.change("label", two, label="blast", by="Ada Meyer")  # in another window of hers
    tile(page, two).click()
    page.keyboard.press("l")
    expect(page.locator("#notices .warn")).to_contain_text("it is blast now")
    page.keyboard.press("z")
    expect(group(page, "unidentified").locator(f"#tile-{two}")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")


def decide_twice(visit: Visit, review: Review, one: int, two: int, *, meanwhile: int) -> Page:
    """A first cell is called monocyte, then a second one basophil, which waits for the first.

    Before the first arrives another person calls a cell blast.
    """
    page = visit.go(f"{review.where}/gallery")
    held = hold_first(page)
    tile(page, one).click()
    with page.expect_request("**/changes"):
        page.keyboard.press("m")
    tile(page, two).click()
    page.keyboard.press("b")
    review.change("label", meanwhile, label="blast", by="Ben Roth")
    held.pop().continue_()
    return page


def test_a_change_that_waited_overwrites_nothing_that_came_meanwhile(
    visit: Visit, review: Review
) -> None:
    one, two = review.having("unidentified")[:2]
    page = decide_twice(visit, review, one, two, meanwhile=two)
    expect(page.locator("#notices .warn")).to_contain_text(
        "Ben Roth changed this cell a moment ago: it is blast now"
    )
    expect(group(page, "blast").locator(f"#tile-{two}")).to_be_visible()
    assert [review.cells()[cell]["label"] for cell in (one, two)] == ["monocyte", "blast"]


def test_one_person_may_change_a_cell_twice_while_the_first_change_waits(
    visit: Visit, review: Review
) -> None:
    cell, another = review.having("unidentified")[:2]
    page = decide_twice(visit, review, cell, cell, meanwhile=another)
    expect(group(page, "basophil").locator(f"#tile-{cell}")).to_be_visible()
    assert [review.cells()[i]["label"] for i in (cell, another)] == ["basophil", "blast"]
    expect(page.locator("#notices .warn")).to_have_count(0)


def test_a_change_outlives_leaving_its_page(visit: Visit, review: Review) -> None:
    one, two = review.having("unidentified")[:2]
    page = visit.go(f"{review.where}/gallery")
    line = page.locator("#notices")
    may_close = "window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    for cell, told in (
        (one, ""),
        (two, "Ben Roth changed this cell a moment ago: it is blast now"),
    ):
        held = hold_first(page)
        tile(page, cell).click()
        with page.expect_request("**/changes"):
            page.keyboard.press("m")
        page.get_by_role("link", name="All slides").click()
        expect(page.get_by_role("heading", name="A new slide")).to_be_visible()
        expect(line).to_contain_text("1 change still to be saved")
        assert not page.evaluate(may_close)
        if told:
            review.change("label", cell, label="blast", by="Ben Roth")
        held.pop().abort()  # the line is broken; the next attempt gets through
        expect(line).not_to_contain_text("still to be saved")
        expect(line).to_contain_text(told)
        assert review.cells()[cell]["label"] == ("blast" if told else "monocyte")
        assert page.title() == "Slides · Leuko"
        assert page.evaluate(may_close)
        page.unroute("**/changes")
        page.go_back()
        page.wait_for_selector(".tile[tabindex='0']")


def test_what_others_change_while_the_dialog_is_open_is_not_signed(
    visit: Visit, review: Review
) -> None:
    page = visit.go(f"{review.where}/gallery")
    cell = review.having("pre-classified")[0]
    page.get_by_role("button", name="Sign …").click()
    counted = page.get_by_role("dialog").locator("strong").text_content()
    review.change("label", cell, label="blast", by="Ben Roth")
    expect(group(page, "blast").locator(f"#tile-{cell}")).to_be_attached()  # it has arrived
    page.get_by_label("out of the count").check()
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(page.locator("dialog .wrong")).to_contain_text("Cancel, look at what changed")
    assert review.api.get(review.path).json()["state"] == "open"
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Sign …").click()
    expect(page.get_by_role("dialog")).to_contain_text("blast")
    expect(page.get_by_role("dialog").locator("strong")).to_have_text(counted or "")
    page.get_by_label("out of the count").check()
    page.get_by_role("button", name="Sign", exact=True).click()
    expect(page.locator(".actions .signed")).to_contain_text("Signed by Ada Meyer")


def test_the_dialog_waits_for_what_is_on_its_way(visit: Visit, review: Review) -> None:
    page = visit.go(f"{review.where}/gallery")
    before = int(page.locator(".progress strong").text_content() or 0)
    held = hold_first(page)
    tile(page, review.having("pre-classified")[0]).click()
    with page.expect_request("**/changes"):
        page.keyboard.press("Delete")
    page.get_by_role("button", name="Sign …").click()
    page.get_by_role("button", name="Sign …").click()  # once more does nothing more
    assert page.get_by_role("dialog").count() == 0
    held.pop().continue_()
    expect(page.get_by_role("dialog").locator("strong")).to_have_text(f"{before - 1} leukocytes")
    expect(page.get_by_role("dialog")).to_have_count(1)


def hold_first(page: Page) -> list[Route]:
    """Holds the next change that the page sends; those after it get through."""
    held: list[Route] = []
    sent = itertools.count()
    page.route("**/changes", lambda route: route.continue_() if next(sent) else held.append(route))
    return held


def _hold(route: Route) -> None:
    """It is never answered."""


def test_two_readings_are_compared_and_arbitrated(
    visit: Visit, api: httpx.Client, slide: dict[str, Any]
) -> None:
    readings = [Review(api, slide, name) for name in ("Cleo", "Dora")]
    cell = readings[0].having("pre-classified")[0]
    label = other(readings[0].cells()[cell]["label"])
    change = {"id": "5b0d9f4e-3c1a-4d57-9a3e-0c5a8f1d2e77", "kind": "label", "cells": [cell]}
    revision = api.get(readings[0].path).json()["revision"]
    api.post(
        f"{readings[0].path}/changes", json={**change, "label": label, "revision": revision}
    ).raise_for_status()
    for one in readings:
        body = {"name": "Cleo", "revision": api.get(one.path).json()["revision"]}
        api.post(
            f"{one.path}/signature", json={**body, "leave_unidentified": True}
        ).raise_for_status()
    a, b = (one.where.partition("/")[2] for one in readings)
    page = visit.go(f"{slide['id']}/compare/{a}/{b}")
    expect(page.get_by_role("heading", name="1 cell differs")).to_be_visible()
    expect(page.locator(".differing")).to_contain_text(label)
    page.get_by_role("button", name="Arbitrate").click()
    expect(group(page, "unidentified").locator(f"#tile-{cell}")).to_be_visible()
    expect(tile(page, cell)).to_contain_text("Cleo")


# --- a model for this microscope ------------------------------------------------------------------


class Bench:
    """A service in this process, with a small model, whose adaptations a test can hold."""

    def __init__(self, folder: Path) -> None:
        self.settings = ServiceSettings(port=0)
        self.listening = listen(self.settings)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        bundle = make_bundle(folder / "bundle")
        store = Store.open(folder / "leuko.db")
        self.server = make_server(create_app(Predictor(bundle), store), self.settings)
        self._thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self._thread.start()
        self.api = httpx.Client(base_url=f"{self.url}/api/v1/", timeout=60)
        self.fields = draw(7)

    def begin(self, fields: int, **facts: Any) -> Review:
        """A slide of which the first two kinds of every field were called so."""
        slide = self.api.post("slides", json={"name": "Smear 20", **facts}).json()
        for name, data in self.fields[:fields]:
            self.api.post(f"slides/{slide['id']}/fields", files={"file": (name, data)})
        review = Review(self.api, slide, "Ada Meyer")
        cells = list(review.cells())
        for k, name in enumerate(CLASSES[:2]):
            review.change("label", *cells[k::2], label=name)
        return review

    def stop(self) -> None:
        self.api.close()
        self.server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def labelled(bench: Bench) -> Review:
    return bench.begin(7)


@pytest.fixture
def bench_visit(browser: Browser, bench: Bench) -> Iterator[Visit]:
    opened = Visit(browser, bench.url)
    yield opened
    opened.close()


def test_the_model_is_adapted_to_reviewed_cells(
    bench_visit: Visit, bench: Bench, labelled: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leuko.use.adaptation.REPEATS", 1)  # a quarter of the time
    page = bench_visit.go(f"{labelled.where}/gallery")
    page.get_by_role("link", name="Adapt the model to these cells").click()
    expect(page.get_by_role("row", name="EOSINOPHIL")).to_contain_text("7yes")
    page.get_by_role("button", name="Adapt the model").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    expect(page.get_by_role("heading", name="The adaptation runs")).to_be_visible()
    expect(page.locator(".outcome h2")).to_be_focused(timeout=200_000)
    kept = bench.api.get(f"{labelled.path}/adaptation").json()["kept"]
    expect(page.locator(".outcome .big")).to_have_text(kept["result"]["reason"])
    expect(page.locator("#said")).to_contain_text(kept["result"]["reason"])
    before = kept["result"]["balanced_accuracy"]["before"]
    shown = page.get_by_role("row", name="balanced accuracy").first
    expect(shown).to_contain_text(
        f"{100 * before['value']:.1f}{100 * before['low']:.1f}–{100 * before['high']:.1f}"
    )
    expect(page.locator("figcaption")).to_contain_text(kept["result"]["outlook"])
    page.reload()
    expect(page.locator(".outcome .big")).to_have_text(kept["result"]["reason"])
    expect(page.get_by_role("button", name="Adapt again")).to_be_visible()
    cell = next(iter(labelled.cells()))
    labelled.change("confirm", cell)
    page.reload()
    expect(page.locator(".outcome .warn")).to_contain_text("The reading has changed since")


def test_a_new_bundle_is_saved_with_the_words_to_use_it(
    bench_visit: Visit, bench: Bench, labelled: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leuko.microscope.adapt", partial(_find, changed=True, calibrated=True))
    page = bench_visit.go(f"{labelled.where}/adaptation")
    page.get_by_role("button", name="Adapt").click()
    expect(page.get_by_role("heading", name="The adapted model is better here")).to_be_focused()
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save the new bundle").click()
    assert Path(saved.value.path()).read_bytes() == b"bundle"
    file = saved.value.suggested_filename
    expect(page.locator("pre")).to_have_text(f"leuko serve --model {file}")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert _judge(page, f"adaptation, {scheme}") == []
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    monkeypatch.setattr("leuko.microscope.adapt", partial(_find, changed=False, calibrated=True))
    page.get_by_role("button", name="Adapt again").click()
    expect(page.get_by_role("heading", name="The model stays as it was")).to_be_visible()
    expect(page.get_by_role("columnheader", name="not taken")).to_be_visible()


def test_an_adaptation_outlives_a_reload_and_can_be_cancelled(
    bench_visit: Visit, labelled: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("leuko.microscope.adapt", partial(_wait, go_on))
    page = bench_visit.go(f"{labelled.where}/adaptation")
    page.get_by_role("button", name="Adapt").click()
    expect(page.locator(".run")).to_contain_text(f"{HOSTILE}: 3 of 8")
    assert page.locator("main img").count() == 0
    page.reload()
    expect(page.locator(".run progress")).to_have_attribute("value", "3")
    assert _judge(page, "adaptation, running") == []
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".run")).to_contain_text("It ends at its next step")  # the service knows
    go_on.set()
    expect(page.locator(".run")).to_contain_text("It was cancelled. Nothing was changed.")
    monkeypatch.setattr("leuko.microscope.adapt", _fail)
    page.get_by_role("button", name="Adapt").click()
    expect(page.locator(".run .bad")).to_contain_text(f"It failed. {HOSTILE}")
    expect(page.locator("#said")).to_contain_text(HOSTILE)
    assert page.locator("main img").count() == 0


def test_too_few_cells_and_deleted_images_are_told_before_anything_begins(
    bench_visit: Visit, bench: Bench
) -> None:
    review = bench.begin(1)
    page = bench_visit.go(f"{review.where}/adaptation")
    expect(page.locator(".run .warn")).to_contain_text("in 5 different fields each, and 20 cells")
    expect(page.get_by_role("row", name="LYMPHOCYTE")).to_contain_text("no, 4 more fields needed")
    assert page.locator(".run button").count() == 0
    page.get_by_role("link", name="Review more cells").click()
    page.wait_for_selector(".tile[tabindex='0']")
    slide = review.where.partition("/")[0]
    for reading in bench.api.get(f"slides/{slide}").json()["readings"]:
        body = {"name": "A", "revision": reading["revision"], "leave_unidentified": True}
        path = f"slides/{slide}/readings/{reading['id']}/signature"
        bench.api.post(path, json=body).raise_for_status()
    bench.api.delete(f"slides/{slide}/images").raise_for_status()
    page = bench_visit.go(f"{review.where}/adaptation")
    expect(page.locator(".run .warn")).to_contain_text("were deleted at its signature")


def _find(_: Any, __: Any, *, out: Path, changed: bool, calibrated: bool, **___: Any) -> Any:
    """What `leuko.adapt` gives, at once."""
    out.write_bytes(b"bundle")
    parts = {"value": 0.5, "low": 0.4, "high": 0.6}
    names = ("before", "after", "gain")
    facts = {
        "changed": changed, "calibrated": calibrated, "reason": f"Because {HOSTILE}.",
        "notes": [f"of {HOSTILE}"], "outlook": "More would help.",
        "data": {"cells": 33, "counts": {HOSTILE: 33}},
        "balanced_accuracy": dict.fromkeys(names, parts),
        "accuracy": dict.fromkeys(names[:2], parts),
        "recall": {HOSTILE: {"before": 0.5, "after": 0.7}},
        "curve": [{"labels": n, **parts} for n in (8, 17, 26)],
    }  # fmt: skip
    return SimpleNamespace(facts=facts, bundle=SimpleNamespace(id="0123456789abcdef"))


def _wait(go_on: threading.Event, *_: Any, watcher: Any, **__: Any) -> None:
    watcher.count(HOSTILE, 3, 8)
    go_on.wait(60)
    watcher.count(HOSTILE, 4, 8)
    raise AssertionError("it was cancelled")


def _fail(*_: Any, **__: Any) -> None:
    raise LeukoError(HOSTILE)


# --- for everybody --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(
    browser: Browser, service: Service, review: Review, slide: dict[str, Any], scheme: str
) -> None:
    visit = Visit(browser, service.url, color_scheme=scheme, reduced_motion="reduce")
    first = slide["readings"][0]["id"]
    views = ["", f"{slide['id']}/images/{first}", *(f"{review.where}/{view}" for view in VIEWS)]
    found = []
    for where in [*views, f"{slide['id']}/compare/{first}/{review.where.partition('/')[2]}"]:
        page = visit.go(where)
        page.locator("main :is(h1, h2, h3, .canvas .box):visible").first.wait_for()
        found += _judge(page, where)
    page = visit.go(f"{review.where}/gallery")
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    found += _judge(page, "keys")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Sign …").click()
    page.get_by_role("dialog").wait_for()
    found += _judge(page, "sign")
    visit.close()
    assert found == []


def _judge(page: Page, where: str) -> list[str]:
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    faults = Axe().run(page, options={**rules, "resultTypes": ["violations"]}).response
    return [
        f"{where}: {fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in faults["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


def test_narrow_windows_need_no_sideways_scrolling(visit: Visit, review: Review) -> None:
    visit.page.set_viewport_size({"width": 320, "height": 640})
    for where in ("", *(f"{review.where}/{view}" for view in VIEWS)):
        page = visit.go(where)
        page.locator("main :is(h1, h2, h3, .canvas .box):visible").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, where
        expect(page.get_by_text("Research use only. Not for diagnosis.")).to_be_in_viewport()
    body = {"name": "Ada Meyer", "revision": review.api.get(review.path).json()["revision"]}
    review.api.post(f"{review.path}/signature", json={**body, "leave_unidentified": True})
    review.api.post(f"{review.path}/versions", json={"name": "Ada Meyer", "reason": "Once more."})
    page = visit.go(f"{review.where}/gallery")
    version = page.locator("#where .version")
    expect(version).to_have_text("· version 2")
    # Both at one moment: the head is drawn anew when the reading arrives.
    right = "document.querySelector('#where .{}').getBoundingClientRect().right"
    assert page.evaluate(f"{right.format('version')} - {right.format('state')}") <= 1
    expect(version).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_token_is_asked_for_once(
    browser: Browser, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path / "token"
    secret.write_text("a-long-token-that-nobody-guesses-0123456789")
    secret.chmod(0o600)
    running = Service(tmp_path_factory.mktemp("guarded"), None, "--token-file", str(secret))
    running.wait_until_ready()
    visit = Visit(browser, running.url)
    page = visit.go("")
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("dialog .wrong")).not_to_be_empty()
    page.get_by_label("Token").fill(secret.read_text())
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="A new slide")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="A new slide")).to_be_visible()
    visit.close()
    assert running.stop() == 0
