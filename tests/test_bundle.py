"""Bundles: PyTorch and ONNX say the same, and whatever was tampered with is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load, save

from leuko.errors import BundleError, MissingExtraError, OutputError, UnknownNameError
from leuko.learning import bundle as bundles
from leuko.learning import exchange
from leuko.learning.batches import DEVIATION, MEAN, make_input
from leuko.learning.bundle import (
    CARD,
    FACTS,
    GOLDEN,
    MODEL,
    PARTS,
    WEIGHTS,
    load_bundle,
    take_apart,
    write_bundle,
)
from leuko.learning.exchange import take_model
from leuko.learning.export import export_network, find_head
from leuko.learning.facts import Preprocessing
from leuko.learning.fit import predict, round_to_half
from leuko.learning.graph import add_note, halve_tensors, read_graph, replace_tensors
from leuko.learning.inference import ExportedNetwork, convert_to_openvino
from leuko.learning.models import build
from leuko.learning.parts import SUMS, read_parts, write_sums
from small_bundle import CLASSES, SIZE, make_bundle, make_facts, make_network, state


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_network(make_network(), size=SIZE)


@pytest.fixture(scope="module")
def made(model: bytes, tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "small", model).path


@pytest.fixture(scope="module")
def rounded() -> bytes:
    """Float32, but every weight was rounded to half precision."""
    network = make_network()
    round_to_half(network)
    return export_network(network, size=SIZE)


@pytest.fixture(scope="module")
def halved(rounded: bytes, tmp_path_factory) -> Path:
    """A bundle whose weights are kept in half precision."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "half", rounded, half=True).path


def draw_cells(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "efficientnet_b0"])
def test_onnx_answers_as_pytorch_does(name: str, tmp_path: Path):
    """Random weights, with batch statistics that were measured, so that answers differ."""
    size = 64
    network = build(name, 4, size=size, seed=3)
    cells = draw_cells(12, size)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
    with torch.no_grad():
        network.train()(make_input(torch.from_numpy(cells)))
    expected = predict(network, cells)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the cells are told apart"
    model = export_network(network, size=size)
    assert read_graph(model).operators.isdisjoint({"CastLike", "Expand", "Gather", "Range"})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run = onnx.load(options.optimized_model_filepath, load_external_data=False)
    assert "BatchNormalization" not in {node.op_type for node in run.graph.node}, "it is folded"
    exported = ExportedNetwork(model, size=size, classes=4)
    given, features = exported.answer(cells, views=8)
    assert np.abs(given - expected).max() <= 1e-5
    assert np.array_equal(given.argmax(1), expected.argmax(1))
    assert features.shape == (12, find_head(network, 4).features)
    for batch in (1, 5, 12):
        again, pooled = exported.answer(cells, views=8, batch=batch)
        assert np.abs(again - given).max() <= 1e-6
        assert np.abs(pooled - features).max() <= 1e-4


def test_features_and_head_give_the_logits(made: Path):
    bundle = load_bundle(made)
    cells = draw_cells(3, SIZE)
    logits, features, found = bundle.network._session.run(None, {"cells": cells})
    assert np.abs(found.mean((2, 3)) - features).max() < 1e-5
    assert bundle.network.look(cells).tobytes() == found.tobytes()
    weight, bias = bundle.head
    assert np.abs(features @ weight.T + bias - logits).max() < 1e-4


def test_a_bundle_is_read_as_it_was_written(made: Path, model: bytes, tmp_path: Path):
    bundle = load_bundle(made)
    assert {p.name for p in made.iterdir()} == set(PARTS)
    assert bundle.facts == make_facts(make_network())
    assert bundle.facts.to_json() == json.loads((made / FACTS).read_text())
    packed = make_bundle(tmp_path / "small.zip", model)
    assert packed.path.is_file()
    assert load_bundle(packed.path).id == bundle.id == packed.id
    folder = Path(shutil.make_archive(str(tmp_path / "around"), "zip", made.parent, "small"))
    assert load_bundle(folder).id == bundle.id, "a folder around the parts, as packing makes it"
    (out,) = take_model(made, tmp_path / "network.onnx")
    assert out.read_bytes() == (made / MODEL).read_bytes()
    assert "not for diagnosis" in (made / CARD).read_text()
    expected = predict(make_network(), draw_cells(9, SIZE))
    given, _ = bundle.network.answer(draw_cells(9, SIZE), views=8)
    assert np.abs(given - expected).max() <= 1e-5


