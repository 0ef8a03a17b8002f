"""Fit grids to the values: lower the squared error of a grid whose borders are found already.

The exact border search takes the range of every cluster as given; here outliers are clipped where that helps the rest. The
steps are those of `core.refit`. Where zero must be a level, scales are fitted and zero_points, which are integers, are tried
one by one; where parts add up, their scales are fitted one after the other. Errors are those on the histogram.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from splitquant.core.affine import Grid, level_table, part_levels, round_scale
from splitquant.core.arrays import F64
from splitquant.core.cells import nearest_cells
from splitquant.core.histogram import Bins, Values
from splitquant.core.kernels import kernels
from splitquant.core.refit import LEAST_GAIN, Fit, Step, descend, fit_of, total
from splitquant.core.spec import QuantSpec

TRIAL_STEPS = 3


def polished(grid: Grid, bins: Bins, spec: QuantSpec) -> Grid:
    """The grid after polishing; the same one where nothing is gained.

    Args:
        grid: as borders or ranges gave it.
        bins: of all values.
        spec: what it is a grid of.

    LAW: on the bins' means the squared error is not larger than before, for grids as they are stored.
    """
    values = Values.of(bins)
    if not spec.zero_in_grid:
        return kernels().polish(values, grid)
    refit = _refit_parts if spec.facts.additive else _refit_zero
    step = partial(refit, spec=spec)
    start = _with_cells(grid, spec)
    best, fit = descend(start, fit_of(start, values), values, step)
    if not spec.symmetric and not spec.facts.additive:
        return _with_better_zero_points(best, fit, values, spec, step)
    return best


def _refit_zero(grid: Grid, fit: Fit, spec: QuantSpec) -> Grid:
    """The least-squares scale of every cluster whose grid holds zero; zero_points stay."""
    point = _zero_points(grid)
    code = np.arange(grid.levels.shape[1], dtype=np.float64) - point[:, None]
    squares = total(fit.count * code * code)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where((grid.scale > 0) & (squares > 0), total(fit.sum * code) / squares, grid.scale)
    return _with_scale(grid, np.where(scale > 0, round_scale(scale), grid.scale), point, spec)


def _refit_parts(grid: Grid, fit: Fit, spec: QuantSpec) -> Grid:
    """The least-squares scales of parts that add up; zero_points stay."""
    point = _zero_points(grid)
    unit = part_levels(np.ones(len(point), np.float32), -point.astype(np.float32), spec.bits).astype(np.float64)
    scale = grid.scale.astype(np.float64)
    for part, own in enumerate(unit):  # one after the other, the rest held
        squares = total(fit.count[0] * own * own)
        others = np.add.accumulate(scale[:, None] * unit)[-1] - scale[part] * own
        if squares > 0.0:
            found = round_scale(total((fit.sum[0] - fit.count[0] * others) * own) / squares)
            scale[part] = found if found > 0.0 else scale[part]
    return _with_scale(grid, scale, point, spec)


def _with_better_zero_points(grid: Grid, fit: Fit, values: Values, spec: QuantSpec, step: Step) -> Grid:
    """Shift each cluster's zero_point by one code as long as that gains within a few steps."""
    shifts = [(cluster, shift) for cluster in np.flatnonzero(grid.scale > 0).tolist() for shift in (-1, 1)]
    better = True
    while better and fit.error > 0.0:
        better = False
        for cluster, shift in shifts:
            point = _zero_points(grid)
            point[cluster] += shift
            if 0 <= point[cluster] < grid.levels.shape[1]:
                start = _with_scale(grid, grid.scale.astype(np.float64), point, spec)
                trial, found = descend(start, fit_of(start, values), values, step, TRIAL_STEPS)
                if found.error < fit.error * (1.0 - TRIAL_STEPS * LEAST_GAIN):
                    grid, fit, better = trial, found, True
    return descend(grid, fit, values, step)[0]


def _zero_points(grid: Grid) -> F64:
    scale = grid.scale.astype(np.float64)
    return np.where(scale > 0, np.rint(-grid.offset / np.where(scale > 0, scale, 1.0)), 0.0)


def _with_scale(grid: Grid, scale: F64, point: F64, spec: QuantSpec) -> Grid:
    offset = (-scale * point).astype(np.float32) + np.float32(0)
    stored = scale.astype(np.float32)
    return _with_cells(replace(grid, scale=stored, offset=offset, levels=level_table(spec, stored, offset)), spec)


def _with_cells(grid: Grid, spec: QuantSpec) -> Grid:
    """Grids that hold zero overlap, so the nearest level may be of any cluster; those of their own ranges do not."""
    if not spec.zero_in_grid or spec.clusters == 1:
        return grid
    return replace(grid, cells=nearest_cells(grid.levels, spec))
