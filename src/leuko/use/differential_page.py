"""The differential of a slide, and the comparison of several, as self-contained HTML pages.

No script, no network, light on every screen and on paper. Knows sheets; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from leuko.judgement.page import fill_template
from leuko.use.differential import RESEARCH_USE, Differential
from leuko.use.reference import Comparison, Difference
from leuko.use.sheet import (
    lay_out,
    shorten,
    tell_number,
    tell_range,
    tell_signed,
    tell_signed_range,
)


def write_page(
    found: Differential, differences: Sequence[Difference] = (), reference: str = ""
) -> str:
    """One slide on one page.

    Args:
        found: The differential.
        differences: Against a reference count.
        reference: Its name.
    """
    sheet = lay_out(found, differences, reference)
    return fill_template("differential.html.j2", {"sheet": sheet, "use": RESEARCH_USE})


def write_comparison_page(comparison: Comparison, found: Sequence[Differential]) -> str:
    """Several slides against their reference counts."""
    cells = {one.slide: one.cells for one in found}
    detections = [(m, t, d) for m in comparison.methods for t, d in m.detections]
    return fill_template("comparison.html.j2", {
        "comparison": comparison, "cells": cells, "use": RESEARCH_USE, "detections": detections,
        "number": tell_number, "range": tell_range, "signed": tell_signed,
        "signed_range": tell_signed_range, "shorten": shorten,
        "left_out": [shorten(told, 200) for told in comparison.left_out],
    })  # fmt: skip
