"""Cleaning: a recipe and a manifest go in, the kept rows and a ledger come out.

A recipe is data: ordered steps in a TOML file. The ledger names every row that a step dropped,
with the reason. No file is changed or deleted, and nothing is copied.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leuko.data.manifest import Manifest, write_manifest
from leuko.data.recipe import Recipe, RecipeStep, load_recipe
from leuko.data.steps import KINDS, Rows, count_labels
from leuko.errors import LeukoError, NoImagesError, OutputError, RecipeError, StorageError


@dataclass(frozen=True)
class Step:
    """What one step of a recipe did.

    Attributes:
        name: Its kind.
        reason: What it is for, for people.
        parameters: As in the recipe.
        dropped: One dict per row: ``row``, ``image``, ``label_written``, ``reason``.
        counts_before: Rows with exactly one label, per class.
        counts_after: The same afterwards.
        rows_before: All rows.
        rows_after: The same afterwards.
        images_before: Different image files that the rows name.
        images_after: The same afterwards.
        note: What else there is to know, such as a class that doesn't occur.
        factors: Of ``repeat_rare``: how many times as often each class is drawn in training.
    """

    name: str
    reason: str
    parameters: dict[str, Any]
    dropped: list[dict[str, Any]]
    counts_before: dict[str, int]
    counts_after: dict[str, int]
    rows_before: int
    rows_after: int
    images_before: int
    images_after: int
    note: str = ""
    factors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """What each step did, in order."""

    recipe: str
    seed: int
    steps: list[Step]

    def to_json(self) -> str:
        """The ledger as JSON, the same text for the same data."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Reads what `to_json` wrote.

        Raises:
            RecipeError: It is no ledger.
        """
        try:
            facts = json.loads(text)
            steps = [Step(**step) for step in facts["steps"]]
            return cls(str(facts["recipe"]), int(facts["seed"]), steps)
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"found a ledger that can't be read ({error}); expected one that Leuko wrote. "
                "Clean the data again."
            ) from None

    def describe(self) -> str:
        """A compact table for people: per step what was dropped, and the counts after it."""
        if not self.steps:
            return f"Recipe {self.recipe!r} has no steps.\n"
        classes = sorted({name for step in self.steps for name in step.counts_before})
        head = ["step", "dropped", "rows", "images", *classes]
        start = self.steps[0]
        lines: list[list[object]] = [["(as read)", "", start.rows_before, start.images_before]]
        lines[0] += [start.counts_before.get(name, 0) for name in classes]
        notes = []
        for step in self.steps:
            line: list[object] = [
                step.name,
                len(step.dropped) or "",
                step.rows_after,
                step.images_after,
            ]
            lines.append(line + [step.counts_after.get(name, 0) for name in classes])
            if step.note:
                notes.append(f"{step.name}: {step.note}")
        table = [head, *([str(cell) for cell in line] for line in lines)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        text = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join([*text, *notes]) + "\n"


@dataclass(frozen=True)
class Cleaned:
    """The kept rows, one per image, and how they came about.

    Attributes:
        manifest: Kept rows only, in the order of the manifest that came in.
        found: The manifest that came in.
        ledger: What each step did.
        recipe: As used.
        balance: The recipe asks for the rarer classes to be drawn several times over.
    """

    manifest: Manifest
    found: Manifest
    ledger: Ledger
    recipe: Recipe
    balance: bool


def clean(manifest: Manifest, recipe: str | Path | Recipe = "classic", seed: int = 0) -> Cleaned:
    """Applies a recipe.

    Args:
        manifest: All rows, as `leuko.data.sources.scan` gives them.
        recipe: "classic", "minimal", "prepared", a TOML file, or a `Recipe`.
        seed: Decides what ``delete_share`` draws; the order of the rows doesn't.

    Raises:
        UnknownNameError: No recipe or step of that name.
        RecipeError: The recipe can't be read, or a parameter is wrong.
        NoImagesError: Nothing is left.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    rows = manifest.table.to_dicts()
    kept = list(range(len(rows)))
    steps = []
    for asked in recipe.steps:
        now = [rows[i] for i in kept]
        kind = KINDS[asked.kind]
        outcome = kind.apply(now, seed=seed, **_arguments(asked))
        after = [row for i, row in enumerate(now) if i not in outcome.drops]
        dropped = [
            {key: now[i][key] for key in ("row", "image", "label_written")} | {"reason": reason}
            for i, reason in sorted(outcome.drops.items())
        ]
        steps.append(
            Step(
                asked.kind,
                kind.reason,
                dict(asked.parameters),
                dropped,
                count_labels(now),
                count_labels(after),
                len(now),
                len(after),
                _count_images(now),
                _count_images(after),
                outcome.note,
                outcome.factors,
            )
        )
        kept = [place for i, place in enumerate(kept) if i not in outcome.drops]
    ledger = Ledger(recipe.name, seed, steps)
    if not kept:
        last = next((s for s in steps if s.rows_before and not s.rows_after), None)
        blame = f"the step {last.name} dropped the last rows" if last else "there were no rows"
        raise NoImagesError(
            f"after the recipe {recipe.name!r} no image is left: {blame}; expected some. "
            f"Look at the ledger, and at the labels:\n{ledger.describe()}"
        )
    balance = any(step.kind == "repeat_rare" for step in recipe.steps)
    return Cleaned(manifest.with_table(manifest.table[kept]), manifest, ledger, recipe, balance)


def _arguments(step: RecipeStep) -> dict[str, Any]:
    return {"class_" if key == "class" else key: value for key, value in step.parameters.items()}


def write_clean(cleaned: Cleaned, folder: str | Path) -> Path:
    """Writes what cleaning decided; the images stay where they are.

    ``manifest.parquet``, ``labels.csv`` (image, label, group), ``ledger.json`` and
    ``recipe.toml``; `scan` reads the folder. It appears whole or not at all.

    Args:
        cleaned: From `clean`.
        folder: Must not exist.

    Returns:
        The folder.

    Raises:
        OutputError: The folder exists, or can't be made.
        StorageError: Writing failed.
    """
    folder = Path(folder)
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder} exists already; nothing was written. Name a new folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(
            f"{folder} can't be made ({error.strerror}). Choose a folder that can be written."
        ) from None
    try:
        part.chmod(0o755)  # mkdtemp gives 0700
        write_manifest(cleaned.manifest, part / "manifest.parquet")
        (part / "labels.csv").write_text(_labels_csv(cleaned.manifest), "utf-8", newline="")
        (part / "ledger.json").write_text(cleaned.ledger.to_json() + "\n", "utf-8")
        (part / "recipe.toml").write_text(cleaned.recipe.to_toml(), "utf-8")
        part.rename(folder)
    except LeukoError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise StorageError(
            f"{folder} can't be written ({error.strerror}). Free some space, or choose another "
            "folder."
        ) from None
    return folder


def _labels_csv(manifest: Manifest) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    columns = ["path", "labels", "group"]
    extra = ["split"] if manifest.table["split"].is_not_null().any() else []
    writer.writerow(["image", "label", "group", *extra])
    for path, labels, *rest in manifest.table.select(columns + extra).iter_rows():
        writer.writerow([path, ", ".join(labels or ()), *rest])
    return out.getvalue()


def _count_images(rows: Rows) -> int:
    return len({row["path"] for row in rows if row["path"] is not None})
