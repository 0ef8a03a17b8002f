"""Plain min-max quantization of floats to floats, such that a min-max quantizer gives the result back unchanged.

Exists for `residual` splits into float layers: a quantizer downstream sees the first part `W1 = Q(W)` as numbers only, takes
its range, and must find the very grid again. So both ends of every range are levels that some weight reaches, and scales
have few enough bits for `scale * code`, and the whole range, to be exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import SMALLEST_SCALE
from splitquant.core.arrays import F32, F64
from splitquant.core.floats import Kind, refuse_unfit
from splitquant.core.rows import spread
from splitquant.core.spec import QuantSpec

STEP_BITS = 11  # those of a float16, in which some toolchains store scales


def minmax_rounded(
    x: F32,
    spec: QuantSpec,
    kind: Kind = "fp32",
    ranges: tuple[F64, F64] | None = None,
    *,
    full_range: bool = False,
) -> F32:
    """The values of a matrix `[rows, cols]` on the min-max grid of each of its slices, float32 of the same shape.

    A slice is the matrix, a row or a group of a row, by the granularity. Asymmetric grids: the range widened to hold 0, an
    integer zero_point. Symmetric ones: narrow range, the largest magnitude is a level.

    Args:
        x: float32 `[rows, cols]`.
        spec: its bits, granularity and symmetry say which grid.
        kind: of the source, whose large magnitudes are refused.
        ranges: of the slices, where x is a window of them, see `ranges_of`.
        full_range: symmetric grids with all codes, from -2**(bits-1); the largest magnitude has that code, so that its sign
            says which way the grid lies (a step of absmax / 8 at 4 bits, up to absmax / 7.5 where both ends need the room).

    LAW: `minmax_rounded(minmax_rounded(x)) == minmax_rounded(x)`, and `x - minmax_rounded(x)` is at most half a step, which
    is never smaller than 2**-126: tinier ranges use the middle of their grid only.

    Raises:
        TensorError: for NaN, infinity, and magnitudes that cannot be quantized.
    """
    if x.size == 0:
        return x.copy()
    low, high = ranges_of(x, spec) if ranges is None else ranges
    refuse_unfit(float(np.maximum(-low, high).max()), kind)
    width = spec.width
    if spec.symmetric and full_range:
        first, last = -width.symmetric_zero, width.symmetric_zero - 1
        large, small = np.where(-low >= high, low, high), np.minimum(-low, high)
        step = _rounded(np.maximum(np.abs(large) / -first, small / (last + 0.5)), np.ceil)
        scale = np.where(-low >= high, step, -step)  # negative where the positive end is the larger one
        low, high = large, np.copysign(np.inf, -large)
        zero = np.zeros_like(scale)
    elif spec.symmetric:
        high = np.maximum(-low, high)
        low, steps, first, last = -high, width.symmetric_steps, -width.symmetric_steps, width.symmetric_steps
        scale = _rounded(high / steps, np.floor)
        zero = np.zeros_like(scale)
    else:
        scale = _rounded((high - low) / (width.codes - 1), np.floor)
        zero = np.clip(np.rint(_over(-low, scale)), 0, width.codes - 1)
        first, last = 0, width.codes - 1
    group = spec.group_size(x.shape[1])
    held = np.abs(scale) > SMALLEST_SCALE  # a step that was raised to the smallest one is too long for its range's ends
    ends = (np.where(held, _over(low, scale), -np.inf), np.where(held, _over(high, scale), np.inf))
    step, point, low, high = (spread(values, group, x.shape[1]) for values in (scale, zero, *ends))
    place = _over(x, step)
    code = np.clip(np.rint(place) + point, first, last)
    code = np.where(place <= low, first, np.where(place >= high, last, code))  # ends halfway between two levels
    values: F32 = ((code - point) * step).astype(np.float32)
    return values


def ranges_of(x: F32, spec: QuantSpec) -> tuple[F64, F64]:
    """The least and the largest value of every slice, and 0; float64 `[rows, groups]` or `[1, 1]`.

    Args:
        x: float32 `[rows, cols]`, not empty.
        spec: its granularity says what a slice is.
    """
    group = spec.group_size(x.shape[1])
    if group == 0:
        low, high = x.min(keepdims=True), x.max(keepdims=True)
    else:
        starts = np.arange(0, x.shape[1], group)
        low, high = np.minimum.reduceat(x, starts, axis=1), np.maximum.reduceat(x, starts, axis=1)
    return np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64)


def _rounded(scale: F64, to_whole: Callable[[F64], F64]) -> F64:
    """Floats with `STEP_BITS` significant bits: below `scale` (`np.floor`), where its range's ends then round outwards, or above."""
    mantissa, exponent = np.frexp(scale)
    rounded = np.ldexp(to_whole(np.ldexp(mantissa, STEP_BITS)), exponent - STEP_BITS)
    return np.where(scale > 0, np.maximum(rounded, SMALLEST_SCALE), 0.0)


def _over(values: NDArray[np.floating], scale: F64) -> F64:
    out = np.zeros(np.broadcast_shapes(values.shape, scale.shape))
    np.divide(values, scale, out=out, where=np.broadcast_to(scale != 0, out.shape))
    return out
