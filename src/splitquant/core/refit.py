"""How a grid is fitted to values, step by step, for `core.polish` and for the kernel of it.

Two things alternate, and neither can raise the error: values go to their nearest level, and scales (and offsets, where zero
need not be a level) become those of least squares for the values they got. What is compared are grids as they will be stored
(scales of 16 significant bits, integer zero_points), so the result is never worse than the start. All sums run in order, so
that every machine finds the same grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from splitquant.core.affine import Grid, levels, round_scale
from splitquant.core.arrays import F64, I64
from splitquant.core.histogram import Values

MOST_STEPS = 64
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


def fitted(grid: Grid, values: Values) -> Grid:
    """The polish of a grid whose clusters lie side by side (the reference of the kernel).

    Args:
        grid: whose own ranges the clusters cover, without cells.
        values: ascending.
    """
    return descend(grid, fit_of(grid, values), values, _refit_free)[0]


def descend(grid: Grid, fit: Fit, values: Values, step: Step, most: int = MOST_STEPS) -> tuple[Grid, Fit]:
    """Steps until they gain nothing worth the while: the best grid, and how the values fall to it.

    Args:
        grid: to start from.
        fit: how the values fall to it.
        values: ascending.
        step: to the next grid.
        most: how many steps.

    LAW: the error does not rise.
    """
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
    """Which values are encoded as which level; a bin goes where its mean does.

    Args:
        grid: with cells, or with clusters that lie side by side.
        values: ascending.
    """
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
    n, s = total(fit.count), total(fit.sum)
    n1, n2, s1 = total(fit.count * code), total(fit.count * code * code), total(fit.sum * code)
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


def total(values: F64) -> F64:
    """Sums over the last axis, in order.

    Args:
        values: float64 `[..., n]`.
    """
    return np.cumsum(values, axis=-1)[..., -1]
