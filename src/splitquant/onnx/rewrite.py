"""Nodes in, nodes out: how a layer reads once its weight is in parts.

Branches are summed by one `Sum`: a chain of Adds behind MatMuls would be turned into Gemm by ONNX Runtime, and Gemm has
no low-bit kernel. The bias goes into one branch of a convolution or a float Gemm, and behind the Sum elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import NodeProto, TensorProto, helper

from splitquant.onnx.dtypes import DATA_TYPE_OF
from splitquant.onnx.graph.operands import MICROSOFT, integer, real
from splitquant.onnx.graph.words import copy_words
from splitquant.onnx.integer import integer_terms
from splitquant.onnx.plan import NodePlan, PartNames

Names = Callable[[str], str]
_OPTIONAL_BIAS = 11  # the first opset in which a Gemm needs no bias
_BROADCAST_SUM = 8  # the first in which the terms of a Sum may have different shapes


def branches(plan: NodePlan, parts: Sequence[PartNames], fresh: Names, opset: int) -> list[NodeProto]:
    """The nodes that take the place of `plan.node`; the last of them makes what that node made.

    fresh: turns a name into one that the model does not have yet. opset: of the model, for what older ones lack.
    """
    if plan.found.operand is not None and plan.found.operand.kind == "recurrent":
        return _recurrent(plan, parts, fresh)
    nodes = _branches(plan, parts, fresh, opset)
    copy_words(plan.node, nodes[-1])
    return nodes


def _recurrent(plan: NodePlan, parts: Sequence[PartNames], fresh: Names) -> list[NodeProto]:
    """A recurrent layer whose weight is the sum of its decoded parts; its other weight may be another plan's."""
    form, nodes = plan.form, list[NodeProto]()
    assert form is not None
    terms = [_dequantized(plan, part, nodes, f"{plan.label}.part{c}", fresh) for c, part in enumerate(parts)]
    layer = NodeProto()
    layer.CopyFrom(plan.node)
    layer.input[form.operand.slot] = _summed(terms, f"{plan.label}.sum", nodes, fresh)
    return [*nodes, layer]


def joined(before: Sequence[NodeProto], after: Sequence[NodeProto], slot: int) -> list[NodeProto]:
    """What takes the place of a node of which two weights are converted: `before` for the one, `after` for that at `slot`."""
    after[-1].input[:] = [name if at == slot else before[-1].input[at] for at, name in enumerate(after[-1].input)]
    return [*before[:-1], *after]


def _branches(plan: NodePlan, parts: Sequence[PartNames], fresh: Names, opset: int) -> list[NodeProto]:
    form = plan.form
    assert form is not None
    if form.name == "Gather":
        return _gathered(plan, parts[0], fresh)
    if form.operand.kind == "gemm" and form.name != "float":
        return _gemm(plan, parts, fresh, opset)
    if form.name == "Integer":
        return _integer(plan, parts, fresh)
    node, nodes, outputs = plan.node, list[NodeProto](), list[str]()
    single = len(parts) == 1
    for c, part in enumerate(parts):
        label = plan.label if single else fresh(f"{plan.label}.part{c}")
        output = node.output[0] if single else fresh(f"{node.output[0]}.part{c}.out")
        outputs.append(output)
        if form.name == "MatMulNBits":
            nodes.append(_matmul_nbits(plan, part, node.input[0], label, output))
            continue
        weight = part.codes if form.name == "float" else _dequantized(plan, part, nodes, label, fresh)
        branch = NodeProto()
        branch.CopyFrom(node)
        branch.name = label
        branch.output[0] = output
        branch.input[form.operand.slot] = weight
        if c > 0 and len(branch.input) > 2:  # the bias is in the first branch
            if form.operand.kind == "gemm" and opset < _OPTIONAL_BIAS:
                _without_beta(branch)
            else:
                del branch.input[2:]
        nodes.append(branch)
    if not single:
        nodes.append(helper.make_node("Sum", outputs, [node.output[0]], name=fresh(f"{plan.label}.sum")))
    return nodes


def _without_beta(gemm: NodeProto) -> None:
    """Drop the bias of a Gemm by its factor."""
    kept = [attribute for attribute in gemm.attribute if attribute.name != "beta"]
    del gemm.attribute[:]
    gemm.attribute.extend([*kept, helper.make_attribute("beta", 0.0)])


def _gemm(plan: NodePlan, parts: Sequence[PartNames], fresh: Names, opset: int) -> list[NodeProto]:
    """Gemm as MatMul branches: `alpha * sum(A' part) + beta * C`."""
    form, node = plan.form, plan.node
    assert form is not None
    nodes: list[NodeProto] = []
    left = node.input[0]
    if integer(node, "transA", 0):
        left = fresh(f"{plan.label}.a")
        nodes.append(
            helper.make_node("Transpose", [node.input[0]], [left], name=fresh(f"{plan.label}.transpose"), perm=[1, 0])
        )
    terms: list[str] = []
    if form.name == "Integer":
        terms = integer_terms(plan, parts, left, nodes, fresh)
    for c, part in enumerate(parts if form.name != "Integer" else ()):
        label = fresh(f"{plan.label}.part{c}")
        output = fresh(f"{node.output[0]}.part{c}.out")
        terms.append(output)
        if form.name == "MatMulNBits":
            nodes.append(_matmul_nbits(plan, part, left, label, output))
        else:
            weight = _dequantized(plan, part, nodes, label, fresh)
            nodes.append(helper.make_node("MatMul", [left, weight], [output], name=label))
    alpha, beta = real(node, "alpha", 1.0), real(node, "beta", 1.0)
    if alpha != 1.0:
        total = _summed(terms, f"{plan.label}.sum", nodes, fresh)
        terms = [_scaled(plan, total, alpha, "alpha", nodes, fresh)]
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and beta != 0.0:
        bias = bias if beta == 1.0 else _scaled(plan, bias, beta, "beta", nodes, fresh)
        if opset < _BROADCAST_SUM:
            total = _summed(terms, f"{plan.label}.sum", nodes, fresh)
            nodes.append(helper.make_node("Add", [total, bias], [node.output[0]], name=fresh(f"{plan.label}.bias")))
            return nodes
        terms.append(bias)
    last = "Sum" if len(terms) > 1 else "Identity"
    nodes.append(helper.make_node(last, terms, [node.output[0]], name=fresh(f"{plan.label}.sum")))
    return nodes


