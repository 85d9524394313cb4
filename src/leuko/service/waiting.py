"""Waiting for news of a reading: the long poll's part that knows no HTTP.

This process's changes wake at once; those of others are found by one question for all who wait.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from leuko.errors import StoreError
from leuko.service.store import Store

EVERY = 0.25  # s between two questions to the database


class Waiting:
    """Who waits for which reading."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bells: dict[asyncio.Event, tuple[int, int]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def wait(self, reading: int, since: int, seconds: float) -> None:
        """Returns when a reading is beyond a revision or gone, or the time is over."""
        loop = asyncio.get_running_loop()
        bell = asyncio.Event()

        def hear(changed: int | None) -> None:
            if changed in (reading, None):
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(bell.set)

        deaf = self._store.listen(hear)
        self._bells[bell] = reading, since
        try:
            # Asked after listening began, so that nothing falls between.
            if (await self._ask({reading})).get(reading, since + 1) > since:
                return
            if self._asking is None or self._asking.done() or self._asking.get_loop() is not loop:
                self._asking = asyncio.create_task(self._keep_asking())
            with suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), seconds)
        finally:
            deaf()
            del self._bells[bell]

    async def _keep_asking(self) -> None:
        while self._bells:
            await asyncio.sleep(EVERY)
            with suppress(StoreError):  # whoever waits asks again, and is told what is wrong
                found = await self._ask({reading for reading, _ in self._bells.values()})
                for bell, (reading, since) in list(self._bells.items()):
                    if found.get(reading, since + 1) > since:
                        bell.set()

    async def _ask(self, readings: set[int]) -> dict[int, int]:
        return await asyncio.to_thread(self._store.revisions, readings) if readings else {}
