"""Cleaning: a recipe and a manifest go in, the kept rows and a ledger come out.

A recipe is data: ordered steps in a TOML file. What a person decided about single images goes
before its steps. The ledger names every row that a step dropped or whose label it changed, with
the reason. No file is changed or deleted, and nothing is copied.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from leuko.data.decisions import Decisions, apply_decisions, match_decisions, read_decisions
from leuko.data.manifest import SCHEMA, Manifest, write_manifest
from leuko.data.recipe import Recipe, RecipeStep, load_recipe
from leuko.data.steps import KINDS, Outcome, Rows, count_labels
from leuko.errors import LeukoError, NoImagesError, OutputError, RecipeError, StorageError


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        name: Its kind, or ``apply_decisions``.
        reason: What it is for, for people.
        parameters: As in the recipe; of ``apply_decisions`` what `Decisions.to_json` says.
        dropped: One dict per row: ``row``, ``image``, ``label_written``, ``reason``.
        counts_before: Rows with exactly one label, per class.
        counts_after: The same afterwards.
        rows_before: All rows.
        rows_after: The same afterwards.
        images_before: Different image files that the rows name.
        images_after: The same afterwards.
        note: What else there is to know, such as a class that doesn't occur.
        factors: Of ``repeat_rare``: how many times as often each class is drawn in training.
        renamed: One dict per row whose label changed: ``row``, ``image``, ``label_written``,
            ``old``, ``new`` (the labels, with commas between several) and ``reason``.
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
    renamed: list[dict[str, Any]] = field(default_factory=list)


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
        """A compact table for people: per step what it did, and the counts after it."""
        if not self.steps:
            return f"Recipe {self.recipe!r} has no steps.\n"
        classes = sorted(
            {c for step in self.steps for c in (*step.counts_before, *step.counts_after)}
        )
        start = self.steps[0]
        table: list[list[object]] = [
            ["step", "dropped", "renamed", "rows", "images", *classes],
            ["(as read)", "", "", start.rows_before, start.images_before]
            + [start.counts_before.get(name, 0) for name in classes],
        ]
        notes = []
        for step in self.steps:
            did = len(step.dropped) or "", len(step.renamed) or ""
            counts = [step.counts_after.get(name, 0) for name in classes]
            table.append([step.name, *did, step.rows_after, step.images_after, *counts])
            notes += [f"{step.name}: {step.note}"] if step.note else []
            changes = Counter((str(row["old"]), str(row["new"])) for row in step.renamed)
            notes += [f"{step.name}: {a!r} → {b!r} ({n} ×)" for (a, b), n in changes.items()]
        if not any(step.renamed for step in self.steps):
            table = [line[:2] + line[3:] for line in table]
        return "\n".join([*_align(table), *notes]) + "\n"


def _align(table: list[list[object]]) -> list[str]:
    """Lines of text; the first column is flush left, the others right."""
    lines = [[str(cell) for cell in line] for line in table]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


@dataclass(frozen=True)
class Cleaned:
    """The kept rows, one per image, and how they came about.

    Attributes:
        manifest: Kept rows only, in the order of the manifest that came in, with the labels that
            the steps gave them.
        found: The manifest that came in.
        ledger: What each step did.
        recipe: As used.
        balance: The recipe asks for the rarer classes to be drawn several times over.
        decisions: What a person decided and was applied; None if there was nothing of the kind.
    """

    manifest: Manifest
    found: Manifest
    ledger: Ledger
    recipe: Recipe
    balance: bool
    decisions: Decisions | None = None


def clean(
    manifest: Manifest,
    recipe: str | Path | Recipe = "classic",
    seed: int = 0,
    decisions: Decisions | str | Path | None = None,
) -> Cleaned:
    """Applies a person's decisions, if there are any, and then a recipe.

    An image that is decided ``keep`` stays whatever the audit found (in ``drop_issues``,
    ``keep_one_of_group``, ``drop_cell_conflicts``), but not if it
    can't be used: unreadable, absent, or without one label.

    Args:
        manifest: All rows, as `leuko.data.sources.scan` or the audit gives them.
        recipe: "classic", "minimal", "prepared", "strict", a TOML file, or a `Recipe`.
        seed: Decides what ``delete_share`` draws; the order of the rows doesn't.
        decisions: A table as `leuko.data.decisions.write_decisions` writes it, filled in.

    Raises:
        UnknownNameError: No recipe, step or kind of issue of that name.
        RecipeError: The recipe can't be read, a parameter is wrong, or it needs an audit that the
            manifest never had.
        LabelTableError: The decisions can't be read, or don't fit the manifest.
        NoImagesError: Nothing is left.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    _check_audited(manifest, recipe)
    if isinstance(decisions, str | Path):
        decisions = read_decisions(decisions)
    rows: Rows = manifest.table.to_dicts()
    steps = []
    if decisions is not None:
        matched = match_decisions(decisions, manifest)
        for row in rows:
            row["decided"] = matched[row["image"]].word if row["image"] in matched else None
        name, reason = "apply_decisions", "a person decided so"
        outcome = apply_decisions(rows, matched)
        rows, step = _perform(rows, outcome, name, reason, decisions.to_json())
        steps.append(step)
    for asked in recipe.steps:
        kind = KINDS[asked.kind]
        outcome = kind.apply(rows, seed=seed, **_arguments(asked))
        rows, step = _perform(rows, outcome, asked.kind, kind.reason, dict(asked.parameters))
        steps.append(step)
    ledger = Ledger(recipe.name, seed, steps)
    if not rows:
        last = next((s for s in steps if s.rows_before and not s.rows_after), None)
        blame = f"the step {last.name} dropped the last rows" if last else "there were no rows"
        raise NoImagesError(
            f"after the recipe {recipe.name!r} no image is left: {blame}; expected some. "
            f"Look at the ledger, and at the labels:\n{ledger.describe()}"
        )
    balance = any(step.kind == "repeat_rare" for step in recipe.steps)
    kept = manifest.with_table(pl.DataFrame(rows, schema=SCHEMA))
    return Cleaned(kept, manifest, ledger, recipe, balance, decisions)


