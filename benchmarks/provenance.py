"""What a table of results says of where it comes from."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

from leuko.run import describe_environment

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("numpy", "scipy", "opencv-python-headless", "scikit-learn")


def head(title: str, *commands: str) -> list[str]:
    """Title, commands, commit, versions, processor: the first lines of a file of results."""
    facts = describe_environment([])
    parts = "; ".join(f"{part} {found}" for part in PARTS if (found := find_version(part)))
    return [
        f"# {title}", "", "```", *commands, "```", "",
        f"Commit {find_commit()}; Python {facts['python']}; {parts}; {facts['processor']}.", "",
    ]  # fmt: skip


def find_version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None


def find_commit() -> str:
    """The commit, and whether the code that was measured differs from it."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = ask("status", "--porcelain", "--", "src/leuko/data")
    commit = ask("rev-parse", "--short", "HEAD")
    return f"{commit} with changes in src/leuko/data" if changed else commit


def write_results(name: str, lines: list[str]) -> None:
    (ROOT / "results" / name).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
