"""What becomes of every node: a value that can be printed, made without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto, TensorProto

from splitquant.onnx.dtypes import name_of
from splitquant.onnx.forms import Form, form_of
from splitquant.onnx.functions import FunctionConstant
from splitquant.onnx.layers import Layer, NotALayer, layer_of
from splitquant.onnx.opset import ANY, INTEGER, dequantize_opset
from splitquant.onnx.options import Options
from splitquant.onnx.report import NodeOutcome
from splitquant.onnx.scopes import THROUGH, Constant, Scope
from splitquant.onnx.stored import StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class NodePlan:
    """What becomes of one node: stored in `form`, or kept (`form` None) because of `reason`.

    label, op_type: what it is called and is; `node` itself is overwritten by what takes its place.
    weight: the node's constant, where it has one.
    """

    scope: Scope
    node: NodeProto
    label: str
    op_type: str
    weight: Constant | None
    form: Form | None
    reason: str

    @property
    def weight_name(self) -> str:
        """What reports, errors and patterns call the weight ("" where there is none)."""
        if self.weight is None:
            return ""
        names = self.weight.names
        name = self.weight.tensor.name
        return name if name in names else min(names, default=name or self.label)

    @property
    def owner(self) -> Scope:
        """The graph that the parts are put into.

        ONNX Runtime turns DequantizeLinear and MatMul into MatMulNBits only where the codes are in the same graph, and
        fails to load a subgraph whose codes are outside it; so those go where they are read.
        """
        assert self.form is not None
        return self.scope if self.form.name in ("QDQ", "Integer") else self.form.layer.weight.owner

    @property
    def key(self) -> tuple[object, ...]:
        """What two nodes must agree in to share the tensors of their parts."""
        assert self.form is not None
        weight, form = self.form.layer.weight, self.form
        layer = (weight.perm, weight.casts, form.layer.axis)
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


def plan_nodes(scopes: Sequence[Scope], options: Options, wide: frozenset[str] = frozenset()) -> list[NodePlan]:
    """Decide about every node of an operator that is handled; SpecError for a pattern that matches nothing.

    wide: names of weights whose scales float16 cannot hold.
    """
    plans: list[NodePlan] = []
    names: set[str] = set()
    for scope in scopes:
        for node in scope.graph.node:
            found = layer_of(node, scope)
            if found is None:
                continue
            label = node.name or node.output[0]
            if isinstance(found, NotALayer):
                names.add(label)
                plans.append(NodePlan(scope, node, label, node.op_type, None, None, found.reason))
                continue
            names |= {label, found.weight.tensor.name}
            plan = NodePlan(scope, node, label, node.op_type, found.weight, None, "")
            form, reason = _decide(found, label, options, wide=plan.weight_name in wide)
            plans.append(replace(plan, form=form, reason=reason))
    for scope in scopes:
        names |= scope.constants.keys()
    options.check_patterns(names)
    return plans


def needed_opset(plans: Sequence[NodePlan]) -> int:
    """The opset that the forms of a plan ask for."""
    needed = ANY
    for plan in plans:
        form = plan.form
        if form is None or form.name not in ("QDQ", "Integer"):
            continue
        if form.name == "Integer":
            needed = max(needed, INTEGER, dequantize_opset(form.code_type, per_axis=False, half=False, blocked=False))
            continue
        needed = max(
            needed,
            dequantize_opset(
                form.code_type,
                per_axis=form.spec.granularity.kind != "tensor",
                half=form.scale_type == TensorProto.FLOAT16,
                blocked=form.blocked,
            ),
        )
    return needed


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that reads a constant: its name, its operator."""

    label: str
    op_type: str


