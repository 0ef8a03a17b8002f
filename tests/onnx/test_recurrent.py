"""Recurrent layers: both of their weights in low bits, each decoded before the layer."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import splitquant.onnx as sqo
from builders.onnx_models import heavy, model, near, ops, run, sqnr, value
from splitquant import QuantSpec

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _layer(op_type, directions=1, *, dtype=np.float32, hidden=24, width=16, computed=False):
    """A recurrent layer over a sequence; `computed` makes its weights from stored ones in every run."""
    gates = GATES[op_type] * hidden
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "W": heavy((directions, gates, width), 1, dtype),
        "R": heavy((directions, gates, hidden), 2, dtype),
        "B": heavy((directions, 2 * gates), 3, dtype),
    }
    nodes = [
        helper.make_node(
            op_type,
            ["x", "W", "R", "B"],
            ["y", "last"],
            name="rnn",
            hidden_size=hidden,
            direction="bidirectional" if directions == 2 else "forward",
        )
    ]
    if computed:
        for name in ("W", "R"):
            weights[f"{name}.flat"] = weights.pop(name)[0]
            nodes.insert(0, helper.make_node("Unsqueeze", [f"{name}.swapped", "zero"], [name]))
            nodes.insert(0, helper.make_node("Concat", [f"{name}.b", f"{name}.a"], [f"{name}.swapped"], axis=0))
            for part, ends in (("a", "head"), ("b", "tail")):
                nodes.insert(
                    0, helper.make_node("Slice", [f"{name}.flat", f"{ends}.0", f"{ends}.1", "zero"], [f"{name}.{part}"])
                )
        half = gates // 2
        more = {"zero": [0], "head.0": [0], "head.1": [half], "tail.0": [half], "tail.1": [gates]}
        weights.update({name: np.array(one, np.int64) for name, one in more.items()})
    outputs = [value("y", ["s", directions, "b", hidden], kind), value("last", [directions, "b", hidden], kind)]
    return model(nodes, [value("x", ["s", "b", width], kind)], outputs, weights)


FEEDS = {"x": heavy((6, 2, 16), 9)}


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(bits=8, clusters=1, layout="parallel"),
        QuantSpec(bits=4, clusters=2, strategy="residual", layout="parallel"),
        QuantSpec(bits=4, clusters=1, layout="parallel", symmetric=True),
        QuantSpec(bits=8, clusters=1, layout="parallel", granularity="tensor"),
    ],
    ids=str,
)
def test_both_weights_are_converted(op_type, directions, spec):
    """Outputs stay near, and the decoded weights explain what is lost."""
    made = _layer(op_type, directions)
    done = sqo.quantize(made, spec=spec)
    assert [outcome.name for outcome in done.report.changed] == ["rnn.W", "rnn.R"]
    near(made, done, FEEDS, least=10 if spec.bits * spec.clusters == 4 else 30)
    assert not {"W", "R"} & {proto.name for proto in done.model.graph.initializer}
    assert sqo.verify(made, done.model).branches == 2 * spec.clusters


def test_one_weight_alone():
    """Each weight has its name for patterns; that of the layer stands for both."""
    made = _layer("LSTM")
    for names, changed in ((["rnn.R"], ["rnn.W"]), (["W"], ["rnn.R"]), (["rnn"], [])):
        done = sqo.quantize(made, exclude=names)
        assert [outcome.name for outcome in done.report.changed] == changed
        near(made, done, FEEDS)


def test_formats_that_have_no_recurrent_layers_take_qdq():
    """MatMulNBits and integer products are for other layers, and say so; split has nothing to split."""
    made = _layer("GRU")
    for more in ({"format": "matmulnbits"}, {"activations": "int8-tensor"}):
        done = sqo.quantize(made, spec=QuantSpec(bits=8, clusters=1, layout="parallel"), **more)
        assert {outcome.form for outcome in done.report.changed} == {"QDQ"}
        near(made, done, FEEDS, least=30)
    assert not sqo.split(made).report.changed


def test_float16():
    """Codes with scales of float16 at 4 bits, and a Cast at 8."""
    made = _layer("LSTM", dtype=np.float16)
    for bits in (4, 8):
        near(made, sqo.quantize(made, spec=QuantSpec(bits=bits, clusters=1, layout="parallel")), FEEDS_HALF, least=10)


FEEDS_HALF = {"x": heavy((6, 2, 16), 9, np.float16)}


def test_weights_that_are_computed_from_constants():
    """Gates that Slice and Concat put into another order are put there once; the nodes and the stored order go."""
    made = _layer("LSTM", computed=True)
    done = sqo.quantize(made)
    assert any("Concat, Slice, Unsqueeze" in note for note in done.report.notes)
    assert [outcome.name for outcome in done.report.changed] == ["rnn.W", "rnn.R"]
    assert not {"Slice", "Concat", "Unsqueeze"} & set(ops(done.model))
    near(made, done, FEEDS, least=30)
    size, before = done.model.ByteSize(), made.ByteSize()
    assert size < before / 2


def _behind(op_type, weight, constant, **attributes):
    nodes = [
        helper.make_node(op_type, ["V", "c"], ["W"], **attributes),
        helper.make_node("MatMul", ["x", "W"], ["y"], name="fc"),
    ]
    return model(nodes, [value("x", [3, 64])], [value("y", [3, 48])], {"V": weight, "c": constant})


@pytest.mark.parametrize(
    "made",
    [
        _behind("Reshape", heavy((8, 8, 48)), np.array([64, 48])),
        _behind("Squeeze", heavy((1, 64, 48)), np.array([0])),
        _behind("Mul", heavy((64, 48)), np.float32(0.25)),
        _behind("Mul", heavy((64, 48)), np.abs(heavy((64, 1), 5)) + 1),
        _behind("Div", heavy((64, 48)), np.abs(heavy((1, 48), 5)) + 1),
    ],
    ids=["reshape", "squeeze", "mul", "mul-rows", "div-columns"],
)
@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_weights_behind_constants(made, form):
    """A weight that is reshaped or scaled by a constant is a weight."""
    done = sqo.quantize(made, format=form)
    assert [outcome.name for outcome in done.report.changed] == ["fc"]
    feeds = {"x": heavy((3, 64), 9)}
    assert sqnr(run(made, feeds)[0], run(done.model, feeds)[0]) > 30
    assert "V" not in {proto.name for proto in done.model.graph.initializer}
    near(made, sqo.split(made), feeds, least=90)


def test_weights_behind_inputs_stay():
    """What a caller may change is no constant; what grows by being made once is left too."""
    made = _behind("Mul", heavy((64, 48)), np.float32(0.25))
    made.graph.input.append(value("c", []))
    assert not sqo.quantize(made).report.changed
    grown = _behind("Mul", heavy((64, 1)), heavy((1, 48)))
    assert not sqo.quantize(grown).report.changed


def test_a_stored_weight_that_others_read_stays():
    """One that is read as it is stored too is there in both ways, and right in both."""
    made = _behind("Mul", heavy((64, 48)), np.float32(0.25))
    made.graph.node.append(helper.make_node("ReduceSum", ["V"], ["z"]))
    made.graph.output.append(value("z", [1, 1]))
    done = sqo.quantize(made)
    near(made, done, {"x": heavy((3, 64), 9)})
    assert "V" in {proto.name for proto in done.model.graph.initializer}
