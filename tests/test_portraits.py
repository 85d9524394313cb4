"""Portraits: the same however a cell lies, alike for one kind, defined for any picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from leuko.data.cuts import cut_cell
from leuko.data.drawing import draw_field
from leuko.data.leukocytes import Leukocyte
from leuko.data.portraits import describe_cell
from leuko.errors import ShapeError

Cell = NDArray[np.uint8]
KINDS = ("EOSINOPHIL", "LYMPHOCYTE")


def draw_cell(kind: str, seed: int, size: int = 64) -> Cell:
    field = draw_field(np.random.default_rng(seed), [kind], height=300, width=300, centred=True)
    middle = Leukocyte(60, 60, 240, 240, score=1, scale=14.0)
    return cut_cell(field.image, middle, size, light="given")


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return [draw_cell(kind, seed) for kind in KINDS for seed in range(10)]


@pytest.fixture(scope="module")
def portraits(cells: list[Cell]) -> NDArray[np.float32]:
    return np.stack([describe_cell(cell) for cell in cells])


def standardise(portraits: NDArray[np.float32], by: NDArray[np.float32]) -> NDArray[np.float32]:
    return (portraits - by.mean(axis=0)) / (by.std(axis=0) + 1e-6)


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_quarter_turn_or_a_mirror_changes_nothing(cells, portraits, turn: int, mirrored: bool):
    turned = [np.rot90(c[:, ::-1] if mirrored else c, turn) for c in cells]
    again = np.stack([describe_cell(np.ascontiguousarray(c)) for c in turned])
    difference = np.abs(standardise(again, portraits) - standardise(portraits, portraits))
    assert difference.max() < 0.3  # a tie that falls to the other side
    assert difference.mean() < 1e-3


def test_a_cell_turned_by_any_angle_stays_nearest_to_itself(cells, portraits):
    turned = [
        ndimage.rotate(c, 33, reshape=False, order=1, mode="nearest").astype(np.uint8)
        for c in cells
    ]
    again = standardise(np.stack([describe_cell(c) for c in turned]), portraits)
    away = np.linalg.norm(again[:, None] - standardise(portraits, portraits), axis=2)
    assert (away.argmin(axis=1) == np.arange(len(cells))).mean() > 0.8


def test_the_nearest_other_cell_is_of_the_same_kind(portraits):
    points = standardise(portraits, portraits)
    away = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(away, np.inf)
    kinds = np.repeat(KINDS, 10)
    assert (kinds[away.argmin(axis=1)] == kinds).mean() >= 0.9


def test_does_not_depend_on_threads_or_on_what_was_described_before(cells, portraits):
    threads = cv2.getNumThreads()
    try:
        for number in (1, 4):
            cv2.setNumThreads(number)
            again = np.stack([describe_cell(cell) for cell in reversed(cells)])[::-1]
            assert np.array_equal(again, portraits)
    finally:
        cv2.setNumThreads(threads)


def test_does_not_change_the_cell(cells):
    before = cells[0].copy()
    describe_cell(cells[0])
    assert np.array_equal(before, cells[0])


def test_a_larger_picture_of_the_cell_has_nearly_the_same_portrait(portraits):
    large = np.stack([describe_cell(draw_cell(k, s, size=128)) for k in KINDS for s in range(10)])
    points, again = standardise(portraits, portraits), standardise(large, portraits)
    away = np.linalg.norm(again[:, None] - points, axis=2)
    assert (away.argmin(axis=1) == np.arange(len(points))).all()


def odd_cells() -> dict[str, Cell]:
    rng = np.random.default_rng(0)
    spot = np.full((64, 64, 3), 220, np.uint8)
    spot[31:33, 31:33] = (120, 60, 200)
    corner = np.full((64, 64, 3), 220, np.uint8)
    corner[:9, :9] = (120, 60, 200)
    return {
        "black": np.zeros((64, 64, 3), np.uint8),
        "white": np.full((64, 64, 3), 255, np.uint8),
        "violet": np.full((64, 64, 3), (120, 60, 200), np.uint8),
        "noise": rng.integers(0, 256, (64, 64, 3), np.uint8),
        "one spot": spot,
        "cell in the corner": corner,
        "two pixels": rng.integers(0, 256, (2, 2, 3), np.uint8),
    }


@pytest.mark.parametrize("name", odd_cells())
def test_any_picture_has_a_finite_portrait_of_the_same_length(name: str, portraits):
    portrait = describe_cell(odd_cells()[name])
    assert portrait.shape == portraits[0].shape
    assert portrait.dtype == np.float32
    assert np.isfinite(portrait).all()


def test_says_what_is_wrong_with_an_array():
    with pytest.raises(ShapeError, match=r"\(64, 32, 3\).*cut_cell"):
        describe_cell(np.zeros((64, 32, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"float64.*uint8"):
        describe_cell(np.zeros((64, 64, 3)))  # type: ignore[arg-type]
