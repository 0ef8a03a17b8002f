"""Weights whose scales float16 cannot hold: decided before anything is written, in one go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import splitquant.onnx as sqo
from builders.onnx_models import (
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
from splitquant.errors import SourceError, TensorError
from splitquant.onnx import job, settle


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
@pytest.mark.parametrize("size", [1e-5, 1e-6])
def test_dead_channels_in_float16(form, size):
    """A channel whose scale float16 cannot hold gets the least scale that it can; the others stay as good as they are."""
    weight = heavy((256, 64), dtype=np.float16)
    weight[:, 3] = heavy((256,), 2) * 10 * size
    made = matmul(weight, batch=("b", 256))
    feeds = {"x": heavy((3, 256), 9, np.float16)}
    wanted, got = run(made, feeds)[0], run(sqo.quantize(made, format=form, spec=TWO_PARTS).model, feeds)[0]
    assert sqnr(wanted, got) > 15
    assert np.abs(got[:, 3].astype(np.float64) - wanted[:, 3]).max() < 1e-3


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_weights_too_small_for_float16_scales(form):
    """A weight none of whose scales float16 holds gets float32 scales, or is kept; the rest is as ever."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="fc"),
        helper.make_node("MatMul", ["h", "T"], ["y"], name="tiny"),
    ]
    weights = {"W": heavy((64, 64), dtype=np.float16), "T": (heavy((64, 64), 1) * 1e-5).astype(np.float16)}
    made = model(nodes, [value("x", [3, 64], FLOAT16)], [value("y", [3, 64], FLOAT16)], weights)
    done = sqo.quantize(made, format=form, spec=TWO_PARTS)
    onnx.checker.check_model(done.model)
    found = {node.weight: node for node in done.report.outcomes}
    assert (found["W"].outcome, found["W"].reason) == ("quantized", "")
    assert found["T"].outcome == ("quantized" if form == "qdq" else "kept")
    assert "too small for float16" in found["T"].reason
    assert ops(done.model).get("Cast", 0) == (2 if form == "qdq" else 0)
    x = heavy((3, 64), 2, np.float16) * np.float16(1000)
    assert sqnr(run(made, {"x": x})[0], run(done.model, {"x": x})[0]) > 12


def tiny(number, rows=64, cols=64):
    """float16 weights none of whose scales float16 can hold."""
    return (heavy((rows, cols), number) * 1e-5).astype(np.float16)


def chain(**weights):
    """MatMuls in float16, each called as its weight in lower case."""
    names = ["x", *(name.lower() + ".out" for name in weights)]
    nodes = [
        helper.make_node("MatMul", [names[at], name], [names[at + 1]], name=name.lower())
        for at, name in enumerate(weights)
    ]
    return model(nodes, [value("x", [3, 64], FLOAT16)], [value(names[-1], [3, 64], FLOAT16)], weights)


MIXED = {"W": heavy((64, 64), dtype=np.float16), "T": tiny(1), "V": heavy((64, 64), 2, np.float16), "U": tiny(3)}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("opset", [17, 21])
def test_in_one_go(tmp_path, monkeypatch, external, opset):
    """The model is put together once, every weight counts once, and what is written is what the report says."""
    made = chain(**MIXED)
    made.opset_import[0].version = opset
    path, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(made, path, save_as_external_data=external, location="m.data", size_threshold=0)
    begun, told = [], []
    original = job.Assembly.__init__

    def init(self, *args):
        begun.append(args)
        original(self, *args)

    monkeypatch.setattr(job.Assembly, "__init__", init)
    done = sqo.quantize(path, out, advance=told.append, spec=TWO_PARTS)
    assert len(begun) == 1
    assert sum(told) == sum(weight.nbytes for weight in MIXED.values())
    reasons = {one.name: one.reason for one in done.report.outcomes}
    assert {name for name, reason in reasons.items() if "too small for float16" in reason} == {"t", "u"}
    assert {one.outcome for one in done.report.outcomes} == {"quantized"}
    assert len(set(done.report.notes)) == len(done.report.notes) == (opset < 21)
    onnx.checker.check_model(str(out))
    scales = {t.name: t.data_type for t in onnx.load(out).graph.initializer if t.name.endswith(".scale")}
    assert {name[0]: data_type for name, data_type in scales.items()} == {
        "W": FLOAT16,
        "V": FLOAT16,
        "T": FLOAT,
        "U": FLOAT,
    }
    x = heavy((3, 64), 2, np.float16) * np.float16(1000)
    assert sqnr(run(path, {"x": x})[0], run(out, {"x": x})[0]) > 10
    assert ops(onnx.load(out))["Cast"] == 4


