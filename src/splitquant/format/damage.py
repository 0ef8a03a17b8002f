"""What the numbers of stored planes must be, whoever reads them: damage that shapes and sizes do not show.

Normative text: docs/format.md, section 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitquant.core.arrays import U8
from splitquant.core.kernels import kernels
from splitquant.core.spec import QuantSpec


def damage_of(plane: str, values: NDArray[Any]) -> str:
    """What is wrong with the numbers of a small plane ("": nothing).

    Args:
        plane: `scale`, `offset`, `levels` or `row_scale`.
        values: its numbers, floats of any width; of levels, clusters along the axis before the last.
    """
    if not np.isfinite(values).all():
        return "holds NaN or infinity"
    if plane in ("scale", "row_scale") and (values < 0).any():
        return "holds negative numbers"
    if plane == "levels" and (np.diff(values, axis=-1) < 0).any():
        return "holds levels that do not rise"
    return ""


def damage_of_ids(plane: U8, cols: int, spec: QuantSpec) -> str:
    """Whether packed cluster ids, uint8 `[rows, width]`, name a cluster that is not there ("": they do not)."""
    if spec.clusters == 1 << spec.cluster_bits:
        return ""
    largest = int(kernels().unpack(plane, cols, spec.cluster_bits).max(initial=0))
    return f"holds the cluster id {largest}, and there are {spec.clusters} clusters" if largest >= spec.clusters else ""
