"""Which input of a node is a weight, and how its axes are meant: one entry per operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from splitquant.errors import SourceError
from splitquant.onnx.dtypes import LOW_BIT
from splitquant.onnx.graph.scopes import STANDARD, Constant, Scope

MICROSOFT = "com.microsoft"
_LEAST_INPUTS = 2
_QUANTIZED = "the weight is quantized already; use the float model it was made from"
_OF_CODES = frozenset(
    {
        *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
        *("MatMulNBits", "MatMulBnb4", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"),
        *("GatherBlockQuantized", "QAttention", "QGemm", "QMoE", "QEmbedLayerNormalization"),
    }
)
"""Operators whose weights are integers: those of ONNX, then those of ONNX Runtime."""

OperandKind = Literal["matmul", "gemm", "conv", "conv_transpose", "embedding", "recurrent"]
RECURRENT: Mapping[str, tuple[tuple[int, str], ...]] = dict.fromkeys(("LSTM", "GRU", "RNN"), ((1, "W"), (2, "R")))
WEIGHT_SLOTS: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    **dict.fromkeys(("Gemm", "Conv", "ConvTranspose"), (1,)),
    "Gather": (0,),
    **{op_type: tuple(slot for slot, _ in slots) for op_type, slots in RECURRENT.items()},
}


@dataclass(frozen=True, slots=True)
class Operand:
    """The weight of a node, and how its axes are meant.

    Args:
        kind: what the node does with it.
        slot: which input it is.
        weight: the constant.
        axis: its output-channel axis.
        reduction: the axis that is summed over, for group granularity (None: there is no single one).
    name: which of its weights it is, where the node has several.
    """

    kind: OperandKind
    slot: int
    weight: Constant
    axis: int
    reduction: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class NoOperand:
    """Why a node is not split, although its operator could be."""

    reason: str


Found = Operand | NoOperand | None


def operands_of(node: NodeProto, scope: Scope) -> tuple[Operand | NoOperand, ...]:
    """The weights of a node, or why a node of a handled operator has none; nothing for all other operators."""
    if node.domain in STANDARD and node.op_type in RECURRENT:
        return _recurrent(node, scope)
    found = _operand_of(node, scope)
    return () if found is None else (found,)


def _recurrent(node: NodeProto, scope: Scope) -> tuple[Operand | NoOperand, ...]:
    """The weights `[directions, gates * hidden, in]` of a recurrent layer, by the input and by its own state."""
    slots = [(slot, name) for slot, name in RECURRENT[node.op_type] if slot < len(node.input)]
    weights = [(slot, name, scope.constant(node.input[slot])) for slot, name in slots]
    found = [Operand("recurrent", slot, w, 1, None, name) for slot, name, w in weights if w and len(w.shape) == 3]
    return tuple(found) or (_quantized(node, scope, 1) or NoOperand("the weights are no constants"),)


def _operand_of(node: NodeProto, scope: Scope) -> Found:
    if (node.domain in STANDARD or node.domain == MICROSOFT) and node.op_type in _OF_CODES:
        return NoOperand(_QUANTIZED)
    if node.domain not in STANDARD or node.op_type not in _FINDERS:
        return None
    if len(node.input) < _LEAST_INPUTS or not all(node.input[:_LEAST_INPUTS]) or len(node.output) != 1:
        raise SourceError(
            f"{scope.label}: node {node.name!r} ({node.op_type}) has the inputs {list(node.input)} and the outputs "
            f"{list(node.output)}; expected at least two inputs and one output: export the model again"
        )
    return _FINDERS[node.op_type](node, scope)


def _matmul(node: NodeProto, scope: Scope) -> Found:
    left, right = scope.constant(node.input[0]), scope.constant(node.input[1])
    if left is not None and right is not None:
        return NoOperand("both inputs are constants")
    if right is not None:
        dims = len(right.shape)
        if dims < 2:
            return NoOperand("the weight is 1-D")
        return Operand("matmul", 1, right, dims - 1, dims - 2)
    if left is not None:
        dims = len(left.shape)
        if dims < 2:
            return NoOperand("the weight is 1-D")
        return Operand("matmul", 0, left, dims - 2, dims - 1)
    return _quantized(node, scope) or NoOperand("no input is a constant")


def _gemm(node: NodeProto, scope: Scope) -> Found:
    if scope.constant(node.input[0]) is not None:
        return NoOperand("its first input is a constant")
    weight = scope.constant(node.input[1])
    if weight is None:
        return _quantized(node, scope) or NoOperand("the weight is no constant")
    if len(weight.shape) != 2:
        return NoOperand(f"the weight is {len(weight.shape)}-D")
    transposed = bool(integer(node, "transB", 0))
    return Operand("gemm", 1, weight, 0 if transposed else 1, 1 if transposed else 0)


def _conv(node: NodeProto, scope: Scope) -> Found:
    return _convolution(node, scope, "conv", 0)


def _conv_transpose(node: NodeProto, scope: Scope) -> Found:
    return _convolution(node, scope, "conv_transpose", 1)


def _convolution(node: NodeProto, scope: Scope, kind: OperandKind, axis: int) -> Found:
    weight = scope.constant(node.input[1])
    if weight is None:
        return _quantized(node, scope) or NoOperand("the weight is no constant")
    if not 3 <= len(weight.shape) <= 5:
        return NoOperand(f"the weight is {len(weight.shape)}-D")
    return Operand(kind, 1, weight, axis)


def _gather(node: NodeProto, scope: Scope) -> Found:
    table = scope.constant(node.input[0])
    if table is None:
        return None  # it takes from activations: no weight, nothing to say
    if table.kinds is None:
        return NoOperand(_QUANTIZED) if table.data_type in LOW_BIT else None  # shapes and indices
    if len(table.shape) != 2 or integer(node, "axis", 0) != 0:
        return NoOperand("not rows of a 2-D table")
    return Operand("embedding", 0, table, 0, 1)


def _quantized(node: NodeProto, scope: Scope, first: int = 0) -> NoOperand | None:
    """Said where a model comes quantized: its codes are no weights."""
    for name in node.input[first:_LEAST_INPUTS]:
        producer = scope.producers.get(name)
        if producer is not None and producer.op_type == "DequantizeLinear" and scope.constant(producer.input[0]):
            return NoOperand(_QUANTIZED)
    return None


def integer(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def real(node: NodeProto, name: str, default: float) -> float:
    """A float attribute of a node."""
    return next((attribute.f for attribute in node.attribute if attribute.name == name), default)


_FINDERS: dict[str, Callable[[NodeProto, Scope], Found]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gather": _gather,
}
