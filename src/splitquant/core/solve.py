"""From the histogram of a tensor to its grid: the one place that knows what each strategy means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import Grid, affine_piece, grid_for, level_table
from splitquant.core.cells import nearest_cells, shell_cells
from splitquant.core.histogram import Bins, ValueHistogram
from splitquant.core.partition import folded, objective_of, partition
from splitquant.core.polish import polished
from splitquant.core.rows import refuse_huge
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError

F32 = NDArray[np.float32]
NONFINITE = "holds NaN or infinity; such weights cannot be quantized"
_ZERO = np.zeros(1)
_UNIT = np.ones(1)


def needs_survey(spec: QuantSpec) -> bool:
    """Whether levels depend on all values; symmetric grids over the whole range of scaled rows, [-1, 1], do not."""
    whole = spec.clusters == 1 or spec.strategy == "residual"
    return not (whole and spec.symmetric and spec.granularity != "tensor" and not spec.polish)


def needs_weights(spec: QuantSpec) -> bool:
    """Whether it matters to the levels how often a value occurs, and so what its row weighs (see `RowScales.weighed`)."""
    by_range = (spec.clusters == 1 and spec.strategy != "lloyd") or spec.strategy == "residual"
    return spec.granularity != "tensor" and (bool(spec.polish) or not by_range)


def solve(histogram: ValueHistogram | None, spec: QuantSpec) -> Grid:
    """The grid for all values of a tensor (no histogram: see `needs_survey`); TensorError for NaN or infinity."""
    if histogram is None:
        return _by_range(-_UNIT, _UNIT, spec)
    if histogram.nonfinite:
        raise TensorError(NONFINITE)
    bins = histogram.bins()
    if len(bins) == 0:
        return _free_levels(_ZERO, spec) if spec.strategy == "lloyd" else _by_range(_ZERO, _ZERO, spec)
    refuse_huge(max(-bins.low[0], bins.high[-1]), histogram.kind)
    if spec.strategy == "lloyd":
        borders = partition(bins, spec.clusters << spec.bits, "kmeans")
        return _free_levels(np.add.reduceat(bins.sum, borders[:-1]) / np.add.reduceat(bins.count, borders[:-1]), spec)
    grid = _by_shells(bins, spec) if spec.strategy == "magnitude" and spec.clusters > 1 else _by_segments(bins, spec)
    return polished(grid, bins, spec) if spec.polish else grid


def _by_segments(bins: Bins, spec: QuantSpec) -> Grid:
    if spec.strategy == "residual":
        return _by_range(bins.low[:1], bins.high[-1:], spec)
    borders = partition(bins, spec.clusters, objective_of(spec))
    return grid_for(bins.low[borders[:-1]], bins.high[borders[1:] - 1], spec)


def _by_range(low: NDArray[np.float64], high: NDArray[np.float64], spec: QuantSpec) -> Grid:
    return _additive(float(low[0]), float(high[0]), spec) if spec.strategy == "residual" else grid_for(low, high, spec)


def _by_shells(bins: Bins, spec: QuantSpec) -> Grid:
    """`magnitude`: optimal segments of |w|, each with the symmetric grid of its largest."""
    magnitudes = folded(bins)
    borders = partition(magnitudes, spec.clusters, objective_of(spec))
    grid = grid_for(magnitudes.low[borders[:-1]], magnitudes.high[borders[1:] - 1], spec)
    return replace(grid, cells=shell_cells(grid, len(borders) - 1))


def _additive(low: float, high: float, spec: QuantSpec) -> Grid:
    """`residual`: a grid over the whole range, then grids over what rounding to the one before leaves."""
    scale, offset = np.zeros(spec.clusters, np.float32), np.zeros(spec.clusters, np.float32)
    for c in range(spec.clusters):
        scale[c], offset[c] = affine_piece(low, high, spec)
        high = float(scale[c]) / 2
        low = -high
    offset += np.float32(0)
    table = level_table(spec, scale, offset)
    cells = nearest_cells(table, spec)
    return Grid(spec.code_bits, -np.inf * np.ones(1, np.float32), scale, offset, 0, table.shape[1] - 1, table, cells)


def _free_levels(values: NDArray[np.float64], spec: QuantSpec) -> Grid:
    """`lloyd`: the given levels, ascending; where values are few, the last is repeated."""
    count = spec.clusters << spec.bits
    ascending = np.full(count, values[-1], np.float32)
    ascending[: len(values)] = values
    table: F32 = ascending.reshape(spec.clusters, -1) + np.float32(0)
    lower = np.append(np.float32(-np.inf), table[1:, 0])
    nothing = np.zeros(0, np.float32)
    return Grid(spec.bits, lower, nothing, nothing, 0, table.shape[1] - 1, table, nearest_cells(table, spec))
