"""What the networks see of a cell: where it is cut out, how large, in which light."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leuko.data.cuts import LIGHTS, SURROUNDINGS, WINDOW, cut_cell, cut_field
from leuko.data.density import DARKEST, EMPTY, match_light, measure_background
from leuko.data.drawing import draw_field
from leuko.data.image import resize_image
from leuko.data.leukocytes import Leukocyte, choose_leukocyte, find_leukocytes
from leuko.errors import SettingsError

Field = NDArray[np.uint8]
SIZE = 48


@pytest.fixture(scope="module")
def field() -> Field:
    return draw_field(
        np.random.default_rng(4), ["MONOCYTE"], height=300, width=400, mark=False, centred=True
    ).image


@pytest.fixture(scope="module")
def cell(field: Field) -> Leukocyte:
    return choose_leukocyte(find_leukocytes(field), field)


def shine(field: Field, lamp: tuple[float, ...]) -> Field:
    """A field under a lamp that gives less of each colour."""
    return (field * np.array(lamp) + 0.5).astype(np.uint8)


def test_window_moves_inwards_at_the_border() -> None:
    field = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    cut = cut_cell(field, Leukocyte(2, 2, 30, 30, score=1.0, scale=5.0), 96, light="given")
    side = 100
    assert np.array_equal(cut, resize_image(field[:side, :side], 96, 96))


@pytest.mark.parametrize("light", LIGHTS)
def test_a_picture_smaller_than_the_window_lies_on_an_empty_slide(light: str) -> None:
    """Its edges aren't drawn out to stripes that could pass for part of the cell."""
    field = np.full((40, 60, 3), (200, 210, 190), dtype=np.uint8)
    field[8:40, 10:50] = 90  # a cell that the lower edge cuts
    cell = Leukocyte(10, 8, 50, 40, score=1.0, scale=5.0)
    cut = cut_cell(field, cell, 100, light=light)  # a pixel a pixel
    slide = (200, 210, 190) if light == "given" else (EMPTY,) * 3
    around = np.ones((100, 100), dtype=bool)
    around[30:70, 20:80] = False
    assert (np.abs(cut[around].astype(int) - slide) <= 1).all()
    if light == "given":
        assert np.array_equal(cut[30:70, 20:80], field)


lamps = st.tuples(*[st.floats(0.5, 1.0)] * 3)


@settings(deadline=None, max_examples=25)
@given(lamp=lamps)
def test_a_cell_looks_alike_under_every_lamp(field: Field, cell: Leukocyte, lamp) -> None:
    cut = cut_cell(field, cell, SIZE, light="matched").astype(int)
    again = cut_cell(shine(field, lamp), cell, SIZE, light="matched")
    assert np.abs(cut - again).max() <= 4, "a level of half the light counts for two"
    whole = cut_field(field, SIZE, light="matched").astype(int)
    assert np.abs(whole - cut_field(shine(field, lamp), SIZE, light="matched")).max() <= 4


def test_as_the_camera_gave_it_a_lamp_shows(field: Field, cell: Leukocyte) -> None:
    for cut in (
        lambda f: cut_cell(f, cell, SIZE, light="given"),
        lambda f: cut_field(f, SIZE, light="given"),
    ):
        assert np.abs(cut(field).astype(int) - cut(shine(field, (1, 0.8, 0.6)))).max() > 40


def test_the_empty_slide_becomes_grey(field: Field, cell: Leukocyte) -> None:
    cut = cut_cell(shine(field, (1, 0.9, 0.7)), cell, 96, SURROUNDINGS, light="matched")
    assert measure_background(cut.reshape(-1, 3)) == pytest.approx([EMPTY] * 3, abs=3)


def test_density_stays_what_it_was(field: Field) -> None:
    """Beer-Lambert: the light divided by that of the empty slide."""
    background = measure_background(field.reshape(-1, 3))
    lit = match_light(field, background).astype(float)
    kept = (lit < 255).all(axis=2)
    share = field[kept] / background
    assert lit[kept] / EMPTY == pytest.approx(share, abs=0.6 / EMPTY)


def test_light_is_measured_around_the_cell_whatever_the_window(
    field: Field, cell: Leukocyte
) -> None:
    """A picture for training, cut wider so that it can be moved, has the same light."""
    half = np.linspace(1, 0.5, field.shape[1])[None, :, None]
    shaded = (field * half).astype(np.uint8)
    narrow = cut_cell(shaded, cell, 80, WINDOW, light="matched").astype(int)
    wide = cut_cell(shaded, cell, 112, SURROUNDINGS, light="matched")[16:96, 16:96]
    assert np.abs(narrow - wide).mean() < 2
    whole = cut_field(shaded, 80, light="matched")
    assert np.abs(measure_background(whole.reshape(-1, 3)) - EMPTY).max() < 3


@pytest.mark.parametrize("level", [0, 1, 20])
def test_the_dark_is_not_made_bright(level: int) -> None:
    dark = np.full((40, 40, 3), level, np.uint8)
    lit = match_light(dark, measure_background(dark.reshape(-1, 3)))
    assert lit.max() <= round(level * EMPTY / DARKEST) == 3 * level


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (20, 20), (600, 700)])
def test_any_picture_can_be_cut_in_any_light(light: str, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cell = Leukocyte(0, 0, shape[1], shape[0], score=1.0, scale=11.0)
    assert cut_cell(noise, cell, 32, light=light).shape == (32, 32, 3)
    assert cut_field(noise, 32, light=light).dtype == np.uint8


def test_a_light_that_does_not_exist_is_refused(field: Field, cell: Leukocyte) -> None:
    with pytest.raises(SettingsError, match="'dim'; expected one of: matched, given"):
        cut_cell(field, cell, SIZE, light="dim")
    with pytest.raises(SettingsError, match="dim"):
        cut_field(field, SIZE, light="dim")
