"""The differential of a slide as a PDF of one page, A4. Knows sheets; knows nothing of models."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from leuko.use.differential import RESEARCH_USE, Differential
from leuko.use.reference import Difference
from leuko.use.sheet import Aside, Compared, Line, Sheet, lay_out

INK, QUIET, RULE, BLUE, PALE = "#15202b", "#55606c", "#d3d9e0", "#0a5a94", "#b9d4ea"
WARN, WASH, LOUD, GOOD, TRACK = "#7a4200", "#fff4e0", "#9b1c1c", "#12603a", "#e6ebf0"
MARGIN = 42.0  # points
PLAIN, BOLD = "LeukoSans", "LeukoSans-Bold"
_REGISTERING = threading.Lock()  # ReportLab keeps fonts for the whole process


def write_pdf(
    found: Differential, differences: Sequence[Difference] = (), reference: str = ""
) -> bytes:
    """One slide on one page: what doesn't fit at full size is drawn smaller.

    The same differential gives the same bytes.

    Args:
        found: The differential.
        differences: Against a reference count.
        reference: Its name.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    sheet = lay_out(found, differences, reference)
    _register_fonts()
    out = io.BytesIO()
    page = Canvas(out, pagesize=A4, invariant=1)
    page.setTitle(f"{sheet.slide}: leukocyte differential")
    page.setAuthor("Leuko")
    page.setSubject(RESEARCH_USE)
    page.translate(MARGIN, A4[1] - MARGIN)
    width, height = A4[0] - 2 * MARGIN, A4[1] - 2 * MARGIN
    scale = 1.0
    parts, used = _measure(sheet, page, width)
    while used > height / scale:
        # At half the size twice as much fits on a line, and twice as many lines on the page.
        scale = min(scale * 0.98, scale * (height / scale / used) ** 0.5)
        parts, used = _measure(sheet, page, width / scale)
    page.scale(scale, scale)
    parts.drawOn(page, 0, -used)
    page.showPage()
    page.save()
    return out.getvalue()


def _measure(sheet: Sheet, page: Any, width: float) -> tuple[Any, float]:
    """The parts laid out in that width, and their height."""
    from reportlab.platypus import KeepInFrame

    parts = KeepInFrame(width, 1e5, _lay_parts(sheet, width), mode="error", mergeSpace=1)
    return parts, parts.wrapOn(page, width, 1e5)[1]


def _register_fonts() -> None:
    """DejaVu Sans, which comes with Matplotlib, knows more alphabets than the fonts of PDF."""
    from importlib.util import find_spec

    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    with _REGISTERING:
        if BOLD in pdfmetrics.getRegisteredFontNames():
            return
        found = find_spec("matplotlib")
        if found is None or found.origin is None:
            raise ImportError("Matplotlib isn't installed")  # it is required: a broken installation
        fonts = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
        pdfmetrics.registerFont(TTFont(PLAIN, str(fonts / "DejaVuSans.ttf")))
        pdfmetrics.registerFontFamily(PLAIN, normal=PLAIN, bold=BOLD, italic=PLAIN, boldItalic=BOLD)
        pdfmetrics.registerFont(TTFont(BOLD, str(fonts / "DejaVuSans-Bold.ttf")))  # as the last


def _spell(words: str) -> str:
    """Words for a paragraph: markup is escaped; a letter that the font lacks becomes its number."""
    from reportlab.pdfbase import pdfmetrics

    glyphs = pdfmetrics.getFont(PLAIN).face.charToGlyph
    return escape("".join(c if ord(c) in glyphs else f"\\u{ord(c):04x}" for c in words))


def _write(
    words: str, size: float = 8.6, color: str = INK, *, bold: bool = False, right: bool = False,
    before: float = 0, after: float = 2,
) -> Any:  # fmt: skip
    """A paragraph."""
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Paragraph

    style = ParagraphStyle(
        "words", fontName=BOLD if bold else PLAIN, fontSize=size, leading=size * 1.32,
        textColor=color, spaceBefore=before, spaceAfter=after, alignment=2 if right else 0,
        splitLongWords=1,
    )  # fmt: skip
    return Paragraph(_spell(words), style)


