"""An evaluation as one self-contained page: sentences, figures, tables, the worst answers.

Looks as the report of a study does and is made by the same means; see ``report``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leuko.judgement import findings
from leuko.judgement.evaluation import METRICS, OWN, PLAIN, STATES
from leuko.judgement.evaluation_findings import tell_evaluation, tell_set
from leuko.judgement.metrics import ReliabilityCurve
from leuko.judgement.page import embed_figure, fill_template, flatten
from leuko.judgement.pointing import describe_attention
from leuko.storage import explain_storage_faults, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 24  # wrong answers shown
NOT_FOUND = 12  # pictures without a leukocyte shown
IN_A_ROW = 8  # pictures shown of each class
LISTED = 400  # rows of images set aside; evaluation.json has all
TITLES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1",
    "auroc": "AUROC", "ece": "calibration error (ECE)", "classwise_ece": "class-wise ECE",
    "nll": "log loss, nats", "brier": "Brier score",
}  # fmt: skip
IN_PERCENT = ("accuracy", "balanced_accuracy", "macro_f1")
ORDERS = {OWN: "state, then probability", PLAIN: "highest probability alone"}


@dataclass(frozen=True)
class Shown:
    """One answer as the page shows it.

    Attributes:
        image: Its id.
        truth: Its label, in common words.
        said: The likeliest class, in the same words.
        probability: Of that answer.
        state: One of `leuko.judgement.evaluation.STATES`.
        pixels: (S, S, 3), what the network saw.
    """

    image: str
    truth: str
    said: str
    probability: float
    state: str
    pixels: NDArray[np.uint8]


def write_evaluation_page(
    folder: Path,
    results: Mapping[str, Any],
    answers: Sequence[Shown],
    environment: Mapping[str, Any],
) -> Path:
    """Writes ``figures/*.png``, ``figures/*.svg`` and ``evaluation.html``.

    Args:
        folder: Where to.
        results: As in ``evaluation.json``.
        answers: N of them.
        environment: As `leuko.run.describe_environment` gives it.

    Returns:
        The path of the page.

    Raises:
        StorageError: It can't be written.
    """
    from leuko.judgement.plots import save_figure

    figures = draw_evaluation(results, answers)
    shown = {}
    for name, figure in figures.items():
        shown[name] = embed_figure(*save_figure(figure, folder / "figures", name))
    command = environment.get("command") or []
    page = fill_template(
        "evaluation.html.j2",
        {
            "results": results, "figures": shown, "titles": TITLES, "metrics": METRICS,
            "in_percent": IN_PERCENT, "states": STATES, "orders": ORDERS, "own": OWN,
            "title": f"{results['bundle']['architecture']} on {results['data']['name']}",
            "answer": tell_evaluation(results), "about": tell_set(results),
            "command": shlex.join(map(str, command)),
            "demo": results["data"]["layout"] == "demo", "few": findings.FEW,
            "set_aside": results["data"]["set_aside"][:LISTED],
            "unlisted": max(0, len(results["data"]["set_aside"]) - LISTED),
            "wrong": round(results["n"] * results["risk"]["full_error"]), "worst": WORST,
            "bundle": flatten({k: v for k, v in results["bundle"].items() if k != "classes"}),
            "environment": flatten({k: v for k, v in environment.items() if k != "command"}),
            "version": environment.get("leuko") or "",
            "looks": describe_attention("The model", results["attention"])
            if results.get("attention") else "",
        },
    )  # fmt: skip
    path = folder / "evaluation.html"
    with explain_storage_faults(path):
        return write_atomically(path, page)


def draw_evaluation(results: Mapping[str, Any], answers: Sequence[Shown]) -> dict[str, Figure]:
    """Every figure of the page by name."""
    from leuko.judgement import plots
    from leuko.judgement.evaluation_plots import draw_classes, draw_risk
    from leuko.judgement.transfer_plots import draw_answers

    classes, common, risk = results["classes"], results["common"], results["risk"]
    rows = [classes.index(c) for c in common]
    name = results["bundle"]["architecture"]
    curve = ReliabilityCurve(**{k: np.asarray(v) for k, v in results["reliability"].items()})
    some = {c: results["per_class"][c] for c in common}
    return {
        "classes": draw_classes(some, results["coverage"]),
        "confusion": draw_answers(
            {name: np.asarray(results["confusion"])[rows]}, common, classes
        ),
        "reliability": plots.draw_reliability(
            {name: curve}, {name: findings.triple(results, "ece")}
        ),
        "risk": draw_risk(
            {title: risk[order]["curve"] for order, title in ORDERS.items()},
            risk["full_error"], risk["coverage"],
        ),
        **_draw_pictures(results, answers),
    }  # fmt: skip


def _draw_pictures(results: Mapping[str, Any], answers: Sequence[Shown]) -> dict[str, Figure]:
    """The surest wrong answers, cells of unknown classes, and pictures without a leukocyte."""
    from leuko.judgement import plots

    known = set(results["classes"])
    wrong = [a for a in answers if a.truth in known and a.said != a.truth]
    wrong = sorted(wrong, key=lambda a: (STATES.index(a.state), -a.probability))[:WORST]
    figures = {
        "mistakes": plots.draw_mistakes(
            _stack(wrong), [a.truth for a in wrong], [a.said for a in wrong],
            [a.probability for a in wrong], [a.image for a in wrong], [a.state for a in wrong],
        )
    }  # fmt: skip
    missing = set(results["data"]["no_cell"][:NOT_FOUND])
    if missing:
        figures["no_cell"] = _draw_rows([a for a in answers if a.image in missing])
    if results["unknown"]:
        figures["unknown"] = _draw_rows([a for a in answers if a.truth in results["unknown"]])
    return figures


def _draw_rows(answers: Sequence[Shown]) -> Figure:
    """Pictures by class, evenly spread over those of each."""
    from leuko.judgement import plots

    own: dict[str, list[Shown]] = {}
    for answer in answers:
        own.setdefault(answer.truth, []).append(answer)
    some = {c: rows[:: -(-len(rows) // IN_A_ROW)] for c, rows in own.items()}
    return plots.draw_samples(
        {c: _stack(rows) for c, rows in some.items()},
        {c: [a.image for a in rows] for c, rows in some.items()},
        {c: len(rows) for c, rows in own.items()},
    )


def _stack(answers: Sequence[Shown]) -> NDArray[np.uint8]:
    if not answers:
        return np.zeros((0, 1, 1, 3), np.uint8)
    return np.stack([answer.pixels for answer in answers])
