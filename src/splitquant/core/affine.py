"""Linear (affine) grids: `level = scale * code + offset`, one grid per cluster.

Why scales have 16 significant bits: `scale * code` with a code of at most 8 bits is then exact in float32, so every
reader (with or without fused multiply-add) gets the same levels, and `scale * code + offset` with
`offset = -scale * zero_point` is exactly `scale * (code - zero_point)`, the form of integer runtimes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import F32, F64, U8
from splitquant.core.spec import QuantSpec

SCALE_BITS = 16
SMALLEST_SCALE = 2.0**-126  # the smallest normal float32: its inverse is finite and exact


def round_scale_up(scale: float) -> float:
    """The smallest float with `SCALE_BITS` significant bits that is at least `scale` (0 stays 0).

    At least 2**-126, so that its inverse is finite in float32.

    Args:
        scale: at least 0, finite.
    """
    if scale <= 0.0:
        return 0.0
    mantissa, exponent = np.frexp(scale)  # mantissa in [0.5, 1)
    rounded = float(np.ldexp(np.ceil(np.ldexp(mantissa, SCALE_BITS)), int(exponent) - SCALE_BITS))
    return max(rounded, SMALLEST_SCALE)


def round_scale(scale: F64) -> F64:
    """The nearest floats with `SCALE_BITS` significant bits (0 stays 0; others are at least 2**-126).

    Args:
        scale: float64 of any shape, at least 0.
    """
    mantissa, exponent = np.frexp(scale)
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, SCALE_BITS)), exponent - SCALE_BITS)
    return np.where(scale > 0.0, np.maximum(rounded, SMALLEST_SCALE), 0.0)


@dataclass(frozen=True, slots=True)
class Cells:
    """A quantizer as a step function: the values in ascending cells, each with one level.

    border: float32 `[n - 1]`, ascending; value v is in the cell of that number of borders that are at most v.
    level: float32 `[n]`; code, cluster: uint8 `[n]`, what is stored for the values of a cell.
    """

    border: F32
    level: F32
    code: U8
    cluster: U8


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels of one tensor and how values find theirs.

    bits: of one entry of the codes plane.
    lower: float32 `[k]`, ascending; value v belongs to the last cluster whose `lower` is at most v (the first is -inf).
        A cluster that no value needs has `lower = +inf`. For `magnitude` v is the magnitude.
    scale, offset: float32 `[k]`; LAW: `levels[c, q] = scale[c] * q + offset[c]` (empty where levels are free).
    code_min, code_max: the codes in use (a symmetric grid leaves code 0 unused).
    levels: float32 `[k, 2**bits]`, all representable values; of parts that add up `[1, 2**bits]`.
    cells: the step function that encodes; None: the cluster by `lower`, then its nearest level.
    """

    bits: int
    lower: F32
    scale: F32
    offset: F32
    code_min: int
    code_max: int
    levels: F32
    cells: Cells | None = None

    @property
    def clusters(self) -> int:
        """The number of clusters that a weight is in one of."""
        return len(self.levels)

    @property
    def inverse_scale(self) -> F32:
        """float32 `[k]`: 1 / scale, and 0 where the scale is 0 (a constant cluster)."""
        inverse = np.zeros_like(self.scale)
        np.divide(np.float32(1), self.scale, out=inverse, where=self.scale > 0)
        return inverse


def levels(scale: F32, offset: F32, bits: int) -> F32:
    """The values of k affine pieces, float32 `[k, 2**bits]`: `scale[c] * q + offset[c]`.

    Args:
        scale: float32 `[k]`.
        offset: float32 `[k]`.
        bits: of a code q.
    """
    codes = np.arange(1 << bits, dtype=np.float32)
    return scale[:, None] * codes + offset[:, None]


