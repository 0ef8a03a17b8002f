"""The nodes of a model as layers: which have a weight that may be converted, why others stay, whose weights are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto

from splitquant.onnx.dtypes import name_of, table_name
from splitquant.onnx.forms.options import OnnxForm
from splitquant.onnx.graph.operands import NoOperand, Operand, OperandKind, operands_of
from splitquant.onnx.graph.scopes import Constant, Scope
from splitquant.plan.layers import Layer, Role

_ROLES: dict[OperandKind, Role] = {
    "matmul": "linear",
    "gemm": "linear",
    "conv": "conv",
    "conv_transpose": "conv",
    "embedding": "embedding",
    "recurrent": "linear",
}
GATES = "what a recurrent layer makes is no sum of what its parts would make: there is nothing to split"
TABLE = "an embedding is looked up, not multiplied: there is nothing to split"


@dataclass(frozen=True, slots=True, eq=False)
class NodeLayer:
    """A node of a handled operator, as a layer.

    Args:
        scope: its graph.
        node: the node, which is overwritten by what takes its place.
        label, op_type: what it is called and is.
        operand: its weight (None: it has none).
        layer: what a plan decides about.
    """

    scope: Scope
    node: NodeProto
    label: str
    op_type: str
    operand: Operand | None
    layer: Layer


def node_layers(scopes: Sequence[Scope], storage: OnnxForm) -> tuple[NodeLayer, ...]:
    """Every node of a handled operator, graph by graph."""
    found: list[NodeLayer] = []
    taken: set[str] = set()
    first: dict[tuple[object, ...], str] = {}
    weights = ((scope, node, one) for scope in scopes for node in scope.graph.node for one in operands_of(node, scope))
    for scope, node, operand in weights:
        called = node.name or next(filter(None, node.output))
        if isinstance(operand, NoOperand):
            name = _free_name(called, taken)
            layer = Layer(name, "other", "", (), 0, aliases=(called,), kept_because=operand.reason, possible=False)
            found.append(NodeLayer(scope, node, called, node.op_type, None, layer))
            continue
        label = f"{called}.{operand.name}" if operand.name else called
        name = _free_name(label, taken)
        stored = _as_stored(operand, storage)
        layer = _layer(name, (label, called), stored, storage)
        owner = first.setdefault(_shared(scope, stored), name)
        layer = replace(layer, tied_to=None if owner == name else owner)
        found.append(NodeLayer(scope, node, label, node.op_type, stored, layer))
    return tuple(found)


def weight_name(weight: Constant, label: str) -> str:
    """What reports, errors and patterns call the weight of a node with that label."""
    name = weight.tensor.name
    return name if name in weight.names else min(weight.names, default=name or label)


def _layer(name: str, labels: Sequence[str], operand: Operand, storage: OnnxForm) -> Layer:
    weight, kept = operand.weight, ""
    if weight.kinds is None:
        kept = f"the weight is {name_of(weight.tensor.data_type)}; float32, float16 and bfloat16 are split"
    elif 0 in weight.shape:
        kept = "the weight is empty"
    elif operand.kind == "embedding" and storage.format == "float":
        kept = TABLE
    elif operand.kind == "recurrent" and storage.format == "float":
        kept = GATES
    return Layer(
        name=name,
        role=_ROLES[operand.kind],
        dtype=table_name(weight.tensor.data_type),
        shape=weight.shape,
        nbytes=weight.tensor.nbytes,
        axis=operand.axis,
        aliases=tuple(dict.fromkeys((*labels, weight.tensor.name, *sorted(weight.names)))),
        kept_because=kept,
        possible=not kept,
    )


def _as_stored(operand: Operand, storage: OnnxForm) -> Operand:
    """Low-bit kernels exist for MatMul only, so that a Gemm becomes MatMul, with its weight as [in, out]."""
    if operand.kind != "gemm" or storage.format == "float" or operand.axis != 0:
        return operand
    turned = replace(operand.weight, perm=operand.weight.perm[::-1])
    return Operand("gemm", 1, turned, 1, 0)


def _shared(scope: Scope, operand: Operand) -> tuple[object, ...]:
    """What nodes of one graph must agree in to read the very same parts."""
    weight = operand.weight
    kind = operand.kind if operand.kind in ("conv", "conv_transpose", "embedding", "recurrent") else "matmul"
    same = (id(weight.owner), id(weight.tensor), weight.perm, weight.casts)
    return (id(scope), *same, operand.axis, operand.slot, kind)


def _free_name(label: str, taken: set[str]) -> str:
    """The label, or where another node has it too, one with a number."""
    name, number = label, 1
    while name in taken:
        number += 1
        name = f"{label} ({number})"
    taken.add(name)
    return name
