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
    assert sum(proto.name.startswith("W.part") for proto in done.model.graph.initializer) == 6
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


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
@pytest.mark.parametrize("op", ["Loop", "Scan"])
@pytest.mark.parametrize("external", [False, True])
def test_loop_and_scan(form, op, external, tmp_path):
    """Weights inside the body of a Loop or Scan, and those it captures, are converted; three rounds give the same."""
    inner = numpy_helper.from_array(heavy((64, 64), 1), "inner")
    steps = [
        helper.make_node("MatMul", ["h", "outer"], ["a"], name="body.outer"),
        helper.make_node("MatMul", ["a", "inner"], ["b"], name="body.inner"),
        helper.make_node("Tanh", ["b"], ["h.next"]),
    ]
    bool_type = TensorProto.BOOL
    if op == "Loop":
        steps.append(helper.make_node("Identity", ["go"], ["go.next"]))
        takes = [value("round", [], TensorProto.INT64), value("go", [], bool_type), value("h", ["b", 64])]
        gives = [value("go.next", [], bool_type), value("h.next", ["b", 64])]
        body = helper.make_graph(steps, "body", takes, gives, [inner])
        node = helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body, name="loop")
        inputs, extra = [value("x", ["b", 64])], [numpy_helper.from_array(np.array(3), "rounds")]
    else:
        steps[0].input[0] = "sum"
        steps.insert(0, helper.make_node("Add", ["h", "each"], ["sum"]))
        steps.append(helper.make_node("Identity", ["h.next"], ["seen"]))
        body = helper.make_graph(
            steps,
            "body",
            [value("h", ["b", 64]), value("each", ["b", 64])],
            [value("h.next", ["b", 64]), value("seen", ["b", 64])],
            [inner],
        )
        node = helper.make_node("Scan", ["x", "xs"], ["y", "all"], body=body, num_scan_inputs=1, name="scan")
        inputs, extra = [value("x", ["b", 64]), value("xs", [3, "b", 64])], []
    outputs = [value(name, ["b", 64] if name == "y" else [3, "b", 64]) for name in node.output]
    made = model([node], inputs, outputs, [numpy_helper.from_array(heavy((64, 64)), "outer"), *extra])
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(made, source, save_as_external_data=external, size_threshold=0)
    done = sqo.split(source, out) if form == "float" else sqo.quantize(source, out, format=form)
    onnx.checker.check_model(str(out))
    assert [(entry.node, entry.weight) for entry in done.report.converted] == [
        ("body.outer", "outer"),
        ("body.inner", "inner"),
    ]
    feeds = {"x": X, "xs": heavy((3, 3, 64), 4)} if op == "Scan" else {"x": X}
    for wanted, got in zip(run(source, feeds), run(out, feeds), strict=True):
        assert sqnr(wanted, got) > (100 if form == "float" else 12)


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
    converted, kept = done.report.nodes
    assert (kept.weight, kept.node, kept.op_type) == ("W", "einsum", "Einsum")
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
    assert [node.outcome for node in report.nodes] == ["quantized", "quantized", "kept", "kept"]
    assert sum(node.source_bytes for node in report.nodes) == 4 * (96 * 64 + 96 * 96)
    assert sum(node.stored_bytes for node in report.kept) == 4 * 96 * 96
    assert report.nodes[3].reason.endswith("shares its weight with a node before")


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


