"""One model on one fold, as a job that a worker process can do alone.

Reads the cells from the run folder, trains on the training rows, answers for the test rows and
leaves both answers and history in a folder of its own. A finished job is never done twice; an
interrupted one goes on from its last epoch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leuko.engine import keep_freed_memory
from leuko.errors import ResumeError
from leuko.learning.fit import Epoch, FitSettings
from leuko.learning.gpu import explain_full_memory, use_whole_float32
from leuko.learning.parts import read_tensors, write_tensors
from leuko.storage import write_atomically

if TYPE_CHECKING:
    from torch import nn

FEATURES = "features.safetensors"
EXAMPLES = 250  # training cells of each class that new cells are compared with
PORTRAITS = 4000  # of changed cells
MOST_COPIES = 20  # of one cell among them
MAPS = "maps.npz"
COVERED = "covered.npz"


@dataclass(frozen=True)
class FoldJob:
    """What a worker has to know.

    Attributes:
        run: The run folder; ``cells.npz`` in it holds the pictures.
        model: Name of the network.
        repeat, fold: Which split, both from 0.
        rows: (N,) rows of ``cells.npz`` that the study uses.
        labels: (N,) of those rows, in [0, K).
        train, test: Indices into `rows`.
        classes: K.
        settings: The protocol.
        init: Start of the weights, see `leuko.learning.models.build`.
        seed: Of the study; that of the job depends on it, the repeat and the fold.
        keep_weights: Whether the trained weights stay in the job's folder.
        part: Folder of the run in which the jobs of one purpose lie.
        training: File of the run with the pictures for training; its rows are those of
            ``cells.npz``, in which the test pictures are.
        half: Whether the weights are rounded to half precision before the test.
        features: Whether features of the test rows and of some training rows of each class stay
            in the job's folder, for telling what is no cell.
        explained: For how many of the test pictures, evenly spaced, a map of what the answer
            rests on stays in the job's folder, and what is answered when the cell, or all but the
            cell, is covered. The covered pictures are in ``covered.npz`` of the run.
        device: Where the network is trained: ``cpu`` or ``cuda``. It answers on the processor,
            as it will where it is used.
    """

    run: Path
    model: str
    repeat: int
    fold: int
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    classes: int
    settings: FitSettings
    init: str
    seed: int
    keep_weights: bool
    part: str = "fits"
    training: str = "cells.npz"
    half: bool = False
    features: bool = False
    explained: int = 0
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Where the job leaves its results."""
        name = self.model.replace(":", "-").replace("/", "-")
        return self.run / self.part / f"{name}-r{self.repeat}-f{self.fold}"

    @property
    def explained_rows(self) -> NDArray[np.int64]:
        """Indices (M,) into `test` of the pictures that are explained."""
        count = min(self.explained, len(self.test))
        return np.unique(np.linspace(0, len(self.test) - 1, count).astype(np.int64))

    @property
    def fit_seed(self) -> int:
        """The same for every model of a study, so that all start and shuffle alike."""
        state = np.random.SeedSequence([self.seed, self.repeat, self.fold]).generate_state(1)
        return int(state[0] % 1_000_000)


@dataclass(frozen=True)
class FoldResult:
    """What a job gives.

    Attributes:
        probabilities: (M, K) for the test rows, in their order.
        history: One record per epoch.
        parameters: Trainable weights.
        flops: Operations for one picture.
    """

    probabilities: NDArray[np.float64]
    history: list[Epoch]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Explained:
    """What a finished job says of some of its test pictures.

    Attributes:
        rows: (M,) indices into the job's `test`.
        maps: (M, h, w) of the class that was answered, see `leuko.learning.attention.explain`.
        answers: (M, K) probabilities of the pictures as they are.
        alone: (M, K), with all but the cell covered.
        without: (M, K), with the cell covered.
    """

    rows: NDArray[np.int64]
    maps: NDArray[np.float32]
    answers: NDArray[np.float64]
    alone: NDArray[np.float64]
    without: NDArray[np.float64]


@dataclass(frozen=True)
class Progress:
    """Sent by a worker after each epoch.

    Attributes:
        model, repeat, fold: The job.
        epoch: Its record.
        fresh: Whether it was trained now, not in an earlier part of the run.
    """

    model: str
    repeat: int
    fold: int
    epoch: Epoch
    fresh: bool


