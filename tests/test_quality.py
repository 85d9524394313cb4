"""Spoilt images stand out of their set, and sound ones don't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from leuko.data.drawing import draw_field
from leuko.data.image import read_image, resize_image
from leuko.data.issues import KINDS
from leuko.data.leukocytes import Leukocyte
from leuko.data.measurements import Light, measure_light
from leuko.data.quality import judge_leukocytes, judge_light

Picture = NDArray[np.uint8]
SCALE = 7.0  # px per µm at 320 × 240
CELLS = ("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE")
SOUND = 40


def draw(seed: int) -> Picture:
    rng = np.random.default_rng([11, seed])
    field = draw_field(rng, [CELLS[seed % 4]], mark=False, blur=float(rng.uniform(0, 1.3)))
    return resize_image(field.image, 240, 320)


def multiply(gain: float) -> Callable[[Picture], Picture]:
    return lambda p: np.clip(np.rint(p * gain), 0, 255).astype(np.uint8)


def turn_hue(picture: Picture) -> Picture:
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += 85  # a third of the circle: drawn stains vary more than real ones
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


SPOILT: dict[str, tuple[str, Callable[[Picture], Picture]]] = {
    "blur": ("blurred", lambda p: np.asarray(cv2.GaussianBlur(p, (0, 0), 2.0))),
    "dark": ("underexposed", multiply(0.4)),
    "bright": ("overexposed", multiply(1.8)),
    "swapped": ("unusual_colour", lambda p: np.ascontiguousarray(p[..., ::-1])),
    "hue": ("unusual_colour", turn_hue),
}


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw(seed) for seed in range(SOUND + 2)]


@pytest.fixture(scope="module")
def sound(pictures: list[Picture]) -> list[Light]:
    return [measure_light(picture, SCALE) for picture in pictures[:SOUND]]


def flag(lights: Sequence[Light]) -> dict[str, list[int]]:
    """Positions of the flagged ones per kind, the worst first."""
    measured: Any = {str(i): SimpleNamespace(light=light) for i, light in enumerate(lights)}
    issues, scores = judge_light(measured)
    found: dict[str, list[int]] = {}
    for issue in issues:
        (image,) = issue.images
        assert issue.score == pytest.approx(scores[issue.kind][int(image)])
        found.setdefault(issue.kind, []).append(int(image))
    for kind, values in scores.items():
        assert kind in KINDS
        assert values.shape == (len(lights),)
        assert ((values >= 0) & (values <= 1)).all()
    return found


def test_a_sound_set_has_no_flags(sound: list[Light]) -> None:
    assert flag(sound) == {}


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_images_are_flagged_and_only_they(
    how: str, pictures: list[Picture], sound: list[Light]
) -> None:
    kind, spoil = SPOILT[how]
    spoilt = [measure_light(spoil(picture), SCALE) for picture in pictures[SOUND:]]
    found = flag([*sound, *spoilt])
    assert sorted(found[kind]) == [SOUND, SOUND + 1]
    assert sum(i < SOUND for images in found.values() for i in images) == 0


def test_swapped_channels_are_seen_even_if_there_are_many(
    pictures: list[Picture], sound: list[Light]
) -> None:
    swapped = [measure_light(SPOILT["swapped"][1](p), SCALE) for p in pictures[:12]]
    found = flag([*swapped, *sound[12:]])["unusual_colour"]
    assert len(found) >= 9  # of the others the nuclei are too pale to tell
    assert max(found) < 12


@pytest.mark.parametrize("how", SPOILT)
def test_where_all_images_are_alike_nothing_stands_out(how: str, pictures: list[Picture]) -> None:
    spoil = SPOILT[how][1]
    assert flag([measure_light(spoil(picture), SCALE) for picture in pictures[:24]]) == {}


def test_two_stains_are_not_unusual(sound: list[Light]) -> None:
    other = [
        replace(light, colours=tuple(c + 0.4 * (-1) ** k for k, c in enumerate(light.colours)))
        for light in sound
    ]
    assert "unusual_colour" not in flag([*sound, *other])
    assert flag([*sound, other[0]])["unusual_colour"] == [SOUND]


def test_in_a_few_images_nothing_stands_out(pictures: list[Picture], sound: list[Light]) -> None:
    dark = measure_light(SPOILT["dark"][1](pictures[0]), SCALE)
    assert flag([*sound[:18], dark]) == {}
    assert flag([*sound[:19], dark])["underexposed"] == [19]
    assert flag([]) == {}


def test_the_worst_comes_first(pictures: list[Picture], sound: list[Light]) -> None:
    gains = (0.5, 0.3, 0.4)
    dark = [measure_light(multiply(gain)(pictures[SOUND]), SCALE) for gain in gains]
    assert flag([*sound, *dark])["underexposed"] == [SOUND + 1, SOUND + 2, SOUND]


def test_real_fields_are_sound(real_data: Path) -> None:
    folder = real_data / "blood-cells" / "dataset-master" / "dataset-master" / "JPEGImages"
    fields = [read_image(file) for file in sorted(folder.glob("*.jpg"))[::9]]
    lights = [measure_light(field, 13.8) for field in fields]
    assert flag(lights) == {}
    spoilt = measure_light(np.asarray(cv2.GaussianBlur(fields[0], (0, 0), 4)), 13.8)
    assert flag([*lights, spoilt]) == {"blurred": [len(lights)]}


# --- leukocytes ---------------------------------------------------------------------------


def cells(*scores: float) -> Any:
    found = tuple(Leukocyte(10 * i, 0, 10 * i + 8, 8, score) for i, score in enumerate(scores))
    return SimpleNamespace(leukocytes=found)


def test_leukocytes_are_counted_against_labels() -> None:
    measured = {
        "sound": cells(0.99),
        "empty": cells(),
        "platelet": cells(0.1),
        "two": cells(0.99, 0.95),
        "two, both labelled": cells(0.99, 0.95),
        "one and a smudge": cells(0.99, 0.5),
        "not labelled": cells(),
        "pale": cells(0.3),
    }
    labels = {name: ("NEUTROPHIL",) for name in measured if name != "not labelled"}
    labels["two, both labelled"] = ("NEUTROPHIL", "EOSINOPHIL")
    issues, scores = judge_leukocytes(measured, labels)
    assert [(issue.kind, issue.images) for issue in issues] == [
        ("no_leukocyte", ("empty",)),
        ("no_leukocyte", ("platelet",)),
        ("more_leukocytes", ("two",)),
    ]
    assert issues[-1].evidence["boxes"] == [[[0, 0, 8, 8], [10, 0, 18, 8]]]
    assert issues[-1].score == 0.95
    assert scores["no_leukocyte"].tolist() == pytest.approx(
        [0.01, 1, 0.9, 0.01, 0.01, 0.01, 0, 0.7]
    )
    assert scores["more_leukocytes"].tolist() == [0, 0, 0, 0.95, 0, 0, 0, 0]


def test_a_class_of_something_else_is_not_expected_to_show_leukocytes() -> None:
    measured = {f"p{i}": cells(*([0.1] if i % 3 else [0.4])) for i in range(30)}
    measured |= {f"n{i}": cells(0.99) for i in range(30)} | {"n empty": cells()}
    labels = {name: ("PLATELET" if name[0] == "p" else "NEUTROPHIL",) for name in measured}
    issues, scores = judge_leukocytes(measured, labels)
    assert [issue.images for issue in issues] == [("n empty",)]
    assert scores["no_leukocyte"][:30].max() == 0
