"""The weights that ship with the package: ``--init blood``.

One file per family, pretrained on single blood cells of PBC (``leuko pretrain``), with a card
that says by which command, on which data and with what result. Knows which images each start was
trained on, so that nobody is tested on what a start has seen; knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import SeenImagesError, WeightsError
from leuko.storage import write_atomically

DIGITS = 16  # of a SHA-256: 64 bits tell 12,000 images apart with a chance of 1e-11 to err


@dataclass(frozen=True)
class Start:
    """Pretrained weights of one network.

    Attributes:
        model: Name of the network.
        path: The safetensors file, in half precision; its last layer names `classes`.
        classes: K names, in the order of the network's answers.
        size: Side in pixels of the pictures that it was trained on.
        facts: All that is written beside it: command, data, figures, licence.
    """

    model: str
    path: Path
    classes: tuple[str, ...]
    size: int
    facts: dict[str, object]


def list_starts() -> list[str]:
    """Names of the networks that a start is shipped for."""
    return sorted(p.stem for p in _find_folder().glob("*.json"))


def find_start(model: str) -> Start:
    """The shipped start of a network.

    Raises:
        WeightsError: None is shipped for it.
    """
    path = _find_folder() / f"{model}.json"
    if model not in list_starts():
        raise WeightsError(
            f"No pretrained start is shipped for {model}; there is one for "
            f"{', '.join(list_starts()) or 'no model'}. Use --init random or --init imagenet, or "
            f"make one with: leuko pretrain DATA --model {model}"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    return Start(
        model, path.with_suffix(".safetensors"), tuple(facts["classes"]), int(facts["size"]), facts
    )


def find_seen(model: str, hashes: Iterable[str]) -> set[str]:
    """Which images a shipped start was trained on.

    Args:
        model: Name of the network.
        hashes: SHA-256 of the files, as in a manifest. A file that was encoded anew has another.

    Returns:
        Those among `hashes` that the start has seen.
    """
    seen = read_hashes(find_start(model).path.with_suffix(".seen"))
    return {h for h in hashes if int(h[:DIGITS], 16) in seen}


def check_unseen(models: Iterable[str], hashes: set[str]) -> None:
    """Refuses to test on images that a shipped start was trained on.

    Args:
        models: Names of the networks that start from the shipped weights.
        hashes: SHA-256 of the images that are to be tested on.

    Raises:
        SeenImagesError: Says how many there are.
    """
    for model in models:
        if seen := find_seen(model, hashes):
            raise SeenImagesError(
                f"{len(seen):,} of the {len(hashes):,} images to be tested on are among those that "
                f"the pretrained start of {model} was trained on, so its figures would be too "
                "good. Use --init random for this set."
            )


def read_hashes(path: Path) -> set[int]:
    """The first 64 bits of the SHA-256 of each image, from a file of what `pack_hashes` gave."""
    return unpack_hashes(path.read_bytes())


def unpack_hashes(packed: bytes) -> set[int]:
    """The first 64 bits of the SHA-256 of each image, from what `pack_hashes` gave."""
    return set(np.frombuffer(packed, dtype=">u8").tolist())


def pack_hashes(hashes: Iterable[str]) -> bytes:
    """What `unpack_hashes` reads: eight bytes an image, sorted."""
    return np.array(sorted(int(h[:DIGITS], 16) for h in set(hashes)), dtype=">u8").tobytes()


def write_half(source: Path, target: Path) -> Path:
    """Copies weights, in half precision whatever has two or more dimensions: nearly all of them.

    Args:
        source: A safetensors file.
        target: Written atomically.
    """
    from safetensors.numpy import load_file, save_file

    tensors = {
        # Not ascontiguousarray: it would give the counters, which have no dimension, one.
        name: np.asarray(value.astype(np.float16) if value.ndim >= 2 else value, order="C")
        for name, value in load_file(source).items()
    }
    return write_atomically(target, lambda p: save_file(tensors, p))


def answer(
    model: str, pictures: NDArray[np.uint8], *, views: int = 8
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """What a shipped start says about cells, in the classes that it was trained on.

    Args:
        model: Name of the network.
        pictures: (N, S, S, 3), cut out at the common scale; best of the start's own size.
        views: 1, or 8 to average over quarter turns and mirror images.

    Returns:
        K names; probabilities (N, K).

    Raises:
        WeightsError: No start is shipped for it.
    """
    from safetensors.torch import load_file

    from leuko.learning.fit import predict
    from leuko.learning.models import build

    start = find_start(model)
    network = build(model, len(start.classes), size=pictures.shape[1], seed=0)
    network.load_state_dict({k: v.float() for k, v in load_file(start.path).items()})
    return start.classes, predict(network, pictures, views=views)


@dataclass(frozen=True)
class AnswerJob:
    """A shipped start is to classify the pictures of a run, in a worker process.

    Attributes:
        model: Name of the network.
        cells: The ``cells.npz`` of a run.
        rows: (N,) of its rows.
        views: As for `answer`.
    """

    model: str
    cells: Path
    rows: NDArray[np.int64]
    views: int


def answer_job(
    job: AnswerJob, _send: Callable[[Any], None]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Does one `AnswerJob`; gives what `answer` gives."""
    import torch

    torch.set_num_threads(1)
    with np.load(job.cells, allow_pickle=False) as file:
        pictures = file["cells"][job.rows]
    return answer(job.model, pictures, views=job.views)


def _find_folder() -> Path:
    return Path(str(files("leuko") / "weights"))
