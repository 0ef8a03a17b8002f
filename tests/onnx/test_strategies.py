"""Every strategy in ONNX: the branches are the parts that the core makes, in both low-bit formats and as floats."""

from __future__ import annotations

import json
from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import FLOAT16, heavy, matmul, model, ops, run, sqnr, value
from typer.testing import CliRunner

import splitquant.onnx as sqo
from splitquant import QuantSpec
from splitquant.cli.main import app
from splitquant.core.split import quantize_array
from splitquant.errors import SpecError
from splitquant.onnx import encode, residual

W, X = heavy((64, 48)), np.random.default_rng(9).standard_normal((16, 64)).astype(np.float32)
EXACT = {"session__qdq_matmulnbits_accuracy_level": "1"}
SPECS = [
    QuantSpec(4, 2, "residual", "channel"),
    QuantSpec(4, 2, "residual", "channel", symmetric=True),
    QuantSpec(4, 2, "residual", "tensor"),
    QuantSpec(3, 2, "residual", "tensor", symmetric=True),
    QuantSpec(2, 4, "residual", "channel"),
    QuantSpec(2, 3, "residual", "group:16", symmetric=True),
    QuantSpec(4, 2, "magnitude", "channel", layout="parallel"),
    QuantSpec(4, 3, "magnitude", "tensor", layout="parallel"),
    QuantSpec(2, 3, "magnitude", "group:16", layout="parallel"),
    QuantSpec(4, 3, "min_error", "channel", layout="parallel", polish=False),
]
specs = pytest.mark.parametrize("spec", SPECS, ids=str)


def weights_of(proto, eye=64):
    """The weight of every branch of a MatMul, found by running it on the identity."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    (total,) = (node for node in copy.graph.node if node.op_type == "Sum")
    copy.graph.output.extend(value(name, None) for name in total.input)
    return run(copy, {"x": np.eye(eye, dtype=np.float32)}, **EXACT)[1:]


def float_parts(proto):
    """The float parts in a split model, by name; bfloat16 as float32."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [tensors[name].astype(np.float32) for name in sorted(tensors) if ".part" in name]


