"""A histogram of a stream whose range nobody knows before: bins double in width as they must, so one pass is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import F32, F64, I64

FINEST = 4096
_SMALLEST_EXPONENT = -149  # of a float32
_MANTISSA_BITS = 23


@dataclass(frozen=True, slots=True)
class Bars:
    """How many values lie in each of some bins of one width, a power of two.

    counts: int64 `[n]` with n of at most 4,096; bin i holds what is in `[(first + i) * 2**exponent, (first + i + 1) * 2**exponent)`.
    The first and the last bin hold something; no values: no bins.

    LAW: `merge` is exact, associative and commutative: bars depend on the values alone, however these were portioned out.
    """

    first: int
    exponent: int
    counts: I64

    @classmethod
    def of(cls, values: F32) -> Bars:
        """The finest bars of some values.

        Args:
            values: float32 of any shape; NaN and infinity are left out.
        """
        exact: F64 = values.reshape(-1).astype(np.float64)
        least, most = (float(exact.min()), float(exact.max())) if exact.size else (0.0, 0.0)
        if not (math.isfinite(least) and math.isfinite(most)):
            return cls.of(values[np.isfinite(values)])
        if not exact.size:
            return NO_BARS
        exponent = _smallest_exponent(max(-least, most))
        while math.floor(most * 2.0**-exponent) - math.floor(least * 2.0**-exponent) >= FINEST:
            exponent += 1
        exact *= 2.0**-exponent
        first = math.floor(least * 2.0**-exponent)
        return cls(first, exponent, np.bincount(np.floor(exact, out=exact).astype(np.int64) - first).astype(np.int64))

    @property
    def total(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """The width of a bin."""
        return 2.0**self.exponent

    def merge(self, other: Bars) -> Bars:
        """The bars of both sources together.

        Args:
            other: those of the other source.
        """
        if not len(self.counts) or not len(other.counts):
            return self if len(self.counts) else other
        exponent = max(self.exponent, other.exponent)
        while True:
            one, two = self._coarser(exponent), other._coarser(exponent)
            first = min(one.first, two.first)
            size = max(one.first + len(one.counts), two.first + len(two.counts)) - first
            if size <= FINEST:
                break
            exponent += 1
        counts = np.zeros(size, np.int64)
        for bars in (one, two):
            counts[bars.first - first : bars.first - first + len(bars.counts)] += bars.counts
        return Bars(first, exponent, counts)

    def at_most(self, bins: int) -> Bars:
        """The same values in wider bins.

        Args:
            bins: how many there may be, at least 2 (a border at zero cannot be merged away).
        """
        found = self
        while len(found.counts) > bins:
            found = found._coarser(found.exponent + 1)
        return found

    def middle(self, share: float) -> Bars:
        """Without the bins at both ends that hold the rest, half of it at each end; whole bins are cut off, never too many.

        Args:
            share: of the values that must be left, 0 to 1.
        """
        rest = int(self.total * (1.0 - share) / 2)
        before = np.cumsum(self.counts)
        low = int(np.searchsorted(before, rest, side="right"))
        after = np.cumsum(self.counts[::-1])
        high = len(self.counts) - int(np.searchsorted(after, rest, side="right"))
        return Bars(self.first + low, self.exponent, self.counts[low:high])

    def _coarser(self, exponent: int) -> Bars:
        shift = exponent - self.exponent
        if shift == 0:
            return self
        place = (np.arange(len(self.counts)) + self.first) >> shift
        counts = np.zeros(int(place[-1] - place[0]) + 1, np.int64)
        np.add.at(counts, place - place[0], self.counts)
        return Bars(int(place[0]), exponent, counts)


NO_BARS = Bars(0, _SMALLEST_EXPONENT, np.zeros(0, np.int64))


def _smallest_exponent(largest: float) -> int:
    """Of the finest bins that make sense: those of the last bit of the largest magnitude."""
    return max(_SMALLEST_EXPONENT, math.frexp(largest)[1] - 1 - _MANTISSA_BITS) if largest > 0.0 else _SMALLEST_EXPONENT
