"""Grids of rows and groups of their own: `w ~ row_scale * (code - zero_point) / 2**(bits - 1)`, both found for the least error.

The textbook grid covers the range of the values, widened to hold 0. A fitted one starts there: ends are moved in and out by
ever smaller shares, then the scale becomes that of least squares, then the zero_point is moved by one; what lowers the squared
error is kept, so that it never rises. That error is counted on weights in fixed point, 16 bits relative to the largest of the
group, where all sums are exact integers: their order, and with it the width of a register, does not matter. At the end scales
are rounded to what is stored, and a fitted grid that is not clearly better than the textbook one is compared with it in the
arithmetic of `encode`.

LAW: the squared error of a fitted grid is not larger than that of the textbook one, `row_scale` rounded to nearest in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import F32, F64, U8, Flags, Matrix
from splitquant.core.floats import Kind, from_float32, to_float32
from splitquant.core.lanes import lane_sums
from splitquant.core.rows import SMALLEST_ROW_SCALE

LARGEST = 32767.0  # of a weight in fixed point
SHARES = {  # by bits: how far the ends of a range move, one after the other; narrow codes are clipped more
    2: (0.5, 0.25, 0.125, -0.0625),
    3: (0.5, 0.25, 0.125, -0.0625),
    4: (0.3125, 0.15625, 0.0625, -0.046875),
    5: (0.25, 0.125, 0.046875, -0.046875),
    6: (0.1875, 0.09375, 0.03125, -0.03125),
    7: (0.1875, 0.0625, 0.015625, -0.015625),
    8: (0.1875, 0.046875, 0.015625, -0.015625),
}
MOST_INVERSE = 30000.0  # so that no 16-bit number overflows
CLEARLY = 0.85  # of the textbook error: fixed point cannot be that wrong,
PER_WEIGHT = 256.0  # where the error is at least so many squared units per weight
_SMALLEST_HALF = np.float32(2.0**-24)


@dataclass(frozen=True, slots=True)
class OwnGrids:
    """What is asked of the grids of groups.

    group: how many neighbouring weights of a row share one. bits: of a code. kind: the float that row_scales are stored in.
    fitted: whether they are fitted; else they are those of the textbook.
    """

    group: int
    bits: int
    kind: Kind
    fitted: bool

    @property
    def codes(self) -> float:
        """The largest code."""
        return float((1 << self.bits) - 1)

    @property
    def half(self) -> float:
        """The codes that a row_scale is long."""
        return float(1 << (self.bits - 1))

    @property
    def fraction_bits(self) -> int:
        """Of a code in fixed point, before it is rounded."""
        return min(9, 14 - self.bits)


def stored_row_scale(scale: F64, kind: Kind) -> F32:
    """The nearest row_scales that a kind can hold, not 0.

    Args:
        scale: float64 of any shape, larger than 0.
        kind: what they are stored as.
    """
    nearest = to_float32(from_float32(scale.astype(np.float32), kind))
    return np.maximum(nearest, _SMALLEST_HALF if kind == "fp16" else SMALLEST_ROW_SCALE)


def own_grids(x: Matrix, asked: OwnGrids) -> tuple[F32, U8]:
    """Row_scales, float32 `[groups]`, and zero_points, uint8 `[groups]`: the reference of the kernel.

    Args:
        x: weights `[groups, n]`, finite, a group in each row.
        asked: which grids.
    """
    w = to_float32(x)
    low, high = w.min(axis=1, initial=0).astype(np.float64), w.max(axis=1, initial=0).astype(np.float64)
    some = high > low
    step = np.where(some, high - low, 1.0) / asked.codes
    textbook = _Grids(stored_row_scale(step * asked.half, asked.kind), np.zeros(len(w)))
    textbook = _Grids(textbook.row_scale, _zero_point(low, textbook.row_scale.astype(np.float64) / asked.half, asked))
    found = _Search(w, low, high, asked).fitted(textbook) if asked.fitted else textbook
    return np.where(some, found.row_scale, np.float32(0)), np.where(some, found.zero, 0).astype(np.uint8)


def _zero_point(low: F64, step: F64, asked: OwnGrids) -> F64:
    return np.clip(np.rint(-low / step), 0.0, asked.codes)


@dataclass(frozen=True, slots=True)
class _Grids:
    """Of every group the row_scale as stored, and the zero_point."""

    row_scale: F32
    zero: F64

    def where(self, chosen: Flags, other: _Grids) -> _Grids:
        return _Grids(
            np.where(chosen, self.row_scale, other.row_scale).astype(np.float32),
            np.where(chosen, self.zero, other.zero),
        )


@dataclass(slots=True)
class _Best:
    """Of every group the best so far. gain: what its codes explain of the squares; step: the least-squares one, in units."""

    gain: F64
    step: F64
    zero: F64


class _Search:
    """The search for the grids of some groups. Steps and ends of ranges are in units of fixed point."""

    def __init__(self, w: F32, low: F64, high: F64, asked: OwnGrids) -> None:
        self.w, self.low, self.high, self.asked = w, low, high, asked
        largest = np.maximum(np.maximum(-low, high).astype(np.float32), SMALLEST_ROW_SCALE)
        inverse = np.float32(1) / largest
        self.fixed = np.rint(w * inverse[:, None] * np.float32(LARGEST)).astype(np.int64)
        self.unit = LARGEST / largest.astype(np.float64)
        self.squares = (self.fixed * self.fixed).sum(axis=1).astype(np.float64)

    def fitted(self, textbook: _Grids) -> _Grids:
        step = textbook.row_scale.astype(np.float64) / self.asked.half * self.unit
        best = _Best(np.full(len(self.w), -1.0), step, textbook.zero)
        self._try(best, step, textbook.zero)
        first, last = self.low * self.unit, self.high * self.unit
        for share in SHARES[self.asked.bits]:
            for low_too, high_too in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
                low, high = first - first * (share * low_too), last - last * (share * high_too)
                step = (high - low) / self.asked.codes
                better = self._try(best, step, _zero_point(low, np.where(step > 0, step, 1.0), self.asked))
                first, last = np.where(better, low, first), np.where(better, high, last)
        self._try(best, best.step, best.zero)
        for shift in (-1.0, 1.0):
            self._try(best, best.step, np.clip(best.zero + shift, 0.0, self.asked.codes))
        return self._settled(best, textbook)

    def _try(self, best: _Best, step: F64, zero: F64) -> Flags:
        """Take a grid where it explains more, and its least-squares step; where it did."""
        product, count = self._sums(step, zero)
        some = (product > 0) & (count > 0)
        gain = np.where(some, product * product / np.where(some, count, 1.0), -1.0)
        better: Flags = gain > best.gain
        best.gain = np.where(better, gain, best.gain)
        best.step = np.where(better, product / np.where(some, count, 1.0), best.step)
        best.zero = np.where(better, zero, best.zero)
        return better

    def _sums(self, step: F64, zero: F64) -> tuple[F64, F64]:
        """Sums of weight times code and of code squared, where codes are counted from the zero_point (0: no such grid)."""
        fraction = self.asked.fraction_bits
        inverse = np.rint(float(1 << (15 + fraction)) / np.where(step > 0, step, 1.0))
        possible = (step > 0) & (inverse <= MOST_INVERSE)
        factor = np.where(possible, inverse, 0.0).astype(np.int64)[:, None]
        code = ((self.fixed * factor >> 14) + 1 >> 1) + (1 << (fraction - 1)) >> fraction
        point = zero.astype(np.int64)[:, None]
        code = np.clip(code, -point, int(self.asked.codes) - point)
        return (self.fixed * code).sum(axis=1).astype(np.float64), (code * code).sum(axis=1).astype(np.float64)

    def _settled(self, best: _Best, textbook: _Grids) -> _Grids:
        """The best grid with a row_scale as stored, or the textbook's where that is not worse."""
        wanted = best.step * self.asked.half / self.unit
        near = stored_row_scale(wanted, self.asked.kind)
        across = stored_row_scale(np.maximum(2.0 * wanted - near.astype(np.float64), 0.0), self.asked.kind)
        found, error = _Grids(near, best.zero), self._error(near, best.zero)
        other = self._error(across, best.zero)
        found, error = _Grids(across, best.zero).where(other < error, found), np.minimum(other, error)
        usual = self._error(textbook.row_scale, textbook.zero)
        clear = (error <= CLEARLY * usual) & (usual >= PER_WEIGHT * self.w.shape[1])
        unclear = ~clear
        if unclear.any():
            w, bits = self.w[unclear], self.asked.bits
            ours, theirs = (
                noise(w, grids.row_scale[unclear], grids.zero[unclear], bits) for grids in (found, textbook)
            )
            clear[unclear] = ours < theirs
        return found.where(clear, textbook)

    def _error(self, row_scale: F32, zero: F64) -> F64:
        """The squared error of a grid, in squared units."""
        step = row_scale.astype(np.float64) / self.asked.half * self.unit
        product, count = self._sums(step, zero)
        error: F64 = np.where(count > 0, self.squares - 2.0 * step * product + step * step * count, self.squares)
        return error


def noise(w: F32, row_scale: F32, zero: F64, bits: int) -> F64:
    """The squared errors of groups as `encode` makes them, float64 `[groups]`.

    Args:
        w: float32 `[groups, n]`.
        row_scale: float32 `[groups]`, larger than 0.
        zero: the zero_points, float64 `[groups]`.
        bits: of a code.
    """
    half, codes = np.float32(1 << (bits - 1)), np.float32((1 << bits) - 1)
    unit = np.float32(1) / half
    scale, shift = row_scale[:, None], (zero.astype(np.float32) * -unit)[:, None]
    inverse = np.float32(1) / scale
    code = np.clip(np.rint((w * inverse - shift) * half), np.float32(0), codes)
    return lane_sums(w - (code * unit + shift) * scale)
