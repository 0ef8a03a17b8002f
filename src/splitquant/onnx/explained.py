"""What the rounding of weights explains: the source with the weights that a converted model stores, decoded, as floats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitquant.onnx.graph.filled import filled, weight_bytes
from splitquant.onnx.graph.fold import fold_weights
from splitquant.onnx.graph.operands import Operand, integer, operands_of
from splitquant.onnx.graph.opset import inline_functions
from splitquant.onnx.graph.scopes import open_scopes, subgraphs
from splitquant.onnx.layers import weight_name
from splitquant.onnx.wire.source import Source

Model = ModelProto | str | Path
_MOST_BYTES = 1 << 30  # of a model in memory; protobuf ends at twice that


def explained(model: Model, out: Model) -> ModelProto | None:
    """The source with the decoded weights of `out`, which are found by the names that their parts have.

    Args:
        model: the source.
        out: what was made of it here.

    Returns:
        None where no weight is found, or one that is stored in two forms, or where the models are too large for memory.
    """
    stored = _Stored.of(out)
    if stored is None:
        return None
    with Source(model) as source:
        source.proto, _ = inline_functions(source.proto, source.label)
        fold_weights(source)
        scopes = open_scopes(source)
        if weight_bytes(scopes) > _MOST_BYTES:
            return None
        replaced: list[tuple[NodeProto, int, str]] = []
        made: dict[str, NDArray[np.float32]] = {}
        for scope in scopes:
            weights = [(node, operand) for node in scope.graph.node for operand in operands_of(node, scope)]
            for node, operand in weights:
                if not isinstance(operand, Operand) or operand.weight.kinds is None:
                    continue
                base = weight_name(operand.weight, node.name or node.output[0])
                if f"{base}.part0_2" in stored.tensors:
                    return None
                weight = stored.decoded(base, operand)
                if weight is not None:
                    name = f"{base}.decoded.{len(made)}"
                    made[name] = weight
                    replaced.append((node, operand.slot, name))
                    _add(source.proto.graph, name, weight, operand.weight.data_type)
        if not made:
            return None
        for node, slot, name in replaced:
            node.input[slot] = name
        return filled(source)


def _add(graph: GraphProto, name: str, weight: NDArray[np.float32], data_type: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight.astype(dtype)), name))


@dataclass(frozen=True)
class _Stored:
    """The constants of a converted model, and who reads them."""

    tensors: Mapping[str, TensorProto]
    readers: Mapping[str, NodeProto]

    @classmethod
    def of(cls, out: Model) -> _Stored | None:
        """Those of a model; None where it is too large."""
        if not isinstance(out, ModelProto):
            data = Path(f"{out}.data")
            if Path(out).stat().st_size + (data.stat().st_size if data.is_file() else 0) > _MOST_BYTES:
                return None
            out = onnx.load(str(out))
        graphs = list(_graphs(out.graph))
        tensors = {proto.name: proto for graph in graphs for proto in graph.initializer}
        readers = {name: node for graph in graphs for node in graph.node for name in node.input}
        return cls(tensors, readers)

    def decoded(self, base: str, operand: Operand) -> NDArray[np.float32] | None:
        """The weight as its node in the source sees it: the sum of all parts; None where it is not here."""
        total: NDArray[np.float32] | None = None
        c = 0
        while f"{base}.part{c}" in self.tensors:
            part = self._part(f"{base}.part{c}", operand)
            total = part if total is None else total + part
            c += 1
        if total is None:
            return None
        shape = operand.weight.shape
        return total if total.shape == shape else total.T

    def _part(self, name: str, operand: Operand) -> NDArray[np.float32]:
        codes, reader = self._array(name), self.readers[name]
        if f"{name}.scale" not in self.tensors:
            return codes
        scale = self._array(f"{name}.scale")
        zero = self._array(f"{name}.zero_point") if f"{name}.zero_point" in self.tensors else np.zeros((), np.float32)
        if reader.op_type == "MatMulNBits":
            return _of_blocks(reader, self.tensors[name], scale, self.tensors.get(f"{name}.zero_point")).T
        if reader.op_type == "DequantizeLinear":
            axis, block = integer(reader, "axis", 1), integer(reader, "block_size", 0)
            scale, zero = (_along(one, codes.shape, axis, block) for one in (scale, zero))
        elif operand.kind == "conv":
            scale = scale.reshape(*scale.shape, *[1] * (codes.ndim - scale.ndim)) if scale.ndim else scale
        return (codes - zero) * scale

    def _array(self, name: str) -> NDArray[np.float32]:
        return numpy_helper.to_array(self.tensors[name]).astype(np.float32)


def _along(values: NDArray[np.float32], shape: tuple[int, ...], axis: int, block: int) -> NDArray[np.float32]:
    """Scales or zero points of channels or blocks, in the shape of the weight."""
    values = np.asarray(values)
    if values.size == 1:
        return values.reshape(())
    if block:
        return np.take(np.repeat(values, block, axis), range(shape[axis]), axis)
    return values.reshape([-1 if at == axis % len(shape) else 1 for at in range(len(shape))])


def _of_blocks(
    node: NodeProto, packed: TensorProto, scale: NDArray[np.float32], zeros: TensorProto | None
) -> NDArray[np.float32]:
    """The weight `[N, K]` of a MatMulNBits."""
    rows, cols = integer(node, "N", 0), integer(node, "K", 0)
    bits, block = integer(node, "bits", 4), integer(node, "block_size", 0)
    blocks = -(-cols // block)
    codes = _unpacked(numpy_helper.to_array(packed).reshape(rows, -1), bits)
    zero = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    if zeros is not None:
        zero = _unpacked(numpy_helper.to_array(zeros).reshape(rows, -1), bits)[:, :blocks]
    wide = (codes - np.repeat(zero, block, 1)) * np.repeat(scale.reshape(rows, blocks), block, 1)
    return wide[:, :cols]


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = packed[:, :, None] >> shifts & np.uint8((1 << bits) - 1)
    return codes.reshape(len(packed), -1).astype(np.float32)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)
