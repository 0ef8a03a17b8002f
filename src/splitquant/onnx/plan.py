"""What becomes of every node: a value that can be printed, made without reading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx import NodeProto, TensorProto

from splitquant.onnx.dtypes import name_of
from splitquant.onnx.forms import Form, form_of
from splitquant.onnx.layers import Layer, NotALayer, layer_of
from splitquant.onnx.opset import ANY, dequantize_opset
from splitquant.onnx.options import Options
from splitquant.onnx.report import NodeOutcome
from splitquant.onnx.scopes import Constant, Scope


@dataclass(frozen=True, slots=True, eq=False)
class NodePlan:
    """What becomes of one node: stored in `form`, or kept (`form` None) because of `reason`.

    weight: the node's constant, where it has one.
    """

    scope: Scope
    node: NodeProto
    label: str
    weight: Constant | None
    form: Form | None
    reason: str

    @property
    def owner(self) -> Scope:
        """The graph that the parts are put into.

        ONNX Runtime turns DequantizeLinear and MatMul into MatMulNBits only where the codes are in the same graph, and
        fails to load a subgraph whose codes are outside it; so those go where they are read.
        """
        assert self.form is not None
        return self.scope if self.form.name == "QDQ" else self.form.layer.weight.owner

    @property
    def key(self) -> tuple[object, ...]:
        """What two nodes must agree in to share the tensors of their parts."""
        assert self.form is not None
        weight, form = self.form.layer.weight, self.form
        layer = (weight.perm, weight.casts, form.layer.axis)
        return (
            id(self.owner),
            id(weight.owner),
            weight.tensor.name,
            *layer,
            form.name,
            form.spec,
            form.stored_bits,
            form.block,
        )


def plan_nodes(scopes: Sequence[Scope], options: Options) -> list[NodePlan]:
    """Decide about every node of an operator that is handled; SpecError for a pattern that matches nothing."""
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
                plans.append(NodePlan(scope, node, label, None, None, found.reason))
                continue
            names |= {label, found.weight.tensor.name}
            form, reason = _decide(found, label, options)
            plans.append(NodePlan(scope, node, label, found.weight, form, reason))
    for scope in scopes:
        names |= scope.constants.keys()
    options.check_patterns(names)
    return plans


def needed_opset(plans: Sequence[NodePlan]) -> int:
    """The opset that the forms of a plan ask for."""
    needed = ANY
    for plan in plans:
        if plan.form is None or plan.form.name != "QDQ":
            continue
        form = plan.form
        needed = max(
            needed,
            dequantize_opset(
                form.code_type,
                per_axis=form.spec.granularity != "tensor",
                half=form.scale_type == TensorProto.FLOAT16,
                blocked=form.blocked,
            ),
        )
    return needed


def kept_weights(scopes: Sequence[Scope], planned: set[tuple[int, str]]) -> Iterator[NodeOutcome]:
    """Every constant that no converted or handled node reads, with the reason why it stays."""
    readers: dict[str, NodeProto] = {}
    for scope in scopes:
        for node in scope.graph.node:
            for name in node.input:
                readers.setdefault(name, node)
    for scope in scopes:
        for name, tensor in scope.constants.items():
            if (id(scope), name) in planned:
                continue
            reader = readers.get(name)
            yield NodeOutcome(
                node="" if reader is None else reader.name or reader.output[0],
                op_type="" if reader is None else reader.op_type,
                weight=name,
                outcome="kept",
                reason=_why_kept(Constant(tensor, scope, tuple(range(len(tensor.shape)))), reader),
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


def _why_kept(weight: Constant, reader: NodeProto | None) -> str:
    if weight.kinds is None:
        return f"not float32, float16 or bfloat16 ({name_of(weight.data_type)})"
    if math.prod(weight.shape) == max(weight.shape, default=1):
        return "a scalar or vector (norm, bias, scale)"
    if reader is None:
        return "no node reads it"
    return f"{reader.op_type} is not split"


def _decide(layer: Layer, label: str, options: Options) -> tuple[Form | None, str]:
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
        if options.embeddings is None:
            return None, "embeddings are kept"
    if layer.kind == "gemm" and options.format != "float" and layer.axis == 0:
        # Low-bit kernels exist for MatMul only, so that a Gemm becomes MatMul, with its weight as [in, out].
        turned = replace(weight, perm=weight.perm[::-1])
        layer = Layer("gemm", 1, turned, 1, 0)
    form, remark = form_of(layer, kinds[-1], options)
    if form.name != "float" and form.stored_bytes >= weight.tensor.nbytes:
        return None, f"would not get smaller ({form.stored_bytes} bytes instead of {weight.tensor.nbytes})"
    return form, "; ".join(filter(None, (why, remark)))