def test_openvino_gets_a_network_of_its_own_that_answers_the_same(halved: Path, tmp_path: Path):
    import openvino

    out = tmp_path / "network.xml"
    assert take_model(halved, out, form="openvino") == [out, tmp_path / "network.bin"]
    network = openvino.Core().read_model(out)
    told = json.loads(network.get_rt_info("leuko").astype(str))
    assert told["classes"] == list(CLASSES)
    cells = draw_cells(3, SIZE)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(network, "CPU", settings)({"cells": cells})
    bundle = load_bundle(halved)
    expected = bundle.network._session.run(["logits"], {"cells": cells})[0]
    assert np.abs(found["logits"] - expected).max() < 1e-4
    with pytest.raises(OutputError, match="exists"):
        take_model(halved, out, form="openvino")
    out.unlink()
    with pytest.raises(OutputError, match=r"network\.bin exists"):
        take_model(halved, out, form="openvino")
    with pytest.raises(OutputError, match=r"\.xml"):
        take_model(halved, tmp_path / "other.onnx", form="openvino")
    with pytest.raises(UnknownNameError, match="no format 'tensorrt'"):
        take_model(halved, tmp_path / "other", form="tensorrt")


def test_openvino_that_answers_otherwise_or_is_missing_writes_nothing(
    halved: Path, tmp_path: Path, monkeypatch
):
    out = tmp_path / "network.xml"

    def convert(model: bytes, notes: dict[str, str]) -> tuple[bytes, bytes]:
        weight = read_graph(model).weights["head.weight"]
        return convert_to_openvino(replace_tensors(model, {"head.weight": -weight}), notes)

    monkeypatch.setattr(exchange, "convert_to_openvino", convert)
    with pytest.raises(BundleError, match="golden pictures"):
        take_model(halved, out, form="openvino")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"leuko\[openvino\]"):
        take_model(halved, out, form="openvino")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_half_is_left(
    made: Path, model: bytes, tmp_path: Path, monkeypatch
):
    with pytest.raises(OutputError, match="exists"):
        make_bundle(made, model)

    def fail(*_args: Any) -> None:
        raise BundleError("no")

    monkeypatch.setattr(bundles, "load_bundle", fail)
    for name in ("new", "new.zip"):
        with pytest.raises(BundleError):
            make_bundle(tmp_path / name, model)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_not_bundled(model: bytes, tmp_path: Path):
    facts = make_facts(make_network())
    with pytest.raises(BundleError, match="differ between"):
        write_bundle(
            tmp_path / "b", facts, weights=state(make_network(1)), model=model, card="card"
        )
    assert not list(tmp_path.iterdir())


