"""Reads an ONNX file as far as a bundle has to check it, and distrusts it.

ONNX is a Protocol Buffers message; the dozen fields needed here are read by hand, because the
``onnx`` package takes longer to load than a first answer may take, and because what isn't
expected has to be refused, not skipped. Knows the file's format; knows no networks.

Source of the field numbers: onnx.proto of ONNX 1.18.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leuko.errors import BundleError

# TensorProto.DataType → NumPy, for the types that a network of Leuko holds.
_TYPES = {1: "<f4", 2: "u1", 6: "<i4", 7: "<i8", 9: "?"}
_DEEPEST = 4  # of graphs within graphs; Leuko's own have none

Value = int | memoryview


@dataclass
class Graph:
    """What an ONNX file says.

    Attributes:
        opset: Version of the standard operators.
        weights: Initialisers by name.
        metadata: Texts by name.
        operators: Kinds of operators used.
    """

    opset: int = 0
    weights: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)


def read_graph(data: bytes) -> Graph:
    """Reads and checks a model.

    Raises:
        BundleError: It is damaged; keeps tensors in other files; holds functions, other operators
            than the standard ones, a tensor twice, or a type that Leuko doesn't write.
    """
    graph = Graph()
    try:
        for number, value in _fields(memoryview(data)):
            if number == 7:
                _read_graph(_bytes(value), graph, depth=0)
            elif number == 8:
                _read_opset(_bytes(value), graph)
            elif number == 14:
                name, text = _read_pair(_bytes(value))
                if name in graph.metadata:
                    raise _refuse(f"it has two texts named {name!r}")
                graph.metadata[name] = text
            elif number in (20, 25, 26):
                raise _refuse("it holds functions or training steps of its own")
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise _refuse(f"it is damaged ({error})") from None
    return graph


def add_note(data: bytes, name: str, text: str) -> bytes:
    """Adds a text to a model's metadata: a message that is appended, as the format allows."""
    pair = _field(1, name.encode()) + _field(2, text.encode())
    return data + _field(14, pair)


def replace_tensors(data: bytes, values: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Puts other numbers into initialisers; every other byte stays, and so does the length.

    Args:
        data: A model, as `read_graph` accepts it.
        values: New values by name, of the type and shape that are there.

    Returns:
        The changed model.

    Raises:
        BundleError: What `read_graph` refuses; a tensor that isn't there; another shape or type;
            values that aren't finite.
    """
    there = read_graph(data).weights
    for name, value in values.items():
        if name not in there:
            raise BundleError(
                f"model.onnx has no tensor {name!r} to put other numbers into. Export the bundle "
                "again."
            )
        old = there[name]
        if old.shape != value.shape or old.dtype != value.dtype:
            raise BundleError(
                f"The tensor {name!r} of model.onnx is {old.shape} {old.dtype}; it can't be "
                f"replaced by {value.shape} {value.dtype}. Give it as it is there."
            )
        if not np.isfinite(value).all():
            raise BundleError(
                f"New values for {name!r} hold NaN or infinite ones; none is written."
            )
    changed = bytearray(data)
    for number, graph in _fields(memoryview(changed)):
        for inner, tensor in _fields(_bytes(graph)) if number == 7 else ():
            name = _read_tensor(_bytes(tensor))[0] if inner == 5 else ""
            if name in values:
                raw = [_bytes(value) for key, value in _fields(_bytes(tensor)) if key == 9][-1]
                raw[:] = np.ascontiguousarray(values[name]).tobytes()  # writes into `changed`
    return bytes(changed)


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_graph(data: memoryview, graph: Graph, depth: int) -> None:
    if depth > _DEEPEST:
        raise _refuse("its graphs are nested too deeply")
    for number, value in _fields(data):
        if number == 1:
            _read_node(_bytes(value), graph, depth)
        elif number == 5:
            name, tensor = _read_tensor(_bytes(value))
            if name in graph.weights:
                raise _refuse(f"it holds the tensor {name!r} twice")
            graph.weights[name] = tensor
        elif number == 15:
            raise _refuse("it holds sparse tensors")


def _read_node(data: memoryview, graph: Graph, depth: int) -> None:
    kind, domain = "", ""
    for number, value in _fields(data):
        if number == 4:
            kind = bytes(_bytes(value)).decode()
        elif number == 7:
            domain = bytes(_bytes(value)).decode()
        elif number == 5:
            _read_attribute(_bytes(value), graph, depth)
    if domain not in ("", "ai.onnx"):
        raise _refuse(f"it uses the operator {kind!r} of {domain!r}")
    graph.operators.add(kind)


def _read_attribute(data: memoryview, graph: Graph, depth: int) -> None:
    for number, value in _fields(data):
        if number in (5, 10):
            _read_tensor(_bytes(value))  # a constant; it mustn't lie elsewhere either
        elif number in (6, 11):
            _read_graph(_bytes(value), graph, depth + 1)
        elif number in (22, 23):
            raise _refuse("it holds sparse tensors")


def _read_tensor(data: memoryview) -> tuple[str, NDArray[np.generic]]:
    """A TensorProto: name and values."""
    shape: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else [n for n, _ in _varints(value)]
        elif number == 2:
            kind = _int(value)
        elif number == 8:
            name = bytes(_bytes(value)).decode()
        elif number == 9:
            raw = _bytes(value)
        elif number == 13 or (number == 14 and value != 0):
            raise _refuse(
                f"the tensor {name!r} lies in another file; expected every tensor in model.onnx"
            )
        elif number in (4, 5, 6, 7, 10, 11):
            raise _refuse(f"the tensor {name!r} isn't written as raw bytes")
    if kind not in _TYPES:
        raise _refuse(f"the tensor {name!r} has the type {kind}; expected float32 or whole numbers")
    values = np.frombuffer(raw, _TYPES[kind])
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise _refuse(f"the tensor {name!r} has {values.size} values for the shape {shape}")
    return name, values.reshape(shape)


def _read_opset(data: memoryview, graph: Graph) -> None:
    domain, version = "", 0
    for number, value in _fields(data):
        if number == 1:
            domain = bytes(_bytes(value)).decode()
        elif number == 2:
            version = _int(value)
    if domain not in ("", "ai.onnx"):
        raise _refuse(f"it uses operators of {domain!r}")
    graph.opset = version


def _read_pair(data: memoryview) -> tuple[str, str]:
    texts = {number: bytes(_bytes(value)).decode() for number, value in _fields(data)}
    return texts.get(1, ""), texts.get(2, "")


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message: an int, or the bytes of what is within."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the kind {kind}")
        if place + length > len(data):
            raise ValueError("it ends too early")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _varints(data: memoryview) -> Iterator[tuple[int, int]]:
    place = 0
    while place < len(data):
        number, place = _varint(data, place)
        yield number, place


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")  # noqa: TRY004
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number was expected")  # noqa: TRY004
    return value


def _refuse(why: str) -> BundleError:
    return BundleError(f"model.onnx can't be trusted: {why}. Export the bundle again.")
