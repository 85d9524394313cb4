"""Leukocytes are found whole, at one scale, at any magnification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from leuko.data.cuts import cut_cell, cut_field
from leuko.data.density import measure_background
from leuko.data.image import read_image, resize_image
from leuko.data.leukocytes import Leukocyte, choose_leukocyte, find_leukocytes
from leuko.data.scales import estimate_scale, estimate_set_scales
from leuko.errors import ShapeError

Field = NDArray[np.uint8]


def draw_field(
    cells: list[tuple[int, int]], height: int = 480, width: int = 640, seed: int = 0
) -> Field:
    """Red cells 104 px wide on a lattice, leukocytes 180 px wide with two lobes on top."""
    rng = np.random.default_rng(seed)
    field = np.full((height, width, 3), (210, 212, 208), dtype=float)
    y, x = np.mgrid[:height, :width]
    for row, top in enumerate(range(30, height, 125)):
        for left in range(30 + 60 * (row % 2), width, 130):
            if all(np.hypot(left - cx, top - cy) > 150 for cx, cy in cells):
                field[np.hypot(x - left, y - top) < 52] = (188, 165, 155)
    for cx, cy in cells:
        field[np.hypot(x - cx, y - cy) < 90] = (195, 175, 200)
        for side in (-28, 28):
            field[np.hypot(x - cx - side, y - cy) < 38] = (120, 90, 180)
    return np.clip(field + rng.normal(0, 2, field.shape), 0, 255).astype(np.uint8)


def overlap(cell: Leukocyte, box: tuple[float, float, float, float]) -> float:
    w = min(cell.x1, box[2]) - max(cell.x0, box[0])
    h = min(cell.y1, box[3]) - max(cell.y0, box[1])
    both = max(0.0, w) * max(0.0, h)
    areas = (cell.x1 - cell.x0) * (cell.y1 - cell.y0) + (box[2] - box[0]) * (box[3] - box[1])
    return both / (areas - both)


def test_finds_every_cell_whole() -> None:
    centres = [(150, 150), (480, 320)]
    found = find_leukocytes(draw_field(centres))
    assert len(found) == 2
    for x, y in centres:
        assert max(overlap(c, (x - 90, y - 90, x + 90, y + 90)) for c in found) > 0.75
    assert all(0.5 < c.score <= 1 for c in found)


def test_a_field_without_leukocytes_has_none() -> None:
    field = draw_field([])
    assert find_leukocytes(field) == []
    assert choose_leukocyte([], field).score == 0


def test_same_cell_at_half_the_magnification() -> None:
    field = draw_field([(300, 240)])
    half = resize_image(field, 240, 320)
    assert estimate_scale(half) == pytest.approx(estimate_scale(field) / 2, rel=0.08)
    big, small = (choose_leukocyte(find_leukocytes(f), f) for f in (field, half))
    assert small.x1 - small.x0 == pytest.approx((big.x1 - big.x0) / 2, abs=4)
    a, b = (cut_cell(f, c, 64, light="given") for f, c in ((field, big), (half, small)))
    assert float(np.abs(a.astype(int) - b).mean()) < 6


@pytest.mark.parametrize("side", [170, 220, 280])
@pytest.mark.parametrize("enlarged", [1, 2])
def test_a_cell_cut_out_closely_tells_its_scale_by_its_nucleus(side: int, enlarged: int) -> None:
    """No red cell is in sight, its cytoplasm is none, and the picture is no field of 47 µm."""
    field = draw_field([(300, 240)])
    y, x = np.mgrid[:480, :640]
    field[np.hypot(x - 300, y - 240) < 70] = (120, 90, 180)
    half = side // 2
    around = np.ascontiguousarray(field[240 - half : 240 + half, 300 - half : 300 + half])
    piece = resize_image(around, side * enlarged, side * enlarged)
    assert estimate_scale(piece) == pytest.approx(enlarged * estimate_scale(field), rel=0.1)
    cell = choose_leukocyte(find_leukocytes(piece), piece)
    assert cell.score > 0.5
    assert cell.centre == pytest.approx((half * enlarged, half * enlarged), abs=8 * enlarged)


@pytest.mark.parametrize("across", [2, 3, 4])
@pytest.mark.parametrize("shrunk", [1, 4])
def test_wide_fields_tell_their_scale_and_lose_no_cell(across: int, shrunk: int) -> None:
    """A smaller objective: red cells are a few px wide where they are first looked for."""
    cells = [(150, 150), (480, 320)]
    fields = [draw_field(cells if k % 2 else [], seed=k) for k in range(across**2)]
    whole = np.vstack([np.hstack(fields[k : k + across]) for k in range(0, across**2, across)])
    height, width = (side // shrunk for side in whole.shape[:2])
    picture = resize_image(whole, height, width)
    assert estimate_scale(picture) == pytest.approx(estimate_scale(fields[0]) / shrunk, rel=0.12)
    found = [cell for cell in find_leukocytes(picture) if cell.score >= 0.5]
    assert len(found) == 2 * (across**2 // 2)


def test_a_wide_field_without_leukocytes_has_none() -> None:
    """Platelets aren't blown up to nuclei by a scale that is too small."""
    rng = np.random.default_rng(0)
    picture = np.vstack([np.hstack([draw_field([], seed=k) for k in (0, 1)])] * 2)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    for cx, cy in rng.integers(50, 900, (12, 2)):
        picture[np.hypot(x - cx, y - cy) < 16] = (120, 90, 180)
    assert [cell for cell in find_leukocytes(picture) if cell.score >= 0.5] == []


