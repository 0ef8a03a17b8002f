"""The float parts of a `residual` split: `Q(W)`, then Q of what is left, and so on; the last part is the rest.

A min-max quantizer of the same bits, granularity and symmetry finds the grid of every part but the last again. All is
done window by window: only the ranges of a whole tensor have to be found before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from splitquant.core.arrays import F64, Matrix
from splitquant.core.floats import Kind, from_float32, to_float32
from splitquant.core.minmax import minmax_rounded, ranges_of
from splitquant.core.spec import QuantSpec

Range = tuple[F64, F64]
_BLOCK_WEIGHTS = 1 << 15  # rounding works in float64 with some copies


@dataclass(frozen=True, slots=True)
class Residual:
    """How parts are rounded: see `minmax_rounded`. ranges: those of a whole tensor, part by part; none where rows have their own."""

    spec: QuantSpec
    kind: Kind
    full_range: bool
    ranges: tuple[Range, ...] = ()

    @classmethod
    def with_ranges(
        cls, spec: QuantSpec, kind: Kind, windows: Callable[[], Iterable[Matrix]], *, full_range: bool
    ) -> Residual:
        """With the ranges of each part but the last over all windows, which take a pass each."""
        found = cls(spec, kind, full_range)
        for _ in range(spec.clusters - 1 if spec.granularity.kind == "tensor" else 0):
            lows, highs = [np.zeros((1, 1))], [np.zeros((1, 1))]
            for block in (block for window in windows() for block in _blocks(window)):
                *_, left = found._split(block, len(found.ranges))
                low, high = ranges_of(to_float32(left), spec)
                lows.append(low)
                highs.append(high)
            ranges = (*found.ranges, (np.minimum.reduce(lows), np.maximum.reduce(highs)))
            found = cls(spec, kind, full_range, ranges)
        return found

    def parts(self, window: Matrix) -> list[Matrix]:
        """The k parts of a window, in its own dtype.

        LAW: in float32 every subtraction is exact, so the parts sum to the window bit for bit (a weight of -0.0 becomes 0.0).
        In 16 bits a weight near half a step may meet a level that was rounded: there the sum is within one rounding.
        """
        parts = [np.empty_like(window) for _ in range(self.spec.clusters)]
        first = 0
        for block in _blocks(window):
            for whole, part in zip(parts, self._split(block, len(parts) - 1), strict=True):
                whole[first : first + len(block)] = part
            first += len(block)
        return parts

    def _split(self, x: Matrix, rounded: int) -> Iterator[Matrix]:
        """So many rounded parts, and what they leave."""
        for c in range(rounded):
            wide, ranges = to_float32(x), self.ranges[c] if self.ranges else None
            values = minmax_rounded(wide, self.spec, self.kind, ranges, full_range=self.full_range)
            part = from_float32(values, self.kind)
            yield part
            x = from_float32(wide - to_float32(part), self.kind)
        yield x


def _blocks(window: Matrix) -> Iterator[Matrix]:
    step = max(1, _BLOCK_WEIGHTS // max(1, window.shape[1]))
    return (window[start : start + step] for start in range(0, len(window), step))
