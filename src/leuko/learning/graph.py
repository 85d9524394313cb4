"""Reads an ONNX file as far as a bundle has to check it, and distrusts it.

ONNX is a Protocol Buffers message; the dozen fields needed here are read by hand, because the
``onnx`` package takes longer to load than a first answer may take, and because what isn't
expected has to be refused, not skipped. Knows the file's format; knows no networks.

Source of the field numbers: onnx.proto of ONNX 1.18.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuko.errors import BundleError

# TensorProto.DataType → NumPy, for the types that a network of Leuko holds.
_TYPES = {1: "<f4", 2: "u1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2"}
_FLOAT, _HALF = 1, 10
_INT = 2  # of AttributeProto.AttributeType
_DEEPEST = 4  # of graphs within graphs; Leuko's own have none
_HALVED = ".half"  # what a weight in half precision is called until a Cast has given it its name

Value = int | memoryview


@dataclass
class Graph:
    """What an ONNX file says.

    Attributes:
        opset: Version of the standard operators.
        weights: Initialisers by name. One in half precision has the name that its Cast to float32
            gives it: that is what the network takes.
        metadata: Texts by name.
        operators: Kinds of operators used.
    """

    opset: int = 0
    weights: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)


@dataclass
class _Node:
    """An operator, as far as weights in half precision need it."""

    kind: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # attributes that are whole numbers
    others: int = 0  # attributes of another kind


def read_graph(data: bytes) -> Graph:
    """Reads and checks a model.

    Raises:
        BundleError: It is damaged; keeps tensors in other files; holds functions, other operators
            than the standard ones, a tensor twice, or a type that Leuko doesn't write; holds a
            tensor in half precision that isn't cast to float32 once, under its own name.
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


def halve_tensors(data: bytes, names: Collection[str]) -> bytes:
    """Keeps float32 initialisers in half precision, each followed by a Cast to float32.

    The network takes the same numbers under the same names as before: ONNX Runtime works the Cast
    out once, when it loads.

    Args:
        data: A model, as `read_graph` accepts it.
        names: Of initialisers of which no number changes by it.

    Returns:
        The changed model.

    Raises:
        BundleError: What `read_graph` refuses; a tensor that isn't there, or loses by it.
    """
    there = read_graph(data).weights
    for name in names:
        if name not in there or (there[name].astype(np.float16) != there[name]).any():
            raise BundleError(
                f"The tensor {name!r} isn't in model.onnx, or half precision changes it. Export "
                "the bundle again."
            )
    wanted = {name for name in names if there[name].dtype == np.float32}
    return b"".join(
        _field(7, _halve(_bytes(value), wanted)) if number == 7 else bytes(whole)
        for number, value, whole in _pieces(memoryview(data))
    )


def _halve(graph: memoryview, wanted: set[str]) -> bytes:
    """A GraphProto in which these initialisers are halved; their Casts come before all nodes."""
    casts, rest = [], []
    for number, value, whole in _pieces(graph):
        name, tensor = _read_tensor(_bytes(value)) if number == 5 else ("", None)
        if tensor is None or name not in wanted:
            rest.append(bytes(whole))
            continue
        shape = b"".join(_number(1 << 3) + _number(side) for side in tensor.shape)
        kind, raw = _number(2 << 3) + _number(_HALF), tensor.astype("<f2").tobytes()
        source = (name + _HALVED).encode()
        rest.append(_field(5, shape + kind + _field(8, source) + _field(9, raw)))
        to = _field(1, b"to") + _number(3 << 3) + _number(_FLOAT)
        to += _number(20 << 3) + _number(_INT)
        ends = _field(1, source) + _field(2, name.encode())
        casts.append(_field(1, ends + _field(4, b"Cast") + _field(5, to)))
    return b"".join([*casts, *rest])


