"""Fit grids to the values: lower the squared error of a grid whose borders are found already.

The exact border search takes the range of every cluster as given. Here two steps alternate, and neither can raise the
error: values go to their nearest level, and scales (and offsets, where zero need not be a level) become those of least
squares for the values they got. Outliers are clipped where that helps the rest. What is compared are grids as they will
be stored (scales of 16 significant bits, integer zero_points), on the histogram: the result is never worse than the
start there. All sums run in order, so that every machine finds the same grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import Grid, level_table, levels, part_levels, round_scale
from splitquant.core.cells import nearest_cells
from splitquant.core.histogram import Bins, Values
from splitquant.core.spec import QuantSpec

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MOST_STEPS = 64
TRIAL_STEPS = 3
LEAST_GAIN = 3e-4  # of the error, per step


@dataclass(frozen=True, slots=True)
class Fit:
    """How the values fall to the levels of a grid, `[k, codes]` each: counts and sums.

    error: the sum of squared errors of the bins' means; what the values of a bin differ by is the same for every grid.
    """

    count: F64
    sum: F64
    error: float


Step = Callable[[Grid, Fit], Grid]


def polished(grid: Grid, bins: Bins, spec: QuantSpec) -> Grid:
    """The grid after polishing; the same one where nothing is gained."""
    from splitquant.core.kernels import kernels

    values = Values.of(bins)
    if not spec.zero_in_grid:
        return kernels().polish(values, grid)
    refit = _refit_parts if spec.strategy == "residual" else _refit_zero
    step = partial(refit, spec=spec)
    start = _with_cells(grid, spec)
    best, fit = _descend(start, fit_of(start, values), values, step)
    if not spec.symmetric and spec.strategy != "residual":
        return _with_better_zero_points(best, fit, values, spec, step)
    return best


def fitted(grid: Grid, values: Values) -> Grid:
    """The polish of a grid whose clusters lie side by side (the reference of the kernel)."""
    return _descend(grid, fit_of(grid, values), values, _refit_free)[0]


def _descend(grid: Grid, fit: Fit, values: Values, step: Step, most: int = MOST_STEPS) -> tuple[Grid, Fit]:
    """Steps until they gain nothing worth the while."""
    for _ in range(most):
        if fit.error <= 0.0:
            break
        trial = step(grid, fit)
        found = fit_of(trial, values)
        if not found.error < fit.error:
            break
        gain = (fit.error - found.error) / fit.error
        grid, fit = trial, found
        if gain < LEAST_GAIN:
            break
    return grid, fit


def fit_of(grid: Grid, values: Values) -> Fit:
    """Which values are encoded as which level; a bin goes where its mean does."""
    shape = grid.levels.shape
    if grid.cells is None:
        border, index = _borders_of_clusters(grid), np.arange(grid.levels.size)
        level = grid.levels.reshape(-1).astype(np.float64)
    else:
        border = grid.cells.border.astype(np.float64)
        index = grid.cells.cluster.astype(np.int64) * shape[1] + grid.cells.code
        level = grid.cells.level.astype(np.float64)
    edge = np.concatenate([[0], np.searchsorted(values.mean, border), [len(values.mean)]])
    each = np.repeat(np.arange(len(level)), np.diff(edge))
    miss = values.mean - level[each]
    # Of every bin alone: differences of running sums would lose small values beside an outlier.
    error = np.cumsum(values.count * (miss * miss))[-1]
    return Fit(_by_level(index[each], values.count, shape), _by_level(index[each], values.sum, shape), float(error))


def _by_level(index: I64, parts: F64, shape: tuple[int, ...]) -> F64:
    """Sums per level, in order."""
    out = np.zeros(math.prod(shape))
    np.add.at(out, index, parts)
    return out.reshape(shape)


def _borders_of_clusters(grid: Grid) -> F64:
    """Where the next level begins, level by level, for clusters that lie side by side."""
    level = grid.levels.astype(np.float64)
    lower = grid.lower.astype(np.float64)
    upper = np.append(lower[1:], np.inf)
    middle = np.clip((level[:, 1:] + level[:, :-1]) / 2, lower[:, None], upper[:, None])
    middle[:, : grid.code_min] = lower[:, None]  # no value gets a code below
    return np.concatenate([lower[:, None], middle], axis=1).reshape(-1)[1:]


def _refit_free(grid: Grid, fit: Fit) -> Grid:
    """Least-squares scale and offset of every cluster, and borders halfway between neighbouring clusters."""
    code = np.arange(grid.levels.shape[1], dtype=np.float64)
    n, s = _total(fit.count), _total(fit.sum)
    n1, n2, s1 = _total(fit.count * code), _total(fit.count * code * code), _total(fit.sum * code)
    spread = n2 * n - n1 * n1
    fits = (grid.scale > 0) & (spread > 1e-9 * n2 * n)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(fits, (s1 * n - n1 * s) / spread, grid.scale)
        scale = np.where(scale > 0, round_scale(scale), grid.scale)
        offset = np.where(fits, (s - scale * n1) / n, grid.offset).astype(np.float32)
    scale = scale.astype(np.float32)
    found = replace(grid, scale=scale, offset=offset, levels=levels(scale, offset, grid.bits))
    top, bottom = found.levels[:-1, -1].astype(np.float64), found.levels[1:, 0].astype(np.float64)
    middle = ((top + bottom) / 2).astype(np.float32)
    lower = grid.lower.copy()
    lower[1:] = np.where(np.isfinite(lower[1:]) & (top < bottom), middle, lower[1:])
    return replace(found, lower=lower) if bool((np.diff(lower[np.isfinite(lower)]) > 0).all()) else found


def _refit_zero(grid: Grid, fit: Fit, spec: QuantSpec) -> Grid:
    """The least-squares scale of every cluster whose grid holds zero; zero_points stay."""
    point = _zero_points(grid)
    code = np.arange(grid.levels.shape[1], dtype=np.float64) - point[:, None]
    squares = _total(fit.count * code * code)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where((grid.scale > 0) & (squares > 0), _total(fit.sum * code) / squares, grid.scale)
    return _with_scale(grid, np.where(scale > 0, round_scale(scale), grid.scale), point, spec)


def _refit_parts(grid: Grid, fit: Fit, spec: QuantSpec) -> Grid:
    """The least-squares scales of residual parts, whose levels add up; zero_points stay."""
    point = _zero_points(grid)
    unit = part_levels(np.ones(len(point), np.float32), -point.astype(np.float32), spec.bits).astype(np.float64)
    scale = grid.scale.astype(np.float64)
    for part, own in enumerate(unit):  # one after the other, the rest held
        squares = _total(fit.count[0] * own * own)
        others = np.add.accumulate(scale[:, None] * unit)[-1] - scale[part] * own
        if squares > 0.0:
            found = round_scale(_total((fit.sum[0] - fit.count[0] * others) * own) / squares)
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
                trial, found = _descend(start, fit_of(start, values), values, step, TRIAL_STEPS)
                if found.error < fit.error * (1.0 - TRIAL_STEPS * LEAST_GAIN):
                    grid, fit, better = trial, found, True
    return _descend(grid, fit, values, step)[0]


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


def _total(values: F64) -> F64:
    """Sums over the last axis, in order."""
    return np.cumsum(values, axis=-1)[..., -1]
