"""What becomes of every node: a value that can be printed, made without reading a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto, TensorProto

from splitquant.core.spec import QuantSpec
from splitquant.onnx.dtypes import name_of, table_name
from splitquant.onnx.forms.form import Form, form_of
from splitquant.onnx.forms.options import OnnxForm
from splitquant.onnx.graph.functions import FunctionConstant
from splitquant.onnx.graph.opset import ANY, INTEGER, dequantize_opset
from splitquant.onnx.graph.scopes import THROUGH, Constant, Scope
from splitquant.onnx.layers import NodeLayer, weight_name
from splitquant.onnx.wire.stored import StoredTensor
from splitquant.plan.decide import kept, why_not_smaller
from splitquant.plan.plan import Decision, Plan
from splitquant.report.outcome import Outcome

FOLDED_AT_LOAD = "session.disable_quant_qdq"  # of ONNX Runtime


@dataclass(frozen=True, slots=True, eq=False)
class NodePlan:
    """What becomes of one node.

    Args:
        found: the node.
        decision: what was decided about its layer.
        form: how its weight is stored; None keeps it.
        reason: why it is kept, or what there is to know.
    """

    found: NodeLayer
    decision: Decision
    form: Form | None
    reason: str

    @property
    def node(self) -> NodeProto:
        """The node, which is overwritten by what takes its place."""
        return self.found.node

    @property
    def label(self) -> str:
        """What the node is called."""
        return self.found.label

    @property
    def weight(self) -> Constant | None:
        """The node's constant, where it has one."""
        return None if self.found.operand is None else self.found.operand.weight

    @property
    def weight_name(self) -> str:
        """What reports, errors and patterns call the weight ("" where there is none)."""
        return "" if self.weight is None else weight_name(self.weight, self.label)

    @property
    def owner(self) -> Scope:
        """The graph that the parts are put into.

        ONNX Runtime turns DequantizeLinear and MatMul into MatMulNBits only where the codes are in the same graph, and
        fails to load a subgraph whose codes are outside it; so those go where they are read.
        """
        assert self.form is not None
        return self.found.scope if self.form.name in ("QDQ", "Integer") else self.form.operand.weight.owner

    @property
    def key(self) -> tuple[object, ...]:
        """What two nodes must agree in to share the tensors of their parts."""
        assert self.form is not None
        weight, form = self.form.operand.weight, self.form
        layer = (weight.perm, weight.casts, form.operand.axis)
        return (
            id(self.owner),
            id(weight.owner),
            id(weight.tensor),  # not its name: exporters leave the values of Constant nodes without one
            *layer,
            form.name,
            form.spec,
            form.stored_bits,
            form.block,
        )


@dataclass(frozen=True, slots=True)
class PartNames:
    """What the tensors of one part are called ("" where there is none)."""

    codes: str
    scale: str = ""
    zero_point: str = ""


def node_plans(
    layers: Sequence[NodeLayer], plan: Plan, storage: OnnxForm, wide: Collection[str] = ()
) -> list[NodePlan]:
    """The decisions of a plan with the forms that they mean.

    Args:
        layers: of the model.
        plan: what becomes of each of them, in the same order.
        storage: how weights are stored.
        wide: names of layers whose scales float16 cannot hold.
    """
    return [
        _node_plan(found, decision, storage, wide=found.layer.owner in wide)
        for found, decision in zip(layers, plan.decisions, strict=True)
    ]


def _node_plan(found: NodeLayer, decision: Decision, storage: OnnxForm, *, wide: bool) -> NodePlan:
    if decision.spec is None or found.operand is None:
        return NodePlan(found, decision, None, decision.reason)
    form, remark = planned_form(found, decision.spec, storage, wide=wide)
    if form is not None and wide and _is_large_for_its_scales(found, decision.spec, storage, form):
        why = why_not_smaller(form.stored_bytes, found.layer)
        return NodePlan(found, kept(decision.layer, why), None, why)
    if form is None:
        return NodePlan(found, kept(decision.layer, remark), None, remark)
    return NodePlan(found, decision, form, "; ".join(filter(None, (decision.reason, remark))))


def _is_large_for_its_scales(found: NodeLayer, spec: QuantSpec, storage: OnnxForm, form: Form) -> bool:
    """Whether a weight would not get smaller, but would with scales of float16; otherwise it was asked for although it grows."""
    narrow, _ = planned_form(found, spec, storage)
    return narrow is not None and narrow.stored_bytes < found.layer.nbytes <= form.stored_bytes


def planned_form(
    found: NodeLayer, spec: QuantSpec, storage: OnnxForm, *, wide: bool = False
) -> tuple[Form | None, str]:
    """The form of a layer's weight by a spec, see `form_of`."""
    assert found.operand is not None
    kinds = found.operand.weight.kinds
    assert kinds is not None
    return form_of(found.operand, kinds[-1], spec, storage, wide=wide)


