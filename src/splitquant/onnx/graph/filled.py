"""A model with all its weights in it again, to be run: what `Source` took out of the graph, put back."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from splitquant.onnx.graph.functions import function_constants
from splitquant.onnx.graph.scopes import Scope, open_scopes, value_of
from splitquant.onnx.wire.source import Source, is_stripped
from splitquant.onnx.wire.stored import StoredTensor


def filled(source: Source) -> ModelProto:
    """A copy of the graph of a source, with the bytes of every tensor."""
    other = source.copied()
    for scope in open_scopes(other):
        for proto in scope.graph.initializer:
            _fill(proto, scope.constants[proto.name])
        for node in scope.graph.node:
            if node.op_type == "Constant" and node.output and node.output[0] in scope.constants:
                value = value_of(node)
                if value is not None:
                    _fill(value, scope.constants[node.output[0]])
    for constant in function_constants(other):
        _fill(constant.proto, constant.tensor)
    return other.proto


def bytes_of(tensor: StoredTensor) -> bytes:
    """All bytes of a tensor."""
    data = np.empty(tensor.nbytes, np.uint8)
    tensor.read_into(data, 0)
    return data.tobytes()


def weight_bytes(scopes: list[Scope]) -> int:
    """What the constants of some graphs take."""
    return sum({id(t): t.nbytes for scope in scopes for t in scope.constants.values()}.values())


def _fill(proto: TensorProto, tensor: StoredTensor) -> None:
    if not (is_stripped(proto) or proto.data_location == TensorProto.EXTERNAL):
        return
    proto.ClearField("external_data")
    proto.ClearField("data_location")
    proto.raw_data = bytes_of(tensor)
