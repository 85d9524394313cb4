"""What the OpenAPI description says of numbers and answers: their form, with an example of each.

Knows descriptions; knows nothing of routes.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

LARGEST_ID = 2**31 - 1  # what every database takes as a whole number
Id = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Answers = dict[int | str, dict[str, Any]]

_ERRORS = {
    400: ("host", "The host 'elsewhere' isn't one of this service."),
    401: ("token", "This service asks for a token."),
    403: ("origin", "This request comes from another page; only its own page may ask."),
    404: ("not_found", "There is nothing here."),
    409: ("conflict", "Somebody else changed this since you last saw it."),
    410: ("images_deleted", "The images of this slide were deleted at its signature."),
    408: ("slow", "The request took too long to arrive; send it faster."),
    413: ("too_large", "The request is larger than 20.1 MiB."),
    415: ("content_type", "The content type is 'text/plain'; expected multipart/form-data."),
    422: ("no_file", "The request holds no file; expected the pictures in parts named 'files'."),
    423: ("signed", "This reading was signed and is locked."),
    431: ("head", "The head of the request is above 32768 bytes."),
    429: ("too_many_attempts", "Too many wrong tokens came from there; wait a minute."),
    500: ("fault", "A fault in Leuko itself. Nothing was changed."),
    503: ("busy", "9 pictures are waiting already. Nothing was done; send it again."),
}
_WORDS = {
    400: "Not a request, or not to this service",
    401: "The token is missing or wrong",
    403: "Sent by another page",
    404: "Nothing is there",
    409: "Changed by somebody else meanwhile, or not possible in this state",
    410: "The images are deleted",
    423: "Signed, and so locked",
    408: "The request arrived too slowly",
    413: "Too large, or too many files",
    415: "Another content type than expected",
    422: "Not in the form that is expected",
    429: "Too often",
    431: "The head is too large",
    500: "A fault in Leuko itself; the log tells more under the request's id",
    503: "Busy, or still starting; Retry-After says when to ask again",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "description": "Doesn't change between versions."},
                "message": {"type": "string", "description": "For a person."},
            },
        }
    },
}


def show_errors(*statuses: int) -> Answers:
    """Descriptions of refusals for a route: these, and those that every route may give."""
    return {
        status: _show_error(status) for status in sorted({*statuses, 400, 401, 403, 408, 431, 500})
    }


def show_answer(text: str, example: Any, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    """Description of an answer in JSON."""
    content = {"schema": schema or {"type": "object"}, "example": example}
    return {"description": text, "content": {"application/json": content}}


def _show_error(status: int) -> dict[str, Any]:
    code, message = _ERRORS[status]
    example = {"error": {"code": code, "message": message}}
    answer = show_answer(_WORDS[status], example, ERROR)
    if status in (429, 503):
        answer["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
        }
    return answer


def describe_upload(field: str, most: int | None = None) -> dict[str, Any]:
    """Description of a request with pictures, for ``openapi_extra``.

    Args:
        field: Name of the parts.
        most: Files; 1 for a single one, None where the service's limit holds.
    """
    one = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = one if most == 1 else {"type": "array", "items": one, "minItems": 1}
    schema = {"type": "object", "required": [field], "properties": {field: files}}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


MODEL = {
    "id": "bea33711d32b3137c50c14b35aeef523eeaf4c6007fa4ec3bba26b19a138db8f",
    "name": "labels",
    "architecture": "efficientnet_b0",
    "classes": ["eosinophil", "lymphocyte"],
    "engine": "onnxruntime",
    "size": 96,
    "created": "2026-11-25",
    "leuko": "0.1.0",
    "research_use": "Research use only, not for diagnosis.",
}
PREDICTIONS = {
    "bundle": MODEL["id"],
    "classes": MODEL["classes"],
    "cells": [
        {
            "image": "field-1.jpg", "cell": 1, "x0": 64.2, "y0": 71.4, "x1": 130.2, "y1": 139.8,
            "label": "eosinophil", "probability": 0.98, "p_eosinophil": 0.98,
            "p_lymphocyte": 0.02, "set": ["eosinophil"], "state": "pre-classified", "reason": "",
        },
    ],
    "set_aside": [
        {
            "image": "notes.txt", "reason": "not_an_image",
            "detail": "notes.txt: found text; expected JPEG, PNG, BMP or TIFF.",
        },
    ],
}  # fmt: skip
_TEXT, _NUMBER = {"type": "string"}, {"type": ["number", "null"]}
PREDICTIONS_SCHEMA = {
    "type": "object",
    "required": ["bundle", "classes", "cells", "set_aside"],
    "properties": {
        "bundle": {**_TEXT, "description": "Id of the model."},
        "classes": {"type": "array", "items": _TEXT},
        "cells": {
            "type": "array",
            "description": "A row per cell; a picture without one has a row too.",
            "items": {
                "type": "object",
                "properties": {
                    "image": _TEXT,
                    "cell": {"type": ["integer", "null"], "description": "From 1 in each image."},
                    **dict.fromkeys(("x0", "y0", "x1", "y1"), _NUMBER),
                    "label": {"type": ["string", "null"]},
                    "probability": {**_NUMBER, "description": "Of the label, calibrated."},
                    "set": {"type": "array", "items": _TEXT, "description": "Not excluded."},
                    "state": {"enum": ["pre-classified", "unidentified", "rejected"]},
                    "reason": _TEXT,
                },
                "additionalProperties": _NUMBER,
            },
        },
        "set_aside": {
            "type": "array",
            "description": "Files that couldn't be read.",
            "items": {
                "type": "object",
                "properties": {"image": _TEXT, "reason": _TEXT, "detail": _TEXT},
            },
        },
    },
}
