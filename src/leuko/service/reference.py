"""The REST interface as a page: written from its OpenAPI description, without a script.

FastAPI's own page loads scripts from elsewhere, which neither the policy of this service nor a
laboratory's network lets through. Knows OpenAPI; knows nothing of routes.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any


def write_reference(description: dict[str, Any]) -> str:
    """A page of HTML.

    Args:
        description: As FastAPI's ``app.openapi()`` gives it.
    """
    about = description["info"]
    operations = [
        (path, method, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    listed = "".join(
        f'<li><a href="#{_name(path, method)}"><code>{method.upper()} {escape(path)}</code></a> '
        f"{escape(operation.get('summary', ''))}</li>"
        for path, method, operation in operations
    )
    told = "".join(_write_operation(*one) for one in operations)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(about['title'])}: REST interface</title>"
        '<link rel="stylesheet" href="/reference.css"></head><body><main>'
        f"<h1>{escape(about['title'])} {escape(about['version'])}: REST interface</h1>"
        f"<p>{escape(about.get('description', ''))} For programs: "
        '<a href="/api/v1/openapi.json">OpenAPI description</a>.</p>'
        f"<nav><ul>{listed}</ul></nav>{told}</main></body></html>"
    )


def _name(path: str, method: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in path)
    return f"{method}{kept}"


def _write_operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(p['name'])}</code> ({escape(p['in'])}): "
        f"{escape(_tell_type(p.get('schema', {})))}{'' if p.get('required') else ', optional'}</li>"
        for p in operation.get("parameters", [])
    )
    body = "".join(
        f"<p>Body: <code>{escape(kind)}</code></p>{_write_json(content.get('schema'))}"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        _write_answer(status, answer) for status, answer in operation["responses"].items()
    )
    return (
        f'<section id="{_name(path, method)}"><h2><code>{method.upper()} {escape(path)}</code></h2>'
        f"<p>{escape(operation.get('summary', ''))}. {escape(operation.get('description', ''))}</p>"
        f"{f'<ul>{parameters}</ul>' if parameters else ''}{body}<h3>Answers</h3>{answers}</section>"
    )


def _write_answer(status: str, answer: dict[str, Any]) -> str:
    example = answer.get("content", {}).get("application/json", {}).get("example")
    line = f"<b>{escape(str(status))}</b> {escape(answer.get('description', ''))}"
    if example is None:
        return f"<p>{line}</p>"
    return f"<details><summary>{line}</summary>{_write_json(example)}</details>"


def _write_json(value: Any) -> str:
    if not value:
        return ""
    return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"


def _tell_type(schema: dict[str, Any]) -> str:
    kinds = [schema, *schema.get("anyOf", [])]
    found = [str(kind["type"]) for kind in kinds if kind.get("type") not in (None, "null")]
    return " or ".join(found) or "any"