def _lay_parts(sheet: Sheet, width: float) -> list[Any]:
    """The page from top to bottom."""
    parts = [
        _box(RESEARCH_USE, width, color=LOUD, edge=LOUD, bold=True),
        _write("Leukocyte differential of a blood smear", 8.6, QUIET, before=9, after=0),
        _write(sheet.slide, 16, bold=True, after=3),
        _write(sheet.status, 9, GOOD if sheet.signed else WARN, bold=True, after=7),
        _write(f"{sheet.cells} {sheet.counted}", 15, bold=True, after=0),
        _write(sheet.summary, 9, QUIET, after=6),
    ]
    if sheet.warnings:
        parts.append(_box("\n".join(sheet.warnings), width, color=INK, edge=WARN, back=WASH))
    parts.append(_lay_classes(sheet, width))
    parts += [_write(note, before=3) for note in sheet.notes]
    if sheet.compared:
        parts.append(_write("Against the reference count", 10, bold=True, before=9))
        parts += [_write(sheet.reference), _lay_reference(sheet, width)]
    if sheet.asides:
        parts.append(_lay_asides(sheet.asides, width))
    if not sheet.signed:
        parts.append(_lay_signature(width))
    parts.append(_write("", 4))
    parts += [_write(told, 7, QUIET) for told in sheet.foot]
    return [*parts, _write(RESEARCH_USE, 7, QUIET, bold=True)]


def _box(
    words: str, width: float, *, color: str, edge: str, back: str = "", bold: bool = False
) -> Any:
    from reportlab.platypus import Table

    lines = [_write(line, 9 if bold else 8.6, color, bold=bold) for line in words.split("\n")]
    style: list[Any] = [
        ("TOPPADDING", (0, 0), (-1, -1), 4), ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
        ("LEFTPADDING", (0, 0), (-1, -1), 8),
    ]  # fmt: skip
    if back:
        style += [("BACKGROUND", (0, 0), (-1, -1), back), ("LINEBEFORE", (0, 0), (0, -1), 3, edge)]
    else:
        style.append(("BOX", (0, 0), (-1, -1), 1.2, edge))
    return Table([[lines]], colWidths=[width], style=style, spaceAfter=7, hAlign="LEFT")


def _lay_classes(sheet: Sheet, width: float) -> Any:
    """Classes with their limits, and nucleated red cells below."""
    heads = ["class", "cells", "%", "95 % limits", "0 – 100 %"]
    shares = [0.27, 0.12, 0.12, 0.18, 0.31]
    if sheet.corrected:
        heads += ["corrected\n%", "95 % limits", "right in the\nmodel's test"]
        shares = [0.19, 0.08, 0.08, 0.125, 0.185, 0.105, 0.115, 0.12]
    widths = [width * share for share in shares]
    rows: list[list[Any]] = [[_lay_head(head, i == 0) for i, head in enumerate(heads)]]
    rows += [_lay_line(line, sheet.corrected, widths[4]) for line in sheet.lines]
    style = [*_RULES]
    if sheet.red:
        style.append(("SPAN", (0, len(rows)), (-1, len(rows))))
        about = _write("Per 100 leukocytes, no part of the 100 %", 8, QUIET, after=0)
        rows.append([about, *[""] * (len(heads) - 1)])
        rows += [_lay_line(line, sheet.corrected, 0) for line in sheet.red]
    return _make_table(rows, widths, style)


def _lay_head(words: str, first: bool) -> list[Any]:
    return [_write(line, 7.6, bold=True, right=not first, after=0) for line in words.split("\n")]


def _lay_line(line: Line, corrected: bool, width: float) -> list[Any]:
    row = [
        _write(line.label, 9, bold=True, after=0),
        _write(line.cells, 9, right=True, after=0),
        _write(line.percent, 9.4, bold=True, right=True, after=0),
        _write(line.limits, 8, QUIET, right=True, after=0),
        _draw_bar(line.bar, width - 14) if line.bar and width else "",
    ]
    if corrected:
        row += [
            _write(line.corrected, 9, right=True, after=0),
            _write(line.corrected_limits, 8, QUIET, right=True, after=0),
            _write(line.found, 8, QUIET, right=True, after=0),
        ]
    return row