@specs
@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_the_branches_are_the_parts_of_the_core(form, spec):
    """Each branch holds what `SplitTensor.parts()` has for it, and the report has the core's figures."""
    done = sqo.quantize(matmul(), spec=spec, format=form)
    split = quantize_array(W, spec, axis=1)
    wanted, got = split.parts(), weights_of(done.model)
    assert len(got) == spec.clusters
    for ours, theirs in zip(got, wanted, strict=True):
        assert np.allclose(ours, theirs, rtol=2e-6, atol=2e-7)  # kernels subtract the zero_point in their sums
    assert done.report.figures.noise == pytest.approx(split.figures.noise, rel=1e-9)
    assert sqo.verify(matmul(), done.model).in_kernels == spec.clusters


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[4], SPECS[6]], ids=str)
def test_other_layers(spec):
    """Gemm, Conv and ConvTranspose: the outputs are as near as the weights."""
    made = model(
        [
            helper.make_node("Conv", ["x", "A", "a"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("ConvTranspose", ["c", "B"], ["t"], name="up", strides=[2, 2]),
            helper.make_node("Flatten", ["t"], ["f"]),
            helper.make_node("Gemm", ["f", "G", "g"], ["y"], name="fc", transB=1),
        ],
        [value("x", [1, 4, 5, 5])],
        [value("y", [1, 10])],
        {
            "A": heavy((16, 4, 3, 3)),
            "a": heavy((16,)),
            "B": heavy((16, 6, 2, 2), 1),
            "G": heavy((10, 600), 2),
            "g": heavy((10,)),
        },
    )
    done = sqo.quantize(made, spec=spec)
    assert len(done.report.converted) == 3
    feeds = {"x": heavy((1, 4, 5, 5), 3)}
    near = sqnr(run(made, feeds)[0], run(done.model, feeds, **EXACT)[0])
    assert near > done.report.figures.sqnr_db - 6
    split = sqo.split(made, spec=spec).model
    assert sqnr(run(made, feeds)[0], run(split, feeds)[0]) > 110


@specs
def test_float_parts(spec):
    """LAW: in float32 the parts sum to the weight bit for bit; all but residual ones are disjoint."""
    parts = float_parts(sqo.split(matmul(), spec=spec).model)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert np.array_equal(total, W)
    held = sum((part != 0).astype(int) for part in parts)
    assert (held.max() == 1) == (spec.strategy != "residual")


def test_parts_by_magnitude():
    """magnitude: every weight of a part is smaller than every weight of the next."""
    parts = float_parts(
        sqo.split(matmul(), spec=QuantSpec(clusters=3, strategy="magnitude", granularity="tensor")).model
    )
    ranges = [np.abs(part[part != 0]) for part in parts]
    assert all(inner.max() <= outer.min() for inner, outer in pairwise(ranges))


def test_a_residual_part_has_few_levels():
    """residual: all parts but the last lie on grids of 2**bits levels per channel."""
    *rounded, rest = float_parts(sqo.split(matmul(), spec=QuantSpec(2, 3, "residual", "channel")).model)
    assert all(len(np.unique(column)) <= 4 for part in rounded for column in part.T)
    assert len(np.unique(rest)) > 1000


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_residual_parts_in_16_bits(dtype):
    """In 16 bits the sum of the parts is the weight within one rounding, and nearly always exactly it."""
    weight = heavy((64, 48)).astype(dtype)
    made = matmul(weight)
    for spec in (QuantSpec(4, 2, "residual", "channel"), QuantSpec(2, 3, "residual", "tensor", symmetric=True)):
        parts = float_parts(sqo.split(made, spec=spec).model)
        total = sum(part.astype(np.float64) for part in parts).astype(dtype)
        same = total == weight
        assert same.mean() > 0.99
        ulp = np.spacing(np.abs(weight).astype(dtype)).astype(np.float64)
        assert (np.abs(total.astype(np.float64) - weight.astype(np.float64)) <= ulp).all()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_residual_parts_do_not_depend_on_windows(granularity, monkeypatch):
    """LAW: the same bytes, in whatever windows a weight is worked on."""
    spec = QuantSpec(2, 4, "residual", granularity)
    whole = sqo.split(matmul(), spec=spec).model.SerializeToString()
    monkeypatch.setattr(encode, "_CHUNK_WEIGHTS", 8 * 64)
    monkeypatch.setattr(residual, "_BLOCK_WEIGHTS", 3 * 64)
    assert sqo.split(matmul(), spec=spec).model.SerializeToString() == whole


def test_a_split_is_never_polished():
    """Cells of fitted grids reach into each other, and a min-max quantizer would find wider ranges: polish does nothing."""
    one, other = (
        sqo.split(matmul(), spec=QuantSpec(4, 3, layout="parallel", polish=polish)) for polish in (True, False)
    )
    assert one.model.SerializeToString() == other.model.SerializeToString()


def test_what_onnx_cannot_say():
    """Free levels, and a full range where there is no residual part to lie on it."""
    with pytest.raises(SpecError, match=r"lloyd.*no operator.*use residual"):
        sqo.quantize(matmul(), spec=QuantSpec(4, 2, "lloyd"))
    with pytest.raises(SpecError, match=r"full_range.*residual and symmetric"):
        sqo.split(matmul(), spec=QuantSpec(4, 2, "residual"), full_range=True)


def test_groups_that_a_convolution_lacks_keep_the_rest_of_the_spec():
    """A convolution gets channels instead of groups, and everything else that was asked for."""
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="conv")
    made = model([node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 7, 7])], {"W": heavy((16, 8, 3, 3))})
    spec = QuantSpec(4, 2, "magnitude", "group:16", layout="parallel", polish=False)
    (row,) = sqo.quantize(made, spec=spec).report.converted
    assert row.spec == QuantSpec(4, 2, "magnitude", "channel", layout="parallel", polish=False)


