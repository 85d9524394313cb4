"""A differential as HL7 FHIR R4: a DiagnosticReport with an Observation for each class.

Plain dicts, so that no library of FHIR is needed. Codes only where one means just this class;
no patient, because Leuko knows none: the receiving system adds the subject. Knows differentials;
knows nothing of files.
"""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, uuid5

import leuko
from leuko.use.differential import FINAL, RESEARCH_USE, Beside, Differential, Row
from leuko.use.kinds import NUCLEATED_RED, find_code

LOINC, UCUM = "http://loinc.org", "http://unitsofmeasure.org"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
_NAMES = {
    "26511-6": "Neutrophils/100 leukocytes in Blood",
    "26478-8": "Lymphocytes/100 leukocytes in Blood",
    "26485-3": "Monocytes/100 leukocytes in Blood",
    "26450-7": "Eosinophils/100 leukocytes in Blood",
    "30180-4": "Basophils/100 leukocytes in Blood",
}


def write_fhir(found: Differential, *, key: str = "") -> dict[str, Any]:
    """A Bundle of the type ``collection``: the report first, then its observations.

    ``preliminary`` until the differential is signed. Limits and corrected shares are components of
    an observation, because FHIR has no field for them. Nucleated red cells are given per 100
    leukocytes; what isn't counted is in the conclusion.

    Args:
        found: The differential.
        key: Tells this count from all others, and stays when its cells are reviewed, its slide is
            renamed and it is signed: the addresses come from it, so that ``final`` replaces
            ``preliminary``. Without one they come from the slide's name and the time of the count.
    """
    seed = key or f"{found.slide}|{found.made or found.cells}"
    labels = [row.label for row in found.rows]
    observations = [_observe(row, found, labels) for row in found.rows]
    observations += [_observe_red(one, found) for one in found.beside if one.sort == NUCLEATED_RED]
    # By class, not by number: a class that a reader adds mustn't move those behind it.
    red = [one.label for one in found.beside if one.sort == NUCLEATED_RED]
    parts = ["report", *(f"class {label}" for label in (*labels, *red))]
    addresses = [_address(seed, part) for part in parts]
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        **_text(_describe(found)),
        "status": found.status,
        "code": {"text": "Leukocyte differential of a blood smear"},
        **_signature(found, "resultsInterpreter"),
        "result": [{"reference": address} for address in addresses[1:]],
        "conclusion": _describe(found),
    }
    if found.signed:
        report["issued"] = found.signed
    if found.made:
        report["effectiveDateTime"] = found.made
    if found.slide:
        report["specimen"] = [{"display": _clean(found.slide)}]
    if not observations:
        del report["result"]
    entries = zip(addresses, [report, *observations], strict=True)
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [{"fullUrl": address, "resource": resource} for address, resource in entries],
    }


def _observe(row: Row, found: Differential, labels: list[str]) -> dict[str, Any]:
    """One class of leukocytes in percent."""
    code: dict[str, Any] = {"text": f"{_clean(row.label)} per 100 leukocytes"}
    number = find_code(row.label, labels)
    if number:
        code["coding"] = [{"system": LOINC, "code": number, "display": _NAMES[number]}]
    limits = {
        "lower exact 95 % limit": row.low if found.cells else None,
        "upper exact 95 % limit": row.high if found.cells else None,
        "corrected for the model's errors": row.corrected,
        "corrected, lower 95 % limit": row.corrected_low,
        "corrected, upper 95 % limit": row.corrected_high,
    }
    return {
        **_begin(found, code),
        **_value(row.percent, _percent),
        "component": [
            _component("cells", _cells(row.count)),
            *(_component(name, _percent(v)) for name, v in limits.items() if v is not None),
        ],
    }


