"""Cleaning: a recipe and a manifest go in, the kept rows and a ledger come out.

A recipe is data: ordered steps in a TOML file. The ledger names every row that a step dropped,
with the reason. No file is changed or deleted, and nothing is copied.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import shutil
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from leuko.data.manifest import Manifest, write_manifest
from leuko.errors import (
    LeukoError,
    NoImagesError,
    OutputError,
    RecipeError,
    StorageError,
    UnknownNameError,
    suggest,
)

Rows = list[dict[str, Any]]
Drops = dict[int, str]  # position in the rows → reason

RECIPES = ("classic", "minimal")


@dataclass(frozen=True)
class RecipeStep:
    """One step: its kind, a key of `KINDS`, and its parameters by name."""

    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Cleaning steps in the order in which they run."""

    name: str
    steps: tuple[RecipeStep, ...]
    description: str = ""

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps, start=1):
            _check_step(step, f"recipe {self.name!r}, step {number}")

    def to_toml(self) -> str:
        """The recipe as TOML that `load_recipe` reads."""
        lines = [f"name = {_toml(self.name)}", f"description = {_toml(self.description)}"]
        for step in self.steps:
            lines += ["", "[[steps]]", f"kind = {_toml(step.kind)}"]
            lines += [f"{key} = {_toml(value)}" for key, value in step.parameters.items()]
        return "\n".join(lines) + "\n"


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
        recipe: "classic", "minimal", a TOML file, or a `Recipe`.
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
                _count(now),
                _count(after),
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


