"""What can be wrong with a set of images: the kinds of issues by name, and one issue.

Knows names and words only; what finds an issue is in `leuko.data.audit` and the modules that it
calls. The page, the cleaning steps and the documentation take names and words from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of issue.

    Attributes:
        title: For people, two or three words.
        meaning: What it is, in one sentence.
        advice: What to do about it, in one sentence.
        hard: A fact that a sound set doesn't have. The others are matters of degree, or true of
            many sound sets, and only worth a look.
    """

    title: str
    meaning: str
    advice: str
    hard: bool = True


@dataclass(frozen=True)
class Issue:
    """One thing that the audit found.

    Attributes:
        kind: A key of `KINDS`.
        images: Ids of the images that show it, as in the manifest; more than one where they are
            an issue together (copies, a conflict); empty where it is one of the whole set.
        detail: What was found, in one sentence with its numbers.
        score: In [0, 1]: how certain or how bad it is; 1 for a plain fact.
        evidence: Numbers and boxes for the page, JSON-ready. ``boxes`` is a list of
            [x0, y0, x1, y1] per image in px of that image; ``suggested`` a label.
    """

    kind: str
    images: tuple[str, ...]
    detail: str
    score: float = 1.0
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As in the list ``issues`` of ``leuko audit --json``."""
        return {
            "kind": self.kind,
            "images": list(self.images),
            "detail": self.detail,
            "score": round(self.score, 4),
            "evidence": dict(self.evidence),
        }


#: Every kind, in the order in which the page shows them.
KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "Unreadable",
        "The file can't be decoded, or is of a kind that isn't used.",
        "Replace the file, or let cleaning drop it.",
    ),
    "damaged": Kind(
        "Truncated or padded",
        "The data end early, or the file goes on after the end of the picture.",
        "Copy the file again from where it came from.",
    ),
    "wrong_extension": Kind(
        "Wrong extension",
        "The file is of another format than its name says.",
        "Rename it; it is read by its content all the same.",
        hard=False,
    ),
    "no_image": Kind(
        "Label without image",
        "A label row names an image that isn't there.",
        "Add the image, or let cleaning drop the row.",
    ),
    "no_label": Kind(
        "Image without label",
        "Nothing says what the image shows: no label row names it, or its label is blank.",
        "Label it, or let cleaning drop it.",
    ),
    "many_labels": Kind(
        "More than one label",
        "The image has several labels; a classifier of single cells has no single answer.",
        "Cut the cells out one by one, or let cleaning drop it.",
    ),
    "spelling": Kind(
        "Spelling variants",
        "One class is written in several ways.",
        "Let the step rename_spellings write it in one way.",
    ),
    "exact_duplicate": Kind(
        "Exact duplicates",
        "Files with the same bytes or the same pixels.",
        "Keep one of them.",
    ),
    "near_duplicate": Kind(
        "Near duplicates",
        "The same picture re-encoded, scaled or recoloured.",
        "Keep one of them, or keep them on one side of every split.",
    ),
    "turned_copy": Kind(
        "Turned copies",
        "The same picture turned, mirrored, moved or sheared: augmented copies.",
        "Keep them on one side of every split, or keep the original only.",
    ),
    "same_cell": Kind(
        "The same cell twice",
        "Two photographs of one place of the slide that show the same leukocyte.",
        "Keep them on one side of every split.",
    ),
    "label_conflict": Kind(
        "Contradicting labels",
        "Images of one cell, or rows of one image, whose labels exclude each other.",
        "Look at the pictures and decide; until then leave all of them out.",
    ),
    "wrong_group": Kind(
        "Group of different pictures",
        "The set says that images are of one source, and the pictures show different places.",
        "Don't split by the set's own groups; use those that were found.",
    ),
    "split_leak": Kind(
        "Leaking split",
        "The same cell is in the set's own training and test parts.",
        "Take the images of that cell out of one part.",
    ),
    "box_count": Kind(
        "Boxes against labels",
        "The number of drawn leukocyte boxes is not the number of labels.",
        "Look at the picture.",
        hard=False,
    ),
    "no_leukocyte": Kind(
        "No leukocyte found",
        "A labelled image in which no leukocyte was found.",
        "Look at the picture: it may be empty, or stained in another way.",
    ),
    "more_leukocytes": Kind(
        "More leukocytes than labels",
        "More leukocytes were found than there are labels.",
        "Look at the picture: which of the cells is labelled?",
        hard=False,
    ),
    "blurred": Kind(
        "Blurred",
        "Its edges are far softer than those of the other images of the set.",
        "Look at the picture; leave it out if the nucleus can't be judged.",
        hard=False,
    ),
    "underexposed": Kind(
        "Too dark",
        "The empty background is dark, or shadows have lost their detail.",
        "Look at the picture.",
        hard=False,
    ),
    "overexposed": Kind(
        "Too bright",
        "Cells are pale, or bright parts have lost their detail.",
        "Look at the picture.",
        hard=False,
    ),
    "unusual_colour": Kind(
        "Unusual colour",
        "Its colours are far from those of the other images of the set.",
        "Look at the picture: another stain, another camera, or swapped channels?",
        hard=False,
    ),
    "likely_wrong_label": Kind(
        "Likely wrong label",
        "Models that never saw this cell agree on another class.",
        "Let a person look; a flag is a question, not an answer.",
        hard=False,
    ),
    "disputed_label": Kind(
        "Disputed label",
        "The models of a finished study, out of fold, or a foreign one prefer another class and "
        "give the label less than a tenth.",
        "Let a person look and write what is decided into decisions.csv.",
        hard=False,
    ),
    "imbalance": Kind(
        "Imbalance",
        "The most frequent class has many times the images of the rarest.",
        "Judge by balanced accuracy; train the rarer classes several times over.",
        hard=False,
    ),
    "small_class": Kind(
        "Class too small",
        "A class has fewer groups of images than the folds that are asked for.",
        "Add images, use fewer folds, or leave the class out.",
        hard=False,
    ),
}
