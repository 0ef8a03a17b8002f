"""Opsets, IR versions and local functions: raised and inlined as far as it takes, and nothing lost by it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    TWO_PARTS,
    X,
    branch,
    heavy,
    matmul,
    model,
    near,
    refused_source,
    run,
    sqnr,
    value,
    written,
)
from splitquant import QuantSpec
from splitquant.errors import SourceError
from splitquant.onnx.graph.opset import raise_opset


def test_opset_is_raised_as_far_as_needed():
    """8 bits stay at 13, INT4 asks for 21, INT2 for 25; split and MatMulNBits leave the opset alone."""

    def opset(done):
        return next(entry.version for entry in done.model.opset_import if entry.domain == "")

    made = matmul(opset=13)
    assert opset(sqo.split(made)) == 13
    assert opset(sqo.quantize(made, format="matmulnbits", spec=TWO_PARTS)) == 13
    assert opset(sqo.quantize(made, spec=QuantSpec(bits=8, clusters=1))) == 13
    assert opset(sqo.quantize(made, spec=TWO_PARTS)) == 21
    assert opset(sqo.quantize(made, spec=QuantSpec(bits=2, layout="parallel"))) == 25


def test_opset_that_cannot_be_raised():
    """An operator that the converter cannot raise is a clear error with the ways out."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("NoSuchOperator", ["h"], ["y"])]
    made = model(nodes, [value("x", ["b", 64])], [value("y", ["b", 48])], {"W": heavy((64, 48))}, opset=13)
    with pytest.raises(SourceError, match=r"opset 13, its low-bit types need 21.*--format matmulnbits"):
        sqo.quantize(made, spec=TWO_PARTS)


@pytest.mark.parametrize("opset", [7, 9, 12])
def test_models_of_ir_version_3(opset):
    """Initializers among the inputs, in a model of the IR version that demands that, are constants in every form."""
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="fc")
    inputs = [value("x", ["b", 64]), value("W", [64, 48]), value("c", [48])]
    made = model([node], inputs, [value("y", ["b", 48])], {"W": heavy((64, 48)), "c": heavy((48,))}, opset=opset)
    made.ir_version = 3
    near(made, sqo.split(made), least=100)
    near(made, sqo.quantize(made, spec=TWO_PARTS))
    near(made, sqo.quantize(made, format="matmulnbits", spec=TWO_PARTS))


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
    done = sqo.quantize(made, spec=TWO_PARTS)
    near(made, done)
    assert len(done.report.changed) == 2
    assert any("Block" in note for note in done.report.notes)


def test_functions_of_another_opset():
    """A local function that was written for another opset is inlined too."""
    made = matmul()
    body = [helper.make_node("MatMul", ["a", "w"], ["b"], name="inner")]
    made.functions.append(
        helper.make_function("local", "Block", ["a", "w"], ["b"], body, [helper.make_opsetid("", 13)])
    )
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.graph.node[0].CopyFrom(helper.make_node("Block", ["x", "W"], ["y"], domain="local"))
    done = sqo.quantize(made, spec=TWO_PARTS)
    assert [node.kind for node in done.report.changed] == ["MatMul"]
    assert "1 local functions were inlined" in done.report.notes[0]
    near(made, done)


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
    done = sqo.quantize(made, spec=TWO_PARTS).model
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
    done = sqo.quantize(made, spec=TWO_PARTS).model
    (found,) = [attribute.g for attribute in done.graph.node[0].attribute if attribute.name == name]
    for part in (found, found.output[0], done.graph.input[0]):
        assert [entry.value for entry in part.metadata_props] == ["by us"]
    assert done.graph.input[0].type.denotation == "TENSOR"
    assert done.graph.input[0].type.tensor_type.shape.dim[0].denotation == "DATA_BATCH"


def _nested(depth, calls=10):
    """Functions that call the next one so often each; depth 0 calls itself."""
    made = matmul()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(max(1, depth)):
        last = depth > 0 and level == depth - 1
        called = "Relu" if last else f"F{level + 1 if depth else 0}"
        names = ["a", *(f"t{at}" for at in range(calls - 1)), "b"]
        nodes = [
            helper.make_node(called, [names[at]], [names[at + 1]], domain="" if last else "local")
            for at in range(calls)
        ]
        made.functions.append(helper.make_function("local", f"F{level}", ["a"], ["b"], nodes, imports))
    made.opset_import.append(imports[1])
    made.graph.node[0].output[0] = "h"
    made.graph.node.append(helper.make_node("F0", ["h"], ["y"], domain="local"))
    return made


