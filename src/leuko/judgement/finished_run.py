"""The folder of a finished run, read and checked: what reports are made from.

Knows which files a run leaves and what they hold; knows nothing of figures, pages or networks.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.errors import DataError
from leuko.judgement import findings

T = TypeVar("T")
COLUMNS = {
    "manifest.parquet": ("image", "label", "issues"),
    "splits.parquet": ("repeat", "fold", "image", "part"),
    "history.parquet": ("model", "repeat", "fold", "epoch", "loss", "accuracy"),
    "predictions.parquet": ("model", "repeat", "image", "label"),
}


@dataclass(frozen=True)
class Run:
    """What a finished run folder holds, checked.

    Attributes:
        folder: Where it lies.
        results: ``results.json``.
        environment: ``environment.json``.
        config: ``config.toml`` as text.
        steps: The ledger's steps, in order.
        manifest, splits, history, predictions: The tables of the same names.
        images: Ids of the pictures in ``cells``, (N,).
        cells: (N, S, S, 3) uint8, as the networks saw them.
    """

    folder: Path
    results: dict[str, Any]
    environment: dict[str, Any]
    config: str
    steps: list[dict[str, Any]]
    manifest: pl.DataFrame
    splits: pl.DataFrame
    history: pl.DataFrame
    predictions: pl.DataFrame
    images: list[str]
    cells: NDArray[np.uint8]

    @cached_property
    def classes(self) -> list[str]:
        """The classes that were trained, in the order of ``results.json``."""
        return list(self.results["data"]["classes"])

    @cached_property
    def found(self) -> list[str]:
        """Every class there ever was: the trained ones first, then those dropped in cleaning."""
        before = self.steps[0]["counts_before"] if self.steps else {}
        return [*self.classes, *(c for c in before if c not in self.classes)]

    @cached_property
    def models(self) -> list[str]:
        """The trained models, in the order of ``results.json``."""
        return list(self.results["models"])


def read_run(folder: Path) -> Run:
    """Reads a finished run folder.

    Raises:
        DataError: A file is missing, broken or lacks a column; the message names it.
    """
    results = _read(folder, "results.json", lambda p: json.loads(p.read_text("utf-8")))
    _check_keys(folder / "results.json", results, ("data", "protocol", "baselines", "models",
                                                   "pairs", "best"))  # fmt: skip
    ledger = _read(folder, "ledger.json", lambda p: json.loads(p.read_text("utf-8")))
    _check_keys(folder / "ledger.json", ledger, ("steps",))
    tables = {name: _read(folder, name, pl.read_parquet) for name in COLUMNS}
    for name, table in tables.items():
        _check_keys(folder / name, table.columns, COLUMNS[name])
    wanted = [f"p_{c}" for c in results["data"]["classes"]]
    _check_keys(folder / "predictions.parquet", tables["predictions.parquet"].columns, wanted)
    images, cells = _read(folder, "cells.npz", _read_cells)
    config = _read(folder, "config.toml", lambda p: p.read_text("utf-8"))
    return Run(
        folder=folder, results=results, config=config, steps=list(ledger["steps"]),
        environment=_read(folder, "environment.json", lambda p: json.loads(p.read_text("utf-8"))),
        manifest=tables["manifest.parquet"], splits=tables["splits.parquet"],
        history=tables["history.parquet"], predictions=tables["predictions.parquet"],
        images=images, cells=cells,
    )  # fmt: skip


def _read(folder: Path, name: str, read: Callable[[Path], T]) -> T:
    """Reads one file of the run, or says which one is missing or broken."""
    path = folder / name
    try:
        return read(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing. Expected a finished run folder of leuko compare. Finish the run "
            f"with: leuko compare --resume {folder}"
        ) from error
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}). Expected the file as leuko "
            f"compare wrote it. Restore it, or write it again with: leuko compare --resume {folder}"
        ) from error


def _read_cells(path: Path) -> tuple[list[str], NDArray[np.uint8]]:
    with np.load(path, allow_pickle=False) as file:
        images, cells = [str(i) for i in file["image"]], file["cells"]
    if cells.ndim != 4 or cells.shape[-1] != 3 or cells.dtype != np.uint8:
        raise ValueError(f"cells has the shape {cells.shape}; expected (N, S, S, 3) uint8")
    if len(images) != len(cells):
        raise ValueError(f"{len(images)} ids for {len(cells)} cells")
    return images, cells


def _check_keys(path: Path, found: Any, wanted: tuple[str, ...] | list[str]) -> None:
    lacking = [k for k in wanted if k not in found]
    if lacking:
        raise DataError(
            f"{path} lacks {findings.listing(lacking)}. Expected a run folder of this version of "
            "Leuko. Repeat the run, or make the report with the version that wrote it."
        )
