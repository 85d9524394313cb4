"""The look of every figure: one style, one palette, one way to place a name and to save.

With ``pictures`` and ``plots`` it is the only door to matplotlib. No pyplot, no state: the style
is set around each drawing and put back. Names that come from data are drawn as plain text, never
as markup.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.style
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from leuko.storage import explain_storage_faults, write_atomically

P = ParamSpec("P")

DPI = 150  # of the PNG; the picture figures are laid out in these pixels
WIDTH = 7.0  # inches: the text width of an A4 page with 16 mm margins
INK, QUIET, RULE, WASH = "#1b2027", "#626a75", "#d5dae1", "#e9ecf1"

# Okabe and Ito 2008, for models; Tol 2021 "muted", for classes: both tell apart under the three
# kinds of colour blindness. Grey paper is served by markers and direct names.
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A6478B", "#C98A00", "#3A9BD6", "#4D4D4D")
CLASS_COLOURS = (
    "#44609C", "#CC6677", "#2A8C7A", "#B99F3C", "#882255", "#6FB7DB", "#7D7F28", "#AA6FB0",
    "#8A8F98",
)  # fmt: skip
BASELINE_COLOUR = "#8A8F98"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same on every machine
    "font.size": 7.5,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$x$"
    "axes.labelsize": 7.5,
    "axes.labelcolor": INK,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "lines.solid_capstyle": "round",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "svg.hashsalt": "leuko",
    "svg.fonttype": "path",  # looks the same without the font
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws inside the house's style and puts the caller's settings back."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.style.context(STYLE, after_reset=True):
            figure = draw(*args, **kwargs)
            engine = figure.get_layout_engine()
            if engine is not None:
                engine.execute(figure)
                figure.set_layout_engine("none")  # laid out once, not again for each file
            return figure

    return inside


# --- saving -----------------------------------------------------------------------------------


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes ``NAME.png`` (150 dpi) and ``NAME.svg``; the same figure gives the same bytes.

    Args:
        figure: What a ``draw_`` function returned.
        folder: Made if it does not exist.
        name: File name without ending.

    Returns:
        The two paths, PNG first.

    Raises:
        StorageError: The folder can't be made, or a file can't be written.
    """
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with explain_storage_faults(folder), mpl.style.context(STYLE, after_reset=True):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            png,
            lambda p: figure.savefig(p, format="png", dpi=DPI, metadata={"Software": None}),
        )
        write_atomically(svg, lambda p: figure.savefig(p, format="svg", metadata=nothing))
    return png, svg


# --- names and colours --------------------------------------------------------------------------


@functools.cache
def _drawable() -> frozenset[int]:
    """Code points that the font can draw; others would raise warnings and show as boxes."""
    path = font_manager.findfont("DejaVu Sans")
    return frozenset(font_manager.get_font(path).get_charmap())


def plain(text: object, limit: int = 60) -> str:
    """Any text as one line that the font can draw, at most ``limit`` characters long."""
    known = _drawable()
    kept = [
        " " if c.isspace() else c if ord(c) in known else "□"
        for c in str(text)
        if c.isspace() or unicodedata.category(c)[0] != "C"
    ]
    line = " ".join("".join(kept).split())
    if len(line) <= limit:
        return line
    limit = max(limit, 3)
    head = math.ceil((limit - 1) * 0.6)
    return line[:head] + "…" + line[len(line) - (limit - 1 - head) :]


def short_names(names: Sequence[str], limit: int = 16) -> dict[str, str]:
    """Names as they are drawn: shortened, and still different from each other."""
    shown: dict[str, str] = {}
    for number, name in enumerate(names, start=1):
        text = plain(name, limit) or "(no name)"
        if not text.replace("□", "").strip() or text in shown.values():
            text = f"{plain(name, max(3, limit - 4))} #{number}"
        shown[name] = text
    return shown


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """One colour per model by its place in ``models``: the same in every figure of a run."""
    return {m: MODEL_COLOURS[i % len(MODEL_COLOURS)] for i, m in enumerate(models)}


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """One colour per class by its place in ``classes``: the same in every figure of a run."""
    return {c: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, c in enumerate(classes)}


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """A figure of this size in inches, with a canvas but without pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def arrange(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for ``count`` panels, at most ``most`` in a row, rows about equal."""
    rows = max(1, math.ceil(count / most))
    return rows, max(1, math.ceil(count / rows))


def dark(colour: str) -> tuple[float, float, float]:
    """The colour for words: dark enough to be read on white."""
    r, g, b = (0.74 * part for part in to_rgb(colour))
    return r, g, b


def pale(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white; ``strength`` 1 leaves it as it is."""
    r, g, b = (1 - strength * (1 - part) for part in to_rgb(colour))
    return r, g, b


def write_number(value: float | None, digits: int) -> str:
    """With so many decimals; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