def test_the_command_line(tmp_path):
    """split --strategy residual, in narrow and in full range; quantize --activations."""
    onnx.save(matmul(), tmp_path / "m.onnx")
    words = ["split", str(tmp_path / "m.onnx"), "--strategy", "residual", "-k", "2", "--bits", "4", "--symmetric"]
    firsts = []
    for name, more in (("narrow", []), ("full", ["--full-range"])):
        report = tmp_path / f"{name}.json"
        found = CliRunner().invoke(
            app, [*words, *more, "-o", str(tmp_path / f"{name}.onnx"), "-q", "--json", str(report)]
        )
        assert found.exit_code == 0, found.output
        assert json.loads(report.read_text())["nodes"][0]["spec"]["strategy"] == "residual"
        firsts.append(float_parts(onnx.load(tmp_path / f"{name}.onnx"))[0])
    assert not np.array_equal(*firsts)
    out = tmp_path / "int8.onnx"
    words = ["quantize", str(tmp_path / "m.onnx"), "-o", str(out), "-q", "--activations", "int8-tensor"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert ops(onnx.load(out))["MatMulInteger"] == 2


@pytest.mark.parametrize("verb", ["split", "quantize"])
def test_lloyd_on_the_command_line(verb, tmp_path):
    """The error is about ONNX, whichever the verb."""
    onnx.save(matmul(), tmp_path / "m.onnx")
    words = [verb, str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--strategy", "lloyd"]
    assert "no operator" in str(CliRunner().invoke(app, words).exception)


INT8 = QuantSpec(8, 1, granularity="channel", symmetric=True)


@pytest.mark.parametrize("spec", [INT8, SPECS[0], SPECS[4], SPECS[7]], ids=str)
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


@pytest.mark.parametrize("spec", [INT8, SPECS[0], SPECS[7]], ids=str)
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
    done = sqo.quantize(made, spec=SPECS[0], activations="int8-tensor")
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
    done = sqo.quantize(made, spec=SPECS[0], activations="int8-tensor")
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
    reasons = {row.node: row.reason for row in done.report.nodes}
    assert "no integer ConvTranspose" in reasons["up"]
    assert "the weight is the first input" in reasons["left"]
    feeds = {"x": heavy((1, 4, 5, 8), 3)}
    assert sqnr(run(made, feeds)[0], run(done.model, feeds, **EXACT)[0]) > 15


def test_activations_of_matmulnbits():
    """int8-token-sym is accuracy_level 4; what cannot be is an error that says what can."""
    done = sqo.quantize(matmul(), format="matmulnbits", activations="int8-token-sym").model
    assert {a.i for node in done.graph.node for a in node.attribute if a.name == "accuracy_level"} == {4}
    with pytest.raises(SpecError, match="leave it out"):
        sqo.quantize(matmul(), format="matmulnbits", activations="int8-token-sym", accuracy_level=1)
    with pytest.raises(SpecError, match=r"int8-tensor in the format qdq, int8-token-sym in the format matmulnbits"):
        sqo.quantize(matmul(), activations="int8-token-sym")
    with pytest.raises(SpecError, match="channel or tensor"):
        sqo.quantize(matmul(), spec=QuantSpec(granularity="group:16", layout="parallel"), activations="int8-tensor")


@pytest.mark.filterwarnings("ignore")
def test_openvino_runs_integer_products(tmp_path):
    """The operators are standard ones: OpenVINO computes the same."""
    openvino = pytest.importorskip("openvino")
    done = sqo.quantize(matmul(), spec=SPECS[0], activations="int8-tensor").model
    onnx.save(done, tmp_path / "m.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert sqnr(run(done, {"x": X})[0], np.asarray(compiled({"x": X})[0])) > 50


def test_float16_scales_of_residual_parts():
    """float16 weights keep float16 scales in every part."""
    done = sqo.quantize(matmul(W.astype(np.float16)), spec=SPECS[0]).model
    scales = [tensor for tensor in done.graph.initializer if tensor.name.endswith(".scale")]
    assert [tensor.data_type for tensor in scales] == [FLOAT16, FLOAT16]
    x = X.astype(np.float16)
    assert sqnr(x.astype(np.float32) @ W, run(done, {"x": x}, **EXACT)[0]) > 35
