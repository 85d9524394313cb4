"""Runs an exported network on cells, without PyTorch: the only door to ONNX Runtime and OpenVINO.

Knows cells and answers; knows nothing of classes, temperatures or files.
"""

from __future__ import annotations

import copy
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.engine import count_cores
from leuko.errors import BundleError, MissingExtraError, UnknownNameError, suggest
from leuko.learning.batches import turn_views

ENGINES = ("onnxruntime", "openvino")
BATCH = 16  # pictures at a time; on one core twice as many are slower (results/inference.md)
INPUT, OUTPUTS = "cells", ("logits", "features")
MAP = "map"  # a third output, of networks whose features are the mean of one


class ExportedNetwork:
    """A network in ONNX's form.

    Args:
        model: The bytes of ``model.onnx``.
        size: S, the side of the cells.
        classes: K.
        threads: Batches, or parts of one, that run side by side; None takes one per core.
        engine: Of `ENGINES`: what computes. Which is faster depends on the processor; answers
            differ by rounding.

    Raises:
        UnknownNameError: There is no such engine.
        MissingExtraError: OpenVINO isn't installed.
        BundleError: ONNX Runtime can't load it, or its input and outputs aren't those of Leuko.
    """

    def __init__(
        self,
        model: bytes,
        *,
        size: int,
        classes: int,
        threads: int | None = None,
        engine: str = "onnxruntime",
    ) -> None:
        if engine not in ENGINES:
            raise UnknownNameError(f"There is no engine {engine!r}. {suggest(engine, [*ENGINES])}")
        # The official builds send events to their maker, and leave files behind, unless this is
        # set before they are loaded. A laboratory's machine tells nobody what it does.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Threads of one batch would wait for each other at each layer, and keep cores busy with
        # waiting that those need that cut the next cells; batches side by side don't.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised too
        try:
            self._session: Any = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise BundleError(
                f"ONNX Runtime can't load model.onnx ({_shorten(error)}). Export the bundle again."
            ) from None
        self.classes = classes
        self.size = size
        self.engine = engine
        threads = count_cores() if threads is None else threads
        self._parts = threads if engine == "onnxruntime" else 1  # OpenVINO has threads of its own
        self._pool: ThreadPoolExecutor | None = None
        self.stop_sharing()
        self.features, self.map = self._check()
        if engine == "openvino":  # the same model, which was just checked
            self._session = _OpenVino(model, threads)

    def with_openvino(self, xml: bytes, numbers: bytes) -> ExportedNetwork:
        """This network, with what `convert_to_openvino` made of it doing the work."""
        other = copy.copy(self)
        other.engine = "openvino"
        other._session = _OpenVino(xml, count_cores(), numbers)
        other._parts, other._pool = 1, None
        other.stop_sharing()
        return other

    def answer(
        self, cells: NDArray[np.uint8], *, views: int, batch: int = BATCH
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Class probabilities and features of cells, as `leuko.learning.fit.predict` gives them.

        Args:
            cells: (N, S, S, 3).
            views: 1, or 8 for the mean over quarter turns and mirror images.
            batch: Views at a time; it doesn't change the result beyond rounding.

        Returns:
            Probabilities (N, K), rows sum to 1; features (N, D), the mean over the views.
        """
        probabilities = np.empty((len(cells), self.classes))
        features = np.empty((len(cells), self.features), np.float32)
        step = max(1, batch // views)
        starts = range(0, len(cells), step)
        parts = self._count_parts()
        split = -(-parts // max(1, len(starts)))  # of each batch, where there are few

        def run(job: tuple[int, int]) -> list[Any]:
            start, part = job
            # All views at once: one cell in eight views takes a fifth less time so.
            turned = np.concatenate(list(turn_views(cells[start : start + step], views)))
            rows = np.array_split(turned, split)[part]
            return self._session.run(OUTPUTS, {INPUT: rows}) if len(rows) else []

        told = self._each(run, [(start, part) for start in starts for part in range(split)], parts)
        for start in starts:
            several = [found for found in islice(told, split) if found]
            logits, pooled = (np.concatenate(one) for one in zip(*several, strict=True))
            one = slice(start, start + step)
            probabilities[one] = _softmax(logits).reshape(views, -1, self.classes).mean(axis=0)
            features[one] = pooled.reshape(views, -1, self.features).mean(axis=0)
        return probabilities, features

    def share(self, count_parts: Callable[[], int], most: int) -> None:
        """Has `count_parts` say how much runs side by side, until `stop_sharing`.

        ONNX Runtime gives the same bits for a view, whatever else is in its batch.

        Args:
            count_parts: Asked at each call of `answer`: how many parts.
            most: That it ever answers.
        """
        if self._pool is not None:
            self._pool.shutdown()
        self._count_parts = count_parts
        self._pool = ThreadPoolExecutor(most, "leuko-part") if most > 1 else None

    def stop_sharing(self) -> None:
        """Goes back to the number of threads that it was made with."""
        parts = self._parts  # not self: a network in a circle of references would end at any time
        self.share(lambda: parts, parts)

    def _each(self, work: Callable[[Any], Any], jobs: Sequence[Any], parts: int) -> Iterator[Any]:
        """Does each job, side by side if there is more than one part, and in order."""
        if self._pool is None or parts < 2 or len(jobs) < 2:
            return map(work, jobs)
        return self._pool.map(work, jobs)

    def look(self, cells: NDArray[np.uint8], *, batch: int = BATCH) -> NDArray[np.float32]:
        """The map that the features are the mean of, of each cell as it is.

        Args:
            cells: (N, S, S, 3).
            batch: Cells at a time.

        Returns:
            (N, D, h, w); its mean over h and w are the features of one view.

        Raises:
            BundleError: The features of this network aren't the mean of a map.
        """
        if self.map is None:
            raise BundleError(
                "This network gives no map of features, so nobody can say where it looked: its "
                "last pooling doesn't take the mean. Train resnet, efficientnet or alexnet."
            )
        found = np.empty((len(cells), self.features, *self.map), np.float32)

        def run(start: int) -> None:
            part = slice(start, start + batch)
            (found[part],) = self._session.run([MAP], {INPUT: cells[part]})

        list(self._each(run, range(0, len(cells), batch), self._count_parts()))
        return found

    def _check(self) -> tuple[int, tuple[int, int] | None]:
        """Refuses another input or output; gives D, and h and w of the map if there is one."""
        taken = [(i.name, i.type, i.shape[1:]) for i in self._session.get_inputs()]
        wanted = [(INPUT, "tensor(uint8)", [self.size, self.size, 3])]
        given = {o.name: (o.type, o.shape[1:]) for o in self._session.get_outputs()}
        right = taken == wanted and tuple(given) in (OUTPUTS, (*OUTPUTS, MAP))
        if right and given["logits"] == ("tensor(float)", [self.classes]):
            kind, shape = given["features"]
            if kind == "tensor(float)" and len(shape) == 1 and isinstance(shape[0], int):
                if MAP not in given:
                    return shape[0], None
                kind, size = given[MAP]
                if kind == "tensor(float)" and len(size) == 3 and size[0] == shape[0]:
                    return shape[0], (int(size[1]), int(size[2]))
        raise BundleError(
            f"model.onnx takes {taken} and gives {given}; expected cells of {self.size} pixels "
            f"in, and logits of {self.classes} classes and features out. The parts of this bundle "
            "don't belong together; export it again."
        )


def convert_to_openvino(model: bytes, notes: Mapping[str, str]) -> tuple[bytes, bytes]:
    """A network in OpenVINO's own form (IR).

    Args:
        model: The bytes of ``model.onnx``.
        notes: Texts by name, for its ``rt_info``.

    Returns:
        NAME.xml, the graph, and NAME.bin, its numbers, all in the precision that `model` has.

    Raises:
        MissingExtraError: OpenVINO isn't installed.
    """
    openvino = _load_openvino()
    network = openvino.Core().read_model(model)
    for name, text in notes.items():
        network.set_rt_info(text, name)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "network.xml"
        openvino.save_model(network, place, compress_to_fp16=False)
        return place.read_bytes(), place.with_suffix(".bin").read_bytes()


def _load_openvino() -> Any:
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("OpenVINO isn't installed: pip install 'leuko[openvino]'") from None
    return openvino


class _OpenVino:
    """Intel's engine, called as ONNX Runtime's is."""

    def __init__(self, model: bytes, threads: int, numbers: bytes = b"") -> None:
        openvino = _load_openvino()
        streams = max(1, count_cores() // threads)  # batches that may run side by side
        core = openvino.Core()
        self._compiled: Any = core.compile_model(
            core.read_model(model, numbers),
            "CPU",
            {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams * threads,
                "INFERENCE_PRECISION_HINT": "f32",  # else it may round to half of the digits
                "ENABLE_CPU_PINNING": False,  # this machine does other things too
            },
        )
        self._requests = threading.local()  # one can't be used by two threads

    def run(self, outputs: Sequence[str], inputs: dict[str, Any]) -> list[Any]:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        request = self._requests.own
        request.infer(inputs)
        return [np.array(request.get_tensor(name).data) for name in outputs]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