def readers_of(scopes: Sequence[Scope]) -> dict[str, Reader]:
    """The first node that reads each name; what is only passed on by Transpose, Cast and Identity is read behind them."""
    first: dict[str, NodeProto] = {}
    for scope in scopes:
        for node in scope.graph.node:
            for name in node.input:
                first.setdefault(name, node)
    readers: dict[str, Reader] = {}
    for name, node in first.items():
        while node.op_type in THROUGH and node.output[0] in first:
            node = first[node.output[0]]  # noqa: PLW2901 - the walk to the last of them
        readers[name] = Reader(node.name or node.output[0], node.op_type)
    return readers


def kept_weights(
    scopes: Sequence[Scope],
    before: Mapping[str, Reader],
    planned: set[tuple[int, str]],
    listed: set[tuple[int, str]],
) -> Iterator[NodeOutcome]:
    """Every constant that is still there and not `listed` with a kept node, with the reason why it stays.

    before: who read it in the source. planned: those that a converted node read too; their first size is counted there.
    """
    after = readers_of(scopes)
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
                row = replace(row, node=reader.label, op_type=reader.op_type)
            yield replace(row, source_bytes=0) if shared else row


def kept_in_functions(constants: Iterable[FunctionConstant]) -> Iterator[NodeOutcome]:
    """The weights of local functions that stay functions."""
    for constant in constants:
        yield _kept(
            constant.name, constant.tensor, f"in the local function {constant.function!r}, which cannot be inlined"
        )


def _kept(name: str, tensor: StoredTensor, reason: str) -> NodeOutcome:
    return NodeOutcome(
        node="",
        op_type="",
        weight=name,
        outcome="kept",
        reason=reason,
        form="",
        parts=0,
        dtype=name_of(tensor.data_type),
        shape=tensor.shape,
        source_bytes=tensor.nbytes,
        stored_bytes=tensor.nbytes,
        spec=None,
        figures=None,
    )


def kept_sparse(scopes: Sequence[Scope]) -> Iterator[NodeOutcome]:
    """Sparse initializers: kept as they are."""
    for scope in scopes:
        for proto in scope.graph.sparse_initializer:
            shape = tuple(proto.dims)
            yield NodeOutcome(
                "",
                "",
                proto.values.name,
                "kept",
                "sparse",
                "",
                0,
                name_of(proto.values.data_type),
                shape,
                0,
                0,
                None,
                None,
            )


def _why_kept(weight: Constant, reader: Reader | None, *, returned: bool) -> str:
    if weight.kinds is None:
        return f"not float32, float16 or bfloat16 ({name_of(weight.data_type)})"
    if math.prod(weight.shape) == max(weight.shape, default=1):
        return "a scalar or vector (norm, bias, scale)"
    if returned and reader is None:
        return "an output of the graph"
    if reader is None:
        return "no node reads it"
    return f"{reader.op_type} is not split"


def _decide(layer: Layer, label: str, options: Options, *, wide: bool) -> tuple[Form | None, str]:
    weight = layer.weight
    wanted, why = options.wants((label, weight.tensor.name, *weight.names))
    if not wanted:
        return None, why
    kinds = weight.kinds
    if kinds is None:
        return None, f"the weight is {name_of(weight.tensor.data_type)}; float32, float16 and bfloat16 are split"
    if 0 in weight.shape:
        return None, "the weight is empty"
    if layer.kind == "embedding":
        if options.format == "float":
            return None, "an embedding is looked up, not multiplied: there is nothing to split"
        if options.embeddings is None and not why:
            return None, "embeddings are kept"
    if layer.kind == "gemm" and options.format != "float" and layer.axis == 0:
        # Low-bit kernels exist for MatMul only, so that a Gemm becomes MatMul, with its weight as [in, out].
        turned = replace(weight, perm=weight.perm[::-1])
        layer = Layer("gemm", 1, turned, 1, 0)
    form, remark = form_of(layer, kinds[-1], options, wide=wide)
    if form is None:
        return None, remark
    if form.name != "float" and form.stored_bytes >= weight.tensor.nbytes:
        return None, f"would not get smaller ({form.stored_bytes} bytes instead of {weight.tensor.nbytes})"
    return form, "; ".join(filter(None, (why, remark)))
