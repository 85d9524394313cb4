"""What a person sees while long work runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from leuko.learning.folds import Progress
from leuko.watcher import Watcher

if TYPE_CHECKING:
    from leuko.conversion import EightBits
    from leuko.evaluation import Evaluation
    from leuko.inspection import Inspection
    from leuko.laboratories import LaboratoryStudy
    from leuko.learning.bundle import Bundle
    from leuko.microscope import Adapted
    from leuko.study import Study
    from leuko.use.answers import Predictions
    from leuko.use.slides import Slides

# Without a terminal one line per this many seconds: enough to see that it lives, few enough
# for a log.
INTERVAL = 15.0


class Console(Watcher):
    """Tells a person on stderr; `words` are the command line, for the advice after Ctrl-C."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._bar: Any = None
        self._task: Any = None
        self._folder: Path | None = None
        self._total = self._done = self._fresh = 0
        self._began = self._last = monotonic()
        self._what, self._counted, self._started = "", 0, (0.0, 0)

    def say(self, text: str) -> None:
        """Prints a sentence."""
        self._print(text)

    def count(self, what: str, done: int, total: int) -> None:
        """Prints a line now and then, with the time left."""
        now = monotonic()
        if what != self._what or done < self._counted:
            self._what, self._started, self._last = what, (now, done), now
        self._counted = done
        if now - self._last >= INTERVAL and done > self._started[1]:
            self._last = now
            rate = (now - self._started[0]) / (done - self._started[1])
            left = _minutes(rate * (total - done))
            self._print(f"{what}: {done:,} of {total:,}, {left} left")

    def begin(self, folder: Path, epochs: int) -> None:
        """Opens the bar and says how to continue."""
        self._folder, self._total = folder, epochs
        self._began = self._last = monotonic()
        self._print(f"run folder: {folder}")
        if sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("training"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(), TextColumn("{task.description}"),
                console=RichConsole(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("", total=epochs)
            self._bar.start()

    def epoch(self, progress: Progress) -> None:
        """Moves the bar, or prints a line if the last one is some time ago."""
        self._done += 1
        self._fresh += progress.fresh
        e = progress.epoch
        where = (
            f"{progress.model}, repeat {progress.repeat + 1}, fold {progress.fold + 1}, "
            f"epoch {e.number}: loss {e.loss:.3f}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=where)
        elif progress.fresh and monotonic() - self._last >= INTERVAL:
            self._last = monotonic()
            left = (self._last - self._began) / self._fresh * (self._total - self._done)
            self._print(f"{self._done / self._total:4.0%}, {_minutes(left)} left · {where}")

    def end(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advise(self) -> None:
        """After Ctrl-C: how to go on."""
        if self._folder is not None:
            self._print(f"continue with: {resume_command(self._words, self._folder)}")

    def conclude(self, study: Study) -> None:
        """Prints the answer as a table, then where everything is."""
        from leuko.judgement.findings import answer
        from leuko.judgement.pointing import ELSEWHERE, describe_attention

        results = study.results
        rows = {**results["baselines"], **results["models"]}
        self._print(f"\n{'':18}{'accuracy':>21}{'balanced accuracy':>21}{'macro-F1':>21}")
        for name, row in rows.items():
            cells = "".join(f"{_limits(row[m]):>21}" for m in METRICS)
            self._print(f"{name:18}{cells}")
        self._print("")
        for sentence in answer(results):
            self._print(sentence)
        for name, row in results["models"].items():
            if (attention := row.get("attention")) and attention["verdict"] == ELSEWHERE:
                self._print(describe_attention(name, attention))
        if results["data"]["layout"] == "demo":
            self._print(
                "The demo set is drawn by a program: these numbers say nothing about blood."
            )
        for row in results["data"]["set_aside"]:
            self._print(f"set aside: {row['image']} ({row['reason']})")
        self._print(f"\nreport: {study.folder / 'report.html'}")
        self._print(f"run folder: {study.folder}")

    def conclude_laboratories(self, study: LaboratoryStudy) -> None:
        """Prints home, away and the drop of every way, then where everything is."""
        from leuko.judgement.transfer_findings import METRIC, tell_transfers

        told = study.results["laboratories"]
        every = [*study.transfers, *told["baselines"]]
        head = "".join(f"{part:>21}" for part in ("home", "away", "drop"))
        self._print(f"\n{'balanced accuracy':34}{head}")
        for a, b in dict.fromkeys((t["train"], t["test"]) for t in study.transfers):
            self._print(f"{a} → {b}")
            for t in (t for t in every if (t["train"], t["test"]) == (a, b)):
                for way in ("forced", "free") if t["answers"] != t["classes"] else ("forced",):
                    parts = (t[part][way][METRIC] for part in ("home", "away", "drop"))
                    cells = "".join(f"{_limits(part):>21}" for part in parts)
                    self._print(f"  {t['model'] + ', ' + way:32}{cells}")
        self._print("")
        for sentence in tell_transfers(study.results):
            self._print(sentence)
        for row in study.results["data"]["set_aside"]:
            self._print(f"set aside: {row['set']}/{row['image']} ({row['reason']})")
        self._print(f"\nreport: {study.folder / 'report.html'}")
        self._print(f"run folder: {study.folder}")

    def conclude_audit(self, inspection: Inspection) -> None:
        """Prints what was found as a table, then where everything is."""
        from leuko.data.issues import KINDS
        from leuko.judgement.findings import disputes

        found = inspection.audit
        images = found.count_images()
        self._print(f"\n{'':26}{'issues':>8}{'images':>8}   of {images:,} images")
        for kind, number in found.count().items():
            named = {i for issue in found.issues if issue.kind == kind for i in issue.images}
            first = next(issue.detail for issue in found.issues if issue.kind == kind)
            told = first if len(first) <= 90 else first[:89] + "…"
            self._print(f"{KINDS[kind].title:26}{number:8,}{len(named):8,}   {told}")
        if not found.issues:
            self._print("nothing found")
        self._print(f"\n{len(found.groups):,} groups of images show one cell or one source")
        doubts = inspection.doubts
        if doubts is not None and doubts.reason:
            self._print(f"labels were not judged: {doubts.reason}")
        elif doubts is not None and doubts.wrong is not None:
            w = doubts.wrong
            self._print(
                f"estimated share of wrong labels: {w.value:.1%} (95 % interval {w.low:.1%} to "
                f"{w.high:.1%})"
            )
        for sentence in disputes(inspection.opinions) if inspection.opinions else ():
            self._print(sentence)
        if inspection.leak_meter is not None:
            self._print_meter(inspection.leak_meter)
        for note in inspection.notes:
            self._print(note)
        if inspection.folder is not None:
            self._print(f"\npage: {inspection.folder / 'audit.html'}")
            self._print(f"for a person's decisions: {inspection.folder / 'decisions.csv'}")

    def conclude_training(self, bundle: Bundle) -> None:
        """Prints what the model is worth, then where it is."""
        facts = bundle.facts
        metrics = facts.training["metrics"]
        self._print("")
        for name in METRICS:
            self._print(f"{name.replace('_', ' '):20}{_limits(metrics[name]):>21}")
        for name in ("unidentified", "rejected"):
            self._print(f"{name:20}{metrics[name]:>21.1%}")
        if facts.training["data"]["layout"] == "demo":
            self._print("The demo set is drawn by a program: this model knows nothing of blood.")
        self._print(f"\nbundle: {bundle.path}")
        self._print(f"id: {bundle.id}")

    def conclude_adaptation(self, found: Adapted, report: Path | None) -> None:
        """Prints before and after, whether more labels would help, and where the bundle is."""
        told = found.facts
        self._print(f"\n{'':20}{'before':>21}{'fitted again':>21}")
        for name in ("balanced_accuracy", "accuracy"):
            cells = "".join(f"{_limits(told[name][part]):>21}" for part in ("before", "after"))
            self._print(f"{name.replace('_', ' '):20}{cells}")
        for point in told["curve"]:
            self._print(f"{'with ' + str(point['labels']) + ' labels':41}{_limits(point):>21}")
        self._print(f"\n{told['reason']}\n{told['outlook']}")
        if told["data"]["layout"] == "demo":
            self._print("The cells are drawn by a program: these numbers say nothing about blood.")
        if report is not None:
            self._print(f"\npage: {report}")
        self._print(f"bundle: {found.bundle.path}\nid: {found.bundle.id}")
        self._print("Research use only, not for diagnosis.")

    def conclude_conversion(self, made: EightBits) -> None:
        """Prints what eight bits lose."""
        share, low, high = (100 * value for value in made.same)
        pair = made.accuracy
        change, least, most = (
            f"{100 * value:+.2f}".replace("-", "−")
            for value in (pair.difference, pair.low, pair.high)
        )
        self._print(
            f"On {made.n:,} cells: the same class in {share:.2f} % ({low:.2f}–{high:.2f}), "
            f"accuracy {change} points ({least} to {most})."
        )
        if made.seen:
            self._print("It was trained on some of these cells, and may lose more on others.")
        self._print("Research use only, not for diagnosis.")

    def conclude_predictions(self, found: Predictions, out: Path | None) -> None:
        """Prints how many answers there are of each kind, and what was set aside."""
        for note in found.notes:
            self._print(note)
        told = ", ".join(f"{number:,} {state}" for state, number in found.count().items())
        self._print(f"{len(found):,} {'answer' if len(found) == 1 else 'answers'}: {told}")
        for one in found.set_aside:
            self._print(f"set aside: {one.image} ({one.reason})")
        if out is not None:
            self._print(f"written to {out}")
        self._print("Research use only, not for diagnosis.")

    def conclude_differential(self, found: Slides, out: Path | None) -> None:
        """Prints each slide as a table, then what was set aside and where everything is."""
        from leuko.judgement.findings import quantity
        from leuko.use.sheet import OTHERS, lay_out, tell_signed, tell_signed_range

        for note in found.notes:
            self._print(note)
        for one in found:
            sheet = lay_out(one, found.differences.get(one.slide, ()), found.reference)
            head = f"{'%':>7}  {'95 % limits':11}" + "  corrected" * sheet.corrected
            self._print(f"\n{sheet.slide}: {sheet.cells} {sheet.counted} {sheet.summary}")
            self._print(f"{'':22}{'cells':>7}{head}")
            for line in (*sheet.lines, *sheet.red):
                corrected = f"  {line.corrected} ({line.corrected_limits})" * bool(line.corrected)
                shares = f"{line.percent:>7}  {line.limits:11}{corrected}"
                self._print(f"{line.label:22}{line.cells:>7}{shares}")
            if sheet.red:
                self._print(f"per 100 leukocytes: {', '.join(line.label for line in sheet.red)}")
            for aside in (a for a in sheet.asides if a.title == OTHERS):
                counts = ", ".join(f"{label} {n}" for label, n in aside.reasons)
                self._print(f"{aside.title}, no part of the 100 %: {counts}")
            if sheet.legend:
                self._print(sheet.legend)
            for told in (*sheet.warnings, *sheet.notes, *filter(None, [sheet.reference])):
                self._print(told)
            for image, reason in one.set_aside:
                self._print(f"set aside: {image} ({reason})")
        if found.comparison is not None:
            self._print(f"\n{len(found.comparison.slides)} slides against {found.reference}:")
            for m in found.comparison.methods:
                bias = m.agreement.bias
                limits = f" ({tell_signed_range(bias)})" if bias.low is not None else ""
                told = f"bias {tell_signed(bias.value)}{limits} points"
                if m.agreement.slides < len(found.comparison.slides):
                    told += f", on {quantity(m.agreement.slides, 'slide')}"
                self._print(f"{m.label:22}{m.way:11}{told}")
            for told in found.comparison.left_out:
                self._print(f"not compared: {told}")
        if out is not None:
            self._print(f"\nwritten to {out}")
        self._print("Research use only, not for diagnosis.")

    def conclude_evaluation(self, found: Evaluation) -> None:
        """Prints the answer in sentences, what wasn't judged, then where everything is."""
        from leuko.judgement.evaluation_findings import tell_evaluation, tell_set

        results = found.results
        self._print("")
        for name in METRICS:
            self._print(f"{name.replace('_', ' '):20}{_limits(results[name]):>21}")
        self._print("")
        for sentence in (*tell_evaluation(results), *tell_set(results)):
            self._print(sentence)
        for row in results["data"]["set_aside"]:
            self._print(f"set aside: {row['image']} ({row['reason']})")
        for warning in results["warnings"]:
            self._print(f"WARNING: {warning}")
        if found.folder is not None:
            self._print(f"\npage: {found.folder / 'evaluation.html'}")
        self._print("Research use only, not for diagnosis.")

    def _print_meter(self, meter: dict[str, Any]) -> None:
        head = f"{'leak meter, accuracy':34}{'random split':>21}{'split by group':>21}"
        self._print(f"\n{head}")
        for row in meter["rows"]:
            cells = "".join(f"{_limits(row[kind]):>21}" for kind in ("random", "grouped"))
            self._print(f"{row['who']:34}{cells}")
        self._print(str(meter["verdict"]))

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def resume_command(words: Sequence[str], folder: Path) -> str:
    """The same command, with ``--resume`` instead of what named the run folder."""
    named = "--run" if words[:1] == ["train"] else "--out"
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith((f"{named}=", "--resume=")):
            skip = False
        elif word in (named, "--resume"):
            skip = True
        else:
            kept.append(word)
    return shlex.join(["leuko", *kept, "--resume", str(folder)])


def _limits(value: dict[str, float]) -> str:
    if value["low"] is None:
        return f"{value['value']:.1%}".replace("%", "")
    return f"{value['value']:.1%} ({value['low']:.1%}–{value['high']:.1%})".replace("%", "")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
