"""Globally optimal segments of a 1-D value histogram, for any k, by dynamic programming with divide and conquer.

Every objective is a cost of one segment of neighbouring bins; the total is the sum over segments. With prefix sums a
cost takes constant time, and each cost below satisfies the quadrangle inequality, so the best start of the last
segment never moves left as the end moves right, and divide and conquer finds every optimum in O(k n log n):

- `kmeans`: the within-segment sum of squares (the paper, arXiv 2503.07657). The sum of squares of all values is the
  same for every partition and is left out: what remains is `-sum**2 / count`.
- `min_error`, own range: `count * (high - low)**2`; a linear grid of 2**b codes over a range r errs by
  `r**2 / (12 * (2**b - 1)**2)` per weight on average, and the factor is the same for all segments.
- `min_error`, zero in the grid: the same with the range widened to hold zero. `magnitude` is this on magnitudes, where it
  is `count * high**2`, the error of a symmetric grid.

Count and range are both sums that grow with the segment, hence so does the product's gain: the inequality holds.
`lloyd` is `kmeans` with as many segments as there are levels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from splitquant.core.arrays import I64
from splitquant.core.histogram import Bins
from splitquant.core.interface import SegmentCosts
from splitquant.core.kernels import kernels
from splitquant.core.spec import QuantSpec

Objective = Literal["kmeans", "own_range", "zero_range"]


def objective_of(spec: QuantSpec) -> Objective:
    """The segment cost that a spec asks for (a symmetric grid holds zero, so it takes the form that does).

    Args:
        spec: of magnitudes, see `folded`, where its strategy is `magnitude`.
    """
    if spec.facts.squares:
        return "kmeans"
    return "zero_range" if spec.zero_in_grid else "own_range"


def folded(bins: Bins) -> Bins:
    """The bins of the magnitudes; those of a value and its negative become one.

    Args:
        bins: of values.
    """
    sign = np.where(bins.high > 0.0, 1.0, -1.0)
    low, high = np.where(sign > 0, bins.low, -bins.high), np.where(sign > 0, bins.high, -bins.low)
    order = np.argsort(low, kind="stable")
    low, high = low[order], high[order]
    reach = np.maximum.accumulate(high)
    start = np.flatnonzero(np.concatenate([[True], low[1:] > reach[:-1]]))
    count, total, squares = (part[order] for part in (bins.count, bins.sum * sign, bins.sum_sq))
    return Bins(
        np.add.reduceat(count, start),
        np.add.reduceat(total, start),
        np.add.reduceat(squares, start),
        low[start],
        np.maximum.reduceat(high, start),
    )


def costs_of(bins: Bins, objective: Objective) -> SegmentCosts:
    """What the costs of all segments are computed from.

    Sums are taken about the mean, which loses fewer digits and changes every partition's cost by the same amount.

    Args:
        bins: n of them, at least one.
        objective: which cost.
    """
    zero = np.zeros(1)
    count = np.concatenate([zero, np.cumsum(bins.count)])
    mean = bins.sum.sum() / count[-1]
    total = np.concatenate([zero, np.cumsum(bins.sum - bins.count * mean)])
    low, high = bins.low, bins.high
    if objective == "zero_range":
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    return SegmentCosts(count, total, np.ascontiguousarray(low), np.ascontiguousarray(high), objective == "kmeans")


def partition(bins: Bins, clusters: int, objective: Objective) -> I64:
    """Borders of the optimal segments: int64 `[m + 1]` from 0 to `len(bins)`, segment s is bins `[b[s], b[s+1])`.

    Args:
        bins: at least one.
        clusters: m, but where there are fewer bins, m is their number.
        objective: whose total is the least there is. Ties go to the leftmost border.
    """
    m = min(clusters, len(bins))
    return np.array([0, len(bins)], np.int64) if m == 1 else kernels().partition(costs_of(bins, objective), m)


def segment_cost(bins: Bins, borders: I64, objective: Objective) -> float:
    """The objective of a given partition, up to the constant that `kmeans` leaves out (reference for tests).

    Args:
        bins: at least one.
        borders: int64 `[m + 1]`, ascending from 0 to `len(bins)`.
        objective: which cost.
    """
    return float(costs_of(bins, objective).cost(borders[:-1], borders[1:]).sum())
