"""The compiled kernels behind `core.interface`: checks, output arrays, and a call each.

Importing this raises ImportError where `splitquant._native` was not built. `SPLITQUANT_ISA` chooses the instruction set
by hand (`baseline`, `avx2`, `avx512`); else it is the widest one that the CPU has. All give the same bytes.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import splitquant._native as _native  # noqa: PLR0402 - mypy accepts a module that may be missing in this form only
from splitquant.core.affine import Grid, levels
from splitquant.core.arrays import F32, I64, U8, Matrix
from splitquant.core.floats import FLOATS, Kind, kind_of
from splitquant.core.histogram import KEYS, ValueHistogram, Values
from splitquant.core.interface import Parts, Planes, RowErrors, SegmentCosts, plane_width
from splitquant.core.own import OwnGrids
from splitquant.core.refit import LEAST_GAIN, MOST_STEPS
from splitquant.core.rows import RowScales, inverse_per_group, per_group
from splitquant.errors import SpecError

_FOLD_BYTES = 64


class NativeKernels:
    """See `core.interface.Kernels` for every contract. Calls hold no lock, so threads can work on separate windows."""

    name = "native"

    def __init__(self) -> None:
        isa = os.environ.get("SPLITQUANT_ISA")
        if isa:
            try:
                _native.set_isa(isa)
            except ValueError as error:
                raise SpecError(f"SPLITQUANT_ISA is {isa!r}: {error}") from error

    def absmax(self, x: Matrix, group: int) -> F32:
        words, kind = _words(x)
        out = np.empty((x.shape[0], -(-x.shape[1] // group)), np.float32)
        _native.absmax(words, kind, group, out)
        return out

    def own_grids(self, x: Matrix, asked: OwnGrids) -> tuple[F32, U8]:
        shape = x.shape[0], -(-x.shape[1] // asked.group)
        row_scale, zero = np.empty(shape, np.float32), np.empty(shape, np.uint8)
        stored = FLOATS[asked.kind].number
        _native.own_grids(*_words(x), asked.group, asked.bits, stored, asked.fitted, row_scale, zero)
        return row_scale, zero

    def count16(self, x: Matrix) -> ValueHistogram:
        words, _ = _words(x)
        if words.dtype != np.uint16:
            raise TypeError("count16 takes 16-bit floats, this matrix is float32")
        count = np.empty(KEYS, np.int64)
        _native.count16(words.reshape(-1), count)
        return ValueHistogram(kind_of(x.dtype), count)

    def count32(self, x: Matrix, scales: RowScales | None) -> ValueHistogram:
        found = ValueHistogram.of_nothing()
        low, weight = found.low, None if scales is None else scales.weight
        assert low is not None
        tables = (found.count, low.sum, low.sum_sq, low.min, low.max, found.weight)
        _native.count32(*_words(x), *inverse_per_group(scales), weight, *tables)
        return found if weight is not None else replace(found, weight=None)

    def partition(self, costs: SegmentCosts, clusters: int) -> I64:
        borders = np.empty(clusters + 1, np.int64)
        _native.partition(costs.count, costs.total, costs.low, costs.high, clusters, costs.squares, borders)
        return borders

    def polish(self, values: Values, grid: Grid) -> Grid:
        pieces = grid.lower.copy(), grid.scale.copy(), grid.offset.copy()
        _native.polish(values.mean, values.count, values.sum, grid.bits, MOST_STEPS, LEAST_GAIN, *pieces)
        lower, scale, offset = pieces
        return replace(grid, lower=lower, scale=scale, offset=offset, levels=levels(scale, offset, grid.bits))

    def encode(self, x: Matrix, scales: RowScales | None, grid: Grid, out: Planes) -> RowErrors:
        errors = RowErrors(np.empty(len(x)), np.empty(len(x)), np.empty(len(x), np.float32))
        planes, scale, shift = _in_place(out), None if scales is None else scales.scale, _shift(scales)
        inverse, group = inverse_per_group(scales)
        if grid.cells is None:
            pieces = map(_floats, (grid.lower, grid.scale, grid.offset, grid.inverse_scale))
            codes = grid.code_min, grid.code_max
            _native.encode(*_words(x), scale, inverse, shift, group, *codes, *pieces, *planes, *errors)
        else:
            cells = (grid.cells.border, grid.cells.level, grid.cells.code, grid.cells.cluster)
            _native.encode_cells(*_words(x), scale, inverse, group, *cells, *planes, *errors)
        return errors

    def pack(self, values: U8, bits: int) -> U8:
        rows, cols = values.shape
        plane = np.empty((rows, plane_width(cols, bits)), np.uint8)
        _native.pack(np.ascontiguousarray(values, np.uint8), bits, plane)
        return plane

    def unpack(self, plane: U8, cols: int, bits: int) -> U8:
        values = np.empty((len(plane), cols), np.uint8)
        _native.unpack(np.ascontiguousarray(plane, np.uint8), bits, values)
        return values

    def dequantize(self, planes: Planes, levels: F32, scales: RowScales | None, kind: Kind) -> Matrix:
        out: Matrix = np.empty((len(planes.codes), planes.cols), FLOATS[kind].dtype)
        scale, group = per_group(scales)
        shift, number = _shift(scales), FLOATS[kind].number
        _native.dequantize(*_read(planes), _floats(levels), scale, shift, group, number, _bits(out))
        return out

    def part_planes(self, planes: Planes, parts: Parts) -> None:
        _check_plane(parts.out)
        _native.part_planes(*_read(planes), planes.cols, parts.zero, parts.base, parts.bits, parts.cols, parts.out)

    def transpose(self, x: Matrix, out: Matrix) -> None:
        words = np.dtype(f"u{x.itemsize}")
        _native.transpose(x.view(words), out.view(words))

    def crc32(self, data: U8) -> int:
        whole = len(data) // _FOLD_BYTES * _FOLD_BYTES
        folded = np.empty(_FOLD_BYTES, np.uint8)
        if whole == 0 or not _native.crc32_fold(data[:whole], folded):
            return zlib.crc32(data.data)
        # The folded block stands for a register that is 0 before it, which zlib calls all ones.
        return zlib.crc32(data[whole:].data, zlib.crc32(folded.data, 0xFFFFFFFF))


def _shift(scales: RowScales | None) -> F32 | None:
    return None if scales is None else scales.shift


def _words(x: Matrix) -> tuple[NDArray[Any], int]:
    """The matrix as the module takes it and the number of its kind."""
    if x.ndim != 2:
        raise TypeError(f"expected a matrix, got {x.ndim} dimensions")
    return _bits(np.ascontiguousarray(x)), FLOATS[kind_of(x.dtype)].number


def _bits(x: Matrix) -> NDArray[Any]:
    """fp16 goes by its bits: the kind, not the dtype, says what 16 bits mean."""
    return x.view(np.uint16) if x.dtype == np.float16 else x


def _floats(values: F32) -> F32:
    return np.ascontiguousarray(values, np.float32)


def _read(planes: Planes) -> tuple[U8, int, U8 | None, int]:
    """Planes that are only read."""
    clusters = None if planes.clusters is None else np.ascontiguousarray(planes.clusters, np.uint8)
    return np.ascontiguousarray(planes.codes, np.uint8), planes.bits, clusters, planes.cluster_bits


def _in_place(planes: Planes) -> tuple[U8, int, U8 | None, int]:
    """Planes that are written in place."""
    _check_plane(planes.codes)
    if planes.clusters is not None:
        _check_plane(planes.clusters)
    return planes.codes, planes.bits, planes.clusters, planes.cluster_bits


def _check_plane(plane: U8) -> None:
    """What is written in place must be the caller's own memory, not a copy that a conversion made."""
    if plane.dtype != np.uint8 or not plane.flags.c_contiguous or not plane.flags.writeable:
        raise TypeError("a plane to write into is a C-contiguous, writable uint8 array")
