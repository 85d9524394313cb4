"""What long work tells whoever waits for it. The command line's answer is in `leuko.progress`."""

from __future__ import annotations

from pathlib import Path

from leuko.learning.folds import Progress


class Watcher:
    """Learns what is being done. Does nothing; subclass it to show progress."""

    def say(self, text: str) -> None:
        """A sentence for people."""

    def count(self, what: str, done: int, total: int) -> None:
        """So much of one piece of work is done."""

    def begin(self, folder: Path, epochs: int) -> None:
        """The run folder exists; `epochs` are to be trained in all, those done before included."""

    def epoch(self, progress: Progress) -> None:
        """One more epoch of one job is done."""

    def end(self) -> None:
        """Nothing more will be trained."""
