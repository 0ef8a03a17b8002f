"""Nodes as layers: whose weight is shared, what patterns may call them, what is listed with its reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    TWO_PARTS,
    branch,
    heavy,
    matmul,
    model,
    near,
    value,
)
from splitquant.errors import SpecError, TensorError
from splitquant.onnx.forms.options import OnnxForm
from splitquant.onnx.graph.scopes import open_scopes
from splitquant.onnx.layers import node_layers
from splitquant.onnx.wire.source import Source


def test_shared_weight_is_stored_once():
    """Two nodes of one weight share the tensors of its parts."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "W"], ["y"], name="two"),
    ]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])], {"W": heavy((64, 64))})
    done = sqo.quantize(made, spec=TWO_PARTS)
    near(made, done, least=12)
    assert sum(proto.name.startswith("W.part") for proto in done.model.graph.initializer) == 6
    assert "shares its weight" in done.report.outcomes[1].reason
    assert done.report.outcomes[1].stored_bytes == 0


def test_tied_embedding():
    """A table that is gathered and, transposed, multiplied gets INT8 rows for the one and parts for the other."""
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["h"], name="embed"),
        helper.make_node("Transpose", ["E"], ["Et"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "Et"], ["y"], name="head"),
    ]
    made = model(nodes, [value("ids", [5], TensorProto.INT64)], [value("y", [5, 96])], {"E": heavy((96, 64))})
    done = sqo.quantize(made, format="matmulnbits")
    near(made, done, {"ids": np.arange(5)})
    assert [node.form for node in done.report.outcomes] == ["Gather", "MatMulNBits"]
    assert "E" not in {proto.name for proto in done.model.graph.initializer}


def test_everything_else_is_listed():
    """Activations' products, other operators and vectors are listed with their reasons, nothing is skipped in silence."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="fc"),
        helper.make_node("Add", ["h", "bias"], ["a"], name="add"),
        helper.make_node("Mul", ["a", "S"], ["m"], name="mul"),
        helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["m", "t"], ["y"], name="attention"),
    ]
    weights = {"W": heavy((64, 48)), "bias": heavy((48,)), "S": heavy((3, 48))}
    made = model(nodes, [value("x", [3, 64])], [value("y", [3, 3])], weights)
    reasons = {entry.weight or entry.name: entry.reason for entry in sqo.quantize(made).report.kept}
    assert reasons == {
        "attention": "no input is a constant",
        "bias": "a scalar or vector (norm, bias, scale)",
        "S": "Mul is not split",
    }


@pytest.mark.parametrize("behind", [False, True])
def test_weights_that_a_kept_node_reads_too(behind):
    """A weight that stays for an Einsum is listed with its bytes, beside the parts that a MatMul has of it."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="fc"),
        helper.make_node("Einsum", ["h", "V" if behind else "W"], ["y"], equation="ij,jk->ik", name="einsum"),
    ]
    if behind:
        nodes.insert(0, helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0]))
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])], {"W": heavy((64, 64))})
    done = sqo.quantize(made)
    near(made, done)
    converted, kept = done.report.outcomes
    assert (kept.weight, kept.name, kept.kind) == ("W", "einsum", "Einsum")
    assert kept.reason == "Einsum is not split; the parts of it are for others"
    assert (converted.source_bytes, kept.source_bytes, kept.stored_bytes) == (64 * 64 * 4, 0, 64 * 64 * 4)


def test_every_weight_is_counted_once():
    """A weight in two forms, and one that two kept nodes read, add their bytes to the total once."""
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["h"], name="embed"),
        helper.make_node("Gemm", ["h", "E"], ["a"], transB=1, name="head"),
        helper.make_node("MatMul", ["a", "K"], ["b"], name="one"),
        helper.make_node("MatMul", ["b", "K"], ["y"], name="two"),
    ]
    weights = {"E": heavy((96, 64)), "K": heavy((96, 96))}
    made = model(nodes, [value("ids", [5], TensorProto.INT64)], [value("y", [5, 96])], weights)
    report = sqo.quantize(made, exclude=["K"]).report
    assert [node.outcome for node in report.outcomes] == ["quantized", "quantized", "kept", "kept"]
    assert sum(node.source_bytes for node in report.outcomes) == 4 * (96 * 64 + 96 * 96)
    assert sum(node.stored_bytes for node in report.kept) == 4 * 96 * 96
    assert report.outcomes[3].reason.endswith("shares its weight with a node before")


