"""What only the whole set shows: the same picture in several rows, by its id or by its bytes.

Works on the manifest's rows as dicts and changes them in place. Pictures that merely look alike
are for `leuko.data.audit`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any


def _content(record: dict[str, Any]) -> str:
    """What makes two rows show the same picture: the bytes, or the id where there are none."""
    readable = record["width"] is not None
    return str(record["sha256"]) if readable else f"id:{record['image']}"


def flag_repeats(records: list[dict[str, Any]]) -> None:
    """Adds the issues ``label_conflict``, ``same_bytes`` and ``repeated_row`` where they hold."""
    by_content: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_content[_content(record)].append(record)
    for same in by_content.values():
        if len(same) == 1:
            continue
        conflict = len({frozenset(r["labels"]) for r in same if r["labels"]}) > 1
        several = len({r["image"] for r in same}) > 1
        seen: set[tuple[str, frozenset[str]]] = set()
        for record in same:
            key = (record["image"], frozenset(record["labels"]))
            for issue, holds in (
                ("label_conflict", conflict),
                ("same_bytes", several),
                ("repeated_row", key in seen),
            ):
                if holds:
                    record["issues"].append(issue)
            seen.add(key)


def join_groups(records: Iterable[dict[str, Any]]) -> None:
    """Groups that share an image, by id or by bytes, become one, named by the first of them."""
    records = list(records)
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := parent.get(name, name)) != name:
            parent[name] = parent.get(above, above)
            name = above
        return name

    first: dict[str, str] = {}
    for record in records:
        for key in {_content(record), f"id:{record['image']}"}:
            a, b = sorted((find(record["group"]), find(first.setdefault(key, record["group"]))))
            parent[b] = a
    for record in records:
        record["group"] = find(record["group"])
