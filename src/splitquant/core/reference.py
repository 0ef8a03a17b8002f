"""The hot loops in pure NumPy: the definition that the compiled kernels are tested against, and the fallback.

Every float operation is a single float32 (or, where said, float64) operation in a fixed order, so that the compiled
twin can give the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from splitquant.core.affine import Cells, Grid
from splitquant.core.arrays import F32, F64, I64, U8, Matrix
from splitquant.core.floats import FLOATS, Kind, from_float32, kind_of, to_float32
from splitquant.core.histogram import KEYS, ValueHistogram, Values
from splitquant.core.interface import Parts, Planes, RowErrors, SegmentCosts
from splitquant.core.lanes import lane_sums
from splitquant.core.own import OwnGrids, own_grids
from splitquant.core.refit import fitted
from splitquant.core.rows import RowScales, inverse_per_group, per_group, spread

BLOCK_WEIGHTS = 1 << 18  # rows are treated in blocks of about this many weights, to bound the temporaries
CostFunction = Callable[[I64, I64], F64]  # (starts, ends) of segments -> their costs
_TILE = 64  # of a transpose: its lines fit the nearest cache


def _blocks(rows: int, cols: int) -> Iterator[slice]:
    step = max(1, BLOCK_WEIGHTS // max(1, cols))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _scaled(values: F32, factor: F32 | None, group: int, block: slice) -> F32:
    """The values of a block of rows, multiplied by a number per group."""
    return values if factor is None else values * spread(factor[block], group, values.shape[1])


class NumpyKernels:
    """See `core.interface.Kernels` for every contract."""

    name = "numpy"

    def absmax(self, x: Matrix, group: int) -> F32:
        rows, cols = x.shape
        starts = np.arange(0, cols, group)
        out = np.empty((rows, len(starts)), np.float32)
        for block in _blocks(rows, cols):
            out[block] = np.maximum.reduceat(np.abs(to_float32(x[block])), starts, axis=1)
        return out

    def own_grids(self, x: Matrix, asked: OwnGrids) -> tuple[F32, U8]:
        rows, cols = x.shape
        groups = -(-cols // asked.group)
        row_scale, zero = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.uint8)
        whole = cols // asked.group
        for block in _blocks(rows, 8 * cols):
            parts = [(slice(0, whole), x[block, : whole * asked.group].reshape(-1, asked.group))] if whole else []
            parts += [(slice(whole, groups), x[block, whole * asked.group :])] if whole < groups else []
            for place, values in parts:
                found = own_grids(values, asked)
                row_scale[block, place], zero[block, place] = (
                    part.reshape(-1, place.stop - place.start) for part in found
                )
        return row_scale, zero

    def count16(self, x: Matrix) -> ValueHistogram:
        count = np.bincount(x.reshape(-1).view(np.uint16), minlength=KEYS).astype(np.int64)
        count[0] += count[KEYS // 2]
        count[KEYS // 2] = 0
        return ValueHistogram(kind_of(x.dtype), count)

    def count32(self, x: Matrix, scales: RowScales | None) -> ValueHistogram:
        found = ValueHistogram.of_nothing()
        sums, weighed = found.low, found.weight
        assert sums is not None
        assert weighed is not None
        inverse, group = inverse_per_group(scales)
        for block in _blocks(*x.shape):
            with np.errstate(invalid="ignore"):  # a signalling NaN is counted like any other
                u = _scaled(to_float32(x[block]), inverse, group, block)
                bits = (u + np.float32(0)).reshape(-1).view(np.uint32)
            keys, low = bits >> 16, (bits & 0xFFFF).astype(np.int64)
            np.add(found.count, np.bincount(keys, minlength=KEYS), out=found.count)
            np.add.at(sums.sum, keys, low.astype(np.uint64))
            np.add.at(sums.sum_sq, keys, (low * low).astype(np.uint64))
            np.minimum.at(sums.min, keys, low.astype(np.uint16))
            np.maximum.at(sums.max, keys, low.astype(np.uint16))
            if scales is not None and scales.weight is not None:
                each = np.broadcast_to(spread(scales.weight[block], group, x.shape[1]), u.shape)
                np.add.at(weighed, keys, each.reshape(-1).astype(np.int64))
        return found if scales is not None and scales.weight is not None else replace(found, weight=None)

    def partition(self, costs: SegmentCosts, clusters: int) -> I64:
        n = len(costs.low)
        ends = np.arange(n + 1)
        best = np.full(n + 1, np.inf)
        best[1:] = costs.cost(np.zeros(n, np.int64), ends[1:])
        starts = np.zeros((clusters + 1, n + 1), np.int64)
        for c in range(2, clusters + 1):
            best, starts[c] = self._layer(best, costs.cost, c, n)
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

    def encode(self, x: Matrix, scales: RowScales | None, grid: Grid, out: Planes) -> RowErrors:
        count, cols = x.shape
        errors = RowErrors(np.empty(count), np.empty(count), np.empty(count, np.float32))
        (scale, group), (inverse, _) = per_group(scales), inverse_per_group(scales)
        for block in _blocks(count, cols):
            w = to_float32(x[block])
            u = _scaled(w, inverse, group, block)
            shift = None if scales is None or scales.shift is None else spread(scales.shift[block], group, cols)
            w_hat, code, cluster = _by_rounding(u, grid, shift) if grid.cells is None else _by_cells(u, grid.cells)
            out.codes[block] = self.pack(code, out.bits)
            if out.clusters is not None:
                out.clusters[block] = self.pack(cluster, out.cluster_bits)
            part = row_errors(w, _scaled(w_hat, scale, group, block))
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

    def dequantize(self, planes: Planes, levels: F32, scales: RowScales | None, kind: Kind) -> Matrix:
        count, cols = len(planes.codes), planes.cols
        out = np.empty((count, cols), FLOATS[kind].dtype)
        scale, group = per_group(scales)
        for block in _blocks(count, cols):
            index = self.unpack(planes.codes[block], cols, planes.bits).astype(np.intp)
            if planes.clusters is not None:
                cluster = self.unpack(planes.clusters[block], cols, planes.cluster_bits)
                index += levels.shape[1] * cluster.astype(np.intp)
            values = np.take(levels.reshape(-1), index, mode="clip")  # a damaged cluster id must not end in a traceback
            if scales is not None and scales.shift is not None:
                values += spread(scales.shift[block], group, cols)
            out[block] = from_float32(_scaled(values, scale, group, block), kind)
        return out

    def part_planes(self, planes: Planes, parts: Parts) -> None:
        code = self.unpack(planes.codes, planes.cols, planes.bits)
        cluster = None
        if planes.clusters is not None:
            cluster = self.unpack(planes.clusters, planes.cols, planes.cluster_bits)
        for c, (zero, base) in enumerate(zip(parts.zero, parts.base, strict=True)):
            # In uint8, wrapping: each step is one vector instruction, which np.where is not.
            kept = code - zero
            if cluster is not None:
                kept *= (cluster == c).view(np.uint8)
            part = np.full((len(code), parts.cols), base, np.uint8)
            part[:, : planes.cols] += kept
            parts.out[c] = self.pack(part & np.uint8((1 << parts.bits) - 1), parts.bits)

    def transpose(self, x: Matrix, out: Matrix) -> None:
        for left in range(0, x.shape[1], _TILE):
            band = np.ascontiguousarray(x[:, left : left + _TILE])
            for top in range(0, len(x), _TILE):
                out[left : left + _TILE, top : top + _TILE] = band[top : top + _TILE].T

    def crc32(self, data: U8) -> int:
        return zlib.crc32(data.data)


def _by_rounding(u: F32, grid: Grid, shift: F32 | None) -> tuple[F32, U8, U8]:
    """Level, code and cluster of every value, by its cluster's own grid, all moved by `shift`."""
    cluster = np.zeros(u.shape, np.uint8)
    for border in grid.lower[1:]:
        cluster += u >= border
    with np.errstate(over="ignore"):
        above = u - grid.offset[cluster] if shift is None else u - grid.offset[cluster] - shift
        steps = np.rint(above * grid.inverse_scale[cluster])
    code = np.clip(steps, grid.code_min, grid.code_max).astype(np.uint8)
    level = grid.levels[cluster, code]
    return level if shift is None else level + shift, code, cluster


def _by_cells(u: F32, cells: Cells) -> tuple[F32, U8, U8]:
    """Level, code and cluster of every value, by the cell it lies in."""
    cell = np.searchsorted(cells.border, u, side="right")
    cell[np.isnan(u)] = 0
    return cells.level[cell], cells.code[cell], cells.cluster[cell]


def row_errors(w: F32, w_hat: F32) -> RowErrors:
    """The errors per row, as `encode` returns them.

    Args:
        w: float32 `[rows, cols]`.
        w_hat: float32 `[rows, cols]`, what stands for it.
    """
    miss = w - w_hat
    return RowErrors(lane_sums(w), lane_sums(miss), np.abs(miss).max(axis=1, initial=0))