def test_include_and_exclude():
    """Patterns match node and weight names, `include` wins, and a pattern without a match is an error."""
    assert sqo.split(matmul(), exclude=["fc"]).report.outcomes[0].reason == "excluded by 'fc'"
    assert sqo.split(matmul(), exclude=["*"], include=["W"]).report.outcomes[0].outcome == "split"
    with pytest.raises(SpecError, match="matches none"):
        sqo.split(matmul(), exclude=["nothing*"])


def test_names_with_brackets():
    """A name is its own pattern, whatever it means as a glob; a text is one pattern, not one per letter."""
    made = matmul()
    made.graph.node[0].input[1] = made.graph.initializer[0].name = "l[0].w"
    assert not sqo.split(made, exclude=["l[0].w"]).report.changed
    assert not sqo.split(made, exclude="l*").report.changed
    with pytest.raises(SpecError, match=r"'zzz\*' matches none"):
        sqo.split(made, exclude="zzz*")


def test_patterns_match_the_output_of_a_constant_node():
    """The name that the report shows for a Constant node's unnamed tensor is the one that patterns and errors take."""
    weight = heavy((64, 48))
    constant = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(weight))
    nodes = [constant, helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 48])])
    assert not sqo.split(made, exclude=["W"]).report.changed
    weight[0, 0] = np.nan
    made.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(weight))
    with pytest.raises(TensorError, match=r"tensor 'W' holds NaN.*--exclude 'W'"):
        sqo.split(made)


def test_nan_names_the_tensor():
    """NaN in a weight is an error that names it and the way out."""
    weight = heavy((64, 48))
    weight[3, 4] = np.nan
    with pytest.raises(TensorError, match=r"tensor 'W' holds NaN.*--exclude 'W'"):
        sqo.quantize(matmul(weight))


def test_a_quantized_model_is_not_quantized_again():
    """Weights that come as codes are kept, and the reason says so."""
    done = sqo.quantize(sqo.quantize(matmul()).model)
    assert {node.reason for node in done.report.outcomes if node.kind == "MatMul"} == {
        "the weight is quantized already; use the float model it was made from"
    }


def test_a_weight_that_the_graph_returns():
    """The report says why it is there beside its parts."""
    made = matmul()
    made.graph.output.append(value("W", [64, 48]))
    reasons = {row.reason for row in sqo.quantize(made).report.kept}
    assert reasons == {"an output of the graph; the parts of it are for others"}


def layers_in(made, **storage):
    """The layers of a model, by name."""
    with Source(made) as source:
        return {found.layer.name: found for found in node_layers(open_scopes(source), OnnxForm(**storage))}


def test_what_patterns_may_call_a_layer():
    """The node and its weight, through whatever the weight passes until the node reads it."""
    nodes = [
        helper.make_node("Transpose", ["W"], ["Wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "Wt"], ["y"], name="fc"),
    ]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 48])], {"W": heavy((48, 64))})
    (found,) = layers_in(made).values()
    assert set(found.layer.names) == {"fc", "W"}
    for pattern in ("fc", "W", "W*", "f?"):
        assert sqo.split(made, exclude=pattern).report.outcomes[0].reason == f"excluded by {pattern!r}"


