"""Judges focus, exposure, colour and leukocytes of single images, against the rest of their set.

What is sharp or bright enough depends on the camera, so each image is compared with the others of
its set; where a whole set is blurred, nothing stands out and nothing is flagged. Takes what was
measured; knows no pixels, files or groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leuko.data.issues import Issue
from leuko.data.measurements import Light, Measured

FEWEST = 20  # images of a set below which nothing can stand out
CAUTION = 8  # of few images the usual is not known well: thresholds beside it grow by CAUTION / N
# Thresholds, chosen on one half of the images of results/audit_quality.md and reported on the
# other. Where there are two, both have to be passed: one in plain units, one beside the set.
BLUR = (0.7, 2.75)  # px of blur at 5 px/µm on top of the usual; times what the softest have
SOFT = 85  # per cent of the images are sharper than "the softest"
DARK = (60.0, 4.0)  # grey levels below the median background; robust standard deviations
PALE = (0.45, 4.0)  # share of the median contrast; robust standard deviations
SHADOWS = 0.05  # share of pixels without any detail in the dark
LIGHTS = (0.25, 4.0)  # likewise in the bright, above the median; robust standard deviations
COLOUR = (0.15, 3.0)  # weighted log units to pictures of like colour; at least times the usual
TAIL = 2.6  # robust standard deviations of the logarithm of that distance, where it is wide
WEIGHTS = (2.0, 2.0, 2.0, 2.0, 1.0, 1.0)  # nuclei differ by themselves, light and red cells don't
STAIN = 0.05  # share of a set from which pictures of like colour are a stain of their own
REFERENCES = 2_000  # pictures of a large set, evenly spread, that stand for it
SWAPPED = (0.15, 0.03)  # log units: nuclei redder than red cells; red cells bluer than the light
CERTAIN = 0.2  # score from which a cell may be a leukocyte; most platelets stay below
NO_LEUKOCYTES = 0.1  # share of images without one from which a class isn't one of leukocytes
SURE = 0.8  # score from which it is one more than was labelled

FloatArray = NDArray[np.float64]


def judge_light(measured: Mapping[str, Measured]) -> tuple[list[Issue], dict[str, FloatArray]]:
    """Blurred, too dark, too bright and oddly coloured images.

    Args:
        measured: From `leuko.data.measurements.measure_images`.

    Returns:
        The flagged ones, the worst first within a kind; and per kind a score in [0, 1] for each
        image in the order of `measured`, 1 where it is worst.
    """
    names = list(measured)
    lights = [m.light for m in measured.values()]
    judges = {
        "blurred": _judge_blur,
        "underexposed": _judge_dark,
        "overexposed": _judge_bright,
        "unusual_colour": _judge_colour,
    }
    if len(names) < FEWEST:
        return [], {kind: np.zeros(len(names)) for kind in judges}
    kinds = {kind: judge(lights, 1 + CAUTION / len(lights)) for kind, judge in judges.items()}
    issues = []
    for kind, (scores, details) in kinds.items():
        for i in np.argsort(-scores, kind="stable"):
            if scores[i] > 0.5:
                issues.append(Issue(kind, (names[i],), details[i], float(scores[i])))
    return issues, {kind: scores for kind, (scores, _) in kinds.items()}


Judged = tuple[FloatArray, list[str]]  # scores (N,), flagged above 0.5; a sentence for each


def _judge_blur(lights: list[Light], caution: float) -> Judged:
    """Blurs add up as squares, so what a picture has on top is told from that of the median."""
    softness = np.array([light.softness for light in lights])
    middle, soft = np.percentile(softness, [50, SOFT])
    more = np.sqrt(np.maximum(softness**2 - middle**2, 0.0))
    beyond = (softness - middle) / max(soft - middle, 1e-6)
    scores = _score(np.minimum(more / BLUR[0], beyond / (BLUR[1] * caution)))
    widths = softness / max(middle, 0.1)
    return scores, [f"edges {width:.1f} times as wide as usual in this set" for width in widths]


def _judge_dark(lights: list[Light], caution: float) -> Judged:
    background = np.array([light.background for light in lights])
    lost = np.array([light.lost_shadows for light in lights])
    middle, spread = _middle(background)
    below = middle - background
    dark = np.minimum(below / DARK[0], below / (DARK[1] * caution * spread))
    scores = _score(np.maximum(dark, (lost - np.median(lost)) / SHADOWS))
    return scores, [
        f"background {b:.0f} of 255, usually {middle:.0f}; {s:.0%} of the pixels black"
        for b, s in zip(background, lost, strict=True)
    ]


def _judge_bright(lights: list[Light], caution: float) -> Judged:
    contrast = np.array([light.contrast for light in lights])
    lost = np.array([light.lost_lights for light in lights])
    middle, spread = _middle(contrast)
    below = middle - contrast
    pale = np.minimum(
        below / (max(middle, 1e-3) * (1 - PALE[0])), below / (PALE[1] * caution * spread)
    )
    usual, scatter = _middle(lost)
    burnt = np.minimum((lost - usual) / LIGHTS[0], (lost - usual) / (LIGHTS[1] * caution * scatter))
    # A pale picture is overexposed only if the background is bright; else it is empty or dim.
    bright = np.array([light.background for light in lights]) >= 225
    scores = _score(np.where(bright, np.maximum(np.minimum(pale, 2 * burnt + 0.5), burnt), 0.0))
    return scores, [
        f"contrast of the cells {c:.2f}, usually {middle:.2f}; {s:.0%} of the pixels at the limit"
        for c, s in zip(contrast, lost, strict=True)
    ]


def _judge_colour(lights: list[Light], caution: float) -> Judged:
    """Far from the nearest other pictures: a set may well hold two stains, each with many."""
    from scipy.spatial import KDTree

    colours = np.array([light.colours for light in lights])  # (N, 6)
    known = (colours * WEIGHTS)[:: max(1, -(-len(colours) // REFERENCES))]
    near = max(3, round(STAIN * len(known))) + 1  # each picture is its own nearest
    away = np.asarray(KDTree(known).query(colours * WEIGHTS, k=[near])[0])[:, 0]
    usual = float(np.median(away)) + 1e-6
    # Where classes differ much in colour, distances scatter, and a multiple of the usual is common.
    _, scatter = _middle(np.log(away + 1e-6))
    far = max(COLOUR[1], float(np.exp(TAIL * scatter)))
    # Whatever the stain, nuclei take red light, and red cells blue light.
    light, cell, nucleus = (colours[:, k] - colours[:, k + 1] for k in (0, 2, 4))  # red over blue
    swapped = np.minimum((nucleus - cell) / SWAPPED[0], (light - cell) / SWAPPED[1])
    swapped *= np.median(nucleus - cell) < 0
    odd = np.minimum(away / COLOUR[0], away / (far * caution * usual))
    scores = _score(np.maximum(odd, swapped))
    return scores, [
        f"colours {a / usual:.1f} times as far from those of other images as usual"
        + ("; nuclei redder than red cells, as if red and blue were swapped" * int(s > 1))
        for a, s in zip(away, swapped, strict=True)
    ]


def _middle(values: FloatArray) -> tuple[float, float]:
    """Median, and the deviation that a normal distribution of this interquartile range has."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), max(float(high - low) / 1.349, 1e-6)


