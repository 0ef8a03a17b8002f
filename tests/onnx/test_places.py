"""Wherever a weight is, it is found; whatever is not handled is listed with its reason."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import heavy, matmul, model, ops, run, sqnr, value

import splitquant.onnx as sqo
from splitquant import QuantSpec
from splitquant.errors import SourceError, SpecError, TensorError

X = heavy((3, 64), 9)


def near(before, done, feeds=None, least=15):
    onnx.checker.check_model(done.model)
    feeds = feeds or {"x": X}
    for wanted, got in zip(run(before, feeds), run(done.model, feeds), strict=True):
        assert sqnr(wanted, got) > least


def test_constant_node():
    """A weight in a Constant node is split, and the node goes away."""
    constant = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(heavy((64, 48))))
    made = model(
        [constant, helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")],
        [value("x", ["b", 64])],
        [value("y", ["b", 48])],
    )
    done = sqo.quantize(made)
    near(made, done)
    assert "Constant" not in ops(done.model)
    assert done.report.nodes[0].weight == "W"


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_behind_transpose_cast_identity(form):
    """A weight behind Transpose, Cast and Identity is read through them, and they go away."""
    nodes = [
        helper.make_node("Identity", ["W"], ["i"]),
        helper.make_node("Cast", ["i"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["c"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="fc"),
    ]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 48])], {"W": heavy((48, 64), dtype=np.float16)})
    spec = QuantSpec(bits=4, clusters=2, layout="parallel")
    done = sqo.quantize(made, spec=spec, format=form)
    near(made, done, least=12)
    assert not {"Transpose", "Cast", "Identity"} & ops(done.model).keys()
    assert [proto.name for proto in done.model.graph.initializer if proto.name == "W"] == []


def test_shared_weight_is_stored_once():
    """Two nodes of one weight share the tensors of its parts."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "W"], ["y"], name="two"),
    ]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])], {"W": heavy((64, 64))})
    done = sqo.quantize(made)
    near(made, done, least=12)
    assert sum(proto.name.startswith("W.part") for proto in done.model.graph.initializer) == 9
    assert "shares its weight" in done.report.nodes[1].reason
    assert done.report.nodes[1].stored_bytes == 0


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
    assert [node.form for node in done.report.nodes] == ["Gather", "MatMulNBits"]
    assert "E" not in {proto.name for proto in done.model.graph.initializer}


def test_initializers_among_the_inputs_are_taken_out():
    """Initializers that are listed as inputs are constants: they leave the inputs, and a note says so."""
    made = matmul()
    made.graph.input.append(value("W", [64, 48]))
    made.ir_version = 3
    done = sqo.split(made)
    assert [one.name for one in done.model.graph.input] == ["x"]
    assert any("among the graph inputs" in note for note in done.report.notes)
    assert done.model.ir_version >= 4
    near(made, done, least=100)


def branch(name, weight_name, extra=()):
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", weight_name], [f"{name}.out"], name=f"{name}.fc")],
        name,
        [],
        [value(f"{name}.out", None)],
        extra,
    )


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
@pytest.mark.parametrize("external", [False, True])
def test_subgraphs(form, external, tmp_path):
    """Weights inside If branches, and outer weights that a branch reads, are converted; both branches run."""
    inner = numpy_helper.from_array(heavy((64, 48), 1), "inner")
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("yes", "outer"), else_branch=branch("no", "inner", [inner])
    )
    made = model(
        [node],
        [value("x", ["b", 64]), value("c", [], TensorProto.BOOL)],
        [value("y", None)],
        {"outer": heavy((64, 48))},
    )
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(made, source, save_as_external_data=external, size_threshold=0)
    done = sqo.split(source, out) if form == "float" else sqo.quantize(source, out, format=form)
    assert [entry.outcome == "kept" for entry in done.report.nodes] == [False, False]
    for chosen in (True, False):
        feeds = {"x": X, "c": np.array(chosen)}
        assert sqnr(run(source, feeds)[0], run(out, feeds)[0]) > 15


def test_local_functions_are_inlined():
    """A layer in a local function, with its weight inside or as an argument, is converted; a note names the function."""
    constant = helper.make_node("Constant", [], ["V"], value=numpy_helper.from_array(heavy((48, 32), 1)))
    body = [
        constant,
        helper.make_node("MatMul", ["a", "w"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "V"], ["b"], name="second"),
    ]
    function = helper.make_function("local", "Block", ["a", "w"], ["b"], body, [helper.make_opsetid("", 17)])
    made = model(
        [helper.make_node("Block", ["x", "W"], ["y"], domain="local")],
        [value("x", ["b", 64])],
        [value("y", ["b", 32])],
        {"W": heavy((64, 48))},
    )
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("local", 1))
    done = sqo.quantize(made)
    near(made, done)
    assert len(done.report.converted) == 2
    assert any("Block" in note for note in done.report.notes)


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
    reasons = {entry.weight or entry.node: entry.reason for entry in sqo.quantize(made).report.kept}
    assert reasons == {
        "attention": "no input is a constant",
        "bias": "a scalar or vector (norm, bias, scale)",
        "S": "Mul is not split",
    }


def test_include_and_exclude():
    """Patterns match node and weight names, `include` wins, and a pattern without a match is an error."""
    assert sqo.split(matmul(), exclude=["fc"]).report.nodes[0].reason == "excluded by 'fc'"
    assert sqo.split(matmul(), exclude=["*"], include=["W"]).report.nodes[0].outcome == "split"
    with pytest.raises(SpecError, match="matches none"):
        sqo.split(matmul(), exclude=["nothing*"])


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