def test_nodes_of_one_name_are_told_apart():
    """Nodes need no name, and may share one: a plan file can name each, and patterns find them by what they are called."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["h"], name="fc"),
        helper.make_node("MatMul", ["h", "B"], ["i"], name="fc"),
        helper.make_node("MatMul", ["i", "C"], ["y"]),
    ]
    weights = {name: heavy((64, 64), number) for number, name in enumerate("ABC")}
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])], weights)
    assert list(layers_in(made)) == ["fc", "fc (2)", "y"]
    report = sqo.split(made, exclude="fc").report
    assert [(one.name, one.outcome) for one in report.outcomes] == [("fc", "kept"), ("fc", "kept"), ("y", "split")]
    assert [one.outcome for one in sqo.split(made, exclude="fc (2)").report.outcomes] == ["split", "kept", "split"]


def test_a_plan_file_names_each_of_them(tmp_path):
    nodes = [helper.make_node("MatMul", [a, w], [b], name="fc") for a, w, b in (("x", "A", "h"), ("h", "B", "y"))]
    made = model(
        nodes, [value("x", ["b", 64])], [value("y", ["b", 64])], {"A": heavy((64, 64)), "B": heavy((64, 64), 1)}
    )
    spec = {"bits": 4, "clusters": 1}
    (tmp_path / "p.json").write_text(json.dumps({"plan_version": 1, "tensors": {"fc (2)": spec}}))
    report = sqo.quantize(made, plan_file=tmp_path / "p.json").report
    assert [(one.weight, one.outcome) for one in report.changed + report.kept] == [("B", "quantized"), ("A", "kept")]


def test_whose_weight_is_shared():
    """Nodes of one graph that read a weight in the same way share its parts; others have parts of their own."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "W"], ["b"], name="two"),
        helper.make_node("Gemm", ["b", "W"], ["c"], transB=1, name="turned"),
        helper.make_node("Gather", ["W", "ids"], ["d"], name="rows"),
        helper.make_node("If", ["yes"], ["e"], then_branch=branch("in", "W"), else_branch=branch("out", "W")),
    ]
    inputs = [value("x", ["b", 64]), value("ids", [3], TensorProto.INT64), value("yes", [], TensorProto.BOOL)]
    outputs = [value(name, None) for name in ("c", "d", "e")]
    found = layers_in(model(nodes, inputs, outputs, {"W": heavy((64, 64))}))
    owners = {name: layer.layer.owner for name, layer in found.items()}
    assert owners == {name: name for name in owners} | {"two": "one"}
    assert {found[name].layer.role for name in ("one", "turned")} == {"linear"}
    assert found["rows"].layer.role == "embedding"


def test_constants_without_a_name_are_not_taken_for_one():
    """Two Constant nodes whose tensors have no name hold two weights."""
    nodes = [
        helper.make_node("Constant", [], [at], value=numpy_helper.from_array(heavy((64, 64), number), ""))
        for number, at in enumerate("AB")
    ]
    nodes += [helper.make_node("MatMul", [a, w], [b], name=b) for a, w, b in (("x", "A", "h"), ("h", "B", "y"))]
    found = layers_in(model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])]))
    assert {name: layer.layer.owner for name, layer in found.items()} == {"h": "h", "y": "y"}


@pytest.mark.parametrize("data_type", [TensorProto.DOUBLE, TensorProto.INT8, TensorProto.FLOAT8E4M3FN])
def test_weights_of_other_types_are_kept(data_type):
    """The reason says what the weight is in ONNX's words, the report in those of our table."""
    made = matmul()
    made.graph.initializer[0].CopyFrom(helper.make_tensor("W", data_type, [64, 48], np.ones(64 * 48)))
    made.graph.input[0].type.tensor_type.elem_type = made.graph.output[0].type.tensor_type.elem_type = data_type
    (found,) = layers_in(made).values()
    assert not found.layer.possible
    name = TensorProto.DataType.Name(data_type)
    assert found.layer.kept_because == f"the weight is {name}; float32, float16 and bfloat16 are split"
    assert found.layer.dtype == {"DOUBLE": "F64", "INT8": "I8", "FLOAT8E4M3FN": "F8_E4M3"}[name]


def test_a_gemm_is_laid_out_as_it_is_stored():
    """It becomes MatMul where codes are stored, and stays a Gemm where floats are."""
    node = helper.make_node("Gemm", ["x", "W"], ["y"], transB=1, name="fc")
    made = model([node], [value("x", ["b", 64])], [value("y", ["b", 48])], {"W": heavy((48, 64))})
    stored, split = layers_in(made)["fc"].layer, layers_in(made, format="float")["fc"].layer
    assert (stored.shape, stored.axis) == ((64, 48), 1)
    assert (split.shape, split.axis) == ((48, 64), 0)


def test_nothing_is_skipped_in_silence():
    """A node of a handled operator without a weight is a layer that cannot be quantized, whatever is asked for."""
    node = helper.make_node("MatMul", ["x", "z"], ["y"], name="attention")
    made = model([node], [value("x", [3, 64]), value("z", [64, 3])], [value("y", [3, 3])])
    (found,) = layers_in(made).values()
    assert (found.operand, found.layer.possible, found.layer.nbytes) == (None, False, 0)
    report = sqo.split(made, include="attention").report
    assert [(one.name, one.reason) for one in report.outcomes] == [("attention", "no input is a constant")]