def _draw_bar(bar: tuple[float, float, float], width: float) -> Any:
    """The share as a mark on its limits, on a track from 0 to 100 %."""
    from reportlab.graphics.shapes import Drawing, Rect
    from reportlab.lib.colors import HexColor

    share, low, high = (width * value / 100 for value in bar)
    drawing = Drawing(width, 10)
    for x, y, wide, tall, color in (
        (0.0, 4, width, 2, TRACK),
        (low, 2, max(high - low, 0.5), 6, PALE),
        (share - 0.7, 0, 1.4, 10, BLUE),
    ):
        fill = HexColor(color)
        drawing.add(Rect(x, y, wide, tall, fillColor=fill, strokeColor=None))
    return drawing


def _lay_reference(sheet: Sheet, width: float) -> Any:
    heads = [
        "class",
        "this count, %",
        "reference, %\n(cells)",
        "difference,\npoints",
        "95 % limits",
    ]
    shares = [0.28, 0.17, 0.2, 0.17, 0.18]
    if sheet.corrected:
        heads += ["of the\ncorrected", "95 % limits"]
        shares = [0.22, 0.13, 0.13, 0.11, 0.155, 0.1, 0.155]
    rows: list[list[Any]] = [[_lay_head(head, i == 0) for i, head in enumerate(heads)]]
    rows += [_lay_compared(c, sheet.corrected) for c in sheet.compared]
    return _make_table(rows, [width * share for share in shares], _RULES)


def _lay_compared(c: Compared, corrected: bool) -> list[Any]:
    shown = LOUD if c.beyond else INK
    row = [
        _write(c.label, bold=True, after=0),
        _write(c.counted, right=True, after=0),
        _write(c.reference, right=True, after=0),
        _write(c.difference, 8.6, shown, bold=c.beyond, right=True, after=0),
        _write(c.limits, 8, QUIET, right=True, after=0),
    ]
    if corrected:
        row.append(_write(c.corrected, right=True, after=0))
        row.append(_write(c.corrected_limits, 8, QUIET, right=True, after=0))
    return row


def _lay_asides(asides: Sequence[Aside], width: float) -> Any:
    """What isn't counted, two columns side by side."""
    from reportlab.platypus import Table

    half = width / 2 - 8
    cells = [_lay_aside(aside, half) for aside in asides]
    cells += [""] * (len(cells) % 2)
    pairs = [[cells[i], "", cells[i + 1]] for i in range(0, len(cells), 2)]
    style = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), 0),
             ("VALIGN", (0, 0), (-1, -1), "TOP")]  # fmt: skip
    return Table(pairs, colWidths=[half, 16, half], style=style, spaceBefore=8, hAlign="LEFT")


def _lay_aside(aside: Aside, width: float) -> Any:
    rows = [[_write(aside.title, 9, bold=True, after=0),
             _write(aside.total, 9, bold=True, right=True, after=0)]]  # fmt: skip
    rows += [
        [_write(why, 8, QUIET, after=0), _write(n, 8, right=True, after=0)]
        for why, n in aside.reasons
    ]
    style = [
        ("LINEBELOW", (0, 0), (-1, 0), 0.5, RULE), ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 1.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5), ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ]  # fmt: skip
    return _make_table(rows, [width * 0.82, width * 0.18], style)


def _lay_signature(width: float) -> Any:
    from reportlab.platypus import Table

    names = [_write(name, 7.6, QUIET) for name in ("reviewed by", "signature", "date")]
    row = [names[0], "", names[1], "", names[2]]
    style = [("LINEABOVE", (i, 0), (i, 0), 0.6, INK) for i in (0, 2, 4)]
    style += [("LEFTPADDING", (0, 0), (-1, -1), 0)]  # type: ignore[list-item]
    gap = 16.0
    third = (width - 2 * gap) / 3
    widths = [third, gap, third, gap, third]
    return Table([row], colWidths=widths, style=style, spaceBefore=34, hAlign="LEFT")


_RULES: list[Any] = [
    ("LINEBELOW", (0, 0), (-1, 0), 0.8, INK), ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
    ("VALIGN", (0, 0), (-1, -1), "MIDDLE"), ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
    ("LEFTPADDING", (0, 0), (0, -1), 0), ("LEFTPADDING", (1, 0), (-1, -1), 7),
    ("RIGHTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 2.6),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 2.6),
]  # fmt: skip


def _make_table(rows: list[list[Any]], widths: list[float], style: list[Any]) -> Any:
    from reportlab.platypus import Table

    return Table(rows, colWidths=widths, style=style, spaceAfter=4, hAlign="LEFT")
