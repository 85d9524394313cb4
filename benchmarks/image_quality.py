"""How well the audit tells spoilt images from sound ones: focus, exposure and colour.

    uv run python benchmarks/image_quality.py ../shared/data

Sound images of three sets are judged as they are: what is flagged there counts as a false flag.
Then a twenty-fifth of a set at a time is spoilt and judged among the others that aren't, until
each image was spoilt once in each way. The thresholds of `leuko.data.quality` were chosen on one
half of the images (``--half choosing``); the other half is reported. Writes
`results/audit_quality.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from leuko.data.image import decode_image, encode_jpeg, read_image
from leuko.data.measurements import Light, measure_light
from leuko.data.quality import judge_light
from leuko.data.scales import measure_set_scales
from leuko.judgement.metrics import exact_limits

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "blood-cells, raw": "blood-cells/dataset-master/dataset-master/JPEGImages/*.jpg",
    "blood-cells, augmented": "blood-cells/dataset2-master/dataset2-master/images/*/*/*.jpeg",
    "PBC": "pbc/*/*.jpg",
}
MOST = 600  # images of a set
KINDS = ("blurred", "underexposed", "overexposed", "unusual_colour")
AT_A_TIME = 25
RAW_SCALE = 13.85  # px per µm of the raw set, for which the blur is given

Pixels = NDArray[np.uint8]

REMARKS = """
Which numbers describe focus and colour was decided while looking at images of both halves; the
thresholds were then set on one half and on drawn demo sets, and the other half was judged once
they were fixed.

