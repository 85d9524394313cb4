"""Pictures of one place are found however one of them was changed, and no others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from leuko.data import likeness
from leuko.data.drawing import draw_cell, draw_field
from leuko.data.image import decode_image, encode_jpeg, resize_image
from leuko.data.likeness import choose_landmarks, find_likenesses, sketch_picture
from leuko.data.registration import Likeness, Sketch

HEIGHT, WIDTH = 240, 320
KINDS = (["NEUTROPHIL"], ["EOSINOPHIL", "MONOCYTE"], ["BASOPHIL"], [])
LANDMARKS = 250
CORNERS = np.array([[0, 0, 1], [WIDTH - 1, 0, 1], [0, HEIGHT - 1, 1], [WIDTH - 1, HEIGHT - 1, 1]])

Picture = NDArray[np.uint8]
Matrix = NDArray[np.float64]


def draw(seed: int, kinds: Sequence[str]) -> Picture:
    field = draw_field(np.random.default_rng([7, seed]), kinds, mark=False)
    return resize_image(field.image, HEIGHT, WIDTH)


def movement(
    degrees: float,
    *,
    scale: float = 1.0,
    mirrored: bool = False,
    shear: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Matrix:
    """(2, 3): turns about the middle of the picture."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    if mirrored:
        linear = linear @ np.diag([-1, 1])
    middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    return np.column_stack([linear, middle + shift - linear @ middle])


def move(picture: Picture, matrix: Matrix) -> Picture:
    """Moved within its frame; what was outside is black."""
    return np.asarray(cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT)))


MOVEMENTS = {
    "turned by 30": movement(30),
    "turned by 45": movement(45),
    "turned by 135": movement(135),
    "turned by 180": movement(180),
    "mirrored": movement(0, mirrored=True),
    "mirrored and turned": movement(70, mirrored=True),
    "sheared by 12 %": movement(10, shear=0.12),
    "sheared by 15 %": movement(200, shear=-0.15),
    "scaled by 0.7": movement(130, scale=0.7),
    "scaled by 0.85, mirrored": movement(30, scale=0.85, mirrored=True),
    "shifted": movement(0, shift=(60, -40)),
    "everything": movement(140, scale=0.8, mirrored=True, shear=0.12, shift=(20, 10)),
}


def recolour(gains: Sequence[float], gamma: float) -> Callable[[Picture], Picture]:
    return lambda p: np.clip(255 * (p / 255) ** gamma * gains, 0, 255).astype(np.uint8)


