"""Pretraining: a study of one large set whose result is a start for other studies.

    data → study on nine tenths, judged on the tenth kept aside → weights, card, list of images

A start is made so that it serves laboratories that it has never seen: duplicates and
contradictions are dropped first, and colour, stain, focus, scale, light and compression are
varied far beyond what one laboratory shows (`leuko.learning.batches.WIDE`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from leuko.data.manifest import Manifest, hash_data, read_manifest
from leuko.errors import DataError, SettingsError
from leuko.learning.starts import pack_hashes, write_half
from leuko.run import read_environment
from leuko.storage import write_atomically
from leuko.study import Study, compare
from leuko.watcher import Watcher

# The recipe, by the names of the command line; see results/pretraining.md for what was measured.
RECIPE: dict[str, Any] = {
    "split": "tenth",
    "recipe": "strict",
    "init": "random",
    "size": 96,
    "augmentation": "wide",
    "epochs": 12,
    "small": 0.67,
    "batch": 64,
    "learning_rate": 2e-3,
    "keep_weights": True,
    "leak_meter": False,
}


@dataclass(frozen=True)
class Pretrained:
    """What pretraining gives.

    Attributes:
        study: The study; its report shows the figures on the tenth kept aside.
        starts: Model → its safetensors file; beside each lie its facts (``.json``), the list of
            the images that it was trained on (``.seen``) and a card for people (``.md``).
    """

    study: Study
    starts: dict[str, Path]


def pretrain(
    data: Manifest | str | Path | None = None,
    *,
    model: str | Sequence[str] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    workers: int | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
    credit: str = "",
    **asked: Any,
) -> Pretrained:
    """Trains a start for other studies on a large set of single cells.

    Args:
        data: As for `leuko.compare`; thousands of images are worth it.
        model: One name, or several; several are trained side by side. Only a run that is resumed
            knows it by itself.
        out: The run folder; None takes the next free one under ``runs/``.
        resume: The folder of an interrupted run, which is continued.
        workers: Processes at a time, each with one thread.
        watcher: Learns of the progress.
        command: As the user typed it, for the record.
        credit: Authors and licence of the data, for the card.
        **asked: Fields of `leuko.settings.StudySettings` that differ from `RECIPE`.

    Returns:
        The study and the files.

    Raises:
        SettingsError: No model was named, or the split isn't a single one.
        LeukoError: As for `leuko.compare`.
    """
    models = (model,) if isinstance(model, str) else tuple(model)
    if not models and resume is None:
        raise SettingsError(
            "No model was named, so there is nothing to train: name one, such as --model resnet18."
        )
    settings = {**({} if resume is not None else RECIPE), **asked}
    if models:
        settings["models"] = models
    if settings.get("split", "tenth") not in ("tenth", "given"):
        raise SettingsError(
            f"split is {settings['split']!r}; a start is trained once, on one side of one split: "
            "expected tenth or given."
        )
    study = compare(
        data, out=out, resume=resume, workers=workers, watcher=watcher, command=command, **settings
    )
    return Pretrained(study, write_starts(study, credit))


def write_starts(study: Study, credit: str = "") -> dict[str, Path]:
    """Writes the starts of a finished pretraining into the folder ``starts`` of its run.

    Args:
        study: One split, with its weights kept.
        credit: Authors and licence of the data.

    Returns:
        Model → safetensors file, in half precision but for the layers of one dimension.

    Raises:
        DataError: The study has several splits, or didn't keep its weights.
    """
    splits = pl.read_parquet(study.folder / "splits.parquet")
    weights = {
        m: study.folder / "fits" / f"{m.replace(':', '-').replace('/', '-')}-r0-f0"
        / "weights.safetensors"
        for m in study.results["models"]
    }  # fmt: skip
    if splits.select("repeat", "fold").n_unique() > 1 or not all(
        path.exists() for path in weights.values()
    ):
        raise DataError(
            f"{study.folder} can't give a start: expected a study of one split whose weights were "
            "kept. Use leuko pretrain, or compare --split tenth --keep-weights."
        )
    trained = splits.filter(pl.col("part") == "train")["image"].to_list()
    manifest = read_manifest(study.folder / "manifest.parquet")
    hashes = dict(manifest.table.select("image", "sha256").iter_rows())
    folder = study.folder / "starts"
    folder.mkdir(exist_ok=True)
    written = {}
    for model, path in weights.items():
        facts = _collect_facts(study, manifest, model, len(trained), credit)
        name = model.replace(":", "-").replace("/", "-")
        written[model] = write_half(path, folder / f"{name}.safetensors")
        write_atomically(folder / f"{name}.seen", pack_hashes(hashes[i] for i in trained))
        write_atomically(folder / f"{name}.json", json.dumps(facts, indent=1, ensure_ascii=False))
        write_atomically(folder / f"{name}.md", write_card(facts))
    return written


def _collect_facts(
    study: Study, manifest: Manifest, model: str, trained: int, credit: str
) -> dict[str, Any]:
    results = study.results
    judged = results["models"][model]
    environment = read_environment(study.folder)
    return {
        "model": model,
        "classes": results["data"]["classes"],
        "size": results["protocol"]["size"],
        "command": shlex.join(environment.get("command") or []),
        "leuko": environment.get("leuko", ""),
        "data": {
            "name": results["data"]["name"],
            "sha256": hash_data(manifest),
            "images": results["data"]["images"],
            "trained_on": trained,
            "dropped": results["data"]["dropped"],
            "credit": credit,
        },
        "protocol": results["protocol"],
        "kept_aside": {
            "n": judged.get("n"),
            **{k: judged[k] for k in ("accuracy", "balanced_accuracy", "macro_f1", "per_class")},
        },
    }


def write_card(facts: dict[str, Any]) -> str:
    """A start's facts for people, as Markdown."""
    aside, data, protocol = facts["kept_aside"], facts["data"], facts["protocol"]

    def limits(name: str) -> str:
        v = aside[name]
        return f"{v['value']:.2%} ({v['low']:.2%} to {v['high']:.2%})"

    light = (
        "the empty slide brought to one grey"
        if protocol["light"] == "matched"
        else "in the light that the camera gave"
    )
    dropped = ", ".join(f"{n} by {step}" for step, n in data["dropped"].items() if n)
    rows = "\n".join(
        f"| {c} | {r['n']} | {r['precision']:.1%} | {r['recall']:.1%} |"
        for c, r in aside["per_class"].items()
    )
    return f"""# {facts["model"]}, pretrained on {data["name"]}

A start for training on other sets of blood cells, not a diagnostic device. Research use only, not
for diagnosis.

- Trained by: `{facts["command"]}`
- On {data["trained_on"]:,} images of {len(facts["classes"])} classes; SHA-256 of the set
  `{data["sha256"]}`; dropped before: {dropped or "nothing"}.
- Pictures of {facts["size"]} × {facts["size"]} px, each 20 µm wide, {light};
  {protocol["epochs"]} epochs.
- Credit: {data["credit"] or "not stated"}

On the tenth kept aside by group, n = {aside["n"]}: accuracy {limits("accuracy")}, balanced
accuracy {limits("balanced_accuracy")} (95 % intervals, bootstrap over groups).

| class | n | precision | recall |
|---|---|---|---|
{rows}

The images that it was trained on are listed by hash in the file ending in `.seen`: whoever is
tested on one of them is tested on what the weights have seen.
"""
