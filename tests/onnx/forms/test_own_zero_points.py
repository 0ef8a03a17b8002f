"""Zero_points of every channel or block, as ONNX Runtime reads them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from splitquant import QuantSpec
from splitquant.core.split import quantize_array

ort = pytest.importorskip("onnxruntime")


def model(w, kernels):
    """A product with `w` `[K, N]` and a depthwise convolution with `kernels`."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Conv", ["c", "k"], ["z"], group=len(kernels)),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("x", [None, len(w)]),
            ("c", [1, len(kernels), 9, 9]),
            ("y", [None, w.shape[1]]),
            ("z", [1, len(kernels), 7, 7]),
        )
    ]
    tensors = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(kernels, "k")]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(proto, feeds):
    """Both outputs, in ONNX Runtime."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["channel", "group:32"])
@pytest.mark.parametrize("cols", [96, 100])
@pytest.mark.parametrize("storage", [{"format": "qdq"}, {"format": "matmulnbits", "accuracy_level": 1}], ids=str)
def test_the_runtime_sees_the_same_weights(bits, granularity, cols, storage):
    """Outputs are those of the float model with the weights that the codes stand for; a last block may be short."""
    rng = np.random.default_rng(bits)
    w = (rng.standard_normal((cols, 48)) + rng.standard_normal((1, 48))).astype(np.float32)
    kernels = (rng.standard_normal((16, 1, 3, 3)) + rng.standard_normal((16, 1, 1, 1))).astype(np.float32)
    feeds = {
        "x": rng.standard_normal((4, cols)).astype(np.float32),
        "c": rng.standard_normal((1, 16, 9, 9)).astype(np.float32),
    }
    spec = QuantSpec(bits, 1, granularity=granularity, layout="parallel")
    made = sqo.quantize(model(w, kernels), spec=spec, **storage).model
    onnx.checker.check_model(made)
    rows = QuantSpec(bits, 1)  # groups are of 2-D weights only
    expected = run(model(quantize_array(w, spec, 1).dequantize(), quantize_array(kernels, rows).dequantize()), feeds)
    found = run(made, feeds)
    # ONNX Runtime may put x on int8 grids of its own where it fuses DequantizeLinear with MatMul.
    rough = 2e-2 if storage["format"] == "qdq" else 1e-5
    for one, other, room in zip(found, expected, (rough, 1e-5), strict=True):
        assert np.abs(one - other).max() <= room * np.abs(other).max()


def test_integer_products_share_one():
    """ConvInteger takes one zero_point for all channels."""
    rng = np.random.default_rng(1)
    w, kernels = (rng.standard_normal(shape).astype(np.float32) + 1 for shape in ((96, 8), (16, 1, 3, 3)))
    made = sqo.quantize(model(w, kernels), spec=QuantSpec(8, 1, layout="parallel"), activations="int8-tensor")
    assert {str(one.spec) for one in made.report.outcomes} == {"INT8 plain channel parallel shared polished"}
    points = [t for t in made.model.graph.initializer if t.name.endswith(".zero_point")]
    assert [numpy_helper.to_array(t).shape for t in points] == [(), ()]
