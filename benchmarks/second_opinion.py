"""Which labels the models of finished studies dispute, and how many are wrong at all.

    uv run python benchmarks/second_opinion.py runs/blood-cells-1 …

Writes `results/second_opinion.md` from the runs' `results.json` and trains nothing. The commands
that made the runs are in it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leuko.judgement.findings import disputes, percent
from leuko.judgement.finished_run import Run, read_run
from leuko.judgement.second_opinion import hear_opinions
from provenance import head, write_results

MOST = 20  # cases that are listed


def limits(value: Mapping[str, float] | None, scale: float = 100) -> str:
    if value is None:
        return "–"
    digits = 1 if scale == 100 else 3
    v, low, high = (f"{scale * value[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{v} ({low}–{high})"


def hear(run: Run) -> dict[str, Any] | None:
    """What the run says of its labels; runs of before this was part of a study are heard now."""
    results = run.results
    return results.get("labels") or hear_opinions(
        run.predictions, run.classes, run.models,
        seed=int(results["protocol"]["seed"]), decisions=results["data"].get("decisions"),
    )  # fmt: skip


def describe(run: Run, told: Mapping[str, Any]) -> list[str]:
    data = run.results["data"]
    lines = [f"## {data['name']}, {told['n']:,} images", ""]
    if command := run.environment.get("command"):
        lines += ["```", shlex.join(Path(w).name if w.startswith("/") else w for w in command),
                  "```", ""]  # fmt: skip
    lines += [
        " ".join(disputes(told)), "",
        "| opinion | kind | labels | agreement, % | kappa | wrong labels, % | disputed |",
        "|---|---|---|---|---|---|---|",
        *(f"| {o['name']} | {o['kind']} | {o['n']:,} | {limits(o['agreement'])} | "
          f"{limits(o['kappa'], 1)} | {limits(o['wrong'])} | "
          f"{'–' if o['reason'] else o['disputed']} |" for o in told["opinions"]), "",
        *(f"{o['name']}: {o['reason']}\n" for o in told["opinions"] if o["reason"]),
    ]  # fmt: skip
    if pairs := told["between"]:
        lines += ["| a | b | images | agreement, % | kappa |", "|---|---|---|---|---|",
                  *(f"| {p['a']} | {p['b']} | {p['n']:,} | {limits(p['agreement'])} | "
                    f"{limits(p['kappa'], 1)} |" for p in pairs), ""]  # fmt: skip
    if cases := told["disputed"]:
        lines += ["| image | label | suggested | score | by |", "|---|---|---|---|---|",
                  *(f"| {c['image']} | {c['label']} | {c['suggested']} | {c['score']:.3f} | "
                    f"{', '.join(c['by'])} |" for c in cases[:MOST]), ""]  # fmt: skip
        if len(cases) > MOST:
            lines += [f"and {len(cases) - MOST} more, in the run's `disputed.csv`.", ""]
    if without := told["without_disputed"]:
        lines += [
            f"Sensitivity analysis without {without['left_out']} disputed images. "
            f"{without['note']}", "",
            f"| model | accuracy, n = {without['n']:,}, % | as labelled, n = {told['n']:,}, % |",
            "|---|---|---|",
            *(f"| {name} | {limits(m['accuracy'])} | "
              f"{limits(run.results['models'][name]['accuracy'])} |"
              for name, m in without["models"].items()), "",
        ]  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    lines = head("A second opinion on labels", "uv run python benchmarks/second_opinion.py RUN …")
    told: dict[str, Any] | None = None
    for folder in parser.parse_args().runs:
        run = read_run(folder)
        if told := hear(run):
            lines += describe(run, told)
    if told is not None:
        lines += [
            "In brackets: 95 % intervals by bootstrap over groups. A label is disputed if an "
            f"opinion gives it less than {percent(told['threshold'], 0)} % and prefers another "
            f"class. {told['assumptions']}",
        ]
    print("\n".join(lines))
    write_results("second_opinion.md", lines)


if __name__ == "__main__":
    main()