def test_half_precision_is_kept_in_both_and_changes_no_bit(
    halved: Path, made: Path, rounded: bytes
):
    cells = draw_cells(9, SIZE)
    graph = read_graph((halved / MODEL).read_bytes())
    kinds = {name: tensor.dtype for name, tensor in graph.weights.items()}
    assert kinds["head.weight"] == kinds["body.0.weight"] == np.float16
    assert kinds["head.bias"] == kinds["body.1.running_var"] == np.float32
    whole = ExportedNetwork(rounded, size=SIZE, classes=len(CLASSES))
    bundle = load_bundle(halved)
    for given, expected in zip(
        bundle.network.answer(cells, views=8), whole.answer(cells, views=8), strict=True
    ):
        assert given.tobytes() == expected.tobytes()
    other = load_bundle(halved, engine="openvino")
    assert np.abs(other.answer(cells)[0] - bundle.answer(cells)[0]).max() < 1e-5
    onnx.checker.check_model(onnx.load_from_string((halved / MODEL).read_bytes()), full_check=True)
    size = sum(part.stat().st_size for part in halved.iterdir())
    assert size < sum(part.stat().st_size for part in made.iterdir())
    again = halve_tensors((halved / MODEL).read_bytes(), ["head.weight"])
    assert again == (halved / MODEL).read_bytes()
    with pytest.raises(BundleError, match="changes it"):
        halve_tensors((made / MODEL).read_bytes(), ["head.weight"])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_bundles_of_the_formats_before_are_read(
    version: int, half: bool, model: bytes, rounded: bytes, tmp_path: Path
):
    """2: float32 in model.onnx, whatever the weights are. 2 and 3: no light but the camera's."""
    prepared = Preprocessing("cell", 20.0, SIZE, MEAN, DEVIATION, 8, light="given")
    new = make_bundle(tmp_path / "new", half=half, preprocessing=prepared)
    facts = replace(new.facts, format=version)
    parts = {part.name: part.read_bytes() for part in new.path.iterdir() if part.name != SUMS}
    parts[FACTS] = json.dumps(facts.to_json()).encode()
    assert "light" not in facts.to_json()["preprocessing"]
    plain = (rounded if half else model) if version == 2 else take_apart(new)[1]
    parts[MODEL] = add_note(plain, "leuko", facts.model_text)
    for part, text in ((WEIGHTS, facts.model_text), (GOLDEN, facts.answer_text)):
        parts[part] = save(load(parts[part]), metadata={"leuko": text})
    parts[SUMS] = write_sums(parts)
    place = tmp_path / "old"
    place.mkdir()
    for name, data in parts.items():
        (place / name).write_bytes(data)
    old = load_bundle(place)
    cells = draw_cells(3, SIZE)
    assert old.facts == facts
    assert old.answer(cells)[0].tobytes() == new.answer(cells)[0].tobytes()
    weights, model = take_apart(old)
    written = write_bundle(tmp_path / "again", old.facts, weights=weights, model=model, card="card")
    assert written.facts == new.facts


# --- tampering ------------------------------------------------------------------------------------

Parts = dict[str, bytes]


def facts_with(change: Callable[[dict[str, Any]], None]) -> Callable[[Parts], None]:
    def tamper(parts: Parts) -> None:
        facts = json.loads(parts[FACTS])
        change(facts)
        parts[FACTS] = json.dumps(facts).encode()

    return tamper


def tensors_with(
    part: str, change: Callable[[dict[str, np.ndarray], dict[str, str]], None]
) -> Callable[[Parts], None]:
    def tamper(parts: Parts) -> None:
        header = json.loads(parts[part][8 : 8 + struct.unpack("<Q", parts[part][:8])[0]])
        tensors, texts = {k: v.copy() for k, v in load(parts[part]).items()}, header["__metadata__"]
        change(tensors, texts)
        parts[part] = save(tensors, metadata=texts)

    return tamper


def prepare(key: str, value: Any) -> Callable[[Parts], None]:
    return facts_with(lambda f: f["preprocessing"].__setitem__(key, value))


def decide(key: str, value: Any) -> Callable[[Parts], None]:
    return facts_with(lambda f: f["decision"].__setitem__(key, value))


def swap_everywhere(parts: Parts) -> None:
    """Two classes exchanged in every text that names them; only the golden answers still know."""
    a, b, c = CLASSES
    for name in (FACTS, WEIGHTS, GOLDEN):
        if name == FACTS:
            facts = json.loads(parts[name])
            facts["classes"] = [b, a, c]
            parts[name] = json.dumps(facts).encode()
            continue

        def change(_: dict[str, np.ndarray], texts: dict[str, str]) -> None:
            own = json.loads(texts["leuko"])
            own["classes"] = [b, a, c]
            texts["leuko"] = json.dumps(own, sort_keys=True)

        tensors_with(name, change)(parts)
    old, new = (json.dumps(list(order)).encode() for order in (CLASSES, (b, a, c)))
    assert old in parts[MODEL]
    parts[MODEL] = parts[MODEL].replace(old, new)
    tensors_with(WEIGHTS, lambda t, _: t.update({"6.bias": t["6.bias"][[1, 0, 2]]}))(parts)


def flip_bit(parts: Parts) -> None:
    parts[WEIGHTS] = parts[WEIGHTS][:-5] + bytes([parts[WEIGHTS][-5] ^ 1]) + parts[WEIGHTS][-4:]