def _score(excess: FloatArray) -> FloatArray:
    """Excess 1, the threshold, becomes 0.5; 0 and less 0; far beyond goes to 1."""
    positive = np.maximum(excess, 0.0)
    return np.asarray(positive / (1 + positive))


def judge_leukocytes(
    measured: Mapping[str, Measured], labels: Mapping[str, Sequence[str]]
) -> tuple[list[Issue], dict[str, FloatArray]]:
    """Labelled images without a leukocyte, and those with more than were labelled.

    Args:
        measured: From `leuko.data.measurements.measure_images`.
        labels: The labels of each image; those without one are not judged.

    Returns:
        As `judge_light`.
    """
    issues = []
    none, more = np.zeros(len(measured)), np.zeros(len(measured))
    others = _find_other_classes(measured, labels)
    for i, (name, m) in enumerate(measured.items()):
        named = labels.get(name, ())
        if not named:
            continue
        if not others.issuperset(named):
            best = _rate_best(m)
            none[i] = 1 - best
            if best < CERTAIN:
                detail = f"{len(named)} labelled, none found"
                issues.append(Issue("no_leukocyte", (name,), detail, 1 - best))
        sure = [cell for cell in m.leukocytes if cell.score >= SURE]
        if len(sure) > len(named):
            more[i] = sorted((cell.score for cell in sure), reverse=True)[len(named)]
            boxes = [[round(v, 1) for v in (c.x0, c.y0, c.x1, c.y1)] for c in sure]
            detail = f"{len(sure)} found, {len(named)} labelled"
            issues.append(Issue("more_leukocytes", (name,), detail, more[i], {"boxes": [boxes]}))
    return issues, {"no_leukocyte": none, "more_leukocytes": more}


def _rate_best(measured: Measured) -> float:
    return max((cell.score for cell in measured.leukocytes), default=0.0)


def _find_other_classes(
    measured: Mapping[str, Measured], labels: Mapping[str, Sequence[str]]
) -> set[str]:
    """Classes of something else, such as platelets: often there is no leukocyte."""
    counts: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for name, m in measured.items():
        for label in labels.get(name, ()):
            counts[label] += 1
            without[label] += _rate_best(m) < CERTAIN
    return {c for c in counts if counts[c] >= FEWEST and without[c] > NO_LEUKOCYTES * counts[c]}
