"""Value histograms: a lossless summary of a bf16 or fp16 tensor, a fine and exact-by-key one of a float32 tensor.

Why: 16-bit floats have at most 65,536 distinct values, so one counting pass says everything about a tensor; borders
and errors for every k are then computed on the counts. A float32 value is keyed by its top 16 bits, and what a key
keeps of the low 16 bits is a count, a sum, a sum of squares, a minimum and a maximum: all integers, so merging
chunks in any order gives the same histogram, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import F64, I64, U16, U64, Flags
from splitquant.core.floats import Kind

KEYS = 1 << 16


@dataclass(frozen=True, slots=True)
class Bins:
    """The non-empty keys of a histogram in ascending order of value; every array is float64 `[n]`.

    count: how many weights, or what they weigh together; sum, sum_sq: of their values, so weighted; low, high: their
        least and greatest value.
    """

    count: F64
    sum: F64
    sum_sq: F64
    low: F64
    high: F64

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True, slots=True)
class Values:
    """Bins with each taken as one value, ascending; every array is float64 `[n]`. count, sum: as in `Bins`."""

    mean: F64
    count: F64
    sum: F64

    @classmethod
    def of(cls, bins: Bins) -> Values:
        """The means of bins.

        Args:
            bins: ascending.
        """
        return cls(bins.sum / bins.count, bins.count, bins.sum)


@dataclass(frozen=True, slots=True)
class LowBits:
    """What the keys of a float32 histogram keep of the low 16 bits m of their values: sums and extremes per key.

    min: 65,535 where a key is empty; max: 0 there.
    """

    sum: U64
    sum_sq: U64
    min: U16
    max: U16


@dataclass(frozen=True, slots=True)
class ValueHistogram:
    """How often each value (bf16, fp16) or each top half of a value (fp32) occurs.

    count: int64 `[65536]`, indexed by the 16-bit pattern; `-0.0` is counted as `0.0`.
    low: for fp32 the low halves, else None.
    weight: int64 `[65536]`, the sum of the weights of the values of each key; None where each counts once.
    Law: `merge` is exact, associative and commutative.
    """

    kind: Kind
    count: I64
    low: LowBits | None = None
    weight: I64 | None = None

    @classmethod
    def of_nothing(cls) -> ValueHistogram:
        """The histogram of no float32 value, with all that one can have, to be filled in place."""
        signed, unsigned = (np.zeros((2, KEYS), dtype) for dtype in (np.int64, np.uint64))
        least, most = np.full(KEYS, KEYS - 1, np.uint16), np.zeros(KEYS, np.uint16)
        return cls("fp32", signed[0], LowBits(unsigned[0], unsigned[1], least, most), signed[1])

    def merge(self, other: ValueHistogram) -> ValueHistogram:
        """The histogram of both sources together.

        Args:
            other: of the same kind, weighted if this one is.

        Raises:
            ValueError: where they do not go together.
        """
        if self.kind != other.kind:
            raise ValueError(f"cannot merge a {self.kind} histogram with a {other.kind} one")
        if (self.weight is None) != (other.weight is None):
            raise ValueError("cannot merge a weighted histogram with one that is not")
        low = None
        if self.low is not None and other.low is not None:
            low = LowBits(
                self.low.sum + other.low.sum,
                self.low.sum_sq + other.low.sum_sq,
                np.minimum(self.low.min, other.low.min),
                np.maximum(self.low.max, other.low.max),
            )
        weight = None if self.weight is None or other.weight is None else self.weight + other.weight
        return ValueHistogram(self.kind, self.count + other.count, low, weight)

    @property
    def total(self) -> int:
        """How many weights were counted."""
        return int(self.count.sum())

    @property
    def nonfinite(self) -> int:
        """How many of them are NaN or infinite."""
        keys = np.flatnonzero(self.count)
        return int(self.count[keys[~_is_finite(keys, self.kind)]].sum())

    def bins(self) -> Bins:
        """The non-empty keys in ascending order of value; keys of NaN and infinity are left out."""
        keys = np.flatnonzero(self.count)
        keys = keys[_is_finite(keys, self.kind)]
        positive = int(np.searchsorted(keys, KEYS // 2))
        keys = np.concatenate([keys[positive:][::-1], keys[:positive]])  # negative patterns run backwards
        count = self.count[keys].astype(np.float64)
        if self.low is None:
            values = _values_of(keys, self.kind)
            return Bins(count, count * values, count * values * values, values, values)
        negative = keys >= KEYS // 2
        sign = np.where(negative, -1.0, 1.0)
        base = np.abs(_values_of(keys, "fp32"))
        ulp = np.ldexp(1.0, np.maximum((keys >> 7) & 0xFF, 1) - 150)
        low_sum = self.low.sum[keys].astype(np.float64)
        low_sum_sq = self.low.sum_sq[keys].astype(np.float64)
        least, greatest = base + ulp * self.low.min[keys], base + ulp * self.low.max[keys]
        # The values of a key are taken to weigh alike: they agree in their top 16 bits.
        each = 1.0 if self.weight is None else self.weight[keys] / count
        return Bins(
            count * each,
            sign * (count * base + ulp * low_sum) * each,
            (count * base * base + 2.0 * base * ulp * low_sum + ulp * ulp * low_sum_sq) * each,
            np.where(negative, -greatest, least),
            np.where(negative, -least, greatest),
        )


def _values_of(keys: I64, kind: Kind) -> F64:
    """The value of each key: of the 16-bit float itself, or of the float32 whose low half is zero."""
    patterns = keys.astype(np.uint16)
    if kind == "fp16":
        return patterns.view(np.float16).astype(np.float64)
    return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _is_finite(keys: I64, kind: Kind) -> Flags:
    exponent = 0x7C00 if kind == "fp16" else 0x7F80
    finite: Flags = (keys & exponent) != exponent
    return finite
