"""Laws of ONNX files: what is laid out is what protobuf writes, and what is left in a file is where the skeleton says."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the onnx extra is not installed")

from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from splitquant.onnx.wire.layout import laid_out
from splitquant.onnx.wire.skeleton import read_skeleton
from splitquant.onnx.wire.source import _tensors

NUMBERS = st.sampled_from([0, 1, 7, 255, 256, 257, 400, 5000])  # a span begins at 256 floats


@st.composite
def tensors(draw):
    """A tensor with its bytes in raw_data or packed float_data, of sizes around the least that is left in a file."""
    values = np.arange(draw(NUMBERS), dtype=np.float32)
    name = draw(st.text("abc", max_size=3))
    if draw(st.booleans()):
        return numpy_helper.from_array(values, name)
    return helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.tolist())


@st.composite
def graphs(draw, depth=2):
    """A graph with initializers, Constants, other nodes, and graphs within nodes."""
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor) for tensor in draw(st.lists(tensors(), max_size=2))]
    nodes += [helper.make_node("Relu", ["c"], [name]) for name in draw(st.lists(st.text("xyz"), max_size=2))]
    nodes += [
        helper.make_node("Constant", [], ["c"], value=tensor, domain="foreign")
        for tensor in draw(st.lists(tensors(), max_size=1))
    ]
    if depth:
        inner = draw(st.lists(graphs(depth - 1), max_size=2))
        nodes += [helper.make_node("If", ["c"], ["i"], then_branch=graph, else_branch=graph) for graph in inner]
    return helper.make_graph(draw(st.permutations(nodes)), "g", [], [], draw(st.lists(tensors(), max_size=2)))


@st.composite
def models(draw):
    """A model, with a function now and then."""
    functions = [
        helper.make_function("f", "F", [], [], list(graph.node), []) for graph in draw(st.lists(graphs(0), max_size=1))
    ]
    return helper.make_model(draw(graphs()), functions=functions, producer_name=draw(st.text(max_size=3)))


@given(models())
def test_what_is_laid_out_is_what_protobuf_reads(model):
    """With its gaps filled, a layout parses to the model with those bytes as raw_data."""
    wanted = ModelProto()
    wanted.CopyFrom(model)
    # Where Sink gives places: initializers and the values of Constant nodes.
    held = [tensor for tensor in _tensors(wanted) if tensor.raw_data]
    room = {id(tensor): len(tensor.raw_data) for tensor in held}
    data = {id(tensor): tensor.raw_data for tensor in held}
    for tensor in held:
        tensor.ClearField("raw_data")
    layout = laid_out(wanted, room)
    file = bytearray(layout.nbytes)
    for offset, text in layout.text:
        file[offset : offset + len(text)] = text
    for key, offset in layout.offsets.items():
        file[offset : offset + room[key]] = data[key]
    assert ModelProto.FromString(bytes(file)) == model


@given(model=models())
def test_what_is_left_in_a_file_is_where_the_skeleton_says(model, tmp_path_factory):
    """With its references followed, a skeleton is the model; no reference stands for less than a span."""
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    text = model.SerializeToString()
    path.write_bytes(text)
    found = ModelProto.FromString(read_skeleton(path, "here"))
    for tensor in _tensors(found):
        if not tensor.external_data:
            continue
        location, offset, nbytes = (entry.value for entry in tensor.external_data)
        assert location == "here"
        assert int(nbytes) >= 1024
        tensor.raw_data = text[int(offset) : int(offset) + int(nbytes)]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    wanted = ModelProto.FromString(text)
    for given_tensor, tensor in zip(_tensors(wanted), _tensors(found), strict=True):
        if tensor.raw_data and given_tensor.float_data:
            given_tensor.raw_data = np.array(given_tensor.float_data, "<f4").tobytes()
            given_tensor.ClearField("float_data")
    assert found == wanted
