"""The bundle: a trained model as a thing that others can use, check and believe.

    bundle.json          what the model is, how pictures are prepared, what its answers mean
    weights.safetensors  the weights, by PyTorch's names
    model.onnx           the same weights as a network that runs without PyTorch
    golden.safetensors   five drawn pictures, and what the model answered when it was made
    reference.safetensors  what cells are like, to tell other things from them; may be missing
    card.md              the same for a person to read
    SHA256SUMS           the hash of each of them

A folder, or one zip. Everything is checked at every load, and nothing is believed of a bundle that
fails. Hashes find damage; they don't find somebody who writes new ones. So each fact is written
down twice and has to agree: weights in safetensors and in ONNX, classes and preprocessing in
``bundle.json`` and inside both, and the golden pictures are answered anew. Whoever changes all of
that consistently has made another bundle; its `id` then differs from the one published.

Knows parts and facts; knows nothing of training and never loads PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.data.drawing import draw_field
from leuko.data.image import resize_image
from leuko.data.leukocytes import Leukocyte, choose_leukocyte, find_leukocytes
from leuko.data.morphology import KINDS
from leuko.data.scales import estimate_scale
from leuko.errors import BundleError, OutputError
from leuko.judgement.calibration import apply_temperature
from leuko.judgement.outliers import Reference, score_features, score_portraits
from leuko.learning.facts import FORMAT, Facts
from leuko.learning.graph import Graph, add_note, halve_tensors, read_graph
from leuko.learning.inference import ExportedNetwork
from leuko.learning.parts import (
    SUMS,
    check_sums,
    read_json,
    read_parts,
    read_tensors,
    write_sums,
    write_tensors,
)
from leuko.storage import explain_storage_faults

FACTS, WEIGHTS, MODEL = "bundle.json", "weights.safetensors", "model.onnx"
GOLDEN, CARD, REFERENCE = "golden.safetensors", "card.md", "reference.safetensors"
PARTS = (FACTS, WEIGHTS, MODEL, GOLDEN, CARD, SUMS)
OPTIONAL = (REFERENCE,)

OPSET = 20
TEXT = "leuko"  # where a file's own copy of the facts is kept
COUNTER = "num_batches_tracked"  # of batch normalisation: matters to training only
MEAN, DEVIATION = "pixel_mean", "pixel_deviation"  # in model.onnx

GOLDEN_SIDE = 160  # px
GOLDEN_COUNT = 5
# Between processors answers differ by about 1e-6; a changed picture, class or temperature shows in
# the second decimal. A single weight is compared bit by bit.
GOLDEN_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-3  # of scores of outliers, which add up hundreds of squares

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked.

    Attributes:
        path: Where it was read from.
        id: SHA-256 of the list of its hashes: the one number that tells it from any other.
        facts: What ``bundle.json`` says.
        network: Ready to answer.
        head: Weights (K, D) and bias (K,) of the last layer, for features without PyTorch.
        reference: What cells are like; None in a bundle that can't tell other things from them.
    """

    path: Path
    id: str
    facts: Facts
    network: ExportedNetwork
    head: tuple[NDArray[np.float32], NDArray[np.float32]]
    reference: Reference | None = None

    def answer(self, cells: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Calibrated probabilities (N, K) and features (N, D) of cells (N, S, S, 3)."""
        raw, features = self.network.answer(cells, views=self.facts.preprocessing.views)
        return apply_temperature(raw, self.facts.decision.temperature), features

    def score_outliers(
        self, portraits: NDArray[np.floating], features: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """How far cells lie from what is known, as shares of the limits.

        Args:
            portraits: (N, P) from `leuko.data.portraits.describe_cell`.
            features: (N, D) from `answer`.

        Returns:
            (N, 2) for portraits and features; above 1 it is no picture of a stained
                cell, or none of a cell that the model can know.
            All 0 without a reference.
        """
        limits = self.facts.decision.outliers
        if self.reference is None or limits is None:
            return np.zeros((len(features), 2))
        shares = (
            score_portraits(self.reference, portraits) / limits.portraits,
            score_features(self.reference, features) / limits.features,
        )
        return np.stack(shares, axis=1)


def load_bundle(
    path: str | os.PathLike[str], *, threads: int | None = None, engine: str = "onnxruntime"
) -> Bundle:
    """Reads a bundle and checks all of it.

    Args:
        path: Folder or zip.
        threads: For one batch; None takes one per core.
        engine: ``onnxruntime``, or ``openvino`` (needs `leuko[openvino]`).

    Raises:
        BundleError: Says what is wrong.
    """
    place = Path(path)
    parts = read_parts(place, PARTS, OPTIONAL)
    identity = check_sums(parts)
    facts = Facts.from_json(read_json(FACTS, parts[FACTS]))
    weights, texts = read_tensors(WEIGHTS, parts[WEIGHTS])
    graph = read_graph(parts[MODEL])
    _check_texts(WEIGHTS, texts.get(TEXT), facts.model_text)
    _check_texts(MODEL, graph.metadata.get(TEXT), facts.model_text)
    _check_weights(weights, graph, facts)
    network = ExportedNetwork(
        parts[MODEL], size=facts.preprocessing.size, classes=len(facts.classes), threads=threads,
        engine=engine,
    )  # fmt: skip
    weight, bias = (weights[f"{facts.head}.{kind}"] for kind in ("weight", "bias"))
    if weight.shape != (len(facts.classes), network.features) or facts.features != weight.shape[1]:
        raise BundleError(
            f"The last layer is {weight.shape}; expected {len(facts.classes)} classes by "
            f"{facts.features} features. The parts of this bundle don't belong together."
        )
    head = (weight.astype(np.float32), bias.astype(np.float32))
    reference = _read_reference(parts.get(REFERENCE), facts)
    bundle = Bundle(place, identity, facts, network, head, reference)
    check_golden(bundle, parts[GOLDEN])
    return bundle


def write_bundle(
    path: str | os.PathLike[str],
    facts: Facts,
    *,
    weights: Tensors,
    model: bytes,
    card: str,
    reference: Reference | None = None,
) -> Bundle:
    """Writes a bundle whole or not at all, after having read it back and checked it.

    Args:
        path: Must not exist; ``.zip`` at its end makes one file, anything else a folder.
        facts: What ``bundle.json`` is to say; always in the present format.
        weights: By PyTorch's names.
        model: ``model.onnx``, without its copy of the facts. What half precision doesn't change is
            kept in it.
        card: ``card.md``.
        reference: What cells are like, if the facts have limits for outliers.

    Raises:
        OutputError: There is something at `path`.
        StorageError: It can't be written.
        BundleError: The parts don't belong together.
    """
    place = Path(path)
    check_place(place)
    facts = replace(facts, format=FORMAT)
    Facts.from_json(facts.to_json())
    weights = _pack_weights(weights)
    halved = [name_in_graph(k, facts.head) for k, v in weights.items() if v.dtype == np.float16]
    model = add_note(halve_tensors(model, halved), TEXT, facts.model_text)
    network = ExportedNetwork(model, size=facts.preprocessing.size, classes=len(facts.classes))
    parts = {
        FACTS: (json.dumps(facts.to_json(), indent=1, ensure_ascii=False) + "\n").encode(),
        WEIGHTS: write_tensors(weights, {TEXT: facts.model_text}),
        MODEL: model,
        CARD: card.encode(),
    }
    if reference is not None:
        tensors = _pack_reference(reference)
        parts[REFERENCE] = write_tensors(tensors, {TEXT: facts.answer_text})
        reference = _unpack_reference(tensors)
    parts[GOLDEN] = _make_golden(facts, network, reference)
    parts[SUMS] = write_sums(parts)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with explain_storage_faults(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            (_pack if place.suffix == ".zip" else _lay_out)(temporary, parts)
            checked = load_bundle(temporary)
            temporary.rename(place)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    return replace(checked, path=place)


def take_apart(bundle: Bundle) -> tuple[Tensors, bytes]:
    """Weights and model of a bundle, to write another one of them.

    Returns:
        Weights by PyTorch's names; the model without its copy of the facts.

    Raises:
        BundleError: The bundle was changed after it was loaded.
    """
    parts = read_parts(bundle.path, PARTS, OPTIONAL)
    if check_sums(parts) != bundle.id:
        raise BundleError(f"{bundle.path} was changed while it was read. Begin again.")
    weights, _ = read_tensors(WEIGHTS, parts[WEIGHTS])
    return weights, parts[MODEL].removesuffix(add_note(b"", TEXT, bundle.facts.model_text))


def check_place(path: Path) -> None:
    """Refuses early what `write_bundle` would refuse late.

    Raises:
        OutputError: There is something at this path.
    """
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} exists; nothing is overwritten. Choose another --out.")


def name_in_graph(name: str, head: str) -> str:
    """What a weight is called in ``model.onnx``: ``body.…``, or ``head.…`` in the last layer."""
    layer, _, kind = name.rpartition(".")
    return f"head.{kind}" if layer == head else f"body.{name}"


# --- writing --------------------------------------------------------------------------------------


def _lay_out(folder: Path, parts: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in parts.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _pack(path: Path, parts: dict[str, bytes]) -> None:
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
            for name, data in parts.items():
                packed.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
        file.flush()
        os.fsync(file.fileno())


def _pack_weights(weights: Tensors) -> Tensors:
    """Half precision for all tensors of two and more dimensions, if not one of them loses by it."""
    large = {k: v for k, v in weights.items() if v.ndim >= 2}
    halved = {k: v.astype(np.float16) for k, v in large.items()}
    if any((halved[k].astype(v.dtype) != v).any() for k, v in large.items()):
        return weights
    return {k: halved.get(k, v) for k, v in weights.items()}


def _pack_reference(reference: Reference) -> Tensors:
    """Half precision: distances keep three digits, and the part is half as large."""
    return {name: value.astype(np.float16) for name, value in reference.to_tensors().items()}


def _unpack_reference(tensors: Tensors) -> Reference:
    return Reference(**{name: value.astype(np.float32) for name, value in tensors.items()})


def _read_reference(data: bytes | None, facts: Facts) -> Reference | None:
    """What cells are like, if the facts have limits for it."""
    if (data is None) != (facts.decision.outliers is None):
        have, lack = (FACTS, REFERENCE) if data is None else (REFERENCE, FACTS)
        raise BundleError(
            f"{have} tells cells from other things, but {lack} has nothing about it. The parts of "
            "this bundle don't belong together; get it again from where it was made."
        )
    if data is None:
        return None
    tensors, texts = read_tensors(REFERENCE, data)
    _check_texts(REFERENCE, texts.get(TEXT), facts.answer_text)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    sides = shapes.get("axes", (0, 0)), shapes.get("examples", (0, 0))
    expected = {
        "centre": sides[0][:1], "spread": sides[0][:1], "axes": sides[0],
        "feature_axes": (facts.features, *sides[1][1:]), "examples": sides[1],
    }  # fmt: skip
    halves = all(tensor.dtype == np.float16 for tensor in tensors.values())
    if shapes != expected or not halves or not all(map(len, tensors.values())):
        raise BundleError(
            f"{REFERENCE} holds {shapes}; expected float16 in {', '.join(expected)}, of shapes "
            "that fit each other. Get the bundle again from where it was made."
        )
    return _unpack_reference(tensors)


# --- checking -------------------------------------------------------------------------------------


def _check_texts(name: str, found: str | None, expected: str) -> None:
    """The copy of the facts inside a part."""
    if found is None:
        raise BundleError(f"{name} doesn't say which model it is. Export the bundle again.")
    if found == expected:
        return
    own = read_json(f"the note in {name}", found.encode())
    wanted = json.loads(expected)
    odd = [key for key in wanted if own.get(key) != wanted[key]] or sorted(set(own) - set(wanted))
    key = odd[0] if odd else "order"
    raise BundleError(
        f"{FACTS} was changed after {name} was made: its {key} is {_show(wanted.get(key))}, and "
        f"{name} says {_show(own.get(key))}. Get the bundle again from where it was made."
    )


def _check_weights(weights: Tensors, graph: Graph, facts: Facts) -> None:
    """Weights in safetensors and in ONNX have to be the same, bit by bit."""
    if graph.opset != OPSET:
        raise BundleError(
            f"{MODEL} is written for version {graph.opset} of ONNX's operators; this Leuko "
            f"reads version {OPSET}. Export the bundle again."
        )
    half = all(t.dtype == np.float16 for t in weights.values() if t.ndim >= 2)
    expected: Tensors = {
        MEAN: np.array(facts.preprocessing.mean, np.float32),
        DEVIATION: np.array(facts.preprocessing.deviation, np.float32),
    }
    for name, tensor in weights.items():
        counter = name.endswith(COUNTER)
        halved = half and tensor.ndim >= 2
        if tensor.dtype != (np.int64 if counter else np.float16 if halved else np.float32):
            raise BundleError(
                f"The tensor {name!r} of {WEIGHTS} is {tensor.dtype}; expected float32, or "
                "float16 in all tensors of two and more dimensions. Numbers "
                "of another precision give other answers; export the bundle again."
            )
        if not counter:  # format 2 had float32 in model.onnx whatever the weights
            stored = tensor.astype(np.float32) if facts.format == 2 else tensor
            expected[name_in_graph(name, facts.head)] = stored
    if odd := sorted(set(expected) ^ set(graph.weights)):
        where = MODEL if odd[0] in graph.weights else WEIGHTS
        raise BundleError(
            f"{WEIGHTS} and {MODEL} don't hold the same tensors: only {where} has {odd[0]!r}"
            f"{f' and {len(odd) - 1} more differ' if len(odd) > 1 else ''}. Export it again."
        )
    for name, tensor in expected.items():
        other = graph.weights[name]
        if other.dtype != tensor.dtype or other.shape != tensor.shape:
            raise BundleError(
                f"The tensor {name!r} is {tensor.shape} {tensor.dtype} in {WEIGHTS}, but "
                f"{other.shape} {other.dtype} in {MODEL}."
            )
        if other.tobytes() != tensor.tobytes():
            if name in (MEAN, DEVIATION):
                raise BundleError(
                    f"{FACTS} states another {name.removeprefix('pixel_')} of pixels than the one "
                    f"in {MODEL}. Get the bundle again from where it was made."
                )
            raise BundleError(
                f"The weights {name!r} differ between {WEIGHTS} and {MODEL}: one of them was "
                "changed. Get the bundle again from where it was made."
            )


def check_golden(bundle: Bundle, data: bytes) -> None:
    """Cuts the golden pictures out anew and answers them.

    Args:
        bundle: Whose network counts.
        data: ``golden.safetensors``.

    Raises:
        BundleError: A cell, a probability or a score is another than when the bundle was made.
    """
    facts, prepared = bundle.facts, bundle.facts.preprocessing
    tensors, texts = read_tensors(GOLDEN, data)
    _check_texts(GOLDEN, texts.get(TEXT), facts.answer_text)
    shapes = {
        "pictures": (GOLDEN_COUNT, GOLDEN_SIDE, GOLDEN_SIDE, 3),
        "places": (GOLDEN_COUNT, 3),  # x, y, pixels per µm
        "digests": (GOLDEN_COUNT, 32),  # SHA-256 of each cell as it was cut out
        "probabilities": (GOLDEN_COUNT, len(facts.classes)),
        "outliers": (GOLDEN_COUNT, 2),  # scores, as shares of their limits
    }
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise BundleError(
            f"{GOLDEN} holds other tensors than {', '.join(shapes)}, or other shapes."
        )
    pictures = tensors["pictures"].astype(np.uint8)
    cells = []
    for i, (x, y, scale) in enumerate(tensors["places"].astype(np.float64)):
        cell = prepared.cut(pictures[i], Leukocyte(x, y, x, y, score=1.0, scale=scale))
        if hashlib.sha256(cell.tobytes()).digest() != tensors["digests"][i].tobytes():
            raise BundleError(
                f"The golden picture {i + 1}, prepared as {FACTS} says, isn't what the model was "
                "tested with: another window, size or way of resizing. Get the bundle again, or "
                "install the versions named in card.md."
            )
        cells.append(cell)
    answers, features = bundle.answer(np.stack(cells))
    off = float(np.abs(answers - tensors["probabilities"].astype(np.float64)).max())
    if not off <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"The model's probabilities for the golden pictures are off by {off:.2g}; expected "
            f"at most {GOLDEN_TOLERANCE:g}. The model, its temperature or the order of its classes "
            "was changed. Get the bundle again from where it was made."
        )
    portraits = np.zeros((len(cells), 0)) if bundle.reference is None else _describe(cells)
    scores = bundle.score_outliers(portraits, features)
    expected = tensors["outliers"].astype(np.float64)
    if not np.allclose(scores, expected, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE):
        raise BundleError(
            f"The golden pictures lie {scores.max(0).round(3).tolist()} limits away from cells; "
            f"expected {expected.max(0).round(3).tolist()}. What tells cells from other things "
            "was changed. Get the bundle again from where it was made."
        )


def _describe(cells: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    from leuko.data.portraits import describe_cell  # OpenCV; not every bundle needs it

    return np.stack([describe_cell(cell) for cell in cells])


def _make_golden(facts: Facts, network: ExportedNetwork, reference: Reference | None) -> bytes:
    """Draws the golden pictures and writes down what the model says to them."""
    prepared = facts.preprocessing
    pictures, places, cells = [], [], []
    kinds = list(KINDS)
    for i in range(GOLDEN_COUNT):
        rng = np.random.default_rng(np.random.SeedSequence([2020, i]))
        side = 2 * GOLDEN_SIDE  # the field of the Kaggle set's scale, at half the resolution
        drawn = draw_field(rng, [kinds[i % len(kinds)]], height=side, width=side, centred=True)
        picture = resize_image(drawn.image, GOLDEN_SIDE, GOLDEN_SIDE)
        scale = estimate_scale(picture)
        chosen = choose_leukocyte(find_leukocytes(picture, scale), picture)
        x, y = chosen.centre
        place = Leukocyte(x, y, x, y, score=1.0, scale=scale)
        pictures.append(picture)
        places.append((x, y, scale))
        cells.append(prepared.cut(picture, place))
    raw, features = network.answer(np.stack(cells), views=prepared.views)
    scores = np.zeros((GOLDEN_COUNT, 2))
    if reference is not None and (limits := facts.decision.outliers) is not None:
        scores[:, 0] = score_portraits(reference, _describe(cells)) / limits.portraits
        scores[:, 1] = score_features(reference, features) / limits.features
    digests = [np.frombuffer(hashlib.sha256(c.tobytes()).digest(), np.uint8) for c in cells]
    tensors: Tensors = {
        "pictures": np.stack(pictures),
        "places": np.array(places, np.float64),
        "digests": np.stack(digests),
        "probabilities": apply_temperature(raw, facts.decision.temperature),
        "outliers": scores,
    }
    return write_tensors(tensors, {TEXT: facts.answer_text})


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"