def fit_fold(job: FoldJob, send: Callable[[Any], None]) -> FoldResult:
    """Does one job, or reads what it gave when it was done before.

    Args:
        job: What to do.
        send: Receives a `Progress` per epoch, and None before each step so that a worker whose
            parent is gone can end.
    """
    import torch

    from leuko.learning.fit import answer, fit, round_to_half
    from leuko.learning.models import build, count_flops, count_parameters

    torch.set_num_threads(1)
    keep_freed_memory()
    done = read_result(job)
    if done is not None:
        for epoch in done.history:
            send(Progress(job.model, job.repeat, job.fold, epoch, fresh=False))
        return done
    job.folder.mkdir(parents=True, exist_ok=True)
    shown = _read_cells(job.run / job.training, job.rows[job.train])
    tested = _read_cells(job.run / "cells.npz", job.rows[job.test])
    size = tested.shape[1]
    network = build(job.model, job.classes, size=size, init=job.init, seed=job.fit_seed)
    flops = count_flops(network, size)
    checkpoint = job.folder / "checkpoint.safetensors"
    history = []
    steps = 0

    def at_step() -> None:
        nonlocal steps
        steps += 1

    if job.device != "cpu":
        use_whole_float32()
    with explain_full_memory(job.model):
        network.to(job.device)
        for epoch in fit(
            network,
            shown,
            job.labels[job.train],
            job.settings,
            seed=job.fit_seed,
            checkpoint=checkpoint,
            at_step=at_step,
        ):
            history.append(epoch)
            send(Progress(job.model, job.repeat, job.fold, epoch, fresh=steps > 0))
        network.cpu()
    if job.half:
        round_to_half(network)
    probabilities, features = answer(network, tested, views=job.settings.views)
    if job.features:
        _write_features(job, network, features)
    if job.keep_weights:
        from safetensors.torch import save_file

        tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
        write_atomically(job.folder / "weights.safetensors", lambda p: save_file(tensors, p))
    if job.explained:
        _write_maps(job, network, tested, probabilities)
    result = FoldResult(probabilities, history, count_parameters(network), flops)
    _write_result(job, result)
    checkpoint.unlink(missing_ok=True)
    return result


def _read_cells(path: Path, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    with np.load(path, allow_pickle=False) as file:
        cells: NDArray[np.uint8] = file["cells"][rows]
    return cells


def _write_features(job: FoldJob, network: nn.Module, features: NDArray[np.float32]) -> None:
    """Writes what tells cells from other things: see `leuko.judgement.outliers`."""
    from leuko.data.portraits import describe_cell
    from leuko.learning.batches import OTHER_LABORATORIES, change_cells
    from leuko.learning.fit import answer

    rng = np.random.default_rng(job.fit_seed)
    chosen = []
    for label in range(job.classes):
        own = np.unique(job.train[job.labels[job.train] == label])  # rows may be repeated
        chosen.append(rng.permutation(own)[:EXAMPLES])
    rows = rng.permutation(np.concatenate(chosen))
    known = _read_cells(job.run / "cells.npz", job.rows[rows])
    _, seen = answer(network, known, views=job.settings.views)
    # An even number of cells, so that even and odd rows are different cells in every copy.
    even = known[: len(known) // 2 * 2]
    copies = min(max(PORTRAITS // max(len(even), 1), 2), MOST_COPIES)
    wide = [
        change_cells(even, OTHER_LABORATORIES, seed=job.fit_seed + copy) for copy in range(copies)
    ]
    portraits = [describe_cell(cell) for part in wide for cell in part]
    tensors = {"features": seen, "portraits": np.stack(portraits), "test_features": features}
    write_atomically(job.folder / FEATURES, write_tensors(tensors, {}))


def read_features(job: FoldJob) -> dict[str, NDArray[Any]]:
    """What a finished job with `features` left.

    Returns:
        ``features`` (R, D) of training cells as they are, ``portraits`` (M, P) of training cells
        as widely changed as laboratories differ, every second row another cell, and
        ``test_features`` (M, D).

    Raises:
        ResumeError: The job was done by a version that left none.
    """
    path = job.folder / FEATURES
    if not path.exists():
        raise ResumeError(
            f"{path} is missing: this run was begun without what tells cells from other things. "
            "Train anew."
        )
    return read_tensors(FEATURES, path.read_bytes())[0]


def read_result(job: FoldJob) -> FoldResult | None:
    """What a finished job gave; None if it isn't finished."""
    path = job.folder / "result.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    return FoldResult(
        probabilities=np.array(facts["probabilities"], dtype=np.float64),
        history=[Epoch(**record) for record in facts["history"]],
        parameters=facts["parameters"],
        flops=facts["flops"],
    )


def read_explained(job: FoldJob) -> Explained | None:
    """What a finished job explained; None where the network has no map.

    Raises:
        ResumeError: The job was done by a version that covered nothing.
    """
    path = job.folder / MAPS
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        if missing := {field.name for field in fields(Explained)} - set(file.files):
            raise ResumeError(
                f"{path} has no {', '.join(sorted(missing))}: this run was begun by a version "
                f"that covered no cells. Delete {job.folder} to train this fold again."
            )
        return Explained(**{name: file[name] for name in file.files})


def _write_maps(
    job: FoldJob,
    network: nn.Module,
    tested: NDArray[np.uint8],
    probabilities: NDArray[np.float64],
) -> None:
    from leuko.learning.attention import explain
    from leuko.learning.fit import predict

    rows, views = job.explained_rows, job.settings.views
    answers = probabilities[rows]
    maps = explain(network, tested[rows], answers.argmax(axis=1), views=views)
    if maps is None:
        return
    with np.load(job.run / COVERED, allow_pickle=False) as file:
        at = np.searchsorted(file["row"], job.rows[job.test[rows]])
        alone, without = (
            predict(network, file[name][at], views=views) for name in ("alone", "without")
        )
    found = Explained(rows, maps, answers, alone, without)

    def save(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **vars(found))

    write_atomically(job.folder / MAPS, save)


def _write_result(job: FoldJob, result: FoldResult) -> None:
    # JSON writes the shortest digits that give the same double again, so a result that was
    # read back equals the one that was computed.
    facts = {
        "probabilities": result.probabilities.tolist(),
        "history": [asdict(epoch) for epoch in result.history],
        "parameters": result.parameters,
        "flops": result.flops,
    }
    write_atomically(job.folder / "result.json", json.dumps(facts))