def replace_tensors(data: bytes, values: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Puts other numbers into initialisers; every other byte stays, and so does the length.

    Args:
        data: A model, as `read_graph` accepts it.
        values: New values by name, of the shape that is there; the type that is there has to hold
            them without a change.

    Returns:
        The changed model.

    Raises:
        BundleError: What `read_graph` refuses; a tensor that isn't there; another shape; values
            that aren't finite, or that another precision would change.
    """
    there = read_graph(data).weights
    for name, value in values.items():
        if name not in there:
            raise BundleError(
                f"model.onnx has no tensor {name!r} to put other numbers into. Export the bundle "
                "again."
            )
        if not np.isfinite(value).all():
            raise BundleError(
                f"New values for {name!r} hold NaN or infinite ones; none is written."
            )
        old = there[name]
        held = np.can_cast(value.dtype, np.float32) and (value.astype(old.dtype) == value).all()
        if old.shape != value.shape or not held:
            raise BundleError(
                f"The tensor {name!r} of model.onnx is {old.shape} {old.dtype}; it can't be "
                f"replaced by {value.shape} {value.dtype}. Give it as it is there."
            )
    changed = bytearray(data)
    for number, graph in _fields(memoryview(changed)):
        for inner, tensor in _fields(_bytes(graph)) if number == 7 else ():
            name = _read_tensor(_bytes(tensor))[0] if inner == 5 else ""
            name = name if name in values else name.removesuffix(_HALVED)
            if name in values:
                raw = [_bytes(value) for key, value in _fields(_bytes(tensor)) if key == 9][-1]
                raw[:] = values[name].astype(there[name].dtype).tobytes()  # into `changed`
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
    nodes: list[_Node] = []
    halves: dict[str, NDArray[Any]] = {}
    for number, value in _fields(data):
        if number == 1:
            nodes.append(_read_node(_bytes(value), graph, depth))
        elif number == 5:
            name, tensor = _read_tensor(_bytes(value))
            if name in graph.weights or name in halves:
                raise _refuse(f"it holds the tensor {name!r} twice")
            (halves if tensor.dtype == np.float16 else graph.weights)[name] = tensor
        elif number == 15:
            raise _refuse("it holds sparse tensors")
    if depth and halves:
        raise _refuse("a graph within its graph holds tensors in half precision")
    _name_halves(nodes, halves, graph)


def _name_halves(nodes: list[_Node], halves: dict[str, NDArray[Any]], graph: Graph) -> None:
    """Weights in half precision get the name that their Cast gives them, and have no other use."""
    users: dict[str, list[_Node]] = {name: [] for name in halves}
    for node in nodes:
        for name in node.inputs:
            if name in users:
                users[name].append(node)
    for name, found in users.items():
        own = name.removesuffix(_HALVED)
        cast = _Node("Cast", "", [name], [own], {"to": _FLOAT})
        if own == name or found != [cast]:
            raise _refuse(
                f"the tensor {name!r} is in half precision; expected one Cast of it to float32, "
                f"named {own!r}, and no other use"
            )
        if own in graph.weights or own in halves:
            raise _refuse(f"it holds the tensor {own!r} twice")
        graph.weights[own] = halves[name]


def _read_node(data: memoryview, graph: Graph, depth: int) -> _Node:
    node = _Node()
    for number, value in _fields(data):
        if number in (1, 2):
            names = node.inputs if number == 1 else node.outputs
            names.append(bytes(_bytes(value)).decode())
        elif number == 4:
            node.kind = bytes(_bytes(value)).decode()
        elif number == 7:
            node.domain = bytes(_bytes(value)).decode()
        elif number == 5:
            _read_attribute(_bytes(value), graph, node, depth)
    if node.domain not in ("", "ai.onnx"):
        raise _refuse(f"it uses the operator {node.kind!r} of {node.domain!r}")
    graph.operators.add(node.kind)
    return node


def _read_attribute(data: memoryview, graph: Graph, node: _Node, depth: int) -> None:
    name, number_of = "", None
    for number, value in _fields(data):
        if number == 1:
            name = bytes(_bytes(value)).decode()
        elif number == 3:
            number_of = _int(value)
        elif number in (5, 10):
            # A constant; it mustn't lie elsewhere either.
            if _read_tensor(_bytes(value))[1].dtype == np.float16:
                raise _refuse("it holds a constant in half precision")
        elif number in (6, 11):
            _read_graph(_bytes(value), graph, depth + 1)
        elif number in (22, 23):
            raise _refuse("it holds sparse tensors")
    if number_of is None or name in node.numbers:
        node.others += 1
    else:
        node.numbers[name] = number_of


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
        raise _refuse(f"the tensor {name!r} has the type {kind}; expected floats or whole numbers")
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
    for number, value, _ in _pieces(data):
        yield number, value


def _pieces(data: memoryview) -> Iterator[tuple[int, Value, memoryview]]:
    """The same, and all bytes of the field."""
    place = 0
    while place < len(data):
        begin = place
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value, data[begin:place]
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the kind {kind}")
        if place + length > len(data):
            raise ValueError("it ends too early")
        yield number, data[place : place + length], data[begin : place + length]
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
