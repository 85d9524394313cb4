"""Commands about a set of images: audit, clean, fetch, demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from leuko.commands.options import AsJson, Data, say


def audit(
    data: Data = None,
    /,
    *,
    out: Path | None = None,
    split: Annotated[bool, Parameter(negative="")] = False,
    study: Path | None = None,
    folds: int = 5,
    seed: int = 0,
    workers: int | None = None,
    as_json: AsJson = False,
) -> int:
    """Look for everything that is wrong with a set, before any model is believed.

    Damaged files, copies however turned or recoloured, the same cell in two photographs,
    contradicting and likely wrong labels, blur, exposure, classes too small … Writes a page with
    the pictures, and a table in which a person can decide about each image.

    Parameters
    ----------
    data:
        What to look at.
    out:
        Folder for the page and the tables, which must not exist. [default: runs/audit-NAME-1 …]
    split:
        Also measure what a random split of this set is worth beside a split by group; trains
        small networks for some minutes.
    study:
        A finished run folder of leuko compare on the same set: also list the labels that its
        models dispute.
    folds:
        That a study would use; classes that are too small for it are named.
    seed:
        Decides folds and trees.
    workers:
        Processes at a time; changes the time, never the result. [default: one per core]
    as_json:
        Print audit.json.
    """
    from leuko.inspection import audit as inspect
    from leuko.progress import Console

    console = Console(sys.argv[1:])
    found = inspect(
        data, out=out, write=True, folds=folds, split=split, study=study, seed=seed,
        workers=workers, watcher=console, command=["leuko", *sys.argv[1:]],
    )  # fmt: skip
    console.conclude_audit(found)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    return 3 if found.manifest.unreadable() else 0


def clean(
    data: Data = None,
    /,
    *,
    recipe: str = "classic",
    decisions: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> int:
    """Clean a set by a recipe, and show what each step dropped and why.

    No image is changed, copied or deleted: the result is a manifest, a CSV of labels that every
    command reads, the ledger and the recipe as it was used.

    Parameters
    ----------
    data:
        What to clean.
    recipe:
        classic, minimal, prepared, strict or a TOML file.
    decisions:
        A CSV in which a person decided about single images; leuko audit writes one to fill in.
    out:
        Folder for the result, which must not exist; without it the ledger is only shown.
    seed:
        Decides which images a step that drops a share takes.
    as_json:
        Print the ledger as JSON.
    """
    from leuko.data.cleaning import clean as clean_set
    from leuko.data.cleaning import write_clean
    from leuko.data.recipe import load_recipe
    from leuko.data.sources import scan as scan_set

    steps = load_recipe(recipe)
    manifest = scan_set(data)
    for note in manifest.notes:
        say(note)
    if steps.needs_audit and not manifest.audited:
        from leuko.data.audit import find_issues
        from leuko.engine import count_cores
        from leuko.progress import Console

        say("looking for copies and damage, as the recipe needs it")
        count = Console(sys.argv[1:]).count
        manifest = find_issues(manifest, workers=count_cores(), say=count).manifest
    cleaned = clean_set(manifest, steps, seed=seed, decisions=decisions)
    if as_json:
        sys.stdout.write(cleaned.ledger.to_json() + "\n")
    else:
        say(cleaned.ledger.describe())
    if out is not None:
        write_clean(cleaned, out)
        say(f"written to {out}")
    unreadable = manifest.unreadable()
    for row in unreadable:
        say(f"set aside: {row['image']} ({row['reason']})")
    return 3 if unreadable else 0


def fetch(name: str = "blood-cells", /) -> int:
    """Download a public set. There is one: blood-cells, from Kaggle.

    Parameters
    ----------
    name:
        Of the set.
    """
    from leuko.data.downloads import fetch as fetch_set

    sys.stdout.write(f"{fetch_set(name)}\n")
    return 0


def demo(folder: Path, /, *, seed: int = 0) -> int:
    """Draw the synthetic demo set into a folder.

    Its layout and its faults are those of the Kaggle set. The cells are drawn by a program: what
    is measured on them says nothing about blood.

    Parameters
    ----------
    folder:
        Must not exist.
    seed:
        Decides what is drawn.
    """
    from leuko.data.synthetic import write_demo_set
    from leuko.errors import OutputError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not an empty folder. Choose another.")
    sys.stdout.write(f"{write_demo_set(folder, seed=seed)}\n")
    return 0
