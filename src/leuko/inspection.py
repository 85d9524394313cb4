"""Inspects a set before any model is believed: the audit, likely wrong labels, the leak meter.

    data → manifest → issues and groups → out-of-fold opinions → (leak meter) → audit folder

Joins what the floors below find, and writes one folder: the page, the same as JSON, the manifest
with groups and codes, the scores, and a table in which a person decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from leuko.data.audit import Audit, add_issues, find_issues
from leuko.data.decisions import write_decisions
from leuko.data.issues import KINDS, Issue
from leuko.data.manifest import Manifest, read_manifest, write_manifest
from leuko.data.pictures import cut_pictures
from leuko.data.sources import scan
from leuko.engine import count_cores, refuse_in_worker
from leuko.errors import DataError, MissingExtraError, SettingsError
from leuko.judgement.audit_page import write_audit_page
from leuko.judgement.finished_run import read_run
from leuko.judgement.second_opinion import describe_disputes, hear_opinions
from leuko.learning.doubts import Doubts, find_doubts
from leuko.learning.fit import FitSettings
from leuko.learning.opinions import LEAST_IMAGES
from leuko.meter import EPOCHS, make_meter_jobs, plan_meter, read_meter
from leuko.plan import find_name
from leuko.preparation import run_jobs, save_cells
from leuko.run import check_run_folder, describe_environment, make_run_folder
from leuko.storage import write_atomically
from leuko.watcher import Watcher

SIZE = 64  # px of the pictures that the leak meter sees


@dataclass(frozen=True)
class Inspection:
    """A finished inspection.

    Attributes:
        audit: Issues, groups, and the manifest with both.
        doubts: What out-of-fold models say of the labels; None if it wasn't asked for.
        leak_meter: As in ``results.json`` of a study; None if it wasn't asked for.
        opinions: ``labels`` in ``results.json`` of a finished study of this set, and its folder's
            name as ``run``; None if no study was named.
        folder: Where page and tables were written; None if nowhere.
    """

    audit: Audit
    doubts: Doubts | None = None
    leak_meter: dict[str, Any] | None = None
    opinions: dict[str, Any] | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def manifest(self) -> Manifest:
        """The set with groups and issue codes, for `leuko.clean` and `leuko.compare`."""
        return self.audit.manifest

    @property
    def issues(self) -> tuple[Issue, ...]:
        """Everything that was found."""
        return self.audit.issues

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Images that show the same cell or come from one source."""
        return self.audit.groups

    def to_json(self) -> dict[str, Any]:
        """As ``leuko audit --json`` prints it."""
        facts = self.audit.to_json()
        if self.doubts is not None:
            wrong = self.doubts.wrong
            facts["wrong_labels"] = {
                "share": asdict(wrong) if wrong is not None else None,
                "judged": int(self.doubts.judged.sum()),
                "reason": self.doubts.reason,
                "left_out": self.doubts.left_out,
            }
        if self.leak_meter is not None:
            facts["leak_meter"] = self.leak_meter
        if self.opinions is not None:
            facts["labels"] = self.opinions
        facts["notes"] = [*self.manifest.notes, *self.notes]
        return facts


