"""Wherever a weight is, it is found: in constants, behind other nodes, in inner graphs."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    X,
    branch,
    heavy,
    matmul,
    model,
    near,
    ops,
    refused_source,
    run,
    sqnr,
    value,
    written,
)
from splitquant import QuantSpec


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
    assert done.report.outcomes[0].weight == "W"


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
    assert [entry.outcome == "kept" for entry in done.report.outcomes] == [False, False]
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
    assert [(entry.name, entry.weight) for entry in done.report.changed] == [
        ("body.outer", "outer"),
        ("body.inner", "inner"),
    ]
    feeds = {"x": X, "xs": heavy((3, 3, 64), 4)} if op == "Scan" else {"x": X}
    for wanted, got in zip(run(source, feeds), run(out, feeds), strict=True):
        assert sqnr(wanted, got) > (100 if form == "float" else 12)


def test_long_chains_before_a_weight():
    """A weight behind more nodes than Python calls may nest is found."""
    names = ["W", *(f"w{number}" for number in range(1500))]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
    made = matmul()
    made.graph.node[0].input[1] = names[-1]
    for node in reversed(nodes):
        made.graph.node.insert(0, node)
    assert len(sqo.split(made).report.changed) == 1


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
    assert [(row.weight, row.reason) for row in done.report.outcomes] == [("A", ""), ("B", "")]


def test_cycles_and_names(tmp_path):
    """Cycles, names made twice, outputs that nothing makes, initializers given twice."""
    loop = [helper.make_node("Add", ["b", "x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    refused_source(
        written(tmp_path, model(loop, [value("x", [1])], [value("b", [1])])), "reads 'b', which nothing before it makes"
    )
    twice = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["x"], ["a"])]
    refused_source(
        written(tmp_path, model(twice, [value("x", [1])], [value("a", [1])])), "makes 'a', which is there already"
    )
    refused_source(
        written(tmp_path, model([], [value("x", [1])], [value("a", [1])])), "returns 'a', which nothing makes"
    )
    double = matmul()
    double.graph.initializer.append(double.graph.initializer[0])
    refused_source(written(tmp_path, double), "is there twice")