def test_opset_is_raised_as_far_as_needed():
    """8 bits stay at 13, INT4 asks for 21, INT2 for 25; split and MatMulNBits leave the opset alone."""

    def opset(done):
        return next(entry.version for entry in done.model.opset_import if entry.domain == "")

    made = matmul(opset=13)
    assert opset(sqo.split(made)) == 13
    assert opset(sqo.quantize(made, format="matmulnbits")) == 13
    assert opset(sqo.quantize(made, spec=QuantSpec(bits=8, clusters=1))) == 13
    assert opset(sqo.quantize(made)) == 21
    assert opset(sqo.quantize(made, spec=QuantSpec(bits=2, layout="parallel"))) == 25


def test_opset_that_cannot_be_raised():
    """An operator that the converter cannot raise is a clear error with the ways out."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("NoSuchOperator", ["h"], ["y"])]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 48])], {"W": heavy((64, 48))}, opset=13)
    with pytest.raises(SourceError, match=r"opset 13, its low-bit types need 21.*--format matmulnbits"):
        sqo.quantize(made)


def test_nan_names_the_tensor():
    """NaN in a weight is an error that names it and the way out."""
    weight = heavy((64, 48))
    weight[3, 4] = np.nan
    with pytest.raises(TensorError, match=r"tensor 'W' holds NaN.*--exclude 'W'"):
        sqo.quantize(matmul(weight))


def test_options_that_onnx_cannot_say():
    """Fused clusters, odd block sizes and unknown formats are refused before anything is read."""
    with pytest.raises(SpecError, match="layout='parallel'"):
        sqo.quantize(matmul(), spec=QuantSpec())
    with pytest.raises(SpecError, match="power of two"):
        sqo.quantize(matmul(), block_size=48)
    with pytest.raises(SpecError, match="expected one of qdq, matmulnbits"):
        sqo.quantize(matmul(), format="gguf")
    with pytest.raises(SpecError, match="powers of two"):
        sqo.quantize(matmul(), spec=QuantSpec(layout="parallel", granularity="group:24"), format="matmulnbits")


def test_a_quantized_model_is_not_quantized_again():
    """Weights that come as codes are kept, and the reason says so."""
    done = sqo.quantize(sqo.quantize(matmul()).model)
    assert {node.reason for node in done.report.nodes if node.op_type == "MatMul"} == {
        "the weight is quantized already; use the float model it was made from"
    }


@pytest.mark.parametrize("opset", [7, 9, 12])
def test_models_of_ir_version_3(opset):
    """Initializers among the inputs, in a model of the IR version that demands that, are constants in every form."""
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc")
    inputs = [value("x", ["b", 64]), value("W", [64, 48]), value("c", [48])]
    made = model([node], inputs, [value("y", ["b", 48])], {"W": heavy((64, 48)), "c": heavy((48,))}, opset=opset)
    made.ir_version = 3
    near(made, sqo.split(made), least=100)
    near(made, sqo.quantize(made))
    near(made, sqo.quantize(made, format="matmulnbits"))


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


def test_functions_of_another_opset():
    """A local function that was written for another opset is inlined too."""
    made = matmul()
    body = [helper.make_node("MatMul", ["a", "w"], ["b"], name="inner")]
    made.functions.append(
        helper.make_function("local", "Block", ["a", "w"], ["b"], body, [helper.make_opsetid("", 13)])
    )
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.graph.node[0].CopyFrom(helper.make_node("Block", ["x", "W"], ["y"], domain="local"))
    done = sqo.quantize(made)
    assert [node.op_type for node in done.report.converted] == ["MatMul"]
    assert "1 local functions were inlined" in done.report.notes[0]
    near(made, done)


def test_long_chains_before_a_weight():
    """A weight behind more nodes than Python calls may nest is found."""
    names = ["W", *(f"w{number}" for number in range(1500))]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
    made = matmul()
    made.graph.node[0].input[1] = names[-1]
    for node in reversed(nodes):
        made.graph.node.insert(0, node)
    assert len(sqo.split(made).report.converted) == 1


def test_patterns_match_the_output_of_a_constant_node():
    """The name that the report shows for a Constant node's unnamed tensor is the one that patterns and errors take."""
    weight = heavy((64, 48))
    constant = helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(weight))
    nodes = [constant, helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 48])])
    assert not sqo.split(made, exclude=["W"]).report.converted
    weight[0, 0] = np.nan
    made.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(weight))
    with pytest.raises(TensorError, match=r"tensor 'W' holds NaN.*--exclude 'W'"):
        sqo.split(made)


def test_functions_that_cannot_be_inlined(monkeypatch):
    """A local function that the inliner leaves is kept with its weights, and a note says so."""
    monkeypatch.setattr("onnx.inliner.inline_local_functions", lambda given, **_: given)
    made = matmul()
    body = [helper.make_node("Identity", ["a"], ["b"])]
    made.functions.append(helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    made.opset_import.append(helper.make_opsetid("local", 1))
    assert "1 local functions stay as they are" in sqo.split(made).report.notes[0]


def test_metadata_survives_the_converter():
    """A raised opset keeps the metadata of the model, its graph and its nodes."""
    made = matmul(opset=17)
    made.graph.node[0].output[0] = "h"
    made.graph.node.append(helper.make_node("Relu", ["h"], ["y"], name="relu"))
    for part in (made, made.graph, made.graph.node[1]):
        part.metadata_props.add(key="made", value="by us")
    done = sqo.quantize(made).model
    for part in (done, done.graph, done.graph.node[-1]):
        assert [entry.value for entry in part.metadata_props] == ["by us"]
