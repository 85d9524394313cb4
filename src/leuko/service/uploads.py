"""Pictures as they arrive over HTTP: multipart in, bytes out, within limits.

Knows multipart; knows nothing of images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from leuko.service.refusals import Refusal
from leuko.service.settings import ServiceSettings

Result = TypeVar("Result")
LONGEST_NAME = 200  # characters of a file's name that are kept
FIELDS, FIELD_BYTES = 16, 1 << 14  # other parts than files


@dataclass(frozen=True)
class Upload:
    """One file of a request.

    Attributes:
        name: As the client calls it: text, never a path.
        data: Its bytes.
    """

    name: str
    data: bytes


async def receive_files(
    request: Request,
    settings: ServiceSettings,
    field: str = "files",
    most: int | None = None,
    check: Callable[[int, int], None] = lambda *_: None,
) -> list[Upload]:
    """Receives the files of a multipart request.

    Args:
        request: Whose body wasn't read yet.
        settings: Limits.
        field: Name of the parts.
        most: Files; None takes the limit of the settings.
        check: Called with their number and bytes before they are taken into memory; may refuse.

    Raises:
        Refusal: 415 for another content type, 422 for what isn't multipart or holds no file, 413
            for too many.
    """
    most = most or settings.files
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(
            415, "content_type",
            f"The content type is {kind[:80] or 'missing'!r}; expected multipart/form-data with "
            f"the pictures in parts named {field!r}.",
        )  # fmt: skip
    parser = _Parser(
        request.headers, request.stream(),
        max_files=most, max_fields=FIELDS, max_part_size=FIELD_BYTES,
    )  # fmt: skip
    try:
        form = await parser.parse()
        if not parser.ended:  # a part without its end would be left out in silence
            await form.close()
            raise MultiPartException("the body ends before its last boundary.")
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise Refusal(
                413, "too_many_files",
                f"The request holds more than {most} files; send them in several requests.",
            ) from None  # fmt: skip
        raise Refusal(
            422, "multipart",
            f"The body can't be read as multipart/form-data: {error.message} Let a library of "
            "HTTP write it.",
        ) from None  # fmt: skip
    try:
        files = [one for one in form.getlist(field) if isinstance(one, UploadFile)]
        check(len(files), sum(one.size or 0 for one in files))
        # Without a pause between, so that the check still holds when they are queued.
        found = [Upload(tidy_name(one.filename or ""), one.file.read()) for one in files]
    finally:
        await form.close()
    if not found:
        raise Refusal(
            422, "no_file",
            f"The request holds no file; expected the pictures in parts named {field!r}, each "
            "with a file name.",
        )  # fmt: skip
    return found


class _Parser(MultiPartParser):
    """Starlette's, which also tells whether the last boundary was there."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def stop_when_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Waits for work, and cancels it when the client has gone.

    Args:
        request: Whose body was read to its end.
        work: Made for this request alone.

    Raises:
        ClientDisconnect: Nobody waits for the answer any more.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_end(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _wait_for_end(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def tidy_name(name: str) -> str:
    """A file's name as one line of text: what can't be printed is replaced, what is long cut."""
    kept = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return kept[:LONGEST_NAME]