def audit(
    data: Manifest | str | Path | None = None,
    *,
    out: str | Path | None = None,
    write: bool = False,
    folds: int = 5,
    split: bool = False,
    study: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    watcher: Watcher | None = None,
    command: Sequence[str] = (),
) -> Inspection:
    """Looks for everything that can be wrong with a set.

    Args:
        data: A path as for `leuko.scan`, a manifest, or None for the synthetic demo set.
        out: The folder for page and tables; it must not exist.
        write: Write into the next free folder under ``runs/`` if `out` is left out.
        folds: That a study would use.
        split: Measure what a random split of this set is worth; trains small networks where
            PyTorch is installed.
        study: The folder of a finished run of `leuko.compare` on this set, whose models dispute
            labels; see `leuko.learning.opinions`.
        seed: Decides folds and trees.
        workers: Processes at a time; None takes one per core. They don't change the result.
        watcher: Learns of the progress.
        command: As typed, for the page.

    Raises:
        LeukoError: See `leuko.errors`.
    """
    refuse_in_worker("leuko.audit")
    if not 2 <= folds <= 1000:
        raise SettingsError(f"folds is {folds}; expected a whole number from 2 to 1000.")
    write = write or out is not None
    if split and not write:
        raise SettingsError("The leak meter keeps its folds in a folder; give one with out.")
    watcher = watcher or Watcher()
    workers = count_cores() if workers is None else workers
    if write:
        check_run_folder(out)
    if isinstance(data, Manifest):
        manifest = data
    else:
        watcher.say("drawing the demo set" if data is None else "reading the images")
        manifest = scan(data)
    for note in manifest.notes:
        watcher.say(note)
    opinions = None if study is None else read_opinions(Path(study), manifest)
    found = find_issues(manifest, folds=folds, workers=workers, say=watcher.count)
    watcher.say("looking for labels that models don't believe")
    doubts = judge_labels(found, folds=folds, seed=seed)
    found = add_issues(found, describe_doubts(found, doubts))
    if opinions is not None:
        found = add_issues(found, describe_disputes(opinions))
    found = replace(found, looked_for=frozenset(KINDS) - _not_looked_for(doubts, opinions))
    inspection = Inspection(found, doubts, opinions=opinions)
    folder = None
    if write:
        folder = make_run_folder(out, f"audit-{'demo' if data is None else find_name(data)}")
        inspection = replace(inspection, folder=folder)
    if split and folder is not None:
        meter, notes = measure_leaks(found.manifest, folder, folds, seed, workers, watcher)
        inspection = replace(inspection, leak_meter=meter, notes=notes)
    if folder is not None:
        watcher.say("drawing the page")
        write_inspection(inspection, folder, list(command))
    return inspection


def _not_looked_for(doubts: Doubts, opinions: Mapping[str, Any] | None) -> set[str]:
    heard = opinions is not None and not all(o["reason"] for o in opinions["opinions"])
    silent = {"likely_wrong_label": bool(doubts.reason), "disputed_label": not heard}
    return {kind for kind, unheard in silent.items() if unheard}


# --- likely wrong labels --------------------------------------------------------------------------


def judge_labels(audit: Audit, *, folds: int, seed: int) -> Doubts:
    """Out-of-fold opinions on every image with one label; see `leuko.learning.doubts`."""
    usable = _usable(audit.manifest).filter(pl.col("image").is_in(list(audit.measured)))
    names = usable["image"].to_list()
    portraits = [audit.measured[name].portrait for name in names]
    features = np.stack(portraits) if portraits else np.zeros((0, 1), np.float32)
    labels, groups = usable["label"].to_list(), usable["group"].to_list()
    return find_doubts(features, labels, groups, folds=folds, seed=seed)


def _usable(manifest: Manifest) -> pl.DataFrame:
    """One row per image that has one label and can be read."""
    return manifest.table.filter(
        pl.col("label").is_not_null() & pl.col("path").is_not_null() & pl.col("width").is_not_null()
    ).unique("image", keep="first", maintain_order=True)


def describe_doubts(audit: Audit, doubts: Doubts) -> list[Issue]:
    """One issue per label that the models dispute."""
    usable = _usable(audit.manifest).filter(pl.col("image").is_in(list(audit.measured)))
    issues = []
    for i, image in enumerate(usable["image"]):
        if doubts.flagged[i]:
            given, other = (doubts.classes[k] for k in (doubts.given[i], doubts.suggested[i]))
            p = doubts.probabilities[i]
            detail = (
                f"labelled {given} ({p[doubts.given[i]]:.0%} by models that never saw it), which "
                f"rather say {other} ({p[doubts.suggested[i]]:.0%})"
            )
            issues.append(
                Issue("likely_wrong_label", (image,), detail, float(doubts.score[i]),
                      {"suggested": other})
            )  # fmt: skip
    return issues


