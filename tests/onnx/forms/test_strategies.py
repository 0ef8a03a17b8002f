"""Every strategy in ONNX: the branches are the parts that the core makes, in both low-bit formats and as floats."""

from __future__ import annotations

import json
from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

import splitquant.onnx as sqo
from builders.onnx_models import (
    EXACT,
    FLOAT16,
    float_parts,
    heavy,
    matmul,
    model,
    ops,
    run,
    sqnr,
    value,
    weights_of,
)
from splitquant import QuantSpec
from splitquant.cli.main import app
from splitquant.core.split import quantize_array
from splitquant.onnx.forms import encode, residual

W, X = heavy((64, 48)), np.random.default_rng(9).standard_normal((16, 64)).astype(np.float32)


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
    assert len(done.report.changed) == 3
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


def test_groups_that_a_convolution_lacks_keep_the_rest_of_the_spec():
    """A convolution gets channels instead of groups, and everything else that was asked for."""
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="conv")
    made = model([node], [value("x", [1, 8, 9, 9])], [value("y", [1, 16, 7, 7])], {"W": heavy((16, 8, 3, 3))})
    spec = QuantSpec(4, 2, "magnitude", "group:16", layout="parallel", polish=False)
    (row,) = sqo.quantize(made, spec=spec).report.changed
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
        assert json.loads(report.read_text())["tensors"][0]["spec"]["strategy"] == "residual"
        firsts.append(float_parts(onnx.load(tmp_path / f"{name}.onnx"))[0])
    assert not np.array_equal(*firsts)
    out = tmp_path / "int8.onnx"
    words = ["quantize", str(tmp_path / "m.onnx"), "-o", str(out), "-q", "-k", "2", "--activations", "int8-tensor"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert ops(onnx.load(out))["MatMulInteger"] == 2


@pytest.mark.parametrize("verb", ["split", "quantize"])
def test_lloyd_on_the_command_line(verb, tmp_path):
    """The error is about ONNX, whichever the verb."""
    onnx.save(matmul(), tmp_path / "m.onnx")
    words = [verb, str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--strategy", "lloyd"]
    assert "no operator" in str(CliRunner().invoke(app, words).exception)


def test_float16_scales_of_residual_parts():
    """float16 weights keep float16 scales in every part."""
    done = sqo.quantize(matmul(W.astype(np.float16)), spec=SPECS[0]).model
    scales = [tensor for tensor in done.graph.initializer if tensor.name.endswith(".scale")]
    assert [tensor.data_type for tensor in scales] == [FLOAT16, FLOAT16]
    x = X.astype(np.float16)
    assert sqnr(x.astype(np.float32) @ W, run(done, {"x": x}, **EXACT)[0]) > 35
