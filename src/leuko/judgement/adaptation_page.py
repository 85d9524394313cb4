"""The page of an adaptation: was a new last layer better, by how much, and would more labels help?

Made from the facts that the bundle keeps, and the cells; looks as every page of Leuko does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.judgement.page import embed_figure, fill_template
from leuko.storage import explain_storage_faults, write_atomically


def write_adaptation_page(
    path: Path,
    told: Mapping[str, Any],
    *,
    cells: NDArray[np.uint8],
    labels: Sequence[str],
    images: Sequence[str],
) -> Path:
    """Writes one self-contained HTML page.

    Args:
        path: The file.
        told: ``training.adaptation`` of the new bundle, and ``bundle`` with its path and id.
        cells: (N, S, S, 3) as the network sees them.
        labels: N class names.
        images: N ids.

    Returns:
        The path.

    Raises:
        StorageError: It can't be written.
    """
    from leuko.judgement import plots
    from leuko.judgement.adaptation_plots import draw_curve

    rows = {c: [i for i, label in enumerate(labels) if label == c] for c in sorted(set(labels))}
    figures = {
        "curve": draw_curve(
            told["curve"], told["balanced_accuracy"]["before"], told["data"]["cells"]
        ),
        "cells": plots.draw_samples(
            {c: cells[own] for c, own in rows.items()},
            {c: [images[i] for i in own] for c, own in rows.items()},
            {c: len(own) for c, own in rows.items()},
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        drawn = {
            name: embed_figure(*plots.save_figure(figure, Path(folder), name))
            for name, figure in figures.items()
        }
    page = fill_template("adaptation.html.j2", {"told": told, "figures": drawn})
    with explain_storage_faults(path):
        return write_atomically(path, page)