def _observe_red(one: Beside, found: Differential) -> dict[str, Any]:
    """Nucleated red cells per 100 leukocytes, which isn't a percentage."""
    limits = {
        "lower exact 95 % limit": one.low,
        "upper exact 95 % limit": one.high,
        "corrected for the model's errors": one.corrected,
        "corrected, lower 95 % limit": one.corrected_low,
        "corrected, upper 95 % limit": one.corrected_high,
    }
    return {
        **_begin(found, {"text": f"{_clean(one.label)} per 100 leukocytes"}),
        **_value(one.per_100, _ratio),
        "component": [
            _component("cells", _cells(one.count)),
            *(_component(name, _ratio(v)) for name, v in limits.items() if v is not None),
        ],
    }


def _begin(found: Differential, code: dict[str, Any]) -> dict[str, Any]:
    device = f"Leuko {leuko.__version__}"
    if found.model:
        device += f", {found.model['architecture']}, bundle {found.model['bundle']}"
    begun: dict[str, Any] = {
        "resourceType": "Observation",
        **_text(f"{code['text']}. {RESEARCH_USE}"),
        "status": found.status,
        "code": code,
        **_signature(found, "performer"),
        "method": {"text": _method(found)},
        "device": {"display": device},
        "note": [{"text": RESEARCH_USE}],
    }
    if found.made:
        begun["effectiveDateTime"] = found.made
    return begun


def _method(found: Differential) -> str:
    if found.reader and found.reviewed is not None:
        return (
            f"Cells pre-classified by software, {found.reviewed} of {found.cells} confirmed one by "
            "one by a person"
        )
    if found.reader:
        return "Cells pre-classified by software, reviewed by a person"
    return "Cells pre-classified by software, not reviewed"


def _describe(found: Differential) -> str:
    """The conclusion: what isn't in the observations."""
    said = [
        RESEARCH_USE,
        f"{found.cells} {'leukocyte was' if found.cells == 1 else 'leukocytes were'} counted, "
        f"{found.target} were wanted.",
        f"Unidentified: {sum(found.unidentified.values())}. "
        f"Rejected: {sum(found.rejected.values())}. "
        f"Files that couldn't be read: {len(found.set_aside)}.",
    ]
    other = [f"{one.label} {one.count}" for one in found.beside if one.sort != NUCLEATED_RED]
    said += [f"Not part of the differential: {', '.join(other)}."] if other else []
    said += [flag.text for flag in found.flags]
    said.append(found.correction.text)
    return _clean(" ".join(said))


def _signature(found: Differential, field: str) -> dict[str, Any]:
    if not (found.reader and found.status == FINAL):
        return {}
    return {field: [{"display": _clean(found.reader)}]}


def _text(words: str) -> dict[str, Any]:
    """The narrative that a person can read; XHTML, so everything in it is escaped."""
    from html import escape

    inside = f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{escape(_clean(words))}</p></div>'
    return {"text": {"status": "generated", "div": inside}}


def _value(value: float | None, unit: Any) -> dict[str, Any]:
    if value is not None:
        return {"valueQuantity": unit(value)}
    return {"dataAbsentReason": {"coding": [{"system": ABSENT, "code": "not-performed"}]}}


def _component(name: str, quantity: dict[str, Any]) -> dict[str, Any]:
    return {"code": {"text": name}, "valueQuantity": quantity}


def _percent(value: float) -> dict[str, Any]:
    return {"value": round(value, 2), "unit": "%", "system": UCUM, "code": "%"}


def _ratio(value: float) -> dict[str, Any]:
    return {"value": round(value, 2), "unit": "per 100 leukocytes"}


def _cells(count: int) -> dict[str, Any]:
    return {"value": count, "unit": "cells"}


def _clean(words: str) -> str:
    """A string as FHIR allows it: no control characters, nothing that is no text, not empty."""
    kept = "".join(c if c.isprintable() else " " for c in words)
    return " ".join(kept.encode("utf-8", "replace").decode().split()) or "unnamed"


def _address(seed: str, part: str) -> str:
    """The same for the same part of the same count."""
    name = f"leuko-differential|{seed}|{part}".encode("utf-8", "replace").decode()
    return f"urn:uuid:{uuid5(NAMESPACE_URL, name)}"