Unusual colour used to be three times the usual distance to pictures of like colour, and flagged
erythroblasts, platelets and myelocytes of ordinary colour whose nuclei are very dark or very
pale. Where distances scatter, they now have to be 2.6 robust standard deviations of their
logarithm above the usual one, too. That number was chosen on the other half and on 2,000 further
PBC images (flagged before 80, after 48). On 2,000 others, on which no number was chosen: 100
before, 70 after; those whose background and red cells are as usual (within 0.08 log units) 33
before, 7 after. Of the raw set's 367 images none before, none after. Looked at as pictures, ten
drawn of the 70: nine come from another camera or stain (a white to blue-grey background; the
usual one is yellow), one is a clump of dark myelocytes. Ten drawn of the 30 that are no longer
flagged are of ordinary colour. The PBC image called blurred has sharp red cells of low contrast
and counts as a false flag. The two images of the augmented set are a soft lymphocyte without a
clear rim, and a field whose leukocyte was cut off by the turn.
"""


def multiply(pixels: Pixels, gain: float) -> Pixels:
    return np.clip(np.rint(pixels * gain), 0, 255).astype(np.uint8)


def turn_hue(pixels: Pixels, degrees: float) -> Pixels:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


#: What is done → (the kind that has to be flagged, how); the scale is in px per µm.
SPOILT: dict[str, tuple[str, Callable[[Pixels, float], Pixels]]] = {
    "blur, 0.22 µm (3 px at 640 × 480)": (
        "blurred",
        lambda p, scale: np.asarray(cv2.GaussianBlur(p, (0, 0), 3 * scale / RAW_SCALE)),
    ),
    "gain × 0.4": ("underexposed", lambda p, _: multiply(p, 0.4)),
    "gain × 1.8, clipped": ("overexposed", lambda p, _: multiply(p, 1.8)),
    "red and blue swapped": ("unusual_colour", lambda p, _: np.ascontiguousarray(p[..., ::-1])),
    "hue + 40°": ("unusual_colour", lambda p, _: turn_hue(p, 40)),
    "hue − 40°": ("unusual_colour", lambda p, _: turn_hue(p, -40)),
}


def draw_half(files: Sequence[Path], seed: int, half: str) -> list[Path]:
    """Up to `MOST` files in random order; every other one of them."""
    order = np.random.default_rng(seed).permutation(len(files))[:MOST]
    return sorted(files[i] for i in order[half == "reported" :: 2])


def flag(lights: Sequence[Light]) -> dict[str, set[int]]:
    measured: Any = {str(i): SimpleNamespace(light=light) for i, light in enumerate(lights)}
    found: dict[str, set[int]] = {kind: set() for kind in KINDS}
    for issue in judge_light(measured)[0]:
        found[issue.kind].add(int(issue.images[0]))
    return found


def count_found(sound: Sequence[Light], spoilt: Sequence[Light], kind: str) -> int:
    """How many are flagged when a twenty-fifth of the set is spoilt at a time."""
    found = 0
    for start in range(AT_A_TIME):
        planted = set(range(start, len(sound), AT_A_TIME))
        mixed = [spoilt[i] if i in planted else sound[i] for i in range(len(sound))]
        found += len(flag(mixed)[kind] & planted)
    return found


def say(right: int, n: int) -> str:
    low, high = exact_limits(right, n)
    return f"{right} of {n} ({low:.1%}–{high:.1%})"


def measure_set(files: Sequence[Path]) -> tuple[list[str], list[str], list[str], float]:
    """Table cells for sound images by kind and for each way to spoil; what was flagged; ms."""
    pictures = [read_image(file) for file in files]
    rows = [(file, p.shape[1], p.shape[0]) for file, p in zip(files, pictures, strict=True)]
    scales = measure_set_scales(Path(), rows)
    pairs = [(p, scales[p.shape[:2]]) for p in pictures]
    start = time.process_time()
    sound = [measure_light(p, scale) for p, scale in pairs]
    seconds = time.process_time() - start
    flagged = flag(sound)
    names = [f"{kind}: {files[i].name}" for kind in KINDS for i in sorted(flagged[kind])]
    clean = [say(len(flagged[kind]), len(sound)) for kind in KINDS]
    cells = []
    for kind, spoil in SPOILT.values():
        spoilt = [
            measure_light(decode_image(encode_jpeg(spoil(p, scale))), scale) for p, scale in pairs
        ]
        cells.append(say(count_found(sound, spoilt, kind), len(sound)))
    return clean, cells, names, 1000 * seconds / len(sound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--half", choices=("choosing", "reported"), default="reported")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    sets = {}
    for name, pattern in SETS.items():
        files = draw_half(sorted(options.data.glob(pattern)), options.seed, options.half)
        sets[name] = measure_set(files)
        print(name, sets[name], flush=True)

    def table(head: str, rows: Sequence[str], part: int) -> list[str]:
        return [
            f"| {head} | " + " | ".join(SETS) + " |", "|---" * (len(SETS) + 1) + "|",
            *(f"| {row} | " + " | ".join(s[part][i] for s in sets.values()) + " |"
              for i, row in enumerate(rows)),
        ]  # fmt: skip

    lines = [
        "# Focus, exposure and colour: what the audit flags", "",
        "```", "uv run python benchmarks/image_quality.py ../shared/data", "```", "",
        f"Up to {MOST} images of each set, drawn with seed {options.seed}; thresholds were chosen "
        "on one half of them and are reported on the other. In brackets: exact 95 % limits.", "",
        "Flagged among the images as they are:", "", *table("kind", KINDS, 0), "",
        "Flagged with the right kind, where one in twenty-five images of the set was spoilt and "
        "saved again as JPEG:", "",
        *table("spoilt by", [f"{how} → {kind}" for how, (kind, _) in SPOILT.items()], 1), "",
        f"One image takes {max(s[3] for s in sets.values()):.1f} ms or less.", "",
        *(f"Flagged in {name}: {', '.join(s[2]) or 'none'}.\n" for name, s in sets.items()),
        *REMARKS.strip().splitlines(), "",
    ]  # fmt: skip
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if options.half == "reported":
        (ROOT / "results" / "audit_quality.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