@pytest.mark.parametrize("external", [False, True])
def test_functions_that_cannot_be_inlined(external, tmp_path, monkeypatch):
    """A local function that the inliner leaves is kept and still runs; a note and a row for each weight say so."""
    monkeypatch.setattr("onnx.inliner.inline_local_functions", lambda given, **_: given)
    made = matmul()
    constant = numpy_helper.from_array(heavy((48, 48), 1))
    body = [helper.make_node("Constant", [], ["C"], value=constant), helper.make_node("MatMul", ["a", "C"], ["b"])]
    made.functions.append(helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.graph.node[0].output[0] = "h"
    made.graph.node.append(helper.make_node("Block", ["h"], ["y"], domain="local"))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=external, size_threshold=0)
    done = sqo.split(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert "1 local functions stay as they are" in done.report.notes[0]
    (kept,) = done.report.kept
    assert (kept.weight, kept.reason) == ("C", "in the local function 'Block', which cannot be inlined")
    assert kept.source_bytes == kept.stored_bytes == 48 * 48 * 4
    assert sqnr(run(tmp_path / "m.onnx", {"x": X})[0], run(tmp_path / "out.onnx", {"x": X})[0]) > 100


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


def test_subgraphs_and_types_survive_the_converter():
    """A raised opset keeps the metadata of subgraphs and values, and what types and axes are called."""
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("yes", "outer"), else_branch=branch("no", "outer"))
    inputs = [value("x", ["b", 64]), value("c", [], TensorProto.BOOL)]
    made = model([node], inputs, [value("y", None)], {"outer": heavy((64, 48))}, opset=17)
    inner = made.graph.node[0].attribute[0].g
    for part in (inner, inner.output[0], made.graph.input[0]):
        part.metadata_props.add(key="made", value="by us")
    made.graph.input[0].type.denotation = "TENSOR"
    made.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    name = made.graph.node[0].attribute[0].name
    done = sqo.quantize(made).model
    (found,) = [attribute.g for attribute in done.graph.node[0].attribute if attribute.name == name]
    for part in (found, found.output[0], done.graph.input[0]):
        assert [entry.value for entry in part.metadata_props] == ["by us"]
    assert done.graph.input[0].type.denotation == "TENSOR"
    assert done.graph.input[0].type.tensor_type.shape.dim[0].denotation == "DATA_BATCH"


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
@pytest.mark.parametrize("name", ["", "value"])
def test_constant_nodes_whose_values_have_one_name(form, name):
    """Exporters leave the tensors in Constant nodes without a name, or give all of them the same: they stay different weights."""
    weights = {"A": heavy((64, 64)), "B": heavy((64, 64), 1)}
    nodes = [
        helper.make_node("Constant", [], [at], value=numpy_helper.from_array(w, name)) for at, w in weights.items()
    ]
    nodes += [
        helper.make_node("MatMul", ["x", "A"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "B"], ["y"], name="two"),
    ]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 64])])
    done = sqo.split(made) if form == "float" else sqo.quantize(made, format=form)
    near(made, done)
    assert [(row.weight, row.reason) for row in done.report.nodes] == [("A", ""), ("B", "")]


def test_a_weight_that_the_graph_returns():
    """The report says why it is there beside its parts."""
    made = matmul()
    made.graph.output.append(value("W", [64, 48]))
    reasons = {row.reason for row in sqo.quantize(made).report.kept}
    assert reasons == {"an output of the graph; the parts of it are for others"}


def test_names_with_brackets():
    """A name is its own pattern, whatever it means as a glob; a text is one pattern, not one per letter."""
    made = matmul()
    made.graph.node[0].input[1] = made.graph.initializer[0].name = "l[0].w"
    assert not sqo.split(made, exclude=["l[0].w"]).report.converted
    assert not sqo.split(made, exclude="l*").report.converted
    with pytest.raises(SpecError, match=r"'zzz\*' matches none"):
        sqo.split(made, exclude="zzz*")


def test_options_of_matmulnbits_elsewhere():
    """What only MatMulNBits has is refused in QDQ; so is a block size that is no number."""
    for said in ({"block_size": 32}, {"accuracy_level": 1}):
        with pytest.raises(SpecError, match="they are of matmulnbits"):
            sqo.quantize(matmul(), **said)
    with pytest.raises(SpecError, match="power of two"):
        sqo.quantize(matmul(), format="matmulnbits", block_size="32")
