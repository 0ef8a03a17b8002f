"""Tiny ONNX models for tests, made by hand, so that every form a weight can take is visible."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def heavy(shape, seed=0, dtype=np.float32):
    """Weights with heavy tails, as real ones have."""
    values = np.random.default_rng(seed).standard_t(4, shape) * 0.1
    return values.astype(dtype)


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
