"""Every operator, in every form: the split model is the same function, the quantized one is near it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    TWO_PARTS,
    heavy,
    matmul,
    model,
    ops,
    run,
    sqnr,
    value,
)
from splitquant import QuantSpec


def gemm(trans_a=0, trans_b=0, alpha=1.0, beta=1.0, bias_shape=(48,)):
    weight = heavy((48, 64) if trans_b else (64, 48))
    node = helper.make_node(
        "Gemm",
        ["x", "W", *(["c"] if bias_shape is not None else [])],
        ["y"],
        name="fc",
        transA=trans_a,
        transB=trans_b,
        alpha=alpha,
        beta=beta,
    )
    weights = {"W": weight} | ({"c": heavy(bias_shape, 1)} if bias_shape is not None else {})
    return model([node], [value("x", [64, 5] if trans_a else [5, 64])], [value("y", [5, 48])], weights)


def conv(shape, spatial, op="Conv", **attributes):
    bias = heavy((shape[0] if op == "Conv" else shape[1] * attributes.get("group", 1),), 1)
    node = helper.make_node(op, ["x", "W", "c"], ["y"], name="conv", **attributes)
    channels = shape[1] * attributes.get("group", 1) if op == "Conv" else shape[0]
    made = model([node], [value("x", [1, channels, *spatial])], [value("y", None)], {"W": heavy(shape), "c": bias})
    return onnx.shape_inference.infer_shapes(made)


CASES = {
    "matmul": matmul,
    "matmul-3d-input": lambda: matmul(batch=("b", "s", 64)),
    "matmul-batched-weight": lambda: matmul(heavy((2, 64, 48)), batch=(2, 3, 64)),
    "matmul-odd": lambda: matmul(heavy((37, 31)), batch=("b", 37)),
    "matmul-constant-first": lambda: model(
        [helper.make_node("MatMul", ["W", "x"], ["y"], name="fc")],
        [value("x", [48, 7])],
        [value("y", [64, 7])],
        {"W": heavy((64, 48))},
    ),
    "gemm": gemm,
    "gemm-transB": lambda: gemm(trans_b=1),
    "gemm-transA": lambda: gemm(trans_a=1, bias_shape=None),
    "gemm-alpha-beta": lambda: gemm(trans_a=1, trans_b=1, alpha=0.5, beta=2.0, bias_shape=(5, 48)),
    "gemm-beta-0": lambda: gemm(beta=0.0, bias_shape=(1,)),
    "conv1d": lambda: conv((16, 8, 5), [20], dilations=[2], strides=[2]),
    "conv2d": lambda: conv((16, 8, 3, 3), [9, 9], pads=[1, 1, 1, 1]),
    "conv2d-groups": lambda: conv((16, 4, 3, 3), [9, 9], group=2),
    "conv2d-depthwise": lambda: conv((16, 1, 5, 5), [9, 9], group=16),
    "conv3d": lambda: conv((8, 4, 3, 3, 3), [5, 5, 5]),
    "conv-transpose": lambda: conv((8, 12, 3, 3), [6, 6], "ConvTranspose", strides=[2, 2]),
    "conv-transpose-groups": lambda: conv((8, 6, 3, 3), [6, 6], "ConvTranspose", group=2),
}


@pytest.fixture(params=list(CASES))
def layer(request):
    return CASES[request.param]()


def feeds(proto, seed=0):
    return {
        one.name: np.random.default_rng(seed)
        .standard_normal([dim.dim_value or 3 for dim in one.type.tensor_type.shape.dim])
        .astype(np.float32)
        for one in proto.graph.input
    }


def test_split_is_the_same_function(layer):
    """The sum of the branches is the layer, to float32 rounding; weights are not expanded to a sum in the graph."""
    done = sqo.split(layer)
    onnx.checker.check_model(done.model)
    (outcome,) = [node for node in done.report.outcomes if node.weight == "W"]
    assert (outcome.outcome, outcome.parts) == ("split", 3)
    assert sqnr(run(layer, feeds(layer))[0], run(done.model, feeds(layer))[0]) > 110
    assert ops(done.model)["Sum"] == 1


def test_float_parts_sum_to_the_weight_exactly(layer):
    """Each weight is in one part, unchanged, and zero in the others."""
    weights = {proto.name: numpy_helper.to_array(proto) for proto in layer.graph.initializer}
    parts = [
        numpy_helper.to_array(proto)
        for proto in sqo.split(layer).model.graph.initializer
        if proto.name.startswith("W.part")
    ]
    np.testing.assert_array_equal(sum(parts), weights["W"])
    assert (sum((part != 0).astype(int) for part in parts) <= 1).all()


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (QuantSpec(bits=8, clusters=1), 36),
        (QuantSpec(bits=4, layout="parallel"), 19),
        (QuantSpec(bits=4, layout="parallel", granularity="tensor"), 14),
        (QuantSpec(bits=4, clusters=2, layout="parallel", granularity="group:16"), 18),
        (QuantSpec(bits=3, layout="parallel", symmetric=True), 9),
        (QuantSpec(bits=2, layout="parallel"), 6),
    ],
    ids=str,
)
def test_quantized_is_near(layer, form, spec, least):
    """Every form runs in ONNX Runtime and is as near as its bits allow; the codes are what the report says."""
    done = sqo.quantize(layer, spec=spec, format=form)
    onnx.checker.check_model(done.model)
    (outcome,) = [node for node in done.report.outcomes if node.weight == "W"]
    if outcome.outcome == "kept":
        assert "would not get smaller" in outcome.reason
        return
    assert outcome.figures.sqnr_db > least
    assert sqnr(run(layer, feeds(layer))[0], run(done.model, feeds(layer))[0]) > least - 3


def test_dequantized_parts_are_the_core_tensor():
    """The integer tensors of QDQ stand for exactly the levels of SplitTensor (per tensor: no rounding of scales)."""
    from splitquant import quantize_array

    spec = QuantSpec(bits=4, layout="parallel", granularity="tensor")
    weight = heavy((64, 48))
    done = sqo.quantize(matmul(weight), spec=spec)
    tensors = {proto.name: numpy_helper.to_array(proto) for proto in done.model.graph.initializer}
    total = sum(
        tensors[f"W.part{c}.scale"]
        * (tensors[f"W.part{c}"].astype(np.float32) - tensors[f"W.part{c}.zero_point"].astype(np.float32))
        for c in range(3)
    )
    np.testing.assert_array_equal(total.astype(np.float32), quantize_array(weight, spec, axis=1).dequantize())


def test_matmulnbits_bytes():
    """MatMulNBits holds code j of a row in nibble j % 2 of byte j // 2, and the padding of a block is the code of zero."""
    weight = np.zeros((18, 16), np.float32)
    weight[:, 0] = np.arange(18) - 2
    spec = QuantSpec(bits=4, clusters=1, granularity="tensor")
    done = sqo.quantize(matmul(np.tile(weight, (1, 8)), batch=("b", 18)), spec=spec, format="matmulnbits")
    codes = {proto.name: numpy_helper.to_array(proto) for proto in done.model.graph.initializer}["W.part0"]
    assert codes.shape == (128, 1, 16)
    nibbles = np.stack([codes[0, 0] & 15, codes[0, 0] >> 4], 1).reshape(-1)
    np.testing.assert_array_equal(nibbles[:4], [0, 1, 2, 3])
    np.testing.assert_array_equal(nibbles[18:], 2)


