"""The network of a bundle in the forms that other programs read: ONNX, and OpenVINO's.

Whatever is written comes from a bundle that was checked, says of itself what it is, and was read
back and asked for the golden answers. Knows bundles; knows no labelled sets.
"""

from __future__ import annotations

import os
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
from leuko.learning.inference import convert_to_openvino
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
    if form not in FORMS:
        raise UnknownNameError(f"There is no format {form!r}. {suggest(form, [*FORMS])}")
    weights = out.with_suffix(".bin")
    check_place(out)
    if form == "openvino":
        if out.suffix != FORMS[form]:
            raise OutputError(f"{out} doesn't end in .xml, as OpenVINO's networks do. Name it so.")
        check_place(weights)
    bundle = load_bundle(path)
    parts = read_parts(Path(path), PARTS, OPTIONAL)
    if form == "onnx":
        return [write_atomically(out, parts[MODEL])]
    xml, numbers = convert_to_openvino(parts[MODEL], {TEXT: bundle.facts.model_text})
    check_golden(replace(bundle, network=bundle.network.with_openvino(xml, numbers)), parts[GOLDEN])
    # The numbers alone are no network: nobody finds half of one.
    return [write_atomically(weights, numbers), write_atomically(out, xml)][::-1]