def needed_opset(plans: Iterable[NodePlan]) -> int:
    """The opset that the forms of a plan ask for."""
    return max((opset_for(plan.form) for plan in plans if plan.form is not None), default=ANY)


def opset_for(form: Form) -> int:
    """The opset that a form asks for."""
    if form.name == "Integer":
        return max(INTEGER, dequantize_opset(form.code_type, per_axis=False, half=False, blocked=False))
    if form.name != "QDQ":
        return ANY
    return dequantize_opset(
        form.code_type,
        per_axis=form.spec.granularity.kind != "tensor",
        half=form.scale_type == TensorProto.FLOAT16,
        blocked=form.blocked,
    )


def slow_convolutions(plans: Iterable[NodePlan]) -> str:
    """A note on layers that ONNX Runtime has no low-bit kernel for ("" where there are none)."""
    kinds = Counter(plan.form.operand.kind for plan in plans if plan.form is not None and plan.form.name == "QDQ")
    slow = kinds["conv"] + kinds["conv_transpose"] + kinds["recurrent"]
    if not slow:
        return ""
    return (
        f"ONNX Runtime decodes the weights of {slow} convolutions or recurrent layers in every run; with its session entry "
        f'{FOLDED_AT_LOAD} = "1" it does so once, when it loads the model, and is as fast as with floats'
    )


@dataclass(frozen=True, slots=True)
class Consumer:
    """A node that reads a constant: its name, its operator."""

    label: str
    op_type: str


def consumers_of(scopes: Sequence[Scope]) -> dict[str, Consumer]:
    """The first node that reads each name; what is only passed on by Transpose, Cast and Identity is read behind them."""
    first: dict[str, NodeProto] = {}
    for scope in scopes:
        for node in scope.graph.node:
            for name in node.input:
                first.setdefault(name, node)
    readers: dict[str, Consumer] = {}
    for name, node in first.items():
        while node.op_type in THROUGH and node.output[0] in first:
            node = first[node.output[0]]  # noqa: PLW2901 - the walk to the last of them
        readers[name] = Consumer(node.name or node.output[0], node.op_type)
    return readers


def kept_weights(
    scopes: Sequence[Scope],
    before: Mapping[str, Consumer],
    planned: set[tuple[int, str]],
    listed: set[tuple[int, str]],
) -> Iterator[Outcome]:
    """Every constant that is still there and not `listed` with a kept node, with the reason why it stays.

    before: who read it in the source. planned: those that a converted node read too; their first size is counted there.
    """
    after = consumers_of(scopes)
    for scope in scopes:
        present = {proto.name for proto in scope.graph.initializer}
        present.update(name for node in scope.graph.node if node.op_type == "Constant" for name in node.output)
        returned = {value.name for value in scope.graph.output}
        for name, tensor in scope.constants.items():
            if name not in present or (id(scope), name) in listed:
                continue
            shared = (id(scope), name) in planned
            reader = (after if shared else before).get(name)
            reason = _why_kept(
                Constant(tensor, scope, tuple(range(len(tensor.shape)))), reader, returned=name in returned
            )
            row = _kept(name, tensor, f"{reason}; the parts of it are for others" if shared else reason)
            if reader is not None:
                row = replace(row, name=reader.label, kind=reader.op_type)
            yield replace(row, source_bytes=0) if shared else row


def kept_in_functions(constants: Iterable[FunctionConstant]) -> Iterator[Outcome]:
    """The weights of local functions that stay functions."""
    for constant in constants:
        yield _kept(
            constant.name, constant.tensor, f"in the local function {constant.function!r}, which cannot be inlined"
        )


def _kept(name: str, tensor: StoredTensor, reason: str) -> Outcome:
    return Outcome(
        name=name,
        outcome="kept",
        reason=reason,
        role="other",
        dtype=table_name(tensor.data_type),
        shape=tensor.shape,
        source_bytes=tensor.nbytes,
        stored_bytes=tensor.nbytes,
        weight=name,
    )


def kept_sparse(scopes: Sequence[Scope]) -> Iterator[Outcome]:
    """Sparse initializers: kept as they are."""
    for scope in scopes:
        for proto in scope.graph.sparse_initializer:
            shape = tuple(proto.dims)
            name = proto.values.name
            yield Outcome(name, "kept", "sparse", "other", table_name(proto.values.data_type), shape, 0, 0, weight=name)


def _why_kept(weight: Constant, reader: Consumer | None, *, returned: bool) -> str:
    if weight.kinds is None:
        return f"not float32, float16 or bfloat16 ({name_of(weight.data_type)})"
    if math.prod(weight.shape) == max(weight.shape, default=1):
        return "a scalar or vector (norm, bias, scale)"
    if returned and reader is None:
        return "an output of the graph"
    if reader is None:
        return "no node reads it"
    return f"{reader.op_type} is not split"
