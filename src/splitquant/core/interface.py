"""What the kernels are asked for: the hot loops as a protocol, and their arguments as values.

The nouns are those of native/quantize/interface.hpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from splitquant.core.affine import Grid
from splitquant.core.arrays import F32, F64, I64, U8, Matrix
from splitquant.core.error import ErrorSums, exact_sum
from splitquant.core.floats import Kind
from splitquant.core.histogram import ValueHistogram, Values
from splitquant.core.own import OwnGrids
from splitquant.core.rows import RowScales
from splitquant.core.spec import QuantSpec

FEW_ROWS = 1 << 14

Memory = Callable[[str, int], U8]
"""Scratch memory by a name: uint8 of so many bytes, which nobody else uses until the name is asked for again."""


def new_memory(_: str, nbytes: int) -> U8:
    """Memory of its own for every call.

    Args:
        nbytes: how many bytes.
    """
    return np.empty(nbytes, np.uint8)


def plane_width(cols: int, bits: int) -> int:
    """Bytes of one row of a plane.

    Args:
        cols: weights of a row.
        bits: of each.
    """
    return -(-cols * bits // 8)


def plane_widths(cols: int, spec: QuantSpec) -> tuple[int, int]:
    """Bytes of one row of the codes plane and of the cluster-id plane (0: there is none).

    Args:
        cols: weights of a row.
        spec: how they are quantized.
    """
    return plane_width(cols, spec.code_bits), plane_width(cols, spec.cluster_bits)


@dataclass(frozen=True, slots=True)
class Planes:
    """The packed codes and cluster ids of some rows: every row starts at a byte, value j at bit `j * bits` of its row.

    codes: uint8 `[rows, ceil(cols * bits / 8)]`; bits: of a code. clusters: uint8 `[rows, ceil(cols * cluster_bits / 8)]`,
    None where all weights are in one cluster; cluster_bits: of an id. cols: weights of a row.
    """

    codes: U8
    bits: int
    clusters: U8 | None
    cluster_bits: int
    cols: int

    @classmethod
    def of(cls, spec: QuantSpec, cols: int, codes: U8, clusters: U8 | None) -> Planes:
        """The planes of rows that were quantized by a spec.

        Args:
            spec: how they were.
            cols: weights of a row.
            codes: as in `Planes`.
            clusters: as in `Planes`.
        """
        return cls(codes, spec.code_bits, clusters, spec.cluster_bits, cols)

    @classmethod
    def room(cls, spec: QuantSpec, rows: int, cols: int, memory: Memory = new_memory) -> Planes:
        """Planes to encode rows into.

        Args:
            spec: how they will be quantized.
            rows: how many.
            cols: weights of each.
            memory: where the planes, `codes` and `clusters`, lie.
        """
        codes, clusters = (
            memory(name, rows * width).reshape(rows, width) if width or name == "codes" else None
            for name, width in zip(("codes", "clusters"), plane_widths(cols, spec), strict=True)
        )
        assert codes is not None
        return cls.of(spec, cols, codes, clusters)


@dataclass(frozen=True, slots=True)
class Parts:
    """The packed codes of every part, to be made from planes.

    out: uint8 `[k, rows, ceil(cols * bits / 8)]`, written in place; bits: of a code there; cols: of a row there, not fewer
    than the planes have. zero, base: uint8 `[k]`, the code that means zero in the planes, and what it becomes.
    """

    out: U8
    bits: int
    cols: int
    zero: U8
    base: U8


@dataclass(frozen=True, slots=True)
class SegmentCosts:
    """What the cost of any segment of neighbouring bins is computed from, see `core.partition`.

    count, total: float64 `[n + 1]`, the prefix sums of counts and of sums.
    low, high: float64 `[n]`, where the range of a segment begins whose first bin this is, and ends whose last bin it is.
    squares: the cost is `-total**2 / count` of the segment, else `count * (high - low)**2`.
    """

    count: F64
    total: F64
    low: F64
    high: F64
    squares: bool

    def cost(self, start: I64, end: I64) -> F64:
        """The cost of segments.

        Args:
            start: int64 `[m]`, the first bin of each.
            end: int64 `[m]`, one behind its last.
        """
        count = self.count[end] - self.count[start]
        if self.squares:
            total = self.total[end] - self.total[start]
            return -(total * total) / count
        reach = self.high[end - 1] - self.low[start]
        return count * (reach * reach)


class RowErrors(NamedTuple):
    """Per row, arrays of length rows: sum of w**2, sum of (w - w_hat)**2, largest |w - w_hat|."""

    signal: F64
    noise: F64
    max_error: F32

    @property
    def sums(self) -> ErrorSums:
        """The errors of all rows in one value."""
        return ErrorSums(_few(self.signal), _few(self.noise), float(self.max_error.max(initial=0.0)))


def _few(values: F64) -> tuple[float, ...]:
    # A few thousand floats may stay as they are: summing them without rounding takes three passes.
    return tuple(values.tolist()) if len(values) <= FEW_ROWS else exact_sum(values.tolist())


class Kernels(Protocol):
    """The hot loops. Arrays are C-contiguous; what is written in place is the caller's own memory."""

    name: str

    def absmax(self, x: Matrix, group: int) -> F32:
        """Largest |x| per group, float32 `[rows, ceil(cols / group)]`; inf or NaN where the group holds one.

        Args:
            x: weights.
            group: how many neighbours of a row make one, at least 1.
        """
        ...

    def own_grids(self, x: Matrix, asked: OwnGrids) -> tuple[F32, U8]:
        """The row_scale, float32 `[rows, groups]`, and the zero_point, uint8, of every group; see `core.own`.

        Args:
            x: finite weights.
            asked: which grids.
        """
        ...

    def count16(self, x: Matrix) -> ValueHistogram:
        """The histogram of 16-bit weights; `-0.0` counts as `0.0`.

        Args:
            x: bf16 or fp16 weights.
        """
        ...

    def count32(self, x: Matrix, scales: RowScales | None) -> ValueHistogram:
        """The histogram, of kind fp32, of `float32(x) * inverse`; `-0.0` counts as `0.0`.

        Args:
            x: weights.
            scales: their row_scales, with weights where values are to weigh them; None: of x itself.
        """
        ...

    def partition(self, costs: SegmentCosts, clusters: int) -> I64:
        """The borders of the segments with the least total cost, int64 `[clusters + 1]`, see `core.partition`.

        Args:
            costs: of n bins.
            clusters: how many segments, at most n.
        """
        ...

    def polish(self, values: Values, grid: Grid) -> Grid:
        """The k affine pieces of a grid whose clusters lie side by side, fitted to the values, see `core.refit`.

        Args:
            values: ascending.
            grid: whose own ranges the clusters cover, without cells.
        """
        ...

    def encode(self, x: Matrix, scales: RowScales | None, grid: Grid, out: Planes) -> RowErrors:
        """Write the packed code and cluster id of every weight, and return the errors.

        Args:
            x: weights.
            scales: their row_scales (None: ones).
            grid: levels, and how values find theirs.
            out: planes with the bits of the grid, written in place.

        LAW: with `u = float32(x) * inverse` the cluster is the last c with `lower[c] <= u`, the code is
        `clip(rint((u - offset[c] - shift) * inverse_scale[c]), code_min, code_max)`, all in float32, and
        `w_hat = row_scale * (levels[c, code] + shift)` (`RowScales.shift`; none: 0, and cells have none). Where the grid has cells: cluster, code and level are those of cell n, the
        number of borders that are at most u (0 for NaN).
        """
        ...

    def pack(self, values: U8, bits: int) -> U8:
        """A plane of values: uint8 `[rows, ceil(cols * bits / 8)]`, the least significant bits first.

        Args:
            values: uint8 `[rows, cols]`, each below `2**bits`.
            bits: of each, 1 to 8.
        """
        ...

    def unpack(self, plane: U8, cols: int, bits: int) -> U8:
        """The inverse of `pack`: uint8 `[rows, cols]`.

        Args:
            plane: uint8 `[rows, ceil(cols * bits / 8)]`.
            cols: values of a row.
            bits: of each, 1 to 8.
        """
        ...

    def dequantize(self, planes: Planes, levels: F32, scales: RowScales | None, kind: Kind) -> Matrix:
        """`row_scale * (levels[cluster, code] + shift)` in float32, rounded to nearest even: `[rows, cols]`.

        Args:
            planes: codes and cluster ids.
            levels: float32 `[k, 2**bits]`.
            scales: the row_scales (None: ones).
            kind: what is rounded to.
        """
        ...

    def part_planes(self, planes: Planes, parts: Parts) -> None:
        """Write the packed codes of every part.

        Args:
            planes: codes and cluster ids.
            parts: what is to be made of them, written in place.

        LAW: part c holds `(code - zero[c] + base[c]) % 2**bits` where the cluster id is c (no plane of them: everywhere),
        and `base[c]` elsewhere and in the columns that the planes do not have.
        """
        ...

    def transpose(self, x: Matrix, out: Matrix) -> None:
        """Write `x.T` into `out`.

        Args:
            x: words of 1, 2 or 4 bytes, those of a row next to each other.
            out: of the same dtype.
        """
        ...

    def crc32(self, data: U8) -> int:
        """The CRC-32 (that of zlib) of some bytes.

        Args:
            data: contiguous uint8 `[n]`.
        """
        ...
