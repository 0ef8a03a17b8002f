"""`--target` on the command line and in the library."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import splitquant
from builders.folders import tiny_folder
from splitquant.cli.main import app
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.targets import spec_for


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    tiny_folder(folder)
    return folder


@pytest.fixture
def model(tmp_path):
    """An ONNX model of one MatMul."""
    onnx = pytest.importorskip("onnx")
    weight = np.random.default_rng(0).standard_t(3, (64, 32)).astype(np.float32)
    graph = onnx.parser.parse_graph("g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, SpecError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.output


def linear_specs(plan):
    return {tensor.spec for tensor in plan.quantized if tensor.layer.role == "linear"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--target", "linear-sym"], spec_for("linear-sym")),
        (
            ["--target", "linear-sym", "--bits", "3", "--granularity", "tensor"],
            QuantSpec(3, 2, "residual", "tensor", symmetric=True),
        ),
        (["--target", "codebook"], QuantSpec(4, 1, "lloyd")),
        (["--target", "linear-asym", "--strategy", "kmeans"], QuantSpec(4, 3, "kmeans", layout="parallel")),
        (["--target", "qnn", "-k", "1"], QuantSpec(4, 1, symmetric=True, layout="parallel")),
    ],
)
def test_quantize_folder(source, tmp_path, options, expected):
    run("quantize", source, "-o", tmp_path / "out", "--json", tmp_path / "report.json", *options)
    report = json.loads((tmp_path / "report.json").read_text())
    specs = [tensor["spec"] for tensor in report["tensors"] if tensor["role"] == "linear" and tensor["spec"]]
    assert specs
    assert {QuantSpec.from_dict(spec) for spec in specs} == {expected}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "npu"], "target is 'npu'; expected one of linear-asym, linear-sym, codebook"),
        (["--target", "openvino", "--bits", "5"], "the target openvino .* cannot run codes of 5 bits"),
        (["--target", "linear-sym", "--layout", "fused", "--strategy", "lloyd"], "cannot run the strategy lloyd"),
        (
            ["--target", "tensorrt", "--embeddings", "4"],
            "embeddings INT4 .* the target tensorrt .* 'channel' at 4 bits",
        ),
        (
            ["--target", "onnxruntime", "--embeddings", "3", "--target-bits", "5"],
            "embeddings INT3 .* cannot run codes of 3 bits",
        ),
        (["--target", "linear-asym", "--strategy", "lloyd", "--target-bits", "4"], "cannot run the strategy lloyd"),
        (
            ["--target", "intel-npu", "--target-bits", "6", "--granularity", "group:64"],
            "cannot run granularity 'group:64' at 4 bits",
        ),
        (
            [
                "--target",
                "tensorrt",
                "--target-bits",
                "9",
                "--granularity",
                "channel",
                "--strategy",
                "residual",
                "-k",
                "2",
            ],
            "cannot run granularity 'channel' at 4 bits",
        ),
        (
            ["--target", "linear-sym", "--preset", "paper"],
            "the preset paper decides everything; leave it out, or the spec, the target or the size",
        ),
    ],
)
def test_refused(source, tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        raise SpecError(run("quantize", source, "-o", tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_a_plan_file_leaves_no_room_for_a_target(source, tmp_path):
    run("quantize", source, "-o", tmp_path / "out", "--dry-run", "--save-plan", tmp_path / "plan.json")
    told = run("quantize", source, "-o", tmp_path / "out", "--plan", tmp_path / "plan.json", "--target", "linear-sym")
    assert "leave out target" in told


def test_library(source, tmp_path):
    assert linear_specs(splitquant.dry_run(source, target="linear-sym")) == {splitquant.spec_for("linear-sym")}
    mine = QuantSpec(4, 3, "min_error", layout="parallel")
    assert linear_specs(splitquant.dry_run(source, mine, target="linear-asym")) == {mine}
    with pytest.raises(SpecError, match="cannot run asymmetric grids"):
        splitquant.quantize(source, tmp_path / "out", mine, target="linear-sym")


def test_embeddings_are_held_against_the_target(source):
    with pytest.raises(SpecError, match=r"embeddings INT5 .* cannot run indices of 5 bits"):
        splitquant.dry_run(source, target="coreml", embeddings=5)
    assert splitquant.dry_run(source, target="coreml", embeddings="keep").quantized


def test_budget_within_a_target(source):
    specs = linear_specs(splitquant.dry_run(source, target="ethos-u", target_bits=6.5))
    assert specs
    assert all(spec.symmetric and spec.zero_in_grid and spec.bits in (4, 8) for spec in specs)


def test_onnx(model, tmp_path):
    told = run("quantize", model, "-o", tmp_path / "q.onnx", "-v", "--target", "openvino")
    assert "INT8 plain channel parallel, 1 x QDQ" in told
    told = run("quantize", model, "-o", tmp_path / "c.onnx", "--target", "codebook")
    assert "ONNX has no operator" in told
    told = run("split", model, "-o", tmp_path / "s.onnx", "-v", "--target", "intel-npu")
    assert "split for INT4 k=3 magnitude channel symmetric parallel unpolished, 3 x float" in told
    told = run("split", model, "-o", tmp_path / "t.onnx", "--target", "coreml")
    assert "cannot run float parts" in told
