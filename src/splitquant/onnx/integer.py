"""Integer products: the input of a layer on an INT8 grid of its own range, and the codes of the weight as they are.

All parts share one DynamicQuantizeLinear. Codes below 8 bits are stored as such and widened by a Cast, which runtimes
fold when they load the model: MatMulInteger and ConvInteger take 8 bits only. They are unsigned, with a zero_point, since on
processors without VNNI the kernels for signed ones saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import NodeProto, TensorProto, helper

from splitquant.onnx.dtypes import DATA_TYPE_OF
from splitquant.onnx.plan import NodePlan, PartNames


def integer_terms(
    plan: NodePlan, parts: Sequence[PartNames], left: str, nodes: list[NodeProto], fresh: Callable[[str], str]
) -> list[str]:
    """Add the integer products of `left` and all parts; the names of what is to be summed, in the float type of the weight."""
    form = plan.form
    assert form is not None
    label, single = plan.label, form.kind == "fp32"

    def add(op_type: str, what: str, inputs: Sequence[str], outputs: Sequence[str] = ("",), **attributes: Any) -> str:
        name = fresh(f"{label}.{what}")
        made = [fresh(f"{name}.{output or 'out'}") for output in outputs]
        nodes.append(helper.make_node(op_type, inputs, made, name=name, **attributes))
        return made[0]

    if not single:
        left = add("Cast", "float", [left], to=TensorProto.FLOAT)
    codes = add("DynamicQuantizeLinear", "quantize", [left], ("codes", "scale", "zero_point"))
    scale, zero_point = nodes[-1].output[1:]
    terms = []
    for c, part in enumerate(parts):
        weight = part.codes
        if form.stored_bits < 8:
            weight = add("Cast", f"part{c}.codes", [weight], to=TensorProto.UINT8)
        op_type = "ConvInteger" if form.operand.kind == "conv" else "MatMulInteger"
        product = add(op_type, f"part{c}", [codes, weight, zero_point, part.zero_point])
        if form.operand.kind == "conv":
            nodes[-1].attribute.extend(plan.node.attribute)
        product = add("Cast", f"part{c}.cast", [product], to=TensorProto.FLOAT)
        factor = add("Mul", f"part{c}.scale", [scale, part.scale])
        terms.append(add("Mul", f"part{c}.scaled", [product, factor]))
    if single:
        return terms
    total = add("Sum", "total", terms)
    return [add("Cast", "cast", [total], to=DATA_TYPE_OF[form.kind])]
