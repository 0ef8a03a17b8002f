"""Tiny ONNX models for tests, made by hand, so that every form a weight can take is visible."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from splitquant import QuantSpec
from splitquant.errors import SourceError

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TWO_PARTS = QuantSpec(4, 2, "residual")
"""INT4 in two layers: parts, 4 bits, and scales of float16 where the weights are."""

EXACT = {"session__qdq_matmulnbits_accuracy_level": "1"}  # ONNX Runtime computes in float32


def heavy(shape, seed=0, dtype=np.float32):
    """Weights with heavy tails, as real ones have."""
    values = np.random.default_rng(seed).standard_t(4, shape) * 0.1
    return values.astype(dtype)


X = heavy((3, 64), 9)


def value(name, shape, data_type=FLOAT):
    return helper.make_tensor_value_info(name, data_type, shape)


def model(nodes, inputs, outputs, weights=(), opset=17, **more):
    """A model of nodes; weights are arrays by name, or TensorProtos."""
    tensors = [
        item if isinstance(item, TensorProto) else numpy_helper.from_array(item[1], item[0])
        for item in (weights.items() if isinstance(weights, dict) else weights)
    ]
    graph = helper.make_graph(list(nodes), "main", list(inputs), list(outputs), tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **more)
    made.ir_version = max(8, helper.find_min_ir_version_for(made.opset_import))
    return made


def matmul(weight=None, batch=("b", 64), **more):
    """One MatMul with a [64, 48] weight."""
    weight = heavy((64, 48)) if weight is None else weight
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")
    data_type = helper.np_dtype_to_tensor_dtype(weight.dtype)
    return model(
        [node],
        [value("x", list(batch), data_type)],
        [value("y", [*batch[:-1], weight.shape[-1]], data_type)],
        {"W": weight},
        **more,
    )


def run(proto_or_path, feeds, **options):
    """The outputs of a model in ONNX Runtime."""
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    for key, entry in options.items():
        session_options.add_session_config_entry(key.replace("__", "."), entry)
    given = proto_or_path.SerializeToString() if isinstance(proto_or_path, onnx.ModelProto) else str(proto_or_path)
    session = onnxruntime.InferenceSession(given, session_options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def sqnr(wanted, got):
    """Signal to noise of one array against another, in dB."""
    wanted, got = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
    noise = float(((wanted - got) ** 2).sum())
    return np.inf if noise == 0 else 10 * np.log10(float((wanted**2).sum()) / noise)


def ops(proto):
    """How often each operator is in the main graph."""
    counts = {}
    for node in proto.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def several(*, dtype=np.float32, opset=17):
    """A table that is gathered and, transposed, multiplied; a convolution; Gemm with a bias; two MatMuls of one weight.

    All weights are of different sizes and distributions; a small one gains nothing.
    """
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    chance = np.random.default_rng(11)
    weights = {
        "E": chance.standard_normal((80, 64)),
        "C": chance.standard_normal((24, 1, 3)),
        "F": chance.standard_t(3, (96, 64)) * 0.05,
        "f": chance.standard_normal(96),
        "S": chance.standard_normal((96, 96)) * 0.02,
        "D": chance.standard_t(2, (96, 64)) * 0.1,
    }
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["e"], name="embed"),
        helper.make_node("Unsqueeze", ["e", "one"], ["u"]),
        helper.make_node("Conv", ["u", "C"], ["c"], name="conv", pads=[1, 1]),
        helper.make_node("ReduceMean", ["c"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "F", "f"], ["g"], name="gemm", transB=1),
        helper.make_node("MatMul", ["g", "S"], ["s"], name="first"),
        helper.make_node("MatMul", ["s", "S"], ["t"], name="second"),
        helper.make_node("MatMul", ["t", "D"], ["d"], name="down"),
        helper.make_node("Gemm", ["d", "E"], ["y"], name="head", transB=1),
    ]
    tensors = {name: array.astype(dtype) for name, array in weights.items()} | {"one": np.array([1])}
    return model(nodes, [value("ids", [5], TensorProto.INT64)], [value("y", [5, 80], data_type)], tensors, opset=opset)


def all_bytes(path):
    """The bytes of a model file and of its external data."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def near(before, done, feeds=None, least=15):
    """A result that the checker accepts, and whose outputs are near those of the source."""
    onnx.checker.check_model(done.model)
    feeds = feeds or {"x": X}
    for wanted, got in zip(run(before, feeds), run(done.model, feeds), strict=True):
        assert sqnr(wanted, got) > least


def branch(name, weight_name, extra=()):
    """A branch of an If: one MatMul with a weight of this graph or of an outer one."""
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", weight_name], [f"{name}.out"], name=f"{name}.fc")],
        name,
        [],
        [value(f"{name}.out", None)],
        extra,
    )


def weights_of(proto, eye=64):
    """The weight of every branch of a MatMul, found by running it on the identity."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    (total,) = (node for node in copy.graph.node if node.op_type == "Sum")
    copy.graph.output.extend(value(name, None) for name in total.input)
    return run(copy, {"x": np.eye(eye, dtype=np.float32)}, **EXACT)[1:]


def float_parts(proto):
    """The float parts in a split model, by name; bfloat16 as float32."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [tensors[name].astype(np.float32) for name in sorted(tensors) if ".part" in name]


def written(folder, proto):
    """The file of a model in a folder."""
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refused_source(path, match):
    """A source that both verbs refuse by its name, and beside which they leave nothing."""
    before = sorted(path.parent.iterdir())
    for convert in (sqo.split, sqo.quantize):
        with pytest.raises(SourceError, match=match) as caught:
            convert(path, path.parent / "out.onnx")
        assert str(path.parent) in str(caught.value)
    assert sorted(path.parent.iterdir()) == before