def flip_in_both(parts: Parts) -> None:
    """The largest weight of the last layer changes its sign in safetensors and in ONNX alike."""

    def change(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
        old = tensors["6.weight"].tobytes()
        place = np.unravel_index(np.abs(tensors["6.weight"]).argmax(), tensors["6.weight"].shape)
        tensors["6.weight"][place] *= -1
        assert parts[MODEL].count(old) == 1
        parts[MODEL] = parts[MODEL].replace(old, tensors["6.weight"].tobytes())

    tensors_with(WEIGHTS, change)(parts)


def twice_in_header(parts: Parts) -> None:
    data = parts[WEIGHTS]
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].rstrip()
    first = json.dumps({"6.bias": json.loads(header)["6.bias"]})[1:-1].encode()
    header = header[:-1] + b"," + first + b"}"
    header += b" " * (-len(header) % 8)
    parts[WEIGHTS] = struct.pack("<Q", len(header)) + header + data[8 + length :]


def keep_outside(parts: Parts) -> None:
    model = onnx.load_model_from_string(parts[MODEL])
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    parts[MODEL] = model.SerializeToString()


def change_operator(parts: Parts) -> None:
    model = onnx.load_model_from_string(parts[MODEL])
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Sigmoid"
    parts[MODEL] = model.SerializeToString()


def foreign_operator(parts: Parts) -> None:
    model = onnx.load_model_from_string(parts[MODEL])
    next(n for n in model.graph.node if n.op_type == "Relu").domain = "com.example"
    parts[MODEL] = model.SerializeToString()


def change_model(change: Callable[[onnx.ModelProto], None]) -> Callable[[Parts], None]:
    def tamper(parts: Parts) -> None:
        model = onnx.load_model_from_string(parts[MODEL])
        change(model)
        parts[MODEL] = model.SerializeToString()

    return tamper


def flip_half(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "body.0.weight.half")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def find_cast(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if [*n.input] == [f"{name}.half"])


def cast_elsewhere(model: onnx.ModelProto) -> None:
    """The layer gets a constant instead, and the weights that are compared go nowhere."""
    find_cast(model, "head.weight").output[0] = "nowhere"
    other = numpy_helper.from_array(np.zeros((len(CLASSES), 24), np.float32), "constant")
    constant = onnx.helper.make_node("Constant", [], ["head.weight"], value=other)
    model.graph.node.insert(0, constant)


def exchange_casts(model: onnx.ModelProto) -> None:
    a, b = find_cast(model, "head.weight"), find_cast(model, "body.0.weight")
    a.output[0], b.output[0] = b.output[0], a.output[0]


def cast_to_whole_numbers(model: onnx.ModelProto) -> None:
    find_cast(model, "head.weight").attribute[0].i = onnx.TensorProto.INT32


def use_half_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Neg", ["head.weight.half"], ["more"]))


def add_whole_beside_half(model: onnx.ModelProto) -> None:
    zeros = np.zeros((len(CLASSES), 24), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(zeros, "head.weight"))


def keep_half_as_constant(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(3, np.float16), "value")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["more"], value=value))


def cut_off(name: str, share: float) -> Callable[[Parts], None]:
    def tamper(parts: Parts) -> None:
        parts[name] = parts[name][: int(len(parts[name]) * share)]

    return tamper


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickled",)