def own_levels(bits: int) -> tuple[F32, F32, F32]:
    """Scale, offset and levels of grids with own zero_points, in units of their row_scale and not yet moved by it: `q / 2**(bits - 1)`.

    Exact, and so is every difference of two: a weight is `row_scale * (levels[code] - levels[zero_point])`, rounded once.

    Args:
        bits: of a code q.
    """
    scale, offset = np.full(1, 2.0 ** (1 - bits), np.float32), np.zeros(1, np.float32)
    return scale, offset, levels(scale, offset, bits)


def own_grid(bits: int) -> Grid:
    """The grid of all rows that have own zero_points, see `own_levels`.

    Args:
        bits: of a code.
    """
    scale, offset, table = own_levels(bits)
    return Grid(bits, np.full(1, -np.inf, np.float32), scale, offset, 0, table.shape[1] - 1, table)


def part_levels(scale: F32, offset: F32, bits: int) -> F32:
    """The values of each additive part by the joint code `sum(q_c << (c * bits))`, float32 `[k, 2**(k * bits)]`.

    Args:
        scale: float32 `[k]`.
        offset: float32 `[k]`.
        bits: of the code q_c of one part.
    """
    joint = np.arange(1 << (bits * len(scale)))
    of_part = levels(scale, offset, bits)
    return np.stack([part[joint >> (c * bits) & ((1 << bits) - 1)] for c, part in enumerate(of_part)])


def level_table(spec: QuantSpec, scale: F32, offset: F32) -> F32:
    """All representable values of an affine spec as `Grid.levels` has them; additive parts are added in their order.

    Args:
        spec: what the pieces are of.
        scale: float32 `[k]`.
        offset: float32 `[k]`.
    """
    if not spec.facts.additive:
        return levels(scale, offset, spec.bits)
    return np.add.accumulate(part_levels(scale, offset, spec.bits), axis=0)[-1:]


def affine_piece(low: float, high: float, spec: QuantSpec) -> tuple[float, float]:
    """Scale and offset of the grid for a range of values.

    own range (fused, asymmetric): the grid runs from `low` to at least `high`; a constant gets scale 0 and itself.
    zero in grid (parallel): the range is widened to hold 0 and `offset = -scale * zero_point` with an integer
    zero_point in [0, 2**bits - 1]. symmetric: zero_point is `2**(bits - 1)` and codes run from 1.

    Args:
        low: the least value, a float32 number.
        high: the greatest one, a float32 number.
        spec: which of the three, and the width of a code.
    """
    width = spec.width
    if spec.symmetric:
        scale = round_scale_up(max(abs(low), abs(high)) / width.symmetric_steps)
        return scale, -scale * width.symmetric_zero
    if spec.zero_in_grid:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = round_scale_up((high - low) / (width.codes - 1))
        zero_point = 0.0 if scale == 0.0 else float(np.clip(np.rint(-low / scale), 0, width.codes - 1))
        return scale, -scale * zero_point
    return round_scale_up((high - low) / (width.codes - 1)), low


def grid_for(low: F64, high: F64, spec: QuantSpec) -> Grid:
    """The grid of clusters with the given value ranges (fewer than the spec has: the rest is unused).

    Args:
        low: float64 `[m]`, ascending, the least value of each cluster; m is at most `spec.clusters`.
        high: float64 `[m]`, the greatest value of each.
        spec: how each piece lies in its range, see `affine_piece`.
    """
    k = spec.clusters
    lower = np.full(k, np.inf, np.float32)
    scale = np.zeros(k, np.float32)
    offset = np.zeros(k, np.float32)
    for c, (lo, hi) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        scale[c], offset[c] = affine_piece(lo, hi, spec)
        lower[c] = lo
    lower[0] = -np.inf
    offset += np.float32(0)  # -0.0 becomes 0.0: one spelling on disk
    code_min = 1 if spec.symmetric else 0
    return Grid(spec.bits, lower, scale, offset, code_min, spec.width.codes - 1, levels(scale, offset, spec.bits))
