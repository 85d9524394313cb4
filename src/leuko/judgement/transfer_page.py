"""The report of a study across laboratories: one page, made from the files of its run alone.

Looks as the report of one set does, and is made by the same means; see ``report``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leuko.errors import DataError
from leuko.judgement import findings
from leuko.judgement.page import (
    describe_command,
    describe_protocol,
    embed_figure,
    fill_template,
    flatten,
    hash_files,
)
from leuko.judgement.report import write_report
from leuko.judgement.transfer import METRICS, WAYS
from leuko.judgement.transfer_findings import tell_limits, tell_transfers
from leuko.storage import explain_storage_faults, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HASHED = ("config.toml", "vocabulary.json", "images.parquet", "splits.parquet", "cells.npz",
          "history.parquet", "predictions.parquet", "results.json", "laboratories.csv")  # fmt: skip
SAMPLES = 8  # pictures of a class of a set
WHAT_WAYS = {
    "forced": "forced to the common classes: the likeliest of them is the answer",
    "free": "free to answer any class that it knows: one that the other set doesn't have is wrong",
}


@dataclass(frozen=True)
class TransferRun:
    """What a finished run folder holds.

    Attributes:
        folder: Where it lies.
        results, environment: The files of the same names.
        config: ``config.toml`` as text.
        images: ``images.parquet``: its rows are those of `cells`.
        cells: (N, S, S, 3), as the networks saw them.
    """

    folder: Path
    results: dict[str, Any]
    environment: dict[str, Any]
    config: str
    images: pl.DataFrame
    cells: NDArray[np.uint8]

    @property
    def told(self) -> dict[str, Any]:
        """``laboratories`` of the results."""
        return dict(self.results["laboratories"])

    @property
    def models(self) -> list[str]:
        """The trained ones."""
        return list(self.results["costs"])

    @property
    def transfers(self) -> list[dict[str, Any]]:
        """Those of the trained models, each way first, then leave-one-out; sorted by way."""
        some = [*self.told["transfers"], *self.told["leave_one_out"]]
        order = list(dict.fromkeys((t["train"], t["test"]) for t in some))
        return sorted(some, key=lambda t: order.index((t["train"], t["test"])))


def write_any_report(run: Path) -> Path:
    """The report of a run, whether of one set or of several; returns where it is.

    Raises:
        DataError: A file of the run is missing or broken.
    """
    path = Path(run) / "results.json"
    try:
        several = "laboratories" in json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        several = False  # the report of one set says what is missing
    return write_transfer_report(Path(run)) if several else write_report(Path(run))


def read_transfer_run(folder: Path) -> TransferRun:
    """Reads a finished run folder.

    Raises:
        DataError: A file is missing or broken; the message names it.
    """
    try:
        results = json.loads((folder / "results.json").read_text("utf-8"))
        environment = json.loads((folder / "environment.json").read_text("utf-8"))
        config = (folder / "config.toml").read_text("utf-8")
        images = pl.read_parquet(folder / "images.parquet")
        with np.load(folder / "cells.npz", allow_pickle=False) as file:
            cells = file["cells"]
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{folder} isn't a finished run across laboratories ({type(error).__name__}: {error}). "
            f"Finish it with: leuko compare --resume {folder}"
        ) from error
    return TransferRun(folder, results, environment, config, images, cells)


def write_transfer_report(run: Path) -> Path:
    """Writes ``figures/*.png``, ``figures/*.svg`` and ``report.html``; returns the page's path.

    Args:
        run: The folder of a finished run; its other files are read and not changed.

    Raises:
        DataError: A file of the run is missing or broken.
        StorageError: The page or a figure can't be written.
    """
    from leuko.judgement import plots

    record = read_transfer_run(run)
    pictures = {
        name: embed_figure(*plots.save_figure(figure, run / "figures", name))
        for name, figure in draw_transfer_figures(record).items()
    }
    page = fill_template("laboratories.html.j2", {**_facts(record), "figures": pictures})
    path = run / "report.html"
    with explain_storage_faults(path):
        return write_atomically(path, page)


def draw_transfer_figures(run: TransferRun) -> dict[str, Figure]:
    """Every figure of the run by name."""
    from leuko.judgement.transfer_plots import draw_answers, draw_recalls, draw_transfers

    colour = [t for t in run.told["baselines"] if t["model"] == "colour"]
    order = list(dict.fromkeys((t["train"], t["test"]) for t in run.transfers))
    both = sorted([*run.transfers, *colour], key=lambda t: order.index((t["train"], t["test"])))
    figures = {f"transfers-{way}": draw_transfers(both, run.models, way=way) for way in WAYS}
    figures["recalls"] = draw_recalls(run.transfers, run.models)
    for number, pair in enumerate(order, start=1):
        own = [t for t in run.transfers if (t["train"], t["test"]) == pair]
        tables = {t["model"]: t["confusion"]["away"]["free"] for t in own}
        figures[f"confusion-{number}"] = draw_answers(tables, own[0]["classes"], own[0]["answers"])
    for number, name in enumerate(run.told["sets"], start=1):
        figures[f"samples-{number}"] = _draw_samples(run, name)
    return figures


def _draw_samples(run: TransferRun, name: str) -> Figure:
    """Pictures of each class of one set, in common words, spread evenly over the set."""
    from leuko.judgement import plots

    table = run.images.with_row_index("row").filter(pl.col("set") == name)
    pictures, ids = {}, {}
    counts = run.told["sets"][name]["counts"]
    for label in counts:
        rows = table.filter(pl.col("label") == label)
        n = min(SAMPLES, rows.height)
        some = rows[[rows.height * i // n for i in range(n)]]
        pictures[label] = run.cells[some["row"].to_list()]
        ids[label] = some["image"].to_list()
    alone = {c: "only in this set" for c in counts if c not in run.told["common"]}
    return plots.draw_samples(pictures, ids, counts, alone if len(run.told["sets"]) == 2 else {})


def _facts(run: TransferRun) -> dict[str, Any]:
    """Everything that the template shows."""
    results, told = run.results, run.told
    pairs = list(dict.fromkeys((t["train"], t["test"]) for t in run.transfers))
    every = [*run.transfers, *told["baselines"]]
    return {
        "title": f"{findings.listing(run.models)} between {findings.listing(list(told['sets']))}",
        "command": describe_command(run.environment, results), "results": results, "told": told,
        "answer": tell_transfers(results), "sets": told["sets"],
        "demo": any(one["layout"] == "demo" for one in told["sets"].values()),
        "pairs": [
            {"train": a, "test": b, "number": n,
             "rows": [t for t in every if (t["train"], t["test"]) == (a, b)]}
            for n, (a, b) in enumerate(pairs, start=1)
        ],
        "models": run.models, "metrics": METRICS, "ways": WAYS, "what_ways": WHAT_WAYS,
        "limits": tell_limits(results),
        "protocol_rows": describe_protocol(results["protocol"]),
        "environment": flatten({k: v for k, v in run.environment.items() if k != "command"}),
        "times": flatten(results.get("times") or {}), "config": run.config,
        "hashes": hash_files(run.folder, HASHED), "side": run.cells.shape[1],
        "few": findings.FEW, "version": run.environment.get("leuko") or "",
    }  # fmt: skip