REPACKED: dict[str, Callable[[Picture], Picture]] = {
    "JPEG of quality 40": lambda p: decode_image(encode_jpeg(p, 40)),
    "other channel gains": recolour((0.8, 1.1, 0.95), 1.0),
    "darker by gamma": recolour((1, 1, 1), 1.6),
    "brighter by gamma": recolour((1.0, 0.9, 1.0), 0.65),
    "half the size": lambda p: resize_image(p, HEIGHT // 2, WIDTH // 2),
    "0.8 of the size": lambda p: resize_image(p, 192, 256),
}


@pytest.fixture(scope="module")
def originals() -> list[Picture]:
    return [draw(seed, kinds) for seed, kinds in enumerate(KINDS)]


def sketch(pictures: Sequence[Picture]) -> list[Sketch]:
    return [sketch_picture(picture, LANDMARKS) for picture in pictures]


@pytest.fixture(scope="module")
def sketches(originals: list[Picture]) -> list[Sketch]:
    return sketch(originals)


def measure_error(found: Likeness, truth: Matrix) -> float:
    """The largest distance in px by which a corner misses its place."""
    return float(np.abs(CORNERS @ found.matrix.T - CORNERS @ truth.T).max())


@pytest.mark.parametrize("name", MOVEMENTS)
def test_a_moved_copy_is_found_with_its_movement(
    name: str, originals: list[Picture], sketches: list[Sketch]
) -> None:
    truth = MOVEMENTS[name]
    copies = sketch([move(picture, truth) for picture in originals])
    found = find_likenesses([*sketches, *copies])
    n = len(originals)
    assert [(pair.a, pair.b) for pair in found] == [(i, n + i) for i in range(n)]
    for pair in found:
        assert measure_error(pair, truth) < 4
        assert pair.mirrored == (np.linalg.det(truth[:, :2]) < 0)
        assert 0.85 <= pair.score <= 1.001
        assert 0 < pair.overlap <= 1


@pytest.mark.parametrize("name", REPACKED)
def test_a_recoloured_or_re_encoded_copy_is_found(
    name: str, originals: list[Picture], sketches: list[Sketch]
) -> None:
    changed = [REPACKED[name](picture) for picture in originals]
    found = find_likenesses([*sketches, *sketch(changed)])
    n = len(originals)
    assert [(pair.a, pair.b) for pair in found] == [(i, n + i) for i in range(n)]
    scale = changed[0].shape[1] / WIDTH
    for pair in found:
        # The same place is at scale · (x + 0.5) − 0.5 of a picture of another size.
        truth = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
        assert measure_error(pair, truth) < 2.5
        assert pair.overlap > 0.97
        assert pair.distortion < 0.03


def test_different_pictures_are_never_alike() -> None:
    different = sketch([draw(100 + seed, KINDS[seed % len(KINDS)]) for seed in range(15)])
    assert find_likenesses(different) == []


def test_distortion_is_about_the_angle_and_none_for_a_shift() -> None:
    def pair(matrix: Matrix) -> Likeness:
        return Likeness(0, 1, 1.0, 10.0, 1.0, 1.0, matrix)

    assert pair(movement(0, shift=(30, 5), scale=0.7)).distortion == pytest.approx(0, abs=1e-9)
    assert pair(movement(10)).distortion == pytest.approx(np.deg2rad(10), abs=0.01)
    assert pair(movement(0, mirrored=True)).distortion == pytest.approx(2)
    assert pair(movement(0, shear=0.15)).distortion > 0.07


@pytest.fixture(scope="module")
def mixed(originals: list[Picture]) -> list[Sketch]:
    changed = [move(p, MOVEMENTS["everything"]) for p in originals[:3]]
    return sketch([*originals, *changed])


def test_threads_change_nothing(mixed: list[Sketch]) -> None:
    one, two = find_likenesses(mixed, threads=1), find_likenesses(mixed, threads=2)
    assert [(p.a, p.b, p.score) for p in one] == [(p.a, p.b, p.score) for p in two]
    for p, q in zip(one, two, strict=True):
        np.testing.assert_array_equal(p.matrix, q.matrix)


def test_order_changes_only_the_direction(mixed: list[Sketch]) -> None:
    order = np.random.default_rng(3).permutation(len(mixed))
    shuffled = find_likenesses([mixed[i] for i in order])
    again = {tuple(sorted((int(order[p.a]), int(order[p.b])))): p for p in shuffled}
    plain = {(p.a, p.b): p for p in find_likenesses(mixed)}
    assert set(again) == set(plain)
    for (a, _), pair in plain.items():
        other = again[pair.a, pair.b].matrix
        if order[again[pair.a, pair.b].a] != a:
            other = cv2.invertAffineTransform(other)
        assert np.abs(CORNERS @ other.T - CORNERS @ pair.matrix.T).max() < 4


@pytest.mark.parametrize("threads", [1, 2])
def test_axes_do_not_depend_on_the_threads_of_blas(threads: int, mixed: list[Sketch]) -> None:
    from threadpoolctl import threadpool_limits

    descriptors = [s.descriptors for s in mixed]
    with threadpool_limits(1):
        one = likeness._learn_axes(descriptors)(mixed[0].descriptors)
    with threadpool_limits(threads):
        other = likeness._learn_axes(descriptors)(mixed[0].descriptors)
    assert one.shape == (len(mixed[0].points), 16)
    np.testing.assert_array_equal(one, other)


def test_pictures_with_nothing_on_them_are_like_nothing(originals: list[Picture]) -> None:
    rng = np.random.default_rng(0)
    grey = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    dot = grey.copy()
    dot[100:110, 100:110] = 90
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    tiny = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    plain = [grey, black, grey // 2, dot, noise, noise[::-1].copy() // 2 + 40, tiny]
    found = find_likenesses(sketch([*plain, *originals[:2]]))
    assert {(p.a, p.b) for p in found} <= {(4, 5)}  # noise mirrored: the same picture after all
    for some in ([], [grey], [grey, grey], [originals[0]], [tiny, black]):
        assert find_likenesses(sketch(some)) == []


def test_a_mirrored_picture_needs_no_second_look(originals: list[Picture]) -> None:
    """The permuted descriptor is what SIFT finds at the same place of the mirrored picture."""
    (plain,) = sketch(originals[:1])
    (mirrored,) = sketch([np.ascontiguousarray(originals[0][:, ::-1])])
    x = plain.width - 1 - plain.points[:, 0]
    away = np.hypot(
        x[:, None] - mirrored.points[None, :, 0],
        plain.points[:, None, 1] - mirrored.points[None, :, 1],
    )
    turned = plain.points[:, None, 3] + mirrored.points[None, :, 3] - 180
    turned = np.abs((turned + 180) % 360 - 180)
    one, other = np.nonzero((away < 0.7) & (turned < 8))
    assert len(one) > 30
    seen, permuted, as_it_was = (
        likeness._root(d)
        for d in (
            mirrored.descriptors[other],
            likeness._mirror(plain.descriptors[one]),
            plain.descriptors[one],
        )
    )
    apart = np.linalg.norm(seen - permuted, axis=1)
    assert np.median(apart) < 0.25
    assert np.median(np.linalg.norm(seen - as_it_was, axis=1)) > 2 * np.median(apart)


def test_black_corners_hold_no_landmarks(originals: list[Picture]) -> None:
    turned = move(originals[0], movement(30))
    (moved,) = sketch([turned])
    dark = (turned.max(axis=2) <= 40).astype(np.uint8)
    away = cv2.distanceTransform(1 - cv2.resize(dark, (moved.width, moved.height)), cv2.DIST_L2, 5)
    x, y = moved.points[:, :2].round().astype(int).T
    assert away[y, x].min() >= 3
    assert np.isnan(moved.flat).any()


def test_progress_ends_with_all_pairs(mixed: list[Sketch]) -> None:
    told: list[tuple[int, int]] = []
    find_likenesses(mixed, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == 0
    assert all(0 <= done <= total for done, total in told)
    assert told[-1][0] == told[-1][1]


def test_many_pictures_get_fewer_landmarks_each() -> None:
    assert choose_landmarks(0) == choose_landmarks(100) == 250
    assert choose_landmarks(100_000) == 60
    assert choose_landmarks(1_800) == 150


def test_work_does_not_grow_with_the_square_of_the_set() -> None:
    """Pairs that are proposed for comparison, of pictures that have nothing in common."""
    rng = np.random.default_rng(5)

    def make(n: int) -> list[Sketch]:
        points = rng.uniform(5, 235, (n, 60, 4)).astype(np.float32)
        points[..., 3] *= 360 / 235
        descriptors = (rng.gamma(0.4, 30, (n, 60, 128))).clip(0, 255).astype(np.uint8)
        flat = np.zeros((80, 80), np.float16)
        return [Sketch(p, d, flat, 240, 240, 1.0) for p, d in zip(points, descriptors, strict=True)]

    few, many = (len(list(likeness._propose(make(n), 1))) for n in (40, 160))
    assert many <= 8 * max(few, 5)


def test_cells_that_look_alike_are_not_one_cell() -> None:
    """Round cells in the middle of small pictures: alike in the gross, not in detail."""
    rng = np.random.default_rng(0)
    cells = [draw_cell(rng, "LYMPHOCYTE", 96) for _ in range(12)]
    assert find_likenesses(sketch(cells)) == []
    again = np.ascontiguousarray(np.rot90(cells[3])[::-1])
    assert [(p.a, p.b) for p in find_likenesses(sketch([*cells, again]))] == [(3, 12)]
