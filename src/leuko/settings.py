"""The settings of a study: their names, defaults and limits, the same in TOML, shell and Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from leuko.data.cuts import LIGHTS
from leuko.data.recipe import load_recipe
from leuko.errors import MissingExtraError, SettingsError, suggest
from leuko.learning.batches import WIDE, Augmentation
from leuko.learning.fit import FitSettings, reduce_size
from leuko.learning.gpu import check_gpu
from leuko.learning.models import DEFAULT_MODELS, check_input_size, check_start

VIEWS = ("cell", "field")
GROUPS = ("cell", "given")
SPLITS = ("auto", "folds", "given", "tenth")
AUGMENTATIONS = ("narrow", "wide")
PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("cpu", "cuda")

Settings = TypeVar("Settings", bound="StudySettings")


@dataclass(frozen=True)
class StudySettings:
    """Everything that decides the result of a study, by the names of the command line.

    Attributes:
        models: Names, see `leuko.learning.models`.
        folds: Parts of the data; each is tested once per repeat.
        repeats: How often the data are split anew.
        recipe: Cleaning recipe: a shipped name or a TOML file.
        groups: What stays on one side of a split. ``cell``: images that show the same physical
            cell, besides what the set itself says; ``given``: only what the set says (source,
            slide or patient; else the file).
        split: ``folds``; ``given`` (train on TRAIN, test on TEST of the set); ``tenth``
            (test on one tenth of the groups, once: for large sets); ``auto`` takes the given one
            where there is one.
        view: ``cell``: the leukocyte, cut out at one physical scale; ``field``: the whole field.
        light: ``matched``: the empty slide of every picture is brought to one grey;
            ``given``: pictures stay as the camera gave them.
        size: Side of the square picture in pixels, the same for every model.
        init: Start of the weights: ``blood`` (pretrained on blood cells, ships with the
            package), ``random``, ``imagenet`` or a safetensors file.
        augmentation: ``narrow``: training pictures change as pictures of one laboratory do;
            ``wide``: as those of many.
        small: Share of the epochs, the first ones, that are trained at two thirds of `size`.
        frozen: Whether the statistics of batch normalisation stay those of the start.
        epochs: Passes through the training part, each showing all classes equally often.
        batch: Images per step.
        learning_rate: Peak.
        label_smoothing: Share of the target spread over all classes.
        precision: ``float32``, ``bfloat16``, or ``auto`` for what each network trains
            faster in on this processor.
        device: Where networks are trained: ``cpu``, or ``cuda`` for a GPU.
        views: 8 averages the answer over quarter turns and mirror images; 1 doesn't.
        seed: Decides everything that is drawn.
        keep_weights: Keep each fold's weights in the run folder.
        decisions: A person's decisions about single images, a CSV; nothing for none.
        leak_meter: Measure what a random split would pretend, see `leuko.meter`.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    folds: int = 5
    repeats: int = 1
    recipe: str = "classic"
    groups: str = "cell"
    split: str = "auto"
    view: str = "cell"
    light: str = "matched"
    size: int = 96
    init: str = "blood"
    augmentation: str = "narrow"
    small: float = 0.0
    frozen: bool = False
    epochs: int = 8
    batch: int = 16
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    precision: str = "auto"
    device: str = "cpu"
    views: int = 8
    seed: int = 0
    keep_weights: bool = False
    decisions: str = ""
    leak_meter: bool = True

    def make_protocol(self, *, balance: bool, reach: float = 1.0) -> FitSettings:
        """The training protocol of every model.

        Args:
            balance: Whether rare classes are trained several times over.
            reach: Of the pictures for training, see `leuko.learning.fit.FitSettings`.
        """
        return FitSettings(
            epochs=self.epochs, batch=self.batch, learning_rate=self.learning_rate,
            label_smoothing=self.label_smoothing, precision=self.precision, views=self.views,
            balance=balance, small=self.small, frozen=self.frozen,
            augmentation=WIDE if self.augmentation == "wide" else Augmentation(),
            size=self.size, reach=reach,
        )  # fmt: skip


@dataclass(frozen=True)
class LaboratorySettings(StudySettings):
    """The settings of a study across laboratories: those of a study, and two more.

    Attributes:
        seeds: How many networks are trained per model and set that is trained on. Each leaves
            another fold of that set out, so that it can be judged at home as well as away.
        map: What the classes of each set are called in common, see `leuko.data.vocabulary`: a
            file, or JSON; nothing to match them by their names.
    """

    split: str = "folds"
    leak_meter: bool = False
    seeds: int = 3
    map: str = ""