def read_opinions(run: Path, manifest: Manifest) -> dict[str, Any]:
    """What the models of a finished study say of the labels of this set.

    Raises:
        DataError: It is no finished run, is one of other images or labels, or is too small.
    """
    record = read_run(run)
    columns = ("image", "sha256", "label_written")
    before = set(read_manifest(run / "manifest.parquet").table.select(columns).rows())
    now = set(manifest.table.select(columns).rows())
    if changed := sorted({str(row[0]) for row in before ^ now}):
        names = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
        raise DataError(
            f"{run} is a study of another set than {manifest.name}: images or labels differ in "
            f"{len(changed)} ids ({names}). Name a run of this set, or study it as it is now with: "
            "leuko compare DATA."
        )
    results, protocol = record.results, record.results["protocol"]
    told = results.get("labels") or hear_opinions(
        record.predictions, record.classes, record.models,
        seed=int(protocol["seed"]), decisions=results["data"].get("decisions"),
    )  # fmt: skip
    if told is None:
        raise DataError(
            f"{run} judged too few images to say anything about labels; at least {LEAST_IMAGES} "
            "are needed. Leave out --study."
        )
    return {"run": run.resolve().name, **told}


# --- the leak meter -------------------------------------------------------------------------------


def measure_leaks(
    manifest: Manifest, folder: Path, folds: int, seed: int, workers: int, watcher: Watcher
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The leak meter of a set, and notes on what it could not measure."""
    images, pictures, _ = cut_pictures(manifest, view="cell", size=SIZE, light="matched")
    rows = dict(zip(_usable(manifest)["image"], range(len(manifest)), strict=False))
    usable = _usable(manifest)[[rows[image] for image in images]]
    classes = sorted(set(usable["label"]))
    labels = np.searchsorted(classes, usable["label"].to_numpy()).astype(np.int64)
    meter = plan_meter(labels, usable["group"].to_list(), images, classes, folds=folds, seed=seed)
    if meter is None:
        return None, (f"The leak meter needs two classes with {folds} groups each.",)
    chosen = pictures[meter.rows]
    jobs, done, notes = [], {}, []
    try:
        _require_torch()
    except MissingExtraError as error:
        notes.append(f"The leak meter has no row for a network: {error}")
    else:
        save_cells(folder / "cells.npz", image=np.array(images), cells=pictures)
        settings = FitSettings(epochs=EPOCHS, views=1, precision="auto")
        jobs = make_meter_jobs(meter, folder, settings, size=SIZE, seed=seed)
        done = run_jobs(jobs, folder, workers=workers, watcher=watcher)
    result = read_meter(meter, chosen, jobs, done, seed=seed)
    if len(chosen) < len(pictures):
        notes.append(f"The leak meter rests on {len(chosen)} of {len(pictures)} images, drawn.")
    return result, tuple(notes)


def _require_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise MissingExtraError(
            "PyTorch isn't installed. Install it with: pip install 'leuko[train]'"
        )


# --- the folder -----------------------------------------------------------------------------------


def write_inspection(inspection: Inspection, folder: Path, command: Sequence[str] = ()) -> None:
    """Writes ``audit.html``, ``audit.json``, ``manifest.parquet``, ``scores.parquet`` and
    ``decisions.csv``.

    Raises:
        StorageError: One of them can't be written.
    """
    found = inspection.audit
    facts = json.dumps(inspection.to_json(), indent=1, ensure_ascii=False)
    write_atomically(folder / "audit.json", facts + "\n")
    write_manifest(found.manifest, folder / "manifest.parquet")
    write_atomically(folder / "scores.parquet", lambda p: found.scores.write_parquet(p))
    write_decisions(found.issues, found.manifest, folder / "decisions.csv")
    environment = describe_environment(list(command))
    write_audit_page(
        folder / "audit.html",
        found.manifest,
        found.issues,
        found.groups,
        leukocytes={
            image: [(c.x0, c.y0, c.x1, c.y1, c.score) for c in m.leukocytes]
            for image, m in found.measured.items()
        },
        drawn={
            image: [(b.x0, b.y0, b.x1, b.y1) for b in boxes] for image, boxes in found.drawn.items()
        },
        meter=inspection.leak_meter,
        command=command,
        facts={k: v for k, v in environment.items() if k != "command"},
        looked_for=found.looked_for,
        opinions=inspection.opinions,
    )
