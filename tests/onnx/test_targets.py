"""Targets run what is made for them, and refuse the rest by name."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import splitquant.onnx as sqo
from builders.onnx_models import EXACT, heavy, matmul, model, run, sqnr, value
from splitquant import QuantSpec
from splitquant.errors import SpecError


@pytest.mark.parametrize("target", ["qnn", "tensorrt", "litert", "xnnpack", "ethos-u"])
def test_targets_of_other_makers_take_no_operators_of_onnx_runtime(target):
    """MatMulNBits is one of its own; QDQ is what vendors' tools read."""
    with pytest.raises(SpecError, match=rf"the target {target} .* cannot run MatMulNBits; it takes the format qdq"):
        sqo.quantize(matmul(), format="matmulnbits", target=target)
    with pytest.raises(SpecError, match=rf"the target {target} .* cannot run activations int8-tensor"):
        sqo.quantize(matmul(), activations="int8-tensor", target=target)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "linear-asym"])
def test_targets_that_read_them_do(target):
    """OpenVINO reads MatMulNBits too."""
    done = sqo.quantize(matmul(), format="matmulnbits", target=target)
    assert done.report.changed[0].form == "MatMulNBits"


def _in_openvino(proto, feeds, folder):
    openvino = pytest.importorskip("openvino")
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    compiled = openvino.Core().compile_model(folder / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(feeds)[0]


def _right_in_openvino(made, done, feeds, folder):
    (wanted,) = run(done.model, feeds, **EXACT)
    assert sqnr(wanted, _in_openvino(done.model, feeds, folder)) > 35
    assert sqnr(run(made, feeds)[0], wanted) > 8


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("cols", [64, 192, 256, 100])
def test_openvino_reads_groups_made_for_it(size, cols, tmp_path):
    """Groups that do not end with the rows become one scale per channel, and the report says so."""
    made = matmul(heavy((cols, 96)), batch=("b", cols))
    spec = QuantSpec(bits=4, clusters=1, layout="parallel", granularity=f"group:{size}")
    done = sqo.quantize(made, spec=spec, target="openvino")
    (outcome,) = done.report.changed
    assert str(outcome.spec.granularity) == (f"group:{size}" if cols % size == 0 else "channel")
    assert ("one scale per channel" in outcome.reason) == (cols % size != 0)
    _right_in_openvino(made, done, {"x": heavy((3, cols), 9)}, tmp_path)


def test_openvino_refuses_groups_that_it_reads_wrongly():
    """Of 48 weights its 4-bit kernel makes other numbers."""
    with pytest.raises(SpecError, match=r"the target openvino .* cannot run granularity 'group:48' at 4 bits"):
        sqo.quantize(matmul(), target="openvino", fixed={"bits": 4, "granularity": "group:48"})


def test_openvino_runs_convolutions_of_4_bits_behind_factors(tmp_path):
    """One zero point for all channels, behind a Mul or Div, is what it fails on: those grids are symmetric."""
    nodes = [helper.make_node("Div", ["x", "c"], ["h"]), helper.make_node("Conv", ["h", "W"], ["y"], name="conv")]
    made = model(
        nodes,
        [value("x", ["b", 8, 9, 9])],
        [value("y", list("bchw"))],
        {"W": heavy((8, 8, 1, 1)), "c": np.float32(6)},
    )
    spec = QuantSpec(bits=4, clusters=1, layout="parallel")
    done = sqo.quantize(made, spec=spec, target="openvino")
    assert "OpenVINO fails on one zero point" in done.report.changed[0].reason
    _right_in_openvino(made, done, {"x": heavy((1, 8, 9, 9), 9)}, tmp_path)


@pytest.mark.parametrize("kind", ["lstm", "matmulnbits", "gather"])
def test_openvino_runs_the_other_forms(kind, tmp_path):
    """Recurrent layers with decoded weights, MatMulNBits, and tables of INT8."""
    feeds = {"x": heavy((5, 2, 16), 9)}
    if kind == "lstm":
        weights = {"W": heavy((1, 96, 16)), "R": heavy((1, 96, 24), 2)}
        node = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=24)
        made = model([node], [value("x", [5, 2, 16])], [value("y", [5, 1, 2, 24])], weights)
    elif kind == "gather":
        node = helper.make_node("Gather", ["T", "x"], ["y"])
        made = model([node], [value("x", [4], 7)], [value("y", [4, 64])], {"T": heavy((99, 64))})
        feeds = {"x": np.arange(4)}
    else:
        made, feeds = matmul(), {"x": heavy((3, 64), 9)}
    more = {"format": "matmulnbits", "accuracy_level": 1} if kind == "matmulnbits" else {}
    _right_in_openvino(made, sqo.quantize(made, target="openvino", **more), feeds, tmp_path)
