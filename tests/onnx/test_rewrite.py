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
)


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
