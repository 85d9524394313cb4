"""A cleaning recipe: ordered steps with their parameters, read from TOML and checked.

It says what is to be done and does nothing; see `leuko.data.cleaning`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from leuko.data import issues
from leuko.data.steps import KINDS
from leuko.errors import RecipeError, UnknownNameError, suggest

RECIPES = ("classic", "minimal", "prepared", "strict")


@dataclass(frozen=True)
class RecipeStep:
    """One step: its kind, a key of `leuko.data.steps.KINDS`, and its parameters by name."""

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

    @property
    def needs_audit(self) -> bool:
        """Whether a step acts on what the audit finds."""
        return any(KINDS[step.kind].needs_audit for step in self.steps)

    def to_toml(self) -> str:
        """The recipe as TOML that `load_recipe` reads."""
        lines = [f"name = {_toml(self.name)}", f"description = {_toml(self.description)}"]
        for step in self.steps:
            lines += ["", "[[steps]]", f"kind = {_toml(step.kind)}"]
            lines += [f"{key} = {_toml(value)}" for key, value in step.parameters.items()]
        return "\n".join(lines) + "\n"


def load_recipe(source: str | Path) -> Recipe:
    """Reads a recipe that ships with Leuko, by name, or from a TOML file.

    Raises:
        UnknownNameError: Neither a recipe nor a file of that name, or an unknown step, parameter or
            kind of issue.
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
        UnknownNameError: An unknown step, parameter or kind of issue.
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
        for name in value if key == "kinds" else ():
            if name not in issues.KINDS:
                raise UnknownNameError(
                    f"{where} ({step.kind}): no kind of issue {name!r}. "
                    f"{suggest(name, list(issues.KINDS))}"
                )
    for key in known:
        if key not in step.parameters:
            raise RecipeError(
                f"{where} ({step.kind}) lacks {key!r}; expected {', '.join(known)}. Add it."
            )


def _misfit(key: str, value: object) -> str:
    """What a parameter should have been, or nothing if it fits."""
    if key in ("classes", "kinds"):
        fits = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) and value
        what = {
            "classes": 'class names, such as ["BASOPHIL"]',
            "kinds": 'kinds of issues, such as ["no_leukocyte"]',
        }
        return "" if fits else f"a list of {what[key]}"
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