def test_the_model_in_memory_is_the_same(tmp_path):
    """Whether files are written or not, with any threads."""
    made = chain(**MIXED)
    onnx.save(made, tmp_path / "m.onnx")
    sqo.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", threads=3, spec=TWO_PARTS)
    assert sqo.quantize(made, threads=1, spec=TWO_PARTS).model == onnx.load(tmp_path / "q.onnx")


def test_a_weight_that_two_nodes_share(tmp_path):
    """What is found of it holds for both, and it is read once."""
    made = chain(T=tiny(1))
    made.graph.node.append(helper.make_node("MatMul", ["t.out", "T"], ["z"], name="again"))
    made.graph.output.append(value("z", [3, 64], FLOAT16))
    done = sqo.quantize(made, spec=TWO_PARTS)
    assert ["too small for float16" in one.reason for one in done.report.outcomes] == [True, True]
    assert [one.stored_bytes > 0 for one in done.report.outcomes] == [True, False]
    assert len([t for t in done.model.graph.initializer if t.name.endswith(".scale")]) == 2


def test_weights_of_float32_are_not_read_for_it(monkeypatch):
    """Only what would get float16 scales is looked at before."""
    looked = []
    original = settle.fits_half
    monkeypatch.setattr(settle, "fits_half", lambda form, budget: looked.append(form) or original(form, budget))
    sqo.quantize(matmul(), spec=TWO_PARTS)
    sqo.split(chain(**MIXED))
    sqo.quantize(chain(**MIXED), spec=QuantSpec(8, 1))
    assert looked == []
    sqo.quantize(chain(**MIXED), exclude="T", spec=TWO_PARTS)
    assert len(looked) == 3


def test_what_only_wide_scales_make_too_large_is_kept():
    """Whether a weight gets smaller is asked of the form that is written: float32 scales of 16 weights are half of it."""
    spec = QuantSpec(4, 3, granularity="group:16", layout="parallel")
    (one,) = sqo.quantize(chain(T=tiny(1)), spec=spec, include="T").report.outcomes
    assert one.source_bytes == 64 * 64 * 2
    assert one.stored_bytes <= one.source_bytes
    assert (one.outcome, "would not get smaller (9600 bytes instead of 8192)" in one.reason) == ("kept", True)


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_nan_is_found_there_too(tmp_path, form):
    """The error names the weight and helps, and nothing is written."""
    bad = tiny(1)
    bad[3, 3] = np.nan
    onnx.save(chain(W=MIXED["W"], T=bad), tmp_path / "m.onnx")
    with pytest.raises(TensorError, match=r"m\.onnx: tensor 'T' holds NaN.*--exclude 'T'$"):
        sqo.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", format=form, spec=TWO_PARTS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    report = sqo.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", format=form, exclude="T", spec=TWO_PARTS).report
    assert [one.outcome for one in report.outcomes] == ["quantized", "kept"]


def test_all_of_a_model_is_too_small_for_matmulnbits(tmp_path):
    """Where nothing is left to convert that is said, with the reason, and nothing is written."""
    onnx.save(chain(T=tiny(1)), tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"holds nothing to convert \(1 x its scales are too small for float16"):
        sqo.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", format="matmulnbits", spec=TWO_PARTS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
