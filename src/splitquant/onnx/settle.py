"""What of a plan only the weights themselves can decide: whether float16 holds the scales of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from onnx import TensorProto

from splitquant.errors import TensorError, tensor_error
from splitquant.onnx.forms.encode import fits_half, needs_all_memory
from splitquant.onnx.forms.options import OnnxForm
from splitquant.onnx.layers import NodeLayer
from splitquant.onnx.plan import NodePlan, node_plans
from splitquant.plan.plan import Plan
from splitquant.storage.memory import MemoryBudget


def layers_of_wide_scales(
    layers: Sequence[NodeLayer], plan: Plan, storage: OnnxForm, budget: MemoryBudget, label: str
) -> frozenset[str]:
    """The names of the layers whose scales float16 cannot hold, since all of them are too small or too large.

    Reads the weights that would get such scales once; a model of float32 has none.

    Raises:
        TensorError: with the weight's name, for NaN and infinity.
    """
    half = [p for p in node_plans(layers, plan, storage) if _has_half_scales(p) and p.decision.layer.tied_to is None]

    def is_wide(node: NodePlan) -> bool:
        assert node.form is not None
        alone = replace(budget, threads=1) if needs_all_memory(node.form, budget) else budget
        try:
            return not fits_half(node.form, alone)
        except TensorError as error:
            raise tensor_error(label, node.weight_name, error) from None

    with ThreadPoolExecutor(budget.threads) as pool:
        wide = list(pool.map(is_wide, half))
    return frozenset(node.decision.name for node, found in zip(half, wide, strict=True) if found)


def _has_half_scales(node: NodePlan) -> bool:
    return node.form is not None and node.form.scale_type == TensorProto.FLOAT16