def test_functions_that_expand(tmp_path):
    """Functions that would expand to millions of nodes, or for ever, are refused before they are."""
    assert len(sqo.split(_nested(2)).model.graph.node) > 100
    refused_source(written(tmp_path, _nested(8)), "its local functions expand to [0-9]+ nodes")
    refused_source(written(tmp_path, _nested(0)), "call themselves")


def _of_images(op_type, opset, **attributes):
    """A convolution, and then an operator that takes its output and more."""
    more = {"scales": np.array([1, 1, 2, 3], np.float32)} if "scales" not in attributes else {}
    nodes = [helper.make_node("Conv", ["x", "W"], ["h"]), helper.make_node(op_type, ["h", *more], ["y"], **attributes)]
    made = model(
        nodes, [value("x", [1, 4, 6, 6])], [value("y", list("nchw"))], {"W": heavy((6, 4, 3, 3)), **more}, opset=opset
    )
    made.ir_version = 7
    return made


@pytest.mark.parametrize(
    "made",
    [
        _of_images("Upsample", 7, mode="linear", scales=[1.0, 1.0, 2.0, 3.0]),
        _of_images("Upsample", 7, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]),
        _of_images("Upsample", 9, mode="linear"),
        _of_images("Upsample", 9, mode="nearest"),
        _of_images("Resize", 10, mode="linear"),
        _of_images("Resize", 10, mode="nearest"),
    ],
    ids=["upsample-7-linear", "upsample-7", "upsample-9-linear", "upsample-9", "resize-10-linear", "resize-10"],
)
def test_resizing_means_the_same_in_a_later_opset(made):
    """Pixels were counted from the corner before opset 11, and still are."""
    for bits in (4, 2):
        raised, note = raise_opset(_copy(made), 21 if bits == 4 else 25, "model")
        assert note
        near(made, _Held(raised), {"x": heavy((1, 4, 6, 6), 1)}, least=90)


def test_group_norms_of_opset_18_mean_the_same():
    """A scale and a bias for each group become those of its channels, with open shapes and inside a branch."""
    more = {"s": heavy((3,), 1) + 1, "b": heavy((3,), 2)}
    norm = helper.make_node("GroupNormalization", ["h", "s", "b"], ["y"], num_groups=3)
    conv = helper.make_node("Conv", ["x", "W"], ["h"])
    inputs, outputs = [value("x", ["b", 4, "h", "w"])], [value("y", list("nchw"))]
    made = model([conv, norm], inputs, outputs, {"W": heavy((6, 4, 3, 3)), **more}, opset=18)
    feeds = {"x": heavy((2, 4, 6, 5), 3)}
    near(made, _Held(raise_opset(_copy(made), 21, "model")[0]), feeds, least=90)
    near(made, sqo.quantize(made, include=["W"], spec=TWO_PARTS), feeds, least=15)


class _Held:
    """A model where a conversion is expected."""

    def __init__(self, proto):
        self.model = proto


def _copy(proto):
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    return made


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_what_a_model_says_of_itself_survives(form):
    """Comments, metadata, producer and annotations of ranges, whether the opset is raised or not."""
    made = matmul(opset=13)
    made.producer_name, made.producer_version, made.model_version = "a tool", "3", 7
    made.domain = "org.example"
    for one in (made, made.graph, made.graph.node[0], made.graph.input[0], made.graph.output[0]):
        one.doc_string = "said"
        one.metadata_props.add(key="k", value="v")
    made.graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="s"
    )
    made.graph.quantization_annotation.add(tensor_name="W").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="s"
    )
    made.graph.initializer.append(numpy_helper.from_array(np.float32(2), "s"))
    done = sqo.quantize(made, format=form, spec=TWO_PARTS).model
    assert (done.producer_name, done.producer_version, done.model_version, done.domain) == (
        "a tool",
        "3",
        7,
        "org.example",
    )
    for one in (done, done.graph, done.graph.node[-1], done.graph.input[0], done.graph.output[0]):
        assert one.doc_string == "said"
        assert [(entry.key, entry.value) for entry in one.metadata_props] == [("k", "v")]
    assert [one.tensor_name for one in done.graph.quantization_annotation] == ["x"]