def _check_audited(manifest: Manifest, recipe: Recipe) -> None:
    if recipe.needs_audit and not manifest.audited:
        kinds = dict.fromkeys(step.kind for step in recipe.steps if KINDS[step.kind].needs_audit)
        raise RecipeError(
            f"the recipe {recipe.name!r} has steps that need the audit ({', '.join(kinds)}), and "
            f"{manifest.name} was never audited; expected its issues. Run leuko.audit first and "
            "clean its manifest (the command line does so itself)."
        )


def _perform(
    rows: Rows, outcome: Outcome, name: str, reason: str, parameters: dict[str, Any]
) -> tuple[Rows, Step]:
    """The rows that a step leaves, changed copies where it changes them, and its record."""
    after, dropped, renamed = [], [], []
    for i, row in enumerate(rows):
        facts = {key: row[key] for key in ("row", "image", "label_written")}
        if i in outcome.drops:
            dropped.append(facts | {"reason": outcome.drops[i]})
            continue
        if i in outcome.renames:
            labels, why = outcome.renames[i]
            spelt = {"old": ", ".join(row["labels"]), "new": ", ".join(labels)}
            renamed.append(facts | spelt | {"reason": why})
            row = row | {"labels": labels, "label": labels[0] if len(labels) == 1 else None}
        if i in outcome.settled:
            left = [code for code in row["issues"] if code not in outcome.settled[i]]
            row = row | {"issues": left}
        after.append(row)
    step = Step(
        name,
        reason,
        parameters,
        dropped,
        count_labels(rows),
        count_labels(after),
        len(rows),
        len(after),
        _count_images(rows),
        _count_images(after),
        outcome.note,
        outcome.factors,
        renamed,
    )
    return after, step


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
