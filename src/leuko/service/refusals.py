"""What the service refuses, in the one form that every client can rely on.

    {"error": {"code": "conflict", "message": "what was found, expected, what to do", ...}}

Knows words and status codes; knows nothing of slides or pictures.
"""

from __future__ import annotations

from typing import Any

from leuko.errors import LeukoError


class Refusal(LeukoError):  # noqa: N818 - an answer among others, not a fault
    """A request that can't be done.

    Attributes:
        status: Of HTTP, 4xx or 503.
        code: A short word that doesn't change between versions.
        facts: More for programs, as JSON; beside ``error`` where a name is in `BESIDE`.
        retry_after: Seconds after which it may be tried again; None where that helps nothing.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after: int | None = None, **facts: Any
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.facts = facts
        self.retry_after = retry_after

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        beside = {name: self.facts[name] for name in BESIDE if name in self.facts}
        within = {name: fact for name, fact in self.facts.items() if name not in BESIDE}
        return {"error": {"code": self.code, "message": str(self), **within}, **beside}


BESIDE = ("revision", "cells", "undo", "redo")  # the present state, as in an answer to a change
