"""What a laboratory does with each class of a differential, by the name of the class.

Leukocytes make up the 100 %; nucleated red cells are given per 100 leukocytes; platelets and what
is no cell aren't counted. Knows names; knows nothing of counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leuko.data.steps import normalise_spelling

LEUKOCYTE, NUCLEATED_RED, OTHER = "leukocyte", "nucleated red cell", "other"

# LOINC, "…/100 leukocytes in Blood", in the order of a laboratory's report.
LOINC = {
    "neutrophil": "26511-6",
    "lymphocyte": "26478-8",
    "monocyte": "26485-3",
    "eosinophil": "26450-7",
    "basophil": "30180-4",
}
FIVE = tuple(LOINC)

_NUCLEATED_RED = (
    "erythroblast", "normoblast", "nrbc", "nucleated red cell", "nucleated red blood cell",
    "nucleated rbc", "proerythroblast", "rubricyte", "rubriblast", "metarubricyte",
)  # fmt: skip
_OTHER = (
    "platelet", "thrombocyte", "giant platelet", "large platelet", "platelet clump",
    "platelet aggregate", "megakaryocyte", "rbc", "red blood cell", "red cell", "erythrocyte",
    "reticulocyte", "smudge", "smudge cell", "smear cell", "basket cell", "burst cell", "artefact",
    "artifact", "stain", "debris", "background", "no cell",
)  # fmt: skip
# Parts of the neutrophils: beside one of them "neutrophil" doesn't mean all neutrophils.
_PARTS = (
    "band", "band neutrophil", "band cell", "stab", "segmented neutrophil", "neutrophil segmented",
    "neutrophil band", "seg", "segmented",
)  # fmt: skip
_SORTS = {normalise_spelling(name): NUCLEATED_RED for name in _NUCLEATED_RED} | {
    normalise_spelling(name): OTHER for name in _OTHER
}
# What a letter word stands for that sets of pictures use, and not every reader knows.
_SPELLED = {"ig": "immature granulocytes"}
_PART_KEYS = frozenset(normalise_spelling(name) for name in _PARTS)


def sort_class(name: str) -> str:
    """Whether a class is a leukocyte, a nucleated red cell or something else.

    What isn't known is a leukocyte: a class is rather counted than lost.
    """
    return _SORTS.get(normalise_spelling(name), LEUKOCYTE)


def spell_out(name: str) -> str | None:
    """What a class is in full, if its name is an abbreviation that isn't generally known."""
    return _SPELLED.get(normalise_spelling(name))


def order_classes(names: Iterable[str]) -> list[str]:
    """As a report lists them: the five of a normal differential, then others by name."""

    def rank(name: str) -> tuple[int, str, str]:
        key = normalise_spelling(name)
        return (FIVE.index(key) if key in FIVE else len(FIVE), key, name)

    return sorted(dict.fromkeys(names), key=rank)


def find_code(name: str, names: Sequence[str]) -> str | None:
    """The LOINC code of a class; None where no code is known to mean just this.

    Args:
        name: The class.
        names: All classes of the differential: beside a class of band neutrophils "neutrophil"
            isn't the sum of the neutrophils, which the code means.
    """
    key = normalise_spelling(name)
    if key == "neutrophil" and any(normalise_spelling(other) in _PART_KEYS for other in names):
        return None
    return LOINC.get(key)


def find_missing(names: Iterable[str]) -> list[str]:
    """Those of the five of a normal differential that there is no class for."""
    there = {normalise_spelling(name) for name in names}
    if there & _PART_KEYS:
        there.add("neutrophil")
    return [name for name in FIVE if name not in there]


def is_usual(name: str) -> bool:
    """Whether it is one of the five of a normal differential, or a part of the neutrophils."""
    key = normalise_spelling(name)
    return key in FIVE or key in _PART_KEYS
