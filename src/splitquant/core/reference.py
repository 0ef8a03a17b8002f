"""The hot loops in pure NumPy: the definition that the compiled kernels are tested against, and the fallback.

Every float operation is a single float32 (or, where said, float64) operation in a fixed order, so that the compiled
twin can give the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import Cells, Grid
from splitquant.core.histogram import KEYS, Kind, Values
from splitquant.core.kernels import F32, F64, I64, U8, U32, Counts32, Matrix, RowErrors
from splitquant.core.polish import fitted
from splitquant.core.spec import CLUSTER_ID_BITS

BLOCK_WEIGHTS = 1 << 18  # rows are treated in blocks of about this many weights, to bound the temporaries
N = TypeVar("N", bound=np.generic)
CostFunction = Callable[[I64, I64], F64]  # (starts, ends) of segments -> their costs
_TILE = 64  # of a transpose: its lines fit the nearest cache
LANES = 16  # row errors are summed in 16 interleaved lanes, then over the lanes


def to_float32(x: Matrix) -> F32:
    """The values of a window as float32 (exact): uint16 is bf16 by its bits."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32, copy=False)


def from_float32(values: F32, kind: Kind) -> Matrix:
    """Round float32 to nearest even into the dtype of `kind`; bf16 comes as its uint16 bits."""
    if kind == "fp32":
        return values
    if kind == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _blocks(rows: int, cols: int) -> Iterator[slice]:
    step = max(1, BLOCK_WEIGHTS // max(1, cols))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def spread(per_group: NDArray[N], group: int, cols: int) -> NDArray[N]:
    """Per-group numbers repeated to per-weight ones, `[rows, cols]` (or `[rows, 1]` where a row is one group)."""
    return per_group if per_group.shape[1] == 1 else np.repeat(per_group, group, axis=1)[:, :cols]


class NumpyKernels:
    """See `core.kernels.Kernels` for every contract."""

    name = "numpy"

    def absmax(self, x: Matrix, group: int) -> F32:
        rows, cols = x.shape
        starts = np.arange(0, cols, group)
        out = np.empty((rows, len(starts)), np.float32)
        for block in _blocks(rows, cols):
            out[block] = np.maximum.reduceat(np.abs(to_float32(x[block])), starts, axis=1)
        return out

    def count16(self, x: Matrix) -> I64:
        count = np.bincount(x.reshape(-1).view(np.uint16), minlength=KEYS).astype(np.int64)
        count[0] += count[KEYS // 2]
        count[KEYS // 2] = 0
        return count

    def count32(self, x: Matrix, inverse: F32 | None, group: int, weight: U32 | None = None) -> Counts32:
        rows, cols = x.shape
        out = Counts32.empty()
        for block in _blocks(rows, cols):
            u = to_float32(x[block])
            with np.errstate(invalid="ignore"):  # a signalling NaN is counted like any other
                if inverse is not None:
                    u = u * spread(inverse[block], group, cols)
                bits = (u + np.float32(0)).reshape(-1).view(np.uint32)
            keys, low = bits >> 16, (bits & 0xFFFF).astype(np.int64)
            np.add(out.counts, np.bincount(keys, minlength=KEYS), out=out.counts)
            np.add.at(out.low_sum, keys, low.astype(np.uint64))
            np.add.at(out.low_sum_sq, keys, (low * low).astype(np.uint64))
            np.minimum.at(out.low_min, keys, low.astype(np.uint16))
            np.maximum.at(out.low_max, keys, low.astype(np.uint16))
            if weight is not None:
                weights = np.broadcast_to(spread(weight[block], group, cols), u.shape)
                np.add.at(out.weights, keys, weights.reshape(-1).astype(np.int64))
        return out if weight is not None else out._replace(weights=out.counts.copy())

    def partition(self, count: F64, total: F64, low: F64, high: F64, clusters: int, kmeans: bool) -> I64:
        n = len(low)

        def cost(start: I64, end: I64) -> F64:
            weights = count[end] - count[start]
            if kmeans:
                spread = total[end] - total[start]
                return -(spread * spread) / weights
            reach = high[end - 1] - low[start]
            return weights * (reach * reach)

        ends = np.arange(n + 1)
        best = np.full(n + 1, np.inf)
        best[1:] = cost(np.zeros(n, np.int64), ends[1:])
        starts = np.zeros((clusters + 1, n + 1), np.int64)
        for c in range(2, clusters + 1):
            best, starts[c] = self._layer(best, cost, c, n)
        borders = np.empty(clusters + 1, np.int64)
        borders[clusters] = n
        for c in range(clusters, 0, -1):
            borders[c - 1] = starts[c, borders[c]]
        return borders

    @staticmethod
    def _layer(previous: F64, cost: CostFunction, c: int, n: int) -> tuple[F64, I64]:
        """One layer of the programme: for every end in [c, n] the best start of the last of c segments.

        Divide and conquer, one depth at a time: all middles of a depth are solved together.
        """
        best, starts = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
        first, last = np.array([c]), np.array([n])
        from_, to = np.array([c - 1]), np.array([n - 1])
        while len(first):
            middle = (first + last) // 2
            lengths = np.minimum(to, middle - 1) - from_ + 1
            at = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            start = np.arange(int(lengths.sum())) - np.repeat(at - from_, lengths)
            value = previous[start] + cost(start, np.repeat(middle, lengths))
            least = np.minimum.reduceat(value, at)
            hits = np.flatnonzero(value == np.repeat(least, lengths))
            opt = start[hits[np.searchsorted(hits, at)]]
            best[middle], starts[middle] = least, opt
            first, last, from_, to = (
                np.concatenate([first, middle + 1]),
                np.concatenate([middle - 1, last]),
                np.concatenate([from_, opt]),
                np.concatenate([opt, to]),
            )
            keep = first <= last
            first, last, from_, to = first[keep], last[keep], from_[keep], to[keep]
        return best, starts

    def polish(self, values: Values, grid: Grid) -> Grid:
        return fitted(grid, values)

    def encode(
        self,
        x: Matrix,
        row_scale: F32 | None,
        inverse: F32 | None,
        group: int,
        grid: Grid,
        codes: U8,
        clusters: U8 | None,
    ) -> RowErrors:
        rows, cols = x.shape
        errors = RowErrors(np.empty(rows), np.empty(rows), np.empty(rows, np.float32))
        for block in _blocks(rows, cols):
            w = to_float32(x[block])
            u = w if inverse is None else w * spread(inverse[block], group, cols)
            w_hat, code, cluster = _by_rounding(u, grid) if grid.cells is None else _by_cells(u, grid.cells)
            if row_scale is not None:
                w_hat = w_hat * spread(row_scale[block], group, cols)
            codes[block] = self.pack(code, grid.bits)
            if clusters is not None:
                clusters[block] = self.pack(cluster, CLUSTER_ID_BITS[grid.clusters])
            part = row_errors(w, w_hat)
            errors.signal[block], errors.noise[block], errors.max_error[block] = part
        return errors

    def pack(self, values: U8, bits: int) -> U8:
        rows, cols = values.shape
        if bits == 8:
            return np.array(values, np.uint8, copy=True)
        flags = np.unpackbits(values[:, :, None], axis=2, count=bits, bitorder="little")
        return np.packbits(flags.reshape(rows, cols * bits), axis=1, bitorder="little")

    def unpack(self, plane: U8, cols: int, bits: int) -> U8:
        if bits == 8:
            return np.array(plane, np.uint8, copy=True)
        flags = np.unpackbits(plane, axis=1, count=cols * bits, bitorder="little")
        return np.packbits(flags.reshape(len(plane), cols, bits), axis=2, bitorder="little")[:, :, 0]

    def dequantize(
        self, codes: U8, clusters: U8 | None, levels: F32, row_scale: F32 | None, group: int, cols: int, kind: Kind
    ) -> Matrix:
        k, count = levels.shape
        dtype = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}[kind]
        out = np.empty((len(codes), cols), dtype)
        for block in _blocks(len(codes), cols):
            index = self.unpack(codes[block], cols, count.bit_length() - 1).astype(np.intp)
            if clusters is not None:
                index += count * self.unpack(clusters[block], cols, CLUSTER_ID_BITS[k]).astype(np.intp)
            values = np.take(levels.reshape(-1), index, mode="clip")  # a damaged cluster id must not end in a traceback
            if row_scale is not None:
                values = values * spread(row_scale[block], group, cols)
            out[block] = from_float32(values, kind)
        return out

    def part_planes(
        self,
        codes: U8,
        bits: int,
        clusters: U8 | None,
        cluster_bits: int,
        cols: int,
        zero: U8,
        base: U8,
        out: U8,
        out_bits: int,
        out_cols: int,
    ) -> None:
        code = self.unpack(codes, cols, bits)
        cluster = None if clusters is None else self.unpack(clusters, cols, cluster_bits)
        for c in range(len(zero)):
            # In uint8, wrapping: each step is one vector instruction, which np.where is not.
            kept = code - zero[c]
            if cluster is not None:
                kept *= (cluster == c).view(np.uint8)
            part = np.full((len(code), out_cols), base[c], np.uint8)
            part[:, :cols] += kept
            out[c] = self.pack(part & np.uint8((1 << out_bits) - 1), out_bits)

    def transpose(self, x: Matrix, out: Matrix) -> None:
        for left in range(0, x.shape[1], _TILE):
            band = np.ascontiguousarray(x[:, left : left + _TILE])
            for top in range(0, len(x), _TILE):
                out[left : left + _TILE, top : top + _TILE] = band[top : top + _TILE].T

    def crc32(self, data: U8) -> int:
        return zlib.crc32(data.data)


def _by_rounding(u: F32, grid: Grid) -> tuple[F32, U8, U8]:
    """Level, code and cluster of every value, by its cluster's own grid."""
    cluster = np.zeros(u.shape, np.uint8)
    for border in grid.lower[1:]:
        cluster += u >= border
    with np.errstate(over="ignore"):
        steps = np.rint((u - grid.offset[cluster]) * grid.inverse_scale[cluster])
    code = np.clip(steps, grid.code_min, grid.code_max).astype(np.uint8)
    return grid.levels[cluster, code], code, cluster


def _by_cells(u: F32, cells: Cells) -> tuple[F32, U8, U8]:
    """Level, code and cluster of every value, by the cell it lies in."""
    cell = np.searchsorted(cells.border, u, side="right")
    cell[np.isnan(u)] = 0
    return cells.level[cell], cells.code[cell], cells.cluster[cell]


def row_errors(w: F32, w_hat: F32) -> RowErrors:
    """The errors per row of `w_hat` against `w`, both float32 `[rows, cols]`, as `encode` returns them."""
    miss = w - w_hat
    return RowErrors(_lane_sums(w), _lane_sums(miss), np.abs(miss).max(axis=1, initial=0))


def _lane_sums(values: F32) -> F64:
    """Per row the float64 sum of squares: 16 interleaved lanes first, then lane 0 to lane 15, each in order."""
    rows, cols = values.shape
    squares = np.zeros((rows, -(-cols // LANES) * LANES))
    np.square(values, out=squares[:, :cols], dtype=np.float64)
    lanes = np.add.reduce(
        squares.reshape(rows, -1, LANES), axis=1
    )  # the lanes are innermost: every one is summed in order
    total = np.zeros(rows)
    for lane in range(LANES):
        total += lanes[:, lane]
    return total
