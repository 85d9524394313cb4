"""The network of a bundle in the forms that other programs read: ONNX, and OpenVINO's.

Whatever is written comes from a bundle that was checked, says of itself what it is, and was read
back and asked for the golden answers. Knows bundles; knows no labelled sets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leuko.errors import OutputError, UnknownNameError, suggest
from leuko.learning.bundle import (
    GOLDEN,
    MODEL,
    OPTIONAL,
    PARTS,
    TEXT,
    check_golden,
    check_place,
    load_bundle,
)
from leuko.learning.inference import ExportedNetwork, convert_to_openvino
from leuko.learning.parts import read_parts
from leuko.storage import write_atomically

FORMS = {"onnx": ".onnx", "openvino": ".xml"}  # what a file of each is called by


def take_model(path: str | os.PathLike[str], out: Path, *, form: str = "onnx") -> list[Path]:
    """Takes the network out of a bundle, after checking it.

    Args:
        path: The bundle.
        out: The file, which must not exist; ``NAME.xml`` for ``openvino``, and then ``NAME.bin``
            is written beside it.
        form: Of `FORMS`. ``onnx`` is ``model.onnx`` as it lies in the bundle.

    Returns:
        What was written. OpenVINO's network was compiled and gives the golden answers, to 1e-4.

    Raises:
        UnknownNameError: There is no such form.
        BundleError: The bundle isn't what was written; or OpenVINO answers otherwise.
        MissingExtraError: OpenVINO isn't installed.
        OutputError: There is something at `out`, or it has another ending.
        StorageError: It can't be written.
    """
    check_file(out, form)
    bundle = load_bundle(path)
    parts = read_parts(Path(path), PARTS, OPTIONAL)
    files, network = shape_network(parts[MODEL], bundle.facts.model_text, bundle.network, form)
    if network is not bundle.network:
        check_golden(replace(bundle, network=network), parts[GOLDEN])
    return write_files(out, files)


def shape_network(
    model: bytes, text: str, network: ExportedNetwork, form: str
) -> tuple[list[bytes], ExportedNetwork]:
    """A network in a form of `FORMS`.

    Args:
        model: A file of ONNX.
        text: What it is: `leuko.learning.facts.Facts.model_text`.
        network: The same, ready to answer.
        form: Wanted.

    Returns:
        The files, the main one first, and the network that they hold, ready to answer.

    Raises:
        MissingExtraError: OpenVINO isn't installed.
    """
    if form == "onnx":
        return [model], network
    xml, numbers = convert_to_openvino(model, {TEXT: text})
    return [xml, numbers], network.with_openvino(xml, numbers)


def write_files(out: Path, files: Sequence[bytes]) -> list[Path]:
    """Writes what `shape_network` gave: the main file to `out`, the numbers beside it.

    Raises:
        StorageError: They can't be written.
    """
    places = [out, out.with_suffix(".bin")]
    # The numbers alone are no network: nobody finds half of one.
    for place, data in reversed([*zip(places, files, strict=False)]):
        write_atomically(place, data)
    return places[: len(files)]


def check_file(out: Path, form: str) -> None:
    """Refuses a form that there isn't, and a file that can't be written.

    Raises:
        UnknownNameError: There is no such form.
        OutputError: There is something at `out`, or it has another ending.
    """
    if form not in FORMS:
        raise UnknownNameError(f"There is no format {form!r}. {suggest(form, [*FORMS])}")
    check_place(out)
    if form == "openvino":
        if out.suffix != FORMS[form]:
            raise OutputError(f"{out} doesn't end in .xml, as OpenVINO's networks do. Name it so.")
        check_place(out.with_suffix(".bin"))
