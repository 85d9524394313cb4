"""Which images a bundle has seen, so that nobody takes its answers to them for a test.

`leuko.train` writes the first 64 bits of each image's SHA-256 into ``bundle.json``: under
``training.seen.trained`` those that the network was trained on, under ``calibrated`` those that
its temperature and thresholds come from. `leuko.adapt` adds the cells of the new microscope. A
bundle that was made before has neither. Knows hashes; knows nothing of images.
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
PART = "part"  # under this key: whether the bundle has seen more than is listed


@dataclass(frozen=True)
class Seen:
    """Which of some images a bundle has seen; each a set of SHA-256.

    Attributes:
        trained: The network was trained on them.
        start: The start that it was trained from was; those in `trained` aren't repeated.
        calibrated: Temperature and thresholds come from them.
        listed: Whether the bundle says image by image all that it has seen.
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


def add_seen(written: Any, trained: Iterable[str], calibrated: Iterable[str]) -> dict[str, Any]:
    """What ``training.seen`` says once a bundle was fitted to more images.

    Args:
        written: What it said before. If that is nothing, what the bundle has seen before isn't
            known, and the new one says so.
        trained, calibrated: SHA-256 of the images that were added, as for `describe_seen`.
    """
    known = _unpack(written)
    new = describe_seen(trained, calibrated)
    both = {kind: known.get(kind, set()) | hashes for kind, hashes in _unpack(new).items()}
    packed: dict[str, Any] = describe_seen(
        *((f"{h:0{DIGITS}x}" for h in both[kind]) for kind in KINDS)
    )
    return packed if _is_whole(written) else {**packed, PART: True}


def find_seen_by(facts: Facts, hashes: Iterable[str]) -> Seen:
    """Which images a bundle has seen.

    Args:
        facts: Of the bundle.
        hashes: SHA-256 of the files. A file that was encoded anew has another.
    """
    asked = frozenset(hashes)
    written = facts.training.get("seen")
    known = _unpack(written)
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
                _is_whole(written))  # fmt: skip


def _is_whole(written: Any) -> bool:
    """Whether all that was seen is listed."""
    return bool(_unpack(written)) and not written.get(PART)


def _unpack(written: Any) -> dict[str, set[int]]:
    """Hashes by kind; nothing where what was written isn't of that form."""
    if not isinstance(written, Mapping):
        return {}
    with suppress(binascii.Error, ValueError, TypeError, KeyError):
        return {k: unpack_hashes(base64.b64decode(written[k], validate=True)) for k in KINDS}
    return {}
