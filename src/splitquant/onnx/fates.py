"""What ONNX Runtime makes of low-bit weights: a kernel that multiplies codes, or floats again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from splitquant.onnx.dtypes import LOW_BIT
from splitquant.onnx.forms.options import INT8_ACTIVATIONS
from splitquant.onnx.graph.operands import MICROSOFT
from splitquant.onnx.graph.scopes import subgraphs

# Products of integers: the standard operators, and what ONNX Runtime makes of them.
_INTEGER = ("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def operators(graph: onnx.GraphProto) -> list[str]:
    """The operators of all nodes, in subgraphs too."""
    found = [node.op_type for node in graph.node]
    return found + [op for node in graph.node for inner in subgraphs(node) for op in operators(inner)]


@dataclass(frozen=True, slots=True)
class Branch:
    """A low-bit weight where it is read: its operator, what its codes are called, and what the layer behind it makes."""

    op_type: str
    codes: str
    outputs: frozenset[str]


def branches_of(graph: onnx.GraphProto, around: Mapping[str, int] | None = None) -> Iterator[Branch]:
    """All MatMulNBits, and all DequantizeLinear and integer products of low-bit constants."""
    types = {**(around or {}), **{proto.name: proto.data_type for proto in graph.initializer}}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        if node.op_type == "Cast" and types.get(node.input[0], 0) in LOW_BIT:
            types[node.output[0]] = types[node.input[0]]
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and types.get(node.input[0], 0) in LOW_BIT:
            layers = readers.get(node.output[0], [])
            if len(layers) == 1 and layers[0].op_type == "Cast":
                layers = readers.get(layers[0].output[0], [])
            yield Branch(node.op_type, node.input[0], frozenset(name for layer in layers for name in layer.output))
        if node.op_type == "MatMulNBits" and node.domain == MICROSOFT:
            multiplied = node.op_type if _has_kernel(node) else "DequantizeLinear"
            yield Branch(multiplied, node.input[1], frozenset(node.output))
        if node.op_type in _INTEGER and types.get(node.input[1], 0) in LOW_BIT:
            yield Branch("integer", node.input[1], frozenset(node.output))
        for inner in subgraphs(node):
            yield from branches_of(inner, types)


def _has_kernel(node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime multiplies packed codes: with float activations it does so in 4 bits alone, else it expands them."""
    said: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    return said.get("bits", 4) == 4 or said.get("accuracy_level", 0) == INT8_ACTIVATIONS


def fates_of(ours: Sequence[Branch], found: onnx.GraphProto) -> tuple[int, int]:
    """How many branches the optimised graph multiplies with a low-bit kernel, and how many it dequantizes in every run.

    ONNX Runtime keeps the name of what a layer makes, and adds to that of the codes.
    """
    outputs = {name for branch in ours for name in branch.outputs}
    codes = {branch.codes for branch in ours}
    fates = Counter(
        branch.op_type
        for branch in branches_of(found)
        if branch.outputs & outputs or branch.codes in codes or branch.codes.rsplit("_T", 1)[0] in codes
    )
    return fates["MatMulNBits"] + fates["integer"], fates["DequantizeLinear"]
