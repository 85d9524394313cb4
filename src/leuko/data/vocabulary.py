"""Which class of one set is which class of another: names that several laboratories share.

Knows names of sets and classes; knows nothing of images.
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leuko.data.steps import normalise_spelling
from leuko.errors import SettingsError, UnknownNameError, suggest

COLUMNS = ("set", "class", "common")

Naming = Mapping[str, Mapping[str, str]]  # set → class → what the class is called in common


@dataclass(frozen=True)
class Vocabulary:
    """What the classes of several sets are called in common.

    Attributes:
        names: Per set, per class of it, the common name.
        given: Whether a person's map had a say.
    """

    names: dict[str, dict[str, str]]
    given: bool

    def classes(self, sets: Sequence[str]) -> list[str]:
        """The common names of all classes of these sets together, in alphabetical order."""
        return sorted({name for one in sets for name in self.names[one].values()})

    def shared(self, a: Sequence[str], b: Sequence[str]) -> list[str]:
        """Those that both the sets a and the sets b have, in alphabetical order."""
        return sorted(set(self.classes(a)) & set(self.classes(b)))

    def describe(self) -> list[str]:
        """What was matched with what, and what has no counterpart, in sentences for people."""
        found: dict[str, list[str]] = {}
        homes: dict[str, set[str]] = {}
        for one, names in self.names.items():
            for written, common in names.items():
                found.setdefault(common, []).append(f"{one} {written}")
                homes.setdefault(common, set()).add(one)
        how = "by the map, else by their names" if self.given else "by their names"
        matched = [f"{c} ({', '.join(found[c])})" for c in sorted(found) if len(homes[c]) > 1]
        alone = [", ".join(found[c]) for c in sorted(found) if len(homes[c]) == 1]
        said = [f"classes matched {how}: {'; '.join(matched) if matched else 'none'}"]
        if alone:
            said.append(f"classes of one set only, without a counterpart: {', '.join(alone)}")
        return said


def match_classes(
    classes: Mapping[str, Sequence[str]],
    naming: Naming | None = None,
    known: Mapping[str, Sequence[str]] | None = None,
) -> Vocabulary:
    """Finds a common name for every class of every set.

    A class takes the name that the map gives it. The others are matched by their names,
    without regard to spelling (`leuko.data.steps.normalise_spelling`); matched classes are called
    as the map does, or as in the first set that has them.

    Args:
        classes: Per set, in order, the classes that are used.
        naming: A person's map.
        known: Per set the classes that exist but needn't be used, because cleaning may have
            dropped some: a map that names them is right, and has no effect.

    Raises:
        UnknownNameError: The map names a set or a class that there isn't; says the nearest.
    """
    naming = naming or {}
    for one, names in naming.items():
        if one not in classes:
            raise UnknownNameError(
                f"The map names a set {one!r} that isn't compared. {suggest(one, list(classes))}"
            )
        there = list(dict.fromkeys([*classes[one], *(known or {}).get(one, ())]))
        for name in names:
            if name not in there:
                raise UnknownNameError(
                    f"The map names a class {name!r} that {one} doesn't have. "
                    f"{suggest(name, there)}"
                )
    mapped = [common for names in naming.values() for common in names.values()]
    called = {normalise_spelling(common): common for common in mapped}
    found: dict[str, dict[str, str]] = {}
    for one, written in classes.items():
        own = naming.get(one, {})
        found[one] = {c: own.get(c) or called.setdefault(normalise_spelling(c), c) for c in written}
    return Vocabulary(found, bool(naming))


def parse_naming(text: str) -> Naming:
    """Reads a map from a file, or from the JSON that `write_naming` gives.

    Args:
        text: The path of a TOML file (one table per set: ``[pbc]``, ``neutrophil =
            "NEUTROPHIL"``) or of a CSV with the columns set, class and common; or JSON.

    Raises:
        SettingsError: It can't be read, or isn't of that form.
    """
    if text.lstrip().startswith("{"):
        return _check_naming(json.loads(text), "the map")
    path = Path(text)
    try:
        content = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".csv":
            return _read_csv(path, content)
        return _check_naming(tomllib.loads(content), str(path))
    except FileNotFoundError as error:
        raise SettingsError(
            f"There is no map {path}. --map takes a TOML file with a table per set, or a CSV with "
            f"the columns {','.join(COLUMNS)}."
        ) from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"The map {path} can't be read: {error}.") from error


def write_naming(naming: Naming) -> str:
    """A map as one line of JSON, the same for the same map."""
    return json.dumps(naming, ensure_ascii=False, sort_keys=True)


def _read_csv(path: Path, content: str) -> Naming:
    lines = content.splitlines()
    semicolons = bool(lines) and lines[0].count(";") > lines[0].count(",")
    rows = list(csv.DictReader(lines, delimiter=";" if semicolons else ","))
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        values = [(row.get(column) or "").strip() for column in COLUMNS]
        if not all(values):
            raise SettingsError(
                f"{path}, line {number}: expected a value in each of the columns "
                f"{','.join(COLUMNS)}; found {','.join(str(v) for v in row.values())}."
            )
        one, written, common = values
        if found.setdefault(one, {}).setdefault(written, common) != common:
            raise SettingsError(
                f"{path}, line {number}: {one} {written} has two common names, "
                f"{found[one][written]} and {common}; expected one."
            )
    return _check_naming(found, str(path))


def _check_naming(found: object, where: str) -> Naming:
    if (
        isinstance(found, dict)
        and found
        and all(isinstance(names, dict) for names in found.values())
        and all(
            isinstance(c, str) and c.strip() for names in found.values() for c in names.values()
        )
    ):
        return found
    raise SettingsError(
        f"{where} isn't a map of classes. Expected a table per set with the common name of each "
        'class, as in: [pbc] neutrophil = "NEUTROPHIL".'
    )
