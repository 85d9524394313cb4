"""What every page is made with: templates that escape, figures in the page, values in words.

Knows no run and no model; what a page says is decided by the module of that page.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leuko.judgement import findings

LARGEST_SVG = 400_000  # bytes; above, the PNG goes into the page


def fill_template(name: str, facts: Mapping[str, Any]) -> str:
    """Fills a template of ``templates/``; autoescape is on for everything.

    Args:
        name: File name of the template.
        facts: Everything that it shows; to leave out a name that it uses is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("leuko.judgement", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=findings.percent,
        points=findings.points,
        number=_number,
        count=_count,
        p=_p_value,
        unbroken=keep_percents,
    )
    environment.globals.update(triple=findings.triple, quantity=findings.quantity)
    return environment.get_template(name).render(facts)


def keep_percents(text: str) -> str:
    """A text in which no line breaks between a figure and its per cent sign."""
    return text.replace(" %", "\u00a0%")


def embed_figure(png: Path, svg: Path) -> str:
    """The figure as a data URI: the drawing, unless it is so large that the picture is better."""
    small = svg.stat().st_size <= max(LARGEST_SVG, png.stat().st_size)
    pixels = b"data:image/png;base64" in svg.read_bytes()
    source, kind = (svg, "svg+xml") if small and not pixels else (png, "png")
    return f"data:image/{kind};base64," + base64.b64encode(source.read_bytes()).decode("ascii")


def describe_command(environment: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """The command of the run as a person would type it; empty if it was not recorded."""
    command = environment.get("command") or results["protocol"].get("command") or ""
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


PROTOCOL_NAMES = {
    "folds": "folds", "repeats": "repeats", "groups": "kept together in a split", "view": "view",
    "size": "picture side, pixels", "seed": "seed", "recipe": "cleaning recipe",
    "init": "weights at the start", "epochs": "epochs", "models": "models",
    "threads": "threads",
}  # fmt: skip


def describe_protocol(protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The whole protocol, known settings first and by their words, then the rest by its names."""
    order = [*(k for k in PROTOCOL_NAMES if k in protocol)]
    order += [k for k in protocol if k not in PROTOCOL_NAMES and k != "command"]
    rows = []
    for key in order:
        name = PROTOCOL_NAMES.get(key, key.replace("_", " "))
        value = protocol[key]
        if isinstance(value, dict):
            rows += [(f"{name}: {k}", v) for k, v in flatten(value)]
        else:
            rows.append((name, write_value(value)))
    return rows


def write_value(value: Any) -> str:
    """A value of JSON as a person reads it."""
    if isinstance(value, list):
        return ", ".join(map(write_value, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def flatten(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of name and text."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{above} · {key}" if above else str(key)
        if isinstance(value, dict):
            rows += flatten(value, name)
        else:
            rows.append((name.replace("_", " "), write_value(value)))
    return rows


def hash_files(folder: Path, files: Sequence[str]) -> list[tuple[str, str]]:
    """Name and SHA-256 of those of the files that are in the folder."""
    names = [n for n in files if (folder / n).is_file()]
    return [(n, hashlib.sha256((folder / n).read_bytes()).hexdigest()) for n in names]


def _number(value: float | None, digits: int = 3) -> str:
    """A plain number; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _p_value(value: float | None) -> str:
    """Three digits; never 0."""
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def _count(value: float | None) -> str:
    """A large count in a short form: 11.2 M."""
    if value is None or not np.isfinite(value) or value == 0:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