# What several sets can't have, and what to do instead.
FIXED = {
    "split": "Every set is split into folds by group.",
    "repeats": "Training is repeated by --seeds.",
    "leak_meter": "Measure it for one set: leuko audit DATA --split.",
    "decisions": "Decide about each set alone, with leuko clean DATA --decisions FILE --out CLEAN, "
    "and compare the cleaned ones: leuko compare CLEAN OTHER --recipe prepared.",
}

# What is different when no data are given: the demo is to show everything within two minutes.
DEMO = {"folds": 2, "epochs": 4}


def resolve_settings(asked: Mapping[str, Any]) -> StudySettings:
    """Fills in the defaults of a study on one set.

    Raises:
        SettingsError: An unknown name or a value of the wrong type.
    """
    for name in ("seeds", "map"):
        if name in asked:
            raise SettingsError(
                f"{name} is for several sets, as in leuko compare A B; found one. "
                + ("Use --repeats instead." if name == "seeds" else "Leave it out.")
            )
    return _resolve(asked, StudySettings())


def resolve_laboratories(asked: Mapping[str, Any]) -> LaboratorySettings:
    """Fills in the defaults of a study across several sets.

    Raises:
        SettingsError: An unknown name, a value of the wrong type, or a setting for one set only.
    """
    values = dict(asked)
    if values.get("split") == "auto":
        del values["split"]
    settings = _resolve(values, LaboratorySettings())
    for name, advice in FIXED.items():
        if getattr(settings, name) != getattr(LaboratorySettings(), name):
            raise SettingsError(f"{name} is for one set; several are compared here. {advice}")
    return settings


def _resolve(asked: Mapping[str, Any], defaults: Settings) -> Settings:
    known = {f.name: f for f in fields(defaults)}
    for name in asked:
        if name not in known:
            raise SettingsError(f"There is no setting {name!r}. {suggest(name, list(known))}")
    values = dict(asked)
    if "models" in values:
        models = values["models"]
        names = models.split(",") if isinstance(models, str) else models
        values["models"] = tuple(name.strip() for name in names)
    settings = replace(defaults, **values)
    for name, value in asdict(settings).items():
        default = getattr(defaults, name)
        right = isinstance(value, type(default)) or (
            isinstance(default, float) and isinstance(value, int)
        )
        if not right or (isinstance(value, bool) and not isinstance(default, bool)):
            raise SettingsError(
                f"{name} is {value!r}; expected {type(default).__name__}, as in {default!r}."
            )
    return settings


def check_settings(
    settings: StudySettings, workers: int = 1, *, has_recipe: bool = False, begun: bool = False
) -> None:
    """Refuses what can't work, before anything is read or written.

    Args:
        settings: What was asked for, or recorded.
        workers: Processes at a time.
        has_recipe: Whether the data were cleaned already.
        begun: Whether the settings are those of a run that is continued.

    Raises:
        SettingsError: A value out of its range.
        UnknownNameError: A model that doesn't exist.
        InputSizeError: `size` is too small for a model.
        MissingExtraError: PyTorch isn't installed.
    """
    if not settings.models:
        raise SettingsError("No models were named; expected at least one, as in --models resnet18.")
    if len(set(settings.models)) < len(settings.models):
        raise SettingsError(
            f"A model is named twice in {', '.join(settings.models)}; name it once."
        )
    limits: dict[str, tuple[float, float]] = {
        "folds": (2, 1000), "repeats": (1, 1000), "size": (16, 1024), "epochs": (1, 100_000),
        "batch": (2, 4096), "learning_rate": (1e-8, 10), "label_smoothing": (0, 0.9),
        "small": (0, 1), "seed": (0, 2**31 - 1),
    }  # fmt: skip
    if isinstance(settings, LaboratorySettings):
        limits["seeds"] = (1, 1000)
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:  # false for NaN too
            raise SettingsError(f"{name} is {value}; expected a number from {low:g} to {high:g}.")
    if workers < 1:
        raise SettingsError(f"workers is {workers}; expected at least 1.")
    choices: dict[str, tuple[object, ...]] = {
        "view": VIEWS, "light": LIGHTS, "groups": GROUPS, "split": SPLITS,
        "precision": PRECISIONS, "device": DEVICES, "augmentation": AUGMENTATIONS, "views": (1, 8),
    }  # fmt: skip
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value not in allowed:
            raise SettingsError(
                f"{name} is {value!r}; expected one of: {', '.join(map(str, allowed))}."
            )
    for model in settings.models:
        check_input_size(model, reduce_size(settings.size) if settings.small else settings.size)
    check_start(settings.init, settings.models)
    if not has_recipe:
        load_recipe(settings.recipe)
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise MissingExtraError(
            "leuko compare trains networks and needs PyTorch and torchvision, which aren't "
            "installed. Install them with: pip install 'leuko[train]'"
        )
    if settings.device == "cuda":
        check_gpu(begun=begun)
