"""INT8 activations: integer products of a quantized input, in standard operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    EXACT,
    heavy,
    matmul,
    model,
    ops,
    run,
    sqnr,
    value,
)
from splitquant import QuantSpec
from splitquant.core.split import quantize_array

W = heavy((64, 48))
X = np.random.default_rng(9).standard_normal((16, 64)).astype(np.float32)
INT8 = QuantSpec(8, 1, granularity="channel", symmetric=True)
RESIDUAL = QuantSpec(4, 2, "residual", "channel")
SPECS = [
    INT8,
    RESIDUAL,
    QuantSpec(2, 4, "residual", "channel"),
    QuantSpec(4, 3, "magnitude", "tensor", layout="parallel"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_int8_activations(spec):
    """All parts share one quantized input, and ONNX Runtime takes them to its integer kernels; the loss is activations' own."""
    both = sqo.quantize(matmul(), spec=spec, activations="int8-tensor")
    counts = ops(both.model)
    assert counts["DynamicQuantizeLinear"] == 1
    assert counts["MatMulInteger"] == spec.clusters
    checked = sqo.verify(matmul(), both.model, {"x": X})
    assert (checked.branches, checked.in_kernels) == (spec.clusters, spec.clusters)
    weights = sqo.quantize(matmul(), spec=spec).model
    alone = run(weights, {"x": X}, **EXACT)[0]
    assert sqnr(alone, run(both.model, {"x": X})[0]) > 36  # measured 39.5 to 43, whatever the weights are


def quantized_input(x):
    """What DynamicQuantizeLinear makes of an input, as its specification says."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("spec", [INT8, RESIDUAL, SPECS[3]], ids=str)
def test_integer_products_are_those_of_the_quantized_input(spec):
    """LAW: the result is the float product of the decoded input and the decoded weights, up to float32 rounding."""
    both = sqo.quantize(matmul(), spec=spec, activations="int8-tensor").model
    wanted = quantized_input(X) @ quantize_array(W, spec, axis=1).dequantize()
    assert sqnr(wanted, run(both, {"x": X})[0]) > 110


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_int8_activations_of_a_gemm(dtype, transposed):
    """Gemm with all its attributes, in float16 with Casts around the integer products."""
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc", transA=transposed, transB=1, alpha=0.5, beta=2.0)
    weight, bias = heavy((48, 64), dtype=dtype), heavy((48,), 1, dtype)
    x = (X.T.copy() if transposed else X).astype(dtype)
    made = model([node], [value("x", x.shape, data_type)], [value("y", [16, 48], data_type)], {"W": weight, "c": bias})
    done = sqo.quantize(made, spec=RESIDUAL, activations="int8-tensor")
    onnx.checker.check_model(done.model, full_check=True)
    wanted = 0.5 * X @ weight.astype(np.float32).T + 2 * bias.astype(np.float32)
    assert sqnr(wanted, run(done.model, {"x": x})[0]) > 36


@pytest.mark.parametrize(
    ("shape", "size", "attributes"),
    [
        ((16, 8, 3, 3), (1, 8, 9, 9), {"pads": [1, 1, 1, 1]}),
        ((16, 4, 3), (2, 8, 20), {"group": 2, "strides": [2]}),
        ((8, 1, 3, 3), (1, 8, 9, 9), {"group": 8, "auto_pad": "SAME_UPPER"}),
        ((6, 4, 2, 2, 2), (1, 4, 5, 5, 5), {}),
    ],
)
def test_int8_activations_of_a_convolution(shape, size, attributes):
    """ConvInteger with bias, groups, strides and pads (which are the zero_point of an input that has no zero in its middle)."""
    node = helper.make_node("Conv", ["x", "W", "c"], ["y"], name="conv", **attributes)
    made = model(
        [node], [value("x", size)], [value("y", [None] * len(size))], {"W": heavy(shape), "c": heavy(shape[:1])}
    )
    done = sqo.quantize(made, spec=RESIDUAL, activations="int8-tensor")
    onnx.checker.check_model(done.model, full_check=True)
    feeds = {"x": heavy(size, 3) + np.float32(0.5)}
    assert ops(done.model)["ConvInteger"] == 2
    assert sqnr(run(made, feeds)[0], run(done.model, feeds)[0]) > 34


def test_layers_without_an_integer_product_say_so():
    """ConvTranspose, and a weight on the left, keep float activations; the report has the reason."""
    nodes = [
        helper.make_node("ConvTranspose", ["x", "W"], ["t"], name="up"),
        helper.make_node("MatMul", ["L", "t"], ["y"], name="left"),
    ]
    made = model(
        nodes, [value("x", [1, 4, 5, 8])], [value("y", [1, 6, 16, 9])], {"W": heavy((4, 6, 2, 2)), "L": heavy((16, 6))}
    )
    done = sqo.quantize(made, activations="int8-tensor")
    reasons = {row.name: row.reason for row in done.report.outcomes}
    assert "no integer ConvTranspose" in reasons["up"]
    assert "the weight is the first input" in reasons["left"]
    feeds = {"x": heavy((1, 4, 5, 8), 3)}
    assert sqnr(run(made, feeds)[0], run(done.model, feeds, **EXACT)[0]) > 15


@pytest.mark.filterwarnings("ignore")
def test_openvino_runs_integer_products(tmp_path):
    """The operators are standard ones: OpenVINO computes the same."""
    openvino = pytest.importorskip("openvino")
    done = sqo.quantize(matmul(), spec=RESIDUAL, activations="int8-tensor").model
    onnx.save(done, tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert sqnr(run(done, {"x": X})[0], np.asarray(compiled({"x": X})[0])) > 50
