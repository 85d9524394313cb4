"""Which images a bundle has seen, so that nobody takes its answers to them for a test.

`leuko.train` writes the first 64 bits of each image's SHA-256 into ``bundle.json``: under
``training.seen.trained`` those that the network was trained on, under ``calibrated`` those that
its temperature and thresholds come from. A bundle that was made before has neither. Knows hashes;
knows nothing of images.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from leuko.learning.facts import Facts
from leuko.learning.starts import DIGITS, find_seen, list_starts, pack_hashes, unpack_hashes

KINDS = ("trained", "calibrated")


@dataclass(frozen=True)
class Seen:
    """Which of some images a bundle has seen; each a set of SHA-256.

    Attributes:
        trained: The network was trained on them.
        start: The start that it was trained from was; those in `trained` aren't repeated.
        calibrated: Temperature and thresholds come from them.
        listed: Whether the bundle says image by image what it has seen.
    """

    trained: frozenset[str]
    start: frozenset[str]
    calibrated: frozenset[str]
    listed: bool

    @property
    def all_trained(self) -> frozenset[str]:
        """Those that anything in the network was trained on."""
        return self.trained | self.start


def describe_seen(trained: Iterable[str], calibrated: Iterable[str]) -> dict[str, str]:
    """What ``training.seen`` of ``bundle.json`` says.

    Args:
        trained: SHA-256 of the images that the network was trained on.
        calibrated: Of those that temperature and thresholds come from.
    """
    return {
        kind: base64.b64encode(pack_hashes(hashes)).decode("ascii")
        for kind, hashes in zip(KINDS, (trained, calibrated), strict=True)
    }


def find_seen_by(facts: Facts, hashes: Iterable[str]) -> Seen:
    """Which images a bundle has seen.

    Args:
        facts: Of the bundle.
        hashes: SHA-256 of the files. A file that was encoded anew has another.
    """
    asked = frozenset(hashes)
    known = _unpack(facts.training.get("seen"))
    found = {
        kind: frozenset(h for h in asked if int(h[:DIGITS], 16) in known.get(kind, ()))
        for kind in KINDS
    }
    start: set[str] = set()
    protocol = facts.training.get("protocol")
    init = protocol.get("init") if isinstance(protocol, Mapping) else None
    if init == "blood" and facts.architecture in list_starts():
        start = find_seen(facts.architecture, asked)
    return Seen(found["trained"], frozenset(start) - found["trained"], found["calibrated"],
                bool(known))  # fmt: skip


def _unpack(written: Any) -> dict[str, set[int]]:
    """Hashes by kind; nothing where what was written isn't of that form."""
    if not isinstance(written, Mapping):
        return {}
    with suppress(binascii.Error, ValueError, TypeError, KeyError):
        return {k: unpack_hashes(base64.b64decode(written[k], validate=True)) for k in KINDS}
    return {}
