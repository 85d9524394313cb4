"""Eight bits: written where little is lost, refused where it isn't or can't be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from leuko.cli import main
from leuko.conversion import convert_to_eight_bits
from leuko.data.synthetic import write_demo_set
from leuko.errors import ConversionError, DataError, OutputError
from leuko.evaluation import evaluate
from leuko.learning.eight_bits import quantise
from leuko.learning.inference import ExportedNetwork
from leuko.use.predictor import load
from small_bundle import CLASSES, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "small").path


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "set"
    counts = dict.fromkeys(("NEUTROPHIL", "EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE"), 12)
    write_demo_set(folder, seed=3, counts=counts, pairs=3)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of 48 cells is enough to see that everything is done."""
    monkeypatch.setattr("leuko.conversion.FEWEST", 10)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_what_is_written_answers_nearly_as_before(bundle, cells, tmp_path, form, monkeypatch):
    monkeypatch.setattr("leuko.conversion.LOSS", 0.2)
    out = tmp_path / ("eight.onnx" if form == "onnx" else "eight.xml")
    shown: list[NDArray[np.uint8]] = []
    monkeypatch.setattr(
        "leuko.conversion.quantise",
        lambda model, given: shown.append(given) or quantise(model, given),
    )
    made = convert_to_eight_bits(bundle, cells, out, form=form)
    assert made.files[0] == out
    assert [path.exists() for path in made.files] == [True] * (1 if form == "onnx" else 2)
    assert made.same[0] > 0.8
    assert not made.seen
    judged = evaluate(bundle, cells)
    group = {c.pixels.tobytes(): g for c, g in zip(judged.cells, judged.groups, strict=True)}
    truth = {c.pixels.tobytes(): t for c, t in zip(judged.cells, judged.truth, strict=True)}
    calibrated = [cell.tobytes() for cell in shown[0]]
    known = set(judged.truth) & set(CLASSES)
    assert {truth[cell] for cell in calibrated} == known, "of every class that the model knows"
    taken = {group[cell] for cell in calibrated}
    both = zip(judged.truth, judged.groups, strict=True)
    assert made.n == sum(t in known and g not in taken for t, g in both), "nobody does both"
    if form == "openvino":
        assert made.files[1].stat().st_size < len((bundle / "model.onnx").read_bytes())
        return
    model = load(bundle)
    facts = model.bundle.facts
    assert facts.model_text.encode() in out.read_bytes()
    eight = ExportedNetwork(
        out.read_bytes(), size=facts.preprocessing.size, classes=len(model.classes)
    )
    size = facts.preprocessing.size
    drawn = np.random.default_rng(0).integers(0, 256, (7, size, size, 3), dtype=np.uint8)
    p, q = (network.answer(drawn, views=1)[0] for network in (eight, model.bundle.network))
    assert 0 < np.abs(p - q).max() < 0.1


@pytest.mark.usefixtures("few")
def test_a_loss_is_refused_and_nothing_is_written(bundle, cells, tmp_path, monkeypatch):
    monkeypatch.setattr("leuko.conversion.LOSS", -2.0)
    out = tmp_path / "eight.onnx"
    with pytest.raises(ConversionError, match="In eight bits the network loses"):
        convert_to_eight_bits(bundle, cells, out)
    assert list(tmp_path.iterdir()) == []


def test_too_few_cells_are_refused_and_so_is_a_file_that_is_there(bundle, cells, tmp_path):
    with pytest.raises(DataError, match="at least 200"):
        convert_to_eight_bits(bundle, cells, tmp_path / "eight.onnx")
    (tmp_path / "eight.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        convert_to_eight_bits(bundle, cells, tmp_path / "eight.onnx")
    assert (tmp_path / "eight.onnx").read_bytes() == b"mine"


@pytest.mark.usefixtures("few")
def test_the_command_tells_what_is_lost(bundle, cells, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("leuko.conversion.LOSS", 0.2)
    out = tmp_path / "eight.onnx"
    words = ["export", str(bundle), "--int8", str(cells), "--out", str(out)]
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out)
    assert "the same class in" in told.err
    assert "not for diagnosis" in told.err
    assert "quant" not in told.err.lower(), "what the quantiser prints isn't for users"
    onnx.checker.check_model(onnx.load(out))