def test_what_nobody_raises_rightly_is_refused():
    """Scan over a batch, the mask of a Dropout, the nearest pixel by scales that come from elsewhere: each by its name."""
    conv = helper.make_node("Conv", ["x", "W"], ["h"])
    inputs, outputs, weights = [value("x", [1, 4, 6, 6])], [value("y", list("nchw"))], {"W": heavy((6, 4, 3, 3))}
    drop = helper.make_node("Dropout", ["h"], ["z", "y"], name="drop")
    with pytest.raises(SourceError, match=r"node 'drop' .Dropout. returns its mask"):
        sqo.quantize(model([conv, drop], inputs, outputs, weights, opset=10), spec=TWO_PARTS)
    resize = helper.make_node("Resize", ["h", "s"], ["y"], name="re", mode="nearest")
    with pytest.raises(SourceError, match=r"node 're' .Resize. takes the nearest pixel"):
        sqo.quantize(model([conv, resize], [*inputs, value("s", [4])], outputs, weights, opset=10), spec=TWO_PARTS)
    state = helper.make_graph(
        [helper.make_node("MatMul", ["a", "W"], ["b"])], "body", [value("a", [1, 64])], [value("b", [1, 48])]
    )
    scan = helper.make_node("Scan", ["", "x"], ["y"], name="over", body=state, num_scan_inputs=1)
    made = model([scan], [value("x", [1, 5, 1, 64])], [value("y", list("nchw"))], {"W": heavy((64, 48))}, opset=8)
    with pytest.raises(SourceError, match=r"node 'over' .Scan. goes over a batch"):
        sqo.quantize(made, spec=TWO_PARTS)


def test_hardmax_means_the_same_in_a_later_opset():
    """Before opset 13 one number of all axes from its own on is 1."""
    nodes = [helper.make_node("Conv", ["x", "W"], ["h"]), helper.make_node("Hardmax", ["h"], ["y"], name="most")]
    made = model(nodes, [value("x", [2, 4, 6, 6])], [value("y", list("nchw"))], {"W": heavy((6, 4, 3, 3))}, opset=11)
    near(made, _Held(raise_opset(_copy(made), 21, "model")[0]), {"x": heavy((2, 4, 6, 6), 3)}, least=90)


def _region(opset):
    """A convolution before a RoiAlign, of whose version 22 ONNX Runtime has no kernel."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["h"]),
        helper.make_node("RoiAlign", ["h", "rois", "batch"], ["y"], name="regions", output_height=2, output_width=2),
    ]
    more = {"W": heavy((6, 4, 3, 3)), "rois": np.array([[0, 0, 3, 3]], np.float32), "batch": np.zeros(1, np.int64)}
    return model(nodes, [value("x", [1, 4, 6, 6])], [value("y", [1, 6, 2, 2])], more, opset=opset)


def test_operators_whose_new_version_the_runtime_lacks_are_refused():
    """INT2 asks for opset 25, where RoiAlign has a version that does not load; INT4 asks for 21 and is fine."""
    made = _region(16)
    near(made, sqo.quantize(made, spec=TWO_PARTS), {"x": heavy((1, 4, 6, 6), 3)})
    with pytest.raises(SourceError, match=r"has to be raised to 25.*does not load it.*RoiAlign"):
        sqo.quantize(made, spec=QuantSpec(bits=2, layout="parallel"))


def test_a_raised_model_that_does_something_else_names_the_operator(monkeypatch):
    """Without the repair the first node that differs is found by running both."""
    made = _of_images("Resize", 10, mode="linear")
    monkeypatch.setattr("splitquant.onnx.graph.opset.mend_meanings", lambda *_: None)
    with pytest.raises(SourceError, match=r"opset 10 has to be raised to 21.*Resize .node 'y'. does not do the same"):
        sqo.quantize(made, spec=TWO_PARTS)


def test_a_source_that_does_not_run_is_raised_with_a_note():
    """Nothing can be compared with a model of an operator that nobody has."""
    made = matmul(opset=13)
    made.graph.node[0].output[0] = "h"
    made.graph.node.append(helper.make_node("Own", ["h"], ["y"], domain="org.example"))
    made.opset_import.append(helper.make_opsetid("org.example", 1))
    assert any("does not run in ONNX Runtime" in note for note in sqo.quantize(made, spec=TWO_PARTS).report.notes)
    assert not any("ONNX Runtime" in note for note in sqo.quantize(matmul(opset=13), spec=TWO_PARTS).report.notes)


def test_windows_larger_than_made_up_inputs_are_no_difference():
    """A pooling over more than there is makes other numbers at another opset; open dimensions are large enough for it."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["h"], kernel_shape=[5, 5, 5], strides=[3, 3, 3], count_include_pad=1),
        helper.make_node("Conv", ["h", "W"], ["y"]),
    ]
    inputs, outputs = [value("x", [1, 8, "a", "b", "c"])], [value("y", list("ncdhw"))]
    made = model(nodes, inputs, outputs, {"W": heavy((16, 8, 3, 3, 3))}, opset=18)
    near(made, sqo.quantize(made, spec=TWO_PARTS), {"x": heavy((1, 8, 32, 32, 32), 3)})