def load_recipe(source: str | Path) -> Recipe:
    """Reads a recipe that ships with Leuko, by name, or from a TOML file.

    Raises:
        UnknownNameError: Neither a recipe nor a file of that name, or an unknown step.
        RecipeError: The file can't be read, or a parameter is wrong.
    """
    if str(source) in RECIPES:
        text = (resources.files("leuko.data.recipes") / f"{source}.toml").read_text("utf-8")
    else:
        path = Path(source)
        if path.suffix.lower() != ".toml" and not path.is_file():
            raise UnknownNameError(
                f"no recipe named {str(source)!r}. {suggest(str(source), list(RECIPES))} "
                "Or name a TOML file."
            )
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{path} can't be read ({error}); expected a recipe in TOML. Check the path."
            ) from None
    return parse_recipe(text, name=Path(source).stem)


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Reads a recipe from TOML text; ``name`` is used where the text gives none.

    Raises:
        UnknownNameError: An unknown step or parameter.
        RecipeError: It is no TOML, or a parameter is wrong.
    """
    try:
        facts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"recipe {name!r} is no TOML ({error}). Correct that line, or start from a copy of "
            "classic.toml."
        ) from None
    known = ["name", "description", "steps"]
    for key in facts:
        if key not in known:
            raise UnknownNameError(f"recipe {name!r} has an entry {key!r}. {suggest(key, known)}")
    steps = facts.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise RecipeError(
            f"recipe {name!r} has no list of steps; expected [[steps]] with a kind. "
            "Start from a copy of classic.toml."
        )
    made = []
    for number, step in enumerate(steps, start=1):
        if "kind" not in step:
            raise RecipeError(
                f"recipe {name!r}, step {number} has no kind; expected one of "
                f"{', '.join(KINDS)}. Add: kind = ..."
            )
        made.append(RecipeStep(str(step["kind"]), {k: step[k] for k in step if k != "kind"}))
    name, description = str(facts.get("name", name)), str(facts.get("description", ""))
    return Recipe(name, tuple(made), description)


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
    columns = ["path", "label", "group"]
    extra = ["split"] if manifest.table["split"].is_not_null().any() else []
    writer.writerow(["image", "label", "group", *extra])
    writer.writerows(manifest.table.select(columns + extra).iter_rows())
    return out.getvalue()


def _count(rows: Rows) -> dict[str, int]:
    counts = Counter(row["label"] for row in rows if row["label"] is not None)
    return dict(sorted(counts.items()))


def _count_images(rows: Rows) -> int:
    return len({row["path"] for row in rows if row["path"] is not None})


# The steps


@dataclass(frozen=True)
class _Outcome:
    drops: Drops
    note: str = ""
    factors: dict[str, float] = field(default_factory=dict)


def _drop_blank_labels(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    drops = {}
    for i, row in enumerate(rows):
        if not row["labels"]:
            why = "no label row names it" if row["label_written"] is None else "blank label"
            drops[i] = why + (", no image" if row["path"] is None else "")
    without = sum(rows[i]["path"] is None for i in drops)
    return _Outcome(drops, f"{without} of {len(drops)} have no image either" if without else "")


def _drop_missing_images(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    return _Outcome({i: "no image" for i, row in enumerate(rows) if row["path"] is None})


def _drop_unreadable(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    codes = (
        (i, next((issue for issue in row["issues"] if issue.startswith("unreadable:")), None))
        for i, row in enumerate(rows)
    )
    return _Outcome({i: code for i, code in codes if code is not None})


def _drop_multiple_labels(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    return _Outcome(
        {i: f"{len(row['labels'])} labels" for i, row in enumerate(rows) if len(row["labels"]) > 1}
    )


def _drop_conflicts(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    same: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        readable = row["width"] is not None
        same[row["sha256"] if readable else f"id:{row['image']}"].append(i)
    drops = {}
    for members in same.values():
        labels = sorted({" + ".join(sorted(set(rows[i]["labels"]))) for i in members} - {""})
        if len(labels) > 1:
            for i in members:
                drops[i] = f"the same image is labelled {' and '.join(labels)}"
    return _Outcome(drops)


def _drop_repeated_rows(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    drops = {}
    # The first is the one that comes first in the table file, however the rows are ordered here.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["row"] is None, rows[i]["row"] or 0))
    for i in order:
        key = (rows[i]["image"], tuple(sorted(set(rows[i]["labels"]))))
        if key in first:
            drops[i] = f"listed before, in row {rows[first[key]]['row']}"
        first.setdefault(key, i)
    return _Outcome(drops)


def _drop_classes(rows: Rows, *, seed: int, classes: list[str]) -> _Outcome:  # noqa: ARG001
    wanted = {name.strip().casefold() for name in classes}
    drops = {
        i: f"class {row['label']}"
        for i, row in enumerate(rows)
        if row["label"] is not None and row["label"].casefold() in wanted
    }
    found = {rows[i]["label"].casefold() for i in drops}
    absent = [name for name in classes if name.strip().casefold() not in found]
    return _Outcome(drops, f"not in this set: {', '.join(absent)}" if absent else "")


def _delete_share(rows: Rows, *, seed: int, class_: str, share: float) -> _Outcome:
    name = class_.strip().casefold()
    members = [i for i, row in enumerate(rows) if (row["label"] or "").casefold() == name]
    if not members:
        return _Outcome({}, f"not in this set: {class_}")
    number = math.floor(share * len(members) + 0.5)

    # A hash instead of a generator: what is drawn depends on the seed and on each image's id
    # alone, not on the order of the rows or on the version of a library.
    def draw(i: int) -> tuple[bytes, str]:
        image = rows[i]["image"]
        return hashlib.sha256(f"{seed}\0{name}\0{image}".encode()).digest(), image

    chosen = sorted(members, key=draw)[:number]
    reason = f"drawn: {number} of {len(members)}, seed {seed}"
    return _Outcome(dict.fromkeys(chosen, reason), f"{number} of {len(members)} {class_} drawn")


def _repeat_rare(rows: Rows, *, seed: int) -> _Outcome:  # noqa: ARG001
    counts = _count(rows)
    most = max(counts.values(), default=0)
    factors = {name: round(most / n, 4) for name, n in counts.items()}
    spelt = ", ".join(f"{name} × {factor:.2f}" for name, factor in factors.items())
    return _Outcome({}, f"drawn in training: {spelt}" if spelt else "", factors)


@dataclass(frozen=True)
class _Kind:
    reason: str
    apply: Callable[..., _Outcome]
    parameters: tuple[str, ...] = ()


#: The kinds of steps; their parameters are all required.
KINDS: dict[str, _Kind] = {
    "drop_blank_labels": _Kind("nothing says what the image shows", _drop_blank_labels),
    "drop_missing_images": _Kind("a label without an image", _drop_missing_images),
    "drop_unreadable": _Kind("the image can't be read", _drop_unreadable),
    "drop_conflicts": _Kind("one image under different labels", _drop_conflicts),
    "drop_repeated_rows": _Kind("one image listed again", _drop_repeated_rows),
    "drop_multiple_labels": _Kind("a field with two or more leukocytes", _drop_multiple_labels),
    "drop_classes": _Kind("a class that is left out", _drop_classes, ("classes",)),
    "delete_share": _Kind("a share of a frequent class", _delete_share, ("class", "share")),
    "repeat_rare": _Kind("rarer classes are trained several times over", _repeat_rare),
}


def _arguments(step: RecipeStep) -> dict[str, Any]:
    return {"class_" if key == "class" else key: value for key, value in step.parameters.items()}


def _check_step(step: RecipeStep, where: str) -> None:
    if step.kind not in KINDS:
        raise UnknownNameError(
            f"{where}: no step of the kind {step.kind!r}. {suggest(step.kind, list(KINDS))}"
        )
    known = KINDS[step.kind].parameters
    for key, value in step.parameters.items():
        if key not in known:
            hint = suggest(key, list(known)) if known else "It has no parameters."
            raise UnknownNameError(f"{where} ({step.kind}): no parameter {key!r}. {hint}")
        expected = _misfit(key, value)
        if expected:
            raise RecipeError(
                f"{where} ({step.kind}): found {key} = {value!r}; expected {expected}. Correct it."
            )
    for key in known:
        if key not in step.parameters:
            raise RecipeError(
                f"{where} ({step.kind}) lacks {key!r}; expected {', '.join(known)}. Add it."
            )


def _misfit(key: str, value: object) -> str:
    """What a parameter should have been, or nothing if it fits."""
    if key == "classes":
        fits = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) and value
        return "" if fits else 'a list of class names, such as ["BASOPHIL"]'
    if key == "share":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number and 0 <= value <= 1 else "a number from 0 to 1"  # type: ignore[operator]
    return "" if isinstance(value, str) and value.strip() else "the name of a class"


def _toml(value: Any) -> str:
    """TOML of a text, number or list; JSON's escapes are TOML's, but for the delete character."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
