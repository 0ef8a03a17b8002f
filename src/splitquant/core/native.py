"""The compiled kernels behind the interface of `core.kernels`: checks, output arrays, and a call each.

Importing this raises ImportError where `splitquant._native` was not built. `SPLITQUANT_ISA` chooses the instruction set
by hand (`baseline`, `avx2`, `avx512`); else it is the widest one that the CPU has. All give the same bytes.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import splitquant._native as _native  # noqa: PLR0402 - mypy accepts a module that may be missing in this form only
from splitquant.core.affine import Grid, levels
from splitquant.core.histogram import KEYS, Kind, Values
from splitquant.core.kernels import F32, F64, I64, U8, U32, Counts32, Matrix, RowErrors
from splitquant.core.polish import LEAST_GAIN, MOST_STEPS
from splitquant.core.spec import CLUSTER_ID_BITS
from splitquant.errors import SpecError

_FOLD_BYTES = 64
_KINDS: dict[str, int] = {"uint16": 0, "float16": 1, "float32": 2}
_CODES_OF_KIND: dict[Kind, int] = {"bf16": 0, "fp16": 1, "fp32": 2}
_DTYPE_OF_KIND: dict[Kind, DTypeLike] = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}


class NativeKernels:
    """See `core.kernels.Kernels` for every contract. Calls hold no lock, so threads can work on separate windows."""

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

    def count16(self, x: Matrix) -> I64:
        words, kind = _words(x)
        if kind == _KINDS["float32"]:
            raise TypeError("count16 takes 16-bit floats, this matrix is float32")
        count = np.empty(KEYS, np.int64)
        _native.count16(words.reshape(-1), count)
        return count

    def count32(self, x: Matrix, inverse: F32 | None, group: int, weight: U32 | None = None) -> Counts32:
        words, kind = _words(x)
        out = Counts32.empty()
        _native.count32(words, kind, _per_group(inverse), group, weight, *out)
        return out

    def partition(self, count: F64, total: F64, low: F64, high: F64, clusters: int, kmeans: bool) -> I64:
        borders = np.empty(clusters + 1, np.int64)
        arrays = (np.ascontiguousarray(array, np.float64) for array in (count, total, low, high))
        _native.partition(*arrays, clusters, kmeans, borders)
        return borders

    def polish(self, values: Values, grid: Grid) -> Grid:
        pieces = grid.lower.copy(), grid.scale.copy(), grid.offset.copy()
        _native.polish(values.mean, values.count, values.sum, grid.bits, MOST_STEPS, LEAST_GAIN, *pieces)
        lower, scale, offset = pieces
        return replace(grid, lower=lower, scale=scale, offset=offset, levels=levels(scale, offset, grid.bits))

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
        words, kind = _words(x)
        scales = (_per_group(row_scale), _per_group(inverse), group)
        planes, errors = _outputs(len(x), grid, codes, clusters)
        if grid.cells is None:
            parts = (grid.lower, grid.scale, grid.offset, grid.inverse_scale)
            pieces = (np.ascontiguousarray(part, np.float32) for part in parts)
            _native.encode(words, kind, *scales, grid.bits, grid.code_min, grid.code_max, *pieces, *planes, *errors)
        else:
            cells = (grid.cells.border, grid.cells.level, grid.cells.code, grid.cells.cluster)
            _native.encode_cells(words, kind, *scales, grid.bits, *cells, *planes, *errors)
        return errors

    def pack(self, values: U8, bits: int) -> U8:
        rows, cols = values.shape
        plane = np.empty((rows, -(-cols * bits // 8)), np.uint8)
        _native.pack(np.ascontiguousarray(values, np.uint8), bits, plane)
        return plane

    def unpack(self, plane: U8, cols: int, bits: int) -> U8:
        values = np.empty((len(plane), cols), np.uint8)
        _native.unpack(np.ascontiguousarray(plane, np.uint8), bits, values)
        return values

    def dequantize(
        self, codes: U8, clusters: U8 | None, levels: F32, row_scale: F32 | None, group: int, cols: int, kind: Kind
    ) -> Matrix:
        k, count = levels.shape
        out: Matrix = np.empty((len(codes), cols), _DTYPE_OF_KIND[kind])
        _native.dequantize(
            np.ascontiguousarray(codes, np.uint8),
            count.bit_length() - 1,
            None if clusters is None else np.ascontiguousarray(clusters, np.uint8),
            CLUSTER_ID_BITS[k],
            np.ascontiguousarray(levels, np.float32),
            _per_group(row_scale),
            group,
            _CODES_OF_KIND[kind],
            out.view(np.uint16) if kind == "fp16" else out,
        )
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
        _check_plane(out)
        _native.part_planes(codes, bits, clusters, cluster_bits, cols, zero, base, out_bits, out_cols, out)

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


def _words(x: Matrix) -> tuple[NDArray[Any], int]:
    """The matrix as the module takes it (fp16 by its bits) and the number of its kind."""
    if x.ndim != 2 or x.dtype.name not in _KINDS:
        raise TypeError(f"expected a matrix of uint16 (the bits of bf16), float16 or float32, got {x.ndim}-D {x.dtype}")
    x = np.ascontiguousarray(x)
    return (x.view(np.uint16) if x.dtype == np.float16 else x), _KINDS[x.dtype.name]


def _per_group(values: F32 | None) -> F32 | None:
    return None if values is None else np.ascontiguousarray(values, np.float32)


def _outputs(rows: int, grid: Grid, codes: U8, clusters: U8 | None) -> tuple[tuple[U8, U8 | None, int], RowErrors]:
    """The planes to write into with the bits of a cluster id, and room for the errors."""
    _check_plane(codes)
    if clusters is not None:
        _check_plane(clusters)
    errors = RowErrors(np.empty(rows), np.empty(rows), np.empty(rows, np.float32))
    return (codes, clusters, CLUSTER_ID_BITS[grid.clusters]), errors


def _check_plane(plane: U8) -> None:
    """What is written in place must be the caller's own memory, not a copy that a conversion made."""
    if plane.dtype != np.uint8 or not plane.flags.c_contiguous or not plane.flags.writeable:
        raise TypeError("a plane to write into is a C-contiguous, writable uint8 array")