def _integer(plan: NodePlan, parts: Sequence[PartNames], fresh: Names) -> list[NodeProto]:
    """MatMul or Conv as integer products of the parts, and the bias."""
    form, node, nodes = plan.form, plan.node, list[NodeProto]()
    assert form is not None
    terms = integer_terms(plan, parts, node.input[0], nodes, fresh)
    if len(node.input) > 2 and node.input[2]:
        shape, bias = fresh(f"{plan.label}.bias.shape"), fresh(f"{plan.label}.bias")
        value = helper.make_tensor(shape, TensorProto.INT64, [len(form.shape) - 1], [-1, *[1] * (len(form.shape) - 2)])
        nodes.append(helper.make_node("Constant", [], [shape], name=shape, value=value))
        nodes.append(helper.make_node("Reshape", [node.input[2], shape], [bias], name=bias))
        terms.append(bias)
    last = "Sum" if len(terms) > 1 else "Identity"
    nodes.append(helper.make_node(last, terms, [node.output[0]], name=fresh(f"{plan.label}.sum")))
    return nodes


def _summed(terms: list[str], label: str, nodes: list[NodeProto], fresh: Names) -> str:
    if len(terms) == 1:
        return terms[0]
    total = fresh(f"{label}.out")
    nodes.append(helper.make_node("Sum", terms, [total], name=fresh(label)))
    return total


def _scaled(  # noqa: PLR0913, PLR0917 - what a node is made of
    plan: NodePlan, term: str, factor: float, what: str, nodes: list[NodeProto], fresh: Names
) -> str:
    assert plan.form is not None
    constant, output = fresh(f"{plan.label}.{what}"), fresh(f"{plan.label}.{what}.out")
    value = helper.make_tensor(constant, DATA_TYPE_OF[plan.form.kind], [], [factor])
    nodes.append(helper.make_node("Constant", [], [constant], name=constant, value=value))
    nodes.append(helper.make_node("Mul", [term, constant], [output], name=fresh(f"{plan.label}.{what}.mul")))
    return output


def _matmul_nbits(plan: NodePlan, part: PartNames, left: str, label: str, output: str) -> NodeProto:
    form = plan.form
    assert form is not None
    inputs = [left, part.codes, part.scale, *([part.zero_point] if part.zero_point else [])]
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [output],
        name=label,
        domain=MICROSOFT,
        K=form.cols,
        N=form.rows,
        bits=form.stored_bits,
        block_size=form.block,
        accuracy_level=form.accuracy_level,
    )


def _dequantized(plan: NodePlan, part: PartNames, nodes: list[NodeProto], label: str, fresh: Names) -> str:
    """Add DequantizeLinear (and a Cast where the weight is of another float type); the name of its output."""
    form = plan.form
    assert form is not None
    attributes: dict[str, Any] = {}
    if form.blocked:
        assert form.operand.reduction is not None
        attributes = {"axis": form.operand.reduction, "block_size": form.spec.group_size(form.cols)}
    elif form.spec.granularity.kind != "tensor":
        attributes = {"axis": form.operand.axis}
    output = fresh(f"{label}.weight")
    inputs = [part.codes, part.scale, *([part.zero_point] if part.zero_point else [])]
    nodes.append(
        helper.make_node("DequantizeLinear", inputs, [output], name=fresh(f"{label}.dequantize"), **attributes)
    )
    wanted = DATA_TYPE_OF[form.kind]
    if form.scale_type == wanted:
        return output
    cast = fresh(f"{label}.weight.cast")
    nodes.append(helper.make_node("Cast", [output], [cast], name=fresh(f"{label}.cast"), to=wanted))
    return cast


def _gathered(plan: NodePlan, part: PartNames, fresh: Names) -> list[NodeProto]:
    """Rows of codes are gathered first and scaled then, so that a lookup never expands the table."""
    form, node = plan.form, plan.node
    assert form is not None
    label = plan.label
    codes, wide = fresh(f"{label}.codes"), fresh(f"{label}.codes.float")
    nodes = [
        helper.make_node("Gather", [part.codes, node.input[1]], [codes], name=label, axis=0),
        helper.make_node("Cast", [codes], [wide], name=fresh(f"{label}.cast"), to=TensorProto.FLOAT),
    ]
    scale = part.scale
    if form.spec.granularity.kind != "tensor":
        scale = fresh(f"{label}.scale")
        nodes.append(
            helper.make_node(
                "Gather", [part.scale, node.input[1]], [scale], name=fresh(f"{label}.gather_scale"), axis=0
            )
        )
    wanted = DATA_TYPE_OF[form.kind]
    product = node.output[0] if wanted == TensorProto.FLOAT else fresh(f"{label}.float")
    nodes.append(helper.make_node("Mul", [wide, scale], [product], name=fresh(f"{label}.mul")))
    if wanted != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [product], [node.output[0]], name=fresh(f"{label}.cast_back"), to=wanted))
    return nodes
