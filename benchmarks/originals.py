"""From which raw field each file of the augmented blood-cells set was made; the truth of copies.py.

It shares no code with the audit that it judges: every file is registered to every field, as it is
and mirrored, by the landmarks of the plain green channel and a RANSAC fit of an affine movement
(Fischler and Bolles 1981, doi:10.1145/358669.358692).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from leuko.data.image import read_image, resize_image

SIDE = 320  # px, the long side of the augmented files: the fields were made that small first
VOTERS = 60  # landmarks of each field that take part in the choice of candidates
CANDIDATES = 4
PLAIN, DEEP = (150, 0.03), (600, 0.01)  # landmarks, and the contrast from which they count
CERTAIN = 20  # landmarks on one movement; below, a file is looked at again, and more closely
GROWTH = (0.65, 1.5)  # of lengths; the generator shears, but doesn't zoom

Landmarks = tuple[NDArray[np.float32], NDArray[np.float32]]  # points (n, 2), descriptors (n, 128)


@dataclass(frozen=True)
class Origin:
    """The field that a file was made from.

    Attributes:
        field: Position among the fields; -1 if none fits.
        agreeing: Landmarks on one movement.
        correlation: Of the green channel, file against moved field, over the part that both show.
        second: The next best field, if another has half as many agreeing landmarks; else -1.
        second_correlation: Of that field.
        angle: Of the movement in degrees, after undoing the mirroring.
        mirrored: Left for right.
    """

    field: int
    agreeing: int
    correlation: float
    second: int
    second_correlation: float
    angle: float
    mirrored: bool


def find_originals(files: Sequence[Path], fields: Sequence[Path]) -> list[Origin]:
    """The origin of each file. About 5 minutes for 1,800 files and 367 fields on one core."""
    cv2.setNumThreads(1)
    cv2.setRNGSeed(0)
    found: list[Origin] = []
    greens = [read_green(field) for field in fields]
    shown = [np.ascontiguousarray(green[:, ::step]) for green in greens for step in (1, -1)]
    shallow = [describe(green, *PLAIN) for green in shown]
    deep: dict[int, Landmarks] = {}
    words = np.concatenate([descriptors[:VOTERS] for _, descriptors in shallow])
    owner = np.repeat(np.arange(len(shown)), [len(d[:VOTERS]) for _, d in shallow])
    for done, file in enumerate(files):
        green = read_green(file)
        landmarks = describe(green, *PLAIN)
        nearest = landmarks[1] @ words.T
        close = nearest.max(axis=1) > 0.8
        votes = np.bincount(owner[nearest.argmax(axis=1)[close]], minlength=len(shown))
        top = np.argsort(-votes, kind="stable")[:CANDIDATES]
        origin = choose(green, landmarks, {int(k): shallow[k] for k in top}, shown)
        if origin.agreeing < CERTAIN:  # every field, and fainter landmarks
            deep = deep or {k: describe(other, *DEEP) for k, other in enumerate(shown)}
            origin = choose(green, describe(green, *DEEP), deep, shown)
        found.append(origin)
        if done % 100 == 0 or done + 1 == len(files):
            print(f"\rregistering {done + 1}/{len(files)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def read_green(path: Path) -> NDArray[np.uint8]:
    pixels = read_image(path)
    shrink = SIDE / max(pixels.shape[:2])
    height, width = (round(side * shrink) for side in pixels.shape[:2])
    return np.ascontiguousarray(resize_image(pixels, height, width)[..., 1])


def describe(green: NDArray[np.uint8], most: int, contrast: float) -> Landmarks:
    """The strongest landmarks of one picture, with descriptors of length 1."""
    sift = cv2.SIFT_create(nfeatures=most, contrastThreshold=contrast, sigma=1.2)
    points, descriptors = sift.detectAndCompute(green, None)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    # OpenCV sorts by strength only when it has to leave some out.
    order = np.argsort([-p.response for p in points], kind="stable")
    lengths = np.maximum(1e-6, np.linalg.norm(descriptors, axis=1, keepdims=True))
    return np.array([p.pt for p in points], np.float32)[order], (descriptors / lengths)[order]


def choose(
    green: NDArray[np.uint8],
    landmarks: Landmarks,
    candidates: dict[int, Landmarks],
    shown: Sequence[NDArray[np.uint8]],
) -> Origin:
    """The candidate on which the file lies best; odd numbers are mirrored fields.

    Two photographs of one place have many landmarks in common. Therefore all candidates with half
    of the most agreeing landmarks or more are laid on the file, and the correlation decides.
    """
    fits = {k: f for k, other in candidates.items() if (f := fit_movement(landmarks, other))}
    most = max((count for _, count in fits.values()), default=0)
    laid = sorted(
        (
            (correlate(green, shown[k], matrix), k, matrix, count)
            for k, (matrix, count) in fits.items()
            if 2 * count >= most
        ),
        key=lambda fit: (-fit[0], fit[1]),
    )
    if not laid:
        return Origin(-1, 0, float("nan"), -1, float("nan"), float("nan"), mirrored=False)
    correlation, k, matrix, count = laid[0]
    second = next(((other // 2, r) for r, other, *_ in laid if other // 2 != k // 2), None)
    # The movement carries the file onto the field, which is what has to be undone.
    angle = -float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    return Origin(k // 2, count, correlation, *(second or (-1, float("nan"))), angle, k % 2 == 1)


def fit_movement(one: Landmarks, other: Landmarks) -> tuple[NDArray[np.float64], int] | None:
    """The affine movement (2, 3) of one picture onto the other, and its number of landmarks."""
    if not len(one[0]) or not len(other[0]):
        return None
    alike = one[1] @ other[1].T
    nearest = alike.argmax(axis=1)
    close = alike[np.arange(len(nearest)), nearest] > 0.75
    if close.sum() < 4:
        return None
    matrix, inside = cv2.estimateAffine2D(
        one[0][close], other[0][nearest[close]], method=cv2.RANSAC, ransacReprojThreshold=4,
        maxIters=500,
    )  # fmt: skip
    if matrix is None:
        return None
    growth = np.linalg.svd(matrix[:, :2])[1]
    plausible = growth[0] < GROWTH[1] and growth[1] > GROWTH[0]
    return (matrix, int(inside.sum())) if plausible else None


def correlate(
    green: NDArray[np.uint8], field: NDArray[np.uint8], matrix: NDArray[np.float64]
) -> float:
    """Pearson's r of a file and the field it lies on, where both were photographed."""
    size = (green.shape[1], green.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(field, matrix, size, flags=flags)
    inside = cv2.warpAffine(np.full_like(field, 255), matrix, size, flags=flags)
    both = (inside == 255) & (cv2.erode(green, np.ones((5, 5), np.uint8)) > 10)
    return float(np.corrcoef(green[both], moved[both])[0, 1]) if both.sum() > 100 else float("nan")


# --- why it can be believed -----------------------------------------------------------------------


def repeat_the_makers_split(raw: Path) -> tuple[dict[str, str], set[str]]:
    """Labels of the fields that the maker used; the fields of TEST as the notebook draws them."""
    labels: dict[str, str] = {}
    with (raw / "labels.csv").open(newline="", encoding="utf-8") as file:
        for _, number, label, *_ in list(csv.reader(file))[1:]:
            field = f"BloodImage_{int(number):05d}"
            if label and "," not in label and (raw / "JPEGImages" / f"{field}.jpg").exists():
                labels[field] = label
    return labels, set(train_test_split(list(labels), test_size=0.2, random_state=10)[1])


def describe_truth(
    original: NDArray[np.str_], label: NDArray[np.str_], split: NDArray[np.str_],
    origins: Sequence[Origin], fields: int, raw: Path, seconds: float,
) -> list[str]:  # fmt: skip
    """What speaks for the registration, for the file of results; the arrays are (N,), by file."""
    labels, test = repeat_the_makers_split(raw)
    own = [labels.get(field) for field in original]
    right = int((np.array(own) == label).sum())
    in_test = np.isin(original, sorted(test))
    agreed = int((in_test == (split != "TRAIN")).sum())
    r = np.array([o.correlation for o in origins])
    rivals = [o for o in origins if o.second >= 0]
    closest = min(rivals, key=lambda o: o.correlation - o.second_correlation)
    return [
        "## The truth", "",
        f"Every one of {len(origins):,} files was registered to every one of {fields} raw "
        f"fields, as they are and mirrored ({seconds:.0f} s of processor time). All have an "
        f"original: {min(o.agreeing for o in origins)} or more landmarks on one movement (median "
        f"{np.median([o.agreeing for o in origins]):.0f}; below {CERTAIN} a file is looked at "
        f"again), and once the field is laid on the file they correlate by {r.min():.3f} or more "
        f"(median {np.median(r):.3f}). In {len(rivals)} files another field, a second photograph, "
        f"comes near; its correlation is {max(o.second_correlation for o in rivals):.3f} at most, "
        f"and {closest.correlation - closest.second_correlation:.3f} or more below that of the "
        "original.", "",
        "Two checks that the registration knows nothing of:", "",
        f"- The label of the original in `labels.csv` is the folder of the file in {right:,} of "
        f"{len(origins):,} cases.",
        "- The maker's notebook (dhruvp/wbc-classification, `notebooks/augment_data.ipynb`, commit "
        "0b22eb2) splits the fields by `train_test_split(..., test_size=0.2, random_state=10)`. "
        f"Run again on `labels.csv`, it gives {len(test)} fields for TEST; {agreed:,} of "
        f"{len(origins):,} files come from a field of their own side. No original is on both "
        f"sides. {len(set(original[in_test]))} of these {len(test)} occur in the files at "
        f"hand, and {len(set(original[~in_test]))} of the "
        f"{sum(v != 'BASOPHIL' for v in labels.values()) - len(test)} of TRAIN.",
        "",
    ]  # fmt: skip
