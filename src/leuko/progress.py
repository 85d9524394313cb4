"""What a person sees while a study runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from leuko.learning.folds import Progress
from leuko.study import Study, Watcher

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

    def say(self, text: str) -> None:
        """Prints a sentence."""
        self._print(text)

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

        results = study.results
        rows = {**results["baselines"], **results["models"]}
        self._print(f"\n{'':18}{'accuracy':>21}{'balanced accuracy':>21}{'macro-F1':>21}")
        for name, row in rows.items():
            cells = "".join(f"{_limits(row[m]):>21}" for m in METRICS)
            self._print(f"{name:18}{cells}")
        self._print("")
        for sentence in answer(results):
            self._print(sentence)
        if results["data"]["layout"] == "demo":
            self._print(
                "The demo set is drawn by a program: these numbers say nothing about blood."
            )
        for row in results["data"]["set_aside"]:
            self._print(f"set aside: {row['image']} ({row['reason']})")
        self._print(f"\nreport: {study.folder / 'report.html'}")
        self._print(f"run folder: {study.folder}")

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def resume_command(words: Sequence[str], folder: Path) -> str:
    """The same command, with ``--resume`` instead of ``--out``."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith(("--out=", "--resume=")):
            skip = False
        elif word in ("--out", "--resume"):
            skip = True
        else:
            kept.append(word)
    return shlex.join(["leuko", *kept, "--resume", str(folder)])


def _limits(value: dict[str, float]) -> str:
    return f"{value['value']:.1%} ({value['low']:.1%}–{value['high']:.1%})".replace("%", "")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
