"""Branches in the place of nodes: their names, their biases, and the sum that joins them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    heavy,
    matmul,
    model,
    near,
    run,
    sqnr,
    value,
    written,
)
from splitquant import QuantSpec
from splitquant.errors import SourceError


def test_names_and_bias():
    """Branches are called layer.part0, layer.part1, ...; the bias of a convolution is in the first only."""
    node = helper.make_node("Conv", ["x", "W", "c"], ["y"], name="conv")
    made = model(
        [node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 7, 7])], {"W": heavy((16, 8, 3, 3)), "c": heavy((16,))}
    )
    nodes = sqo.split(made).model.graph.node
    assert [(one.name, len(one.input)) for one in nodes] == [
        ("conv.part0", 3),
        ("conv.part1", 2),
        ("conv.part2", 2),
        ("conv.sum", 3),
    ]


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_names_that_scales_would_have(form):
    """New tensors get names that no other tensor has."""
    made = matmul()
    for name in ("W.part0.scale", "W.part1.zero_point", "W.part2"):
        made.graph.initializer.append(numpy_helper.from_array(np.full(48, 7, np.float32), name))
        made.graph.node.add(op_type="Identity", input=[name], output=[f"{name}.out"])
        made.graph.output.append(value(f"{name}.out", [48]))
    done = sqo.quantize(made, format=form)
    names = [proto.name for proto in done.model.graph.initializer]
    assert len(names) == len(set(names))
    near(made, done)


@pytest.mark.parametrize("opset", [7, 10, 11])
@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
def test_gemm_of_old_opsets(form, opset):
    """A Gemm that must have a bias, or a Sum that does not broadcast, is the same function as elsewhere."""
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc", beta=0.5, alpha=2.0)
    weights = {"W": heavy((64, 48)), "c": heavy((48,), 1)}
    made = model([node], [value("x", [3, 64])], [value("y", [3, 48])], weights, opset=opset)
    done = sqo.split(made) if form == "float" else sqo.quantize(made, format=form)
    onnx.checker.check_model(done.model)
    feeds = {"x": heavy((3, 64), 9)}
    assert sqnr(run(made, feeds)[0], run(done.model, feeds)[0]) > (100 if form == "float" else 15)


def _with_defaults(ir_version):
    """A Gemm whose weight and bias are inputs with defaults."""
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc")
    inputs = [value("x", ["b", 64]), value("W", [64, 48]), value("c", [48])]
    made = model([node], inputs, [value("y", ["b", 48])], {"W": heavy((64, 48)), "c": heavy((48,))})
    made.ir_version = ir_version
    return made


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_inputs_with_defaults_stay_but_for_what_is_converted(form):
    """From IR version 4 on a caller may give another bias; the weight, which is stored in low bits, is named."""
    made = _with_defaults(8)
    done = sqo.quantize(made, format=form)
    assert [one.name for one in done.model.graph.input] == ["x", "c"]
    assert "no inputs any more, since they are stored in low bits: W" in done.report.notes
    near(made, done)
    feeds = {"x": heavy((3, 64), 9), "c": heavy((48,), 5) + 7}
    assert sqnr(run(made, feeds)[0], run(done.model, feeds)[0]) > 30


def test_inputs_with_defaults_that_nobody_converts_stay():
    """A model of which only another layer is converted keeps both."""
    made = _with_defaults(8)
    made.graph.node.append(helper.make_node("MatMul", ["y", "V"], ["z"], name="other"))
    made.graph.initializer.append(numpy_helper.from_array(heavy((48, 32)), "V"))
    made.graph.output.append(value("z", ["b", 32]))
    done = sqo.quantize(made, exclude=["fc"])
    assert [one.name for one in done.model.graph.input] == ["x", "W", "c"]
    assert not any("no inputs any more" in note for note in done.report.notes)


@pytest.mark.parametrize(
    "again",
    [
        lambda made: sqo.quantize(made, format="matmulnbits").model,
        lambda made: (
            sqo.quantize(made, spec=QuantSpec(bits=8, clusters=1, layout="parallel"), activations="int8-tensor").model
        ),
        lambda made: sqo.quantize(made).model,
    ],
    ids=["matmulnbits", "integers", "qdq"],
)
def test_what_is_quantized_already_says_so(again, tmp_path):
    """Converted once more, a model names the reason, and where to go."""
    once = again(matmul())
    with pytest.raises(SourceError, match=r"holds nothing to convert \(.*quantized already; use the float model"):
        sqo.quantize(written(tmp_path, once), tmp_path / "out.onnx")


def test_quantized_tables_say_so(tmp_path):
    """The INT8 rows that a Gather takes are no shapes."""
    made = model(
        [helper.make_node("Gather", ["T", "x"], ["y"])],
        [value("x", [3], 7)],
        [value("y", [3, 64])],
        {"T": heavy((99, 64))},
    )
    once = sqo.quantize(made).model
    with pytest.raises(SourceError, match=r"holds nothing to convert \(1 x the weight is quantized already"):
        sqo.quantize(written(tmp_path, once), tmp_path / "out.onnx")
