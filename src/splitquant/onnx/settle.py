"""What of a plan only the weights themselves can decide: whether float16 holds the scales of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from splitquant.errors import TensorError, tensor_error
from splitquant.onnx.forms.encode import fits_half, needs_all_memory
from splitquant.onnx.forms.options import OnnxForm
from splitquant.onnx.layers import NodeLayer
from splitquant.onnx.measure import sampled_rows
from splitquant.onnx.plan import NodePlan, node_plans
from splitquant.plan.plan import Plan
from splitquant.storage.memory import Buffers, MemoryBudget

_TINY = (
    2.0**-12
)  # 64 times the least scale that float16 holds well: fewer than the steps of any grid of 4 bits in two parts


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


def suspected_of_wide_scales(layers: Sequence[NodeLayer], budget: MemoryBudget) -> frozenset[str]:
    """The names of the layers whose weights are so small that no float16 is likely to hold their scales.

    Reads a sample of every weight of float16. For sizes: what is suspected is priced with wide scales.
    """
    buffers = Buffers()

    def is_tiny(found: NodeLayer) -> bool:
        assert found.operand is not None
        return bool(np.abs(sampled_rows(found.operand, budget, buffers)).max(initial=0.0) < _TINY)

    half = [found for found in layers if found.layer.dtype == "F16" and found.layer.possible]
    owners = [found for found in half if found.layer.tied_to is None]
    with ThreadPoolExecutor(budget.threads) as pool:
        return frozenset(f.layer.name for f, tiny in zip(owners, pool.map(is_tiny, owners), strict=True) if tiny)


def _has_half_scales(node: NodePlan) -> bool:
    return node.form is not None and node.form.scale_type == TensorProto.FLOAT16