@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16])
def test_half_weights(data_type):
    """float16 and bfloat16 weights are split exactly and quantized with a Cast where scales stay float32."""
    wide = numpy_helper.to_array(numpy_helper.from_array(heavy((64, 64))))
    proto = helper.make_tensor("W", data_type, wide.shape, wide.ravel().tolist())
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")
    made = model([node], [value("x", [3, 64], data_type)], [value("y", [3, 64], data_type)], [proto], opset=17)
    parts = [numpy_helper.to_array(one).astype(np.float32) for one in sqo.split(made).model.graph.initializer]
    np.testing.assert_array_equal(sum(parts), numpy_helper.to_array(proto).astype(np.float32))
    done = sqo.quantize(made, spec=TWO_PARTS)
    assert done.report.outcomes[0].figures.sqnr_db > 20
    assert ops(done.model).get("Cast", 0) == (0 if data_type == FLOAT16 else 2)
    onnx.checker.check_model(done.model, full_check=True)
    if data_type == FLOAT16:
        x = heavy((3, 64), 2, np.float16)
        assert sqnr(run(made, {"x": x})[0], run(done.model, {"x": x})[0]) > 18


def test_embedding_is_gathered_as_codes():
    """Gather reads INT8 rows and their scales: the table is never expanded, negative indices included."""
    table = heavy((40, 32))
    node = helper.make_node("Gather", ["E", "ids"], ["y"], name="embed")
    made = model([node], [value("ids", [2, 3], TensorProto.INT64)], [value("y", [2, 3, 32])], {"E": table})
    done = sqo.quantize(made)
    onnx.checker.check_model(done.model, full_check=True)
    ids = np.array([[0, 5, 39], [-1, 7, -40]])
    assert sqnr(table[ids], run(done.model, {"ids": ids})[0]) > 38
    assert done.report.outcomes[0].form == "Gather"
    assert sqo.quantize(made, embeddings="keep").report.outcomes[0].reason == "embeddings are kept"


@pytest.mark.parametrize(("bits", "least"), [(4, 15), (2, 1)])
def test_embeddings_below_8_bits(bits, least):
    """A table of 4 or 2 bits is stored in as many: DequantizeLinear, then Gather."""
    table = heavy((40, 32))
    node = helper.make_node("Gather", ["E", "ids"], ["y"], name="embed")
    made = model([node], [value("ids", [2, 3], TensorProto.INT64)], [value("y", [2, 3, 32])], {"E": table})
    done = sqo.quantize(made, embeddings=bits)
    onnx.checker.check_model(done.model, full_check=True)
    ids = np.array([[0, 5, 39], [-1, 7, -40]])
    assert sqnr(table[ids], run(done.model, {"ids": ids})[0]) > least
    assert done.report.outcomes[0].stored_bytes == 40 * 32 * bits // 8 + 40 * 4


def test_included_embeddings_are_quantized():
    """A pattern wins over `embeddings="keep"`: the table gets 8 bits."""
    node = helper.make_node("Gather", ["E", "ids"], ["y"], name="embed")
    made = model([node], [value("ids", [3], TensorProto.INT64)], [value("y", [3, 32])], {"E": heavy((40, 32))})
    (found,) = sqo.quantize(made, embeddings="keep", include=["E"]).report.outcomes
    assert (found.outcome, found.form, found.reason) == ("quantized", "Gather", "included by 'E'")


def test_all_zero_and_constant_weights():
    """A weight with no range quantizes to itself."""
    for weight in (np.zeros((64, 48), np.float32), np.full((64, 48), 0.5, np.float32)):
        for form in ("qdq", "matmulnbits"):
            done = sqo.quantize(matmul(weight), format=form)
            x = heavy((3, 64), 3)
            np.testing.assert_allclose(run(done.model, {"x": x})[0], x @ weight, atol=0.02)
    assert FLOAT == 1