def test_a_nucleus_in_a_field_doesnt_decide_where_red_cells_do() -> None:
    """A nucleus of 200 µm² is a rare one, not a wrong scale."""
    field = draw_field([(300, 240)])
    y, x = np.mgrid[:480, :640]
    giant = field.copy()
    giant[np.hypot(x - 300, y - 240) < 130] = (120, 90, 180)
    assert estimate_scale(giant) == pytest.approx(estimate_scale(field), rel=0.08)


def test_red_nuclei_are_found_by_their_darkness() -> None:
    """A stain, or a camera, in which they take the blue light as well."""
    field = draw_field([(150, 150), (480, 320)])
    red = field.copy()
    red[(field[..., 2] > field[..., 0] + 20)] = (150, 40, 60)
    found = find_leukocytes(red)
    assert len(found) == 2
    assert all(c.score > 0.5 for c in found)
    assert estimate_scale(red) == pytest.approx(estimate_scale(field), rel=0.08)


def test_red_cells_that_overlap_are_not_nuclei() -> None:
    field = draw_field([])
    y, x = np.mgrid[:480, :640]
    twice = np.hypot(x - 250, y - 240) < 40
    field[twice] = (field[twice].astype(float) ** 2 / 210).astype(np.uint8)
    assert [c for c in find_leukocytes(field) if c.score >= 0.5] == []


def test_the_label_of_a_cut_out_is_that_of_the_cell_in_its_middle() -> None:
    field = draw_field([(250, 240), (480, 240)])
    field[np.hypot(*(np.mgrid[:480, :640] - np.array([240, 480])[:, None, None])) < 80] = (
        100,
        60,
        160,
    )
    cells = find_leukocytes(field)
    assert len(cells) == 2
    assert choose_leukocyte(cells, field).centre[0] == pytest.approx(480, abs=12)
    piece = np.ascontiguousarray(field[40:440, 50:450])  # cut around the paler one
    near = choose_leukocyte(find_leukocytes(piece, cells[0].scale), piece)
    assert near.centre == pytest.approx((200, 200), abs=12)
    assert near.score > 0


def test_nearly_touching_nuclei_of_two_cells_are_two() -> None:
    field = draw_field([])
    y, x = np.mgrid[:480, :640]
    for cx in (250, 382):
        field[np.hypot(x - cx, y - 240) < 63] = (120, 90, 180)
    assert len(find_leukocytes(field, 13.75)) == 2


def test_black_corners_are_not_cells() -> None:
    field = draw_field([(330, 240)])
    y, x = np.mgrid[:480, :640]
    field[x + y < 250] = 0
    assert len(find_leukocytes(field)) == 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (20, 20)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_odd_pictures_give_an_answer(shape: tuple[int, int], value: int) -> None:
    field = np.full((*shape, 3), value, dtype=np.uint8)
    cell = choose_leukocyte(find_leukocytes(field), field)
    assert cell.score == 0
    assert cut_cell(field, cell, 32, light="given").shape == (32, 32, 3)
    assert cut_field(field, 32, light="given").shape == (32, 32, 3)
    assert estimate_scale(field) > 0


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(H, W, 3\) uint8"):
        find_leukocytes(np.zeros((5, 5), dtype=np.uint8))


def test_real_fields(real_data: Path) -> None:
    folder = next((real_data / "blood-cells").rglob("JPEGImages"))
    fields = [read_image(f) for f in sorted(folder.glob("*.jpg"))[:60:5]]
    ((size, scale),) = estimate_set_scales(fields).items()
    assert size == (480, 640)
    assert 12.5 < scale < 15
    counts = [sum(c.score >= 0.5 for c in find_leukocytes(f, scale)) for f in fields]
    assert min(counts) >= 1
    assert max(counts) <= 2


@given(st.integers(1, 2000), st.integers(1, 256), st.integers(0, 10**6))
def test_the_background_is_the_percentile_to_the_last_bit(n: int, levels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, levels, (n, 3), dtype=np.uint8)
    expected = np.maximum(np.percentile(pixels, 92, axis=0), 1)
    assert np.array_equal(measure_background(pixels), expected)
