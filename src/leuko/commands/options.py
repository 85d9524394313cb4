"""What several commands have in common: their data, their protocol, how they print.

Nothing heavy is imported here, so that help and a wrong option are answered at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

DATA_HELP = (
    "A Kaggle blood-cells folder in either layout, a folder of class folders, a CSV with columns "
    "image,label[,group], or nothing for the embedded synthetic demo set."
)

STUDY = Group("Study", sort_key=1)
ACROSS = Group("Across laboratories", sort_key=2)
TRAINING = Group("Training", sort_key=3)
OUTPUT = Group("Output", sort_key=4)

Data = Annotated[Path | None, Parameter(help=DATA_HELP)]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", group=OUTPUT, help="Print the result as JSON.")
]


@Parameter(name="*")
@dataclass(frozen=True)
class Protocol:
    """Settings that compare, train and pretrain have in common; None leaves the default.

    The names are those of `leuko.settings.StudySettings`.

    Parameters
    ----------
    recipe:
        Cleaning: classic, minimal, prepared, strict or a TOML file.
        [default: classic; pretrain: strict]
    groups:
        cell: images of the same physical cell stay together; given: only what the set says.
        [default: cell]
    split:
        folds; given: the set's own TRAIN and TEST; tenth: one tenth of the groups is tested, once,
        for large sets; auto: given where there is one. [default: auto; pretrain: tenth]
    view:
        cell: the leukocyte, cut out; field: the whole field. [default: cell]
    light:
        matched: the empty slide of every picture is brought to one grey; given: as the camera
        gave it. [default: matched]
    size:
        Side of the square picture in pixels, the same for all models. [default: 96]
    seed:
        Decides everything that is drawn. [default: 0]
    decisions:
        A CSV in which a person decided about single images; leuko audit writes one to fill in.
    init:
        blood (pretrained on blood cells), random, imagenet or a safetensors file.
        [default: blood; pretrain: random]
    augmentation:
        narrow: training pictures change as those of one laboratory do; wide: as those of many.
        [default: narrow; pretrain: wide]
    small:
        Share of the epochs, the first ones, at two thirds of the picture side.
        [default: 0; pretrain: 0.67]
    frozen:
        Keep the statistics of batch normalisation of the start. [default: no]
    epochs:
        Passes through the training part. [default: 8; demo: 4; pretrain: 12]
    batch:
        Images per step. [default: 16; pretrain: 64]
    learning_rate:
        Its peak. [default: 0.001; pretrain: 0.002]
    label_smoothing:
        Share of each target spread over all classes. [default: 0.1]
    precision:
        float32, bfloat16, or auto for the faster one of this processor. [default: auto]
    device:
        Where networks are trained: cpu, or cuda for a GPU. [default: cpu]
    views:
        8: average over quarter turns and mirror images; 1: don't. [default: 8]
    """

    recipe: Annotated[str | None, Parameter(group=STUDY)] = None
    groups: Annotated[str | None, Parameter(group=STUDY)] = None
    split: Annotated[str | None, Parameter(group=STUDY)] = None
    view: Annotated[str | None, Parameter(group=STUDY)] = None
    light: Annotated[str | None, Parameter(group=STUDY)] = None
    size: Annotated[int | None, Parameter(group=STUDY)] = None
    seed: Annotated[int | None, Parameter(group=STUDY)] = None
    decisions: Annotated[Path | None, Parameter(group=STUDY)] = None
    init: Annotated[str | None, Parameter(group=TRAINING)] = None
    augmentation: Annotated[str | None, Parameter(group=TRAINING)] = None
    small: Annotated[float | None, Parameter(group=TRAINING)] = None
    frozen: Annotated[bool | None, Parameter(group=TRAINING)] = None
    epochs: Annotated[int | None, Parameter(group=TRAINING)] = None
    batch: Annotated[int | None, Parameter(group=TRAINING)] = None
    learning_rate: Annotated[float | None, Parameter(group=TRAINING)] = None
    label_smoothing: Annotated[float | None, Parameter(group=TRAINING)] = None
    precision: Annotated[str | None, Parameter(group=TRAINING)] = None
    device: Annotated[str | None, Parameter(group=TRAINING)] = None
    views: Annotated[int | None, Parameter(group=TRAINING)] = None

    def ask(self, **more: Any) -> dict[str, Any]:
        """What was asked for, here and in `more`; paths as text."""
        given = {**{f.name: getattr(self, f.name) for f in fields(self)}, **more}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in given.items()
            if value is not None
        }


NOTHING_ASKED = Protocol()


def say(text: str) -> None:
    """Tells a person; programs read stdout."""
    sys.stderr.write(text + "\n")
