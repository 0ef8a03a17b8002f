"""From the histogram of a tensor to its grid: the mathematics of each strategy, in one table of solvers.

What else there is to know of a strategy are facts, in `core.strategies`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from splitquant.core.affine import Grid, affine_piece, grid_for, level_table, own_grid
from splitquant.core.arrays import F32
from splitquant.core.cells import nearest_cells, shell_cells
from splitquant.core.floats import refuse_unfit
from splitquant.core.histogram import Bins, ValueHistogram
from splitquant.core.partition import folded, objective_of, partition
from splitquant.core.polish import polished
from splitquant.core.spec import QuantSpec
from splitquant.core.strategies import Strategy

Solver = Callable[[Bins, QuantSpec], Grid]


def _one_bin(low: float, high: float) -> Bins:
    return Bins(*(np.array([value]) for value in (1.0, 0.0, 0.0, low, high)))


_NOTHING = _one_bin(0.0, 0.0)  # a tensor without weights
_UNIT = _one_bin(-1.0, 1.0)  # the range of scaled rows


def needs_histogram(spec: QuantSpec) -> bool:
    """Whether levels depend on all values; symmetric grids over the range of scaled rows, [-1, 1], and own ones do not.

    Args:
        spec: how the tensor is quantized.
    """
    return not spec.own_zero_points and not (
        _by_range(spec) and spec.symmetric and spec.granularity.kind != "tensor" and not spec.polish
    )


def needs_weights(spec: QuantSpec) -> bool:
    """Whether it matters to the levels how often a value occurs, and so what its row weighs, see `RowScales.weighed`.

    Args:
        spec: how the tensor is quantized.
    """
    return not spec.own_zero_points and spec.granularity.kind != "tensor" and (bool(spec.polish) or not _by_range(spec))


def _by_range(spec: QuantSpec) -> bool:
    """Whether grids follow from the range of all values, until they are polished."""
    return spec.facts.additive or (spec.clusters == 1 and not spec.facts.free_levels)


def solve(histogram: ValueHistogram | None, spec: QuantSpec) -> Grid:
    """The grid for all values of a tensor.

    Args:
        histogram: of the values, divided by their row_scales where there are any; None where `needs_histogram` says so.
        spec: how the tensor is quantized.

    Raises:
        TensorError: for NaN, infinity, and magnitudes that cannot be quantized.
    """
    if spec.own_zero_points:
        return own_grid(spec.bits)
    bins = _UNIT if histogram is None else _bins_of(histogram)
    grid = SOLVERS[spec.strategy](bins, spec)
    return polished(grid, bins, spec) if spec.polish else grid


def _bins_of(histogram: ValueHistogram) -> Bins:
    bins = histogram.bins()
    if histogram.nonfinite == 0 and len(bins) == 0:
        return _NOTHING
    refuse_unfit(math.nan if histogram.nonfinite else max(-bins.low[0], bins.high[-1]), histogram.kind)
    return bins


def _segments(bins: Bins, spec: QuantSpec) -> Grid:
    """Optimal segments of values, each with a grid over its range."""
    borders = partition(bins, spec.clusters, objective_of(spec))
    return grid_for(bins.low[borders[:-1]], bins.high[borders[1:] - 1], spec)


def _shells(bins: Bins, spec: QuantSpec) -> Grid:
    """Optimal segments of |w|, each with the symmetric grid of its largest."""
    if spec.clusters == 1:
        return _segments(bins, spec)
    magnitudes = folded(bins)
    grid = _segments(magnitudes, spec)
    return replace(grid, cells=shell_cells(grid, min(spec.clusters, len(magnitudes))))


def _remainders(bins: Bins, spec: QuantSpec) -> Grid:
    """A grid over the whole range, then grids over what rounding to the one before leaves."""
    low, high = float(bins.low[0]), float(bins.high[-1])
    scale, offset = np.zeros(spec.clusters, np.float32), np.zeros(spec.clusters, np.float32)
    for c in range(spec.clusters):
        scale[c], offset[c] = affine_piece(low, high, spec)
        high = float(scale[c]) / 2
        low = -high
    offset += np.float32(0)
    table = level_table(spec, scale, offset)
    cells = nearest_cells(table, spec)
    return Grid(spec.code_bits, -np.inf * np.ones(1, np.float32), scale, offset, 0, table.shape[1] - 1, table, cells)


def _means(bins: Bins, spec: QuantSpec) -> Grid:
    """The means of optimal segments, as many as there are levels; where values are few, the last is repeated."""
    count = spec.clusters << spec.bits
    borders = partition(bins, count, objective_of(spec))
    values = np.add.reduceat(bins.sum, borders[:-1]) / np.add.reduceat(bins.count, borders[:-1])
    ascending = np.full(count, values[-1], np.float32)
    ascending[: len(values)] = values
    table: F32 = ascending.reshape(spec.clusters, -1) + np.float32(0)
    lower = np.append(np.float32(-np.inf), table[1:, 0])
    nothing = np.zeros(0, np.float32)
    return Grid(spec.bits, lower, nothing, nothing, 0, table.shape[1] - 1, table, nearest_cells(table, spec))


SOLVERS: Mapping[Strategy, Solver] = MappingProxyType(
    {
        "min_error": _segments,
        "kmeans": _segments,
        "magnitude": _shells,
        "residual": _remainders,
        "lloyd": _means,
    }
)