def put(name: str, content: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.__setitem__(name, content)


def other_picture(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
    tensors["pictures"][0] = 255 - tensors["pictures"][0]


def to_half(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
    tensors["6.weight"] = tensors["6.weight"].astype(np.float16)


# name → (what is done, whether new hashes are written over it, what the refusal says)
TAMPERINGS: dict[str, tuple[Callable[[Parts], None], bool, str]] = {
    "a flipped bit": (flip_bit, False, "SHA-256 differs"),
    "a flipped bit, hashed anew": (flip_bit, True, "differ between"),
    "a weight changed in both": (flip_in_both, True, "golden pictures are off by"),
    "classes swapped": (
        facts_with(lambda f: f["classes"].reverse()), True, "its classes is",
    ),
    "classes swapped everywhere": (swap_everywhere, True, "differ between|are off by"),
    "a class twice": (facts_with(lambda f: f.update(classes=["A", "A", "B"])), True, "twice"),
    "another filter": (prepare("resize", "nearest"), True, "another filter"),
    "another size": (prepare("size", 64), True, "its preprocessing is"),
    "another window": (prepare("window", 15.0), True, "its preprocessing is"),
    "another mean": (prepare("mean", [0.5, 0.5, 0.5]), True, "its preprocessing is"),
    "one view": (prepare("views", 1), True, "its preprocessing is"),
    "blue first": (
        facts_with(
            lambda f: f["preprocessing"].update(
                mean=f["preprocessing"]["mean"][::-1],
                deviation=f["preprocessing"]["deviation"][::-1],
            )
        ), True, "its preprocessing is",
    ),
    "another temperature": (decide("temperature", 0.7), True, "its decision is"),
    "other thresholds": (decide("thresholds", dict.fromkeys(CLASSES, 0.01)), True, "its decision"),
    "another light": (
        facts_with(lambda f: f["preprocessing"].update(light="given")), True,
        "its preprocessing is",
    ),
    "no such light": (
        facts_with(lambda f: f["preprocessing"].update(light="dim")), True, "out of its range",
    ),
    "another architecture": (
        facts_with(lambda f: f.update(architecture="resnet34")), True, "its architecture is",
    ),
    "no architecture": (facts_with(lambda f: f.update(architecture="x")), True, "isn't known"),
    "another version": (facts_with(lambda f: f.update(format=1)), True, "format 1"),
    "a key too many": (facts_with(lambda f: f.update(more=1)), True, "'more'"),
    "a key too few": (facts_with(lambda f: f.pop("leuko")), True, "lacks the key 'leuko'"),
    "a key twice": (
        lambda p: p.update({FACTS: p[FACTS].replace(b"{", b'{"format": 4,', 1)}), True, "twice",
    ),
    "a number too large": (decide("minimum", 10**400), True, "expected a number"),
    "more cells than there are": (
        decide("cells", dict.fromkeys(CLASSES, 10**400)), True, "'cells' in bundle.json is out of",
    ),
    "NaN in the facts": (decide("minimum", float("nan")), True, "NaN"),
    "NaN in the weights": (
        tensors_with(WEIGHTS, lambda t, _: t["6.bias"].__setitem__(0, np.nan)), True, "NaN",
    ),
    "a tensor too few": (tensors_with(WEIGHTS, lambda t, _: t.pop("6.bias")), True, "head.bias"),
    "a tensor too many": (
        tensors_with(WEIGHTS, lambda t, _: t.update(more=t["6.bias"])), True, "body.more",
    ),
    "a tensor twice": (twice_in_header, True, "twice"),
    "another precision": (tensors_with(WEIGHTS, to_half), True, "float16"),
    "weights cut off": (cut_off(WEIGHTS, 0.7), True, "damaged|cut off"),
    "a model cut off": (cut_off(MODEL, 0.7), True, "damaged"),
    "facts cut off": (cut_off(FACTS, 0.5), True, "JSON"),
    "a file missing": (lambda p: p.pop(GOLDEN), True, "golden.safetensors is missing"),
    "a file too many": (put("notes.txt", b"hello"), True, "doesn't belong"),
    "a pickle beside": (put("extra.dat", pickle.dumps(Code())), True, "pickle"),
    "a pickle as weights": (put(WEIGHTS, pickle.dumps(Code())), True, "cut off|damaged"),
    "tensors in another file": (keep_outside, True, "another file"),
    "another operator": (change_operator, True, "are off by"),
    "an operator of somebody else": (foreign_operator, True, "com.example"),
    "another golden picture": (tensors_with(GOLDEN, other_picture), True, "golden picture 1"),
    "a hash for a file that isn't there": (
        lambda p: p.update({SUMS: p[SUMS] + b"0" * 64 + b"  more\n"}), False, "more",
    ),
}  # fmt: skip

# The same for a bundle in half precision.
HALF_TAMPERINGS: dict[str, tuple[Callable[[Parts], None], bool, str]] = {
    "a flipped bit of half a weight": (change_model(flip_half), True, "'body.0.weight' differ"),
    "a flipped bit": (flip_bit, True, "differ between"),
    "a cast that goes elsewhere": (change_model(cast_elsewhere), True, "expected one Cast"),
    "casts exchanged": (change_model(exchange_casts), True, "expected one Cast"),
    "a cast to whole numbers": (change_model(cast_to_whole_numbers), True, "expected one Cast"),
    "half a weight used twice": (change_model(use_half_twice), True, "expected one Cast"),
    "a weight whole and half": (change_model(add_whole_beside_half), True, "twice"),
    "a constant in half precision": (change_model(keep_half_as_constant), True, "a constant in"),
    "the version before": (facts_with(lambda f: f.update(format=3)), True, "'light'"),
}  # fmt: skip


def test_there_are_twenty_tamperings_and_more():
    assert len(TAMPERINGS) >= 20


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "half"), [*((n, False) for n in TAMPERINGS), *((n, True) for n in HALF_TAMPERINGS)]
)
def test_a_tampered_bundle_is_refused_with_its_reason(
    name: str, half: bool, packed: bool, made: Path, halved: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tamper, hashed_anew, says = (HALF_TAMPERINGS if half else TAMPERINGS)[name]
    parts = {p.name: p.read_bytes() for p in (halved if half else made).iterdir()}
    before = dict(parts)
    tamper(parts)
    assert parts != before
    if hashed_anew:
        del parts[SUMS]
        parts[SUMS] = write_sums(parts)
    place = tmp_path / ("b.zip" if packed else "b")
    if packed:
        with zipfile.ZipFile(place, "w") as file:
            for part, data in parts.items():
                file.writestr(part, data)
    else:
        place.mkdir()
        for part, data in parts.items():
            (place / part).write_bytes(data)
    with pytest.raises(BundleError, match=says):
        load_bundle(place)
    assert not (tmp_path / "pickled").exists()


def test_what_is_no_bundle_at_all_is_refused(made: Path, tmp_path: Path):
    with pytest.raises(BundleError, match="no bundle at"):
        load_bundle(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(BundleError, match=r"no bundle in .*: bundle\.json is missing"):
        load_bundle(tmp_path)
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(BundleError, match="zip"):
        load_bundle(tmp_path / "text.zip")
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(BundleError, match="pickle"):
        load_bundle(tmp_path / "model.pt")
    linked = tmp_path / "linked"
    shutil.copytree(made, linked)
    (linked / CARD).unlink()
    (linked / CARD).symlink_to(made / CARD)
    with pytest.raises(BundleError, match="no ordinary file"):
        load_bundle(linked)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        file.writestr(CARD, b"a")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(CARD, b"b")
    with pytest.raises(BundleError, match="twice"):
        load_bundle(tmp_path / "twice.zip")


@pytest.mark.parametrize("kind", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
def test_damaged_zips_are_refused_whatever_packed_them(kind: str, tmp_path: Path):
    """Bytes of any place are changed: of what was packed, of names, of the list at the end."""
    packed = io.BytesIO()
    rng = random.Random(0)
    with zipfile.ZipFile(packed, "w", getattr(zipfile, f"ZIP_{kind}")) as file:
        for name in (FACTS, "é.txt"):
            file.writestr(name, bytes(rng.randrange(60) for _ in range(300)))
    place = tmp_path / "b.zip"
    refused = 0
    for at in range(len(packed.getvalue())):
        data = bytearray(packed.getvalue())
        data[at] ^= rng.randrange(1, 256)
        place.write_bytes(data)
        try:
            read_parts(place, (FACTS, "é.txt"))
        except BundleError as error:
            refused += "can't be read as a zip" in str(error)
    assert refused > 300


def test_a_note_can_be_read_by_the_onnx_library(made: Path):
    model = onnx.load_model_from_string(add_note((made / MODEL).read_bytes(), "é" * 200, "x" * 300))
    notes = {p.key: p.value for p in model.metadata_props}
    assert notes["é" * 200] == "x" * 300
    assert json.loads(notes["leuko"])["classes"] == list(CLASSES)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0}, {"temperature": float("inf")}, {"minimum": 1.5}, {"coverage": 1.0},
        {"thresholds": {"EOSINOPHIL": 0.1}}, {"thresholds": None},
    ],
)  # fmt: skip
def test_facts_out_of_range_are_not_written(change: dict[str, Any], tmp_path: Path):
    facts = make_facts(make_network())
    wrong = replace(facts, decision=replace(facts.decision, **change))
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "b", wrong, weights={}, model=b"", card="")
    assert not list(tmp_path.iterdir())


def test_a_note_that_is_there_twice_is_refused(made: Path):
    data = (made / MODEL).read_bytes()
    with pytest.raises(BundleError, match="two texts"):
        read_graph(add_note(data, "leuko", "{}"))
