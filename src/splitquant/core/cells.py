"""From levels to cells: which values are stored as which code, where rounding within one cluster is not enough."""

from __future__ import annotations

import numpy as np

from splitquant.core.affine import Cells, Grid
from splitquant.core.arrays import F32, Flags
from splitquant.core.spec import QuantSpec


def nearest_cells(levels: F32, spec: QuantSpec) -> Cells:
    """Every value goes to the nearest level of all clusters; of equal levels the one of the first cluster, then code.

    Halfway between two levels the upper one is taken.

    Args:
        levels: float32 `[k, 2**code_bits]`, in any order.
        spec: which codes may be stored.
    """
    used = np.flatnonzero(_used_codes(spec))
    level = levels[:, used].reshape(-1)
    order = np.argsort(level, kind="stable")
    level = level[order]
    first = np.concatenate([[True], level[1:] > level[:-1]])
    cluster, code = np.divmod(order[first], len(used))
    return Cells(between(level[first]), level[first], used[code].astype(np.uint8), cluster.astype(np.uint8))


def _used_codes(spec: QuantSpec) -> Flags:
    """Which entries of the codes plane may be stored: symmetric grids leave code 0 of every part unused."""
    joint = np.arange(1 << spec.code_bits)
    used = np.ones(len(joint), np.bool_)
    if spec.symmetric:
        for shift in range(0, spec.code_bits, spec.bits):
            used &= (joint >> shift & (spec.width.codes - 1)) > 0
    return used


def shell_cells(grid: Grid, shells: int) -> Cells:
    """Every value goes to the cluster of its magnitude, and there to the nearest level: `magnitude` without polish.

    Negative shells from the outermost inwards, then the innermost cluster, then positive shells outwards.

    Args:
        grid: the symmetric grids of the clusters of magnitudes.
        shells: how many of its clusters are in use.
    """
    inner = np.nextafter(-grid.lower[1:shells], np.float32(np.inf))  # -lower itself still belongs to the shell
    starts = np.concatenate([[np.float32(-np.inf)], inner[::-1], grid.lower[1:shells]])
    ends = np.append(starts[1:], np.float32(np.inf))
    clusters = np.concatenate([np.arange(shells - 1, 0, -1), np.arange(shells)])
    borders, levels, codes, ids = [], [], [], []
    for cluster, start, end in zip(clusters.tolist(), starts, ends, strict=True):
        level = grid.levels[cluster, grid.code_min : grid.code_max + 1]
        if grid.scale[cluster] == 0:
            level = level[:1]
        border = np.concatenate([[start], between(level)])
        upper = np.append(border[1:], np.float32(np.inf))
        inside = (upper > start) & (border < end)
        borders.append(np.maximum(border[inside], start))
        levels.append(level[inside])
        codes.append(np.flatnonzero(inside) + grid.code_min)
        ids.append(np.full(int(inside.sum()), cluster))
    return Cells(
        np.concatenate(borders)[1:].astype(np.float32),
        np.concatenate(levels),
        np.concatenate(codes).astype(np.uint8),
        np.concatenate(ids).astype(np.uint8),
    )


def between(level: F32) -> F32:
    """The borders halfway between neighbouring levels, float32 `[n - 1]`.

    Args:
        level: float32 `[n]`, ascending.
    """
    wide = level.astype(np.float64)
    return ((wide[1:] + wide[:-1]) / 2).astype(np.float32)
