"""The hot loops behind one interface: the compiled module where it was built, else its NumPy twin.

Both give the same bytes (`tests/properties/test_kernels.py`). `SPLITQUANT_KERNELS=numpy` or `=native` chooses by hand.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import Grid
from splitquant.core.histogram import KEYS, Kind, Values
from splitquant.errors import SpecError

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Matrix = NDArray[Any]
"""A C-contiguous 2-D window of rows: uint16 is bf16 by its bits, float16 is fp16, float32 is fp32."""


class Counts32(NamedTuple):
    """Per top-16-bit key, arrays of 65,536: how many values, sums and extremes of their low 16 bits, sum of their weights."""

    counts: I64
    low_sum: U64
    low_sum_sq: U64
    low_min: U16  # 65,535 where the key is empty
    low_max: U16  # 0 where the key is empty
    weights: I64

    @classmethod
    def empty(cls) -> Counts32:
        """The counts of no value."""
        signed, unsigned = (np.zeros((2, KEYS), dtype) for dtype in (np.int64, np.uint64))
        least, most = np.full(KEYS, KEYS - 1, np.uint16), np.zeros(KEYS, np.uint16)
        return cls(signed[0], unsigned[0], unsigned[1], least, most, signed[1])


class RowErrors(NamedTuple):
    """Per row, arrays of length rows: sum of w**2, sum of (w - w_hat)**2, largest |w - w_hat|."""

    signal: F64
    noise: F64
    max_error: F32


class Kernels(Protocol):
    """The hot loops. `group` is the number of neighbouring weights of a row that share a row_scale."""

    name: str

    def absmax(self, x: Matrix, group: int) -> F32:
        """Largest |x| per group, float32 `[rows, ceil(cols / group)]`; inf or NaN where the group holds one."""
        ...

    def count16(self, x: Matrix) -> I64:
        """How often each 16-bit pattern occurs in a bf16 or fp16 matrix, `[65536]`; `-0.0` counts as `0.0`."""
        ...

    def count32(self, x: Matrix, inverse: F32 | None, group: int, weight: U32 | None = None) -> Counts32:
        """Counts of `float32(x) * inverse` by top 16 bits (`inverse` None: of x itself); `-0.0` counts as `0.0`.

        weight: uint32 `[rows, groups]`, what a value of a group weighs (None: 1).
        """
        ...

    def partition(self, count: F64, total: F64, low: F64, high: F64, clusters: int, kmeans: bool) -> I64:
        """Optimal borders `[clusters + 1]`, see `core.partition`; needs at least `clusters` bins."""
        ...

    def polish(self, values: Values, grid: Grid) -> Grid:
        """Fit the k affine pieces of a grid whose clusters lie side by side to the values, see `core.polish`."""
        ...

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
        """Write the packed code and cluster id of every weight into `codes` and `clusters`; return the errors.

        With `u = float32(x) * inverse`: the cluster is the last c with `lower[c] <= u`, the code is
        `clip(rint((u - offset[c]) * inverse_scale[c]), code_min, code_max)`, all in float32, and
        `w_hat = row_scale * levels[c, code]`. Where the grid has cells: cluster, code and level are those of cell n, the number
        of borders that are at most u (0 for NaN).
        """
        ...

    def pack(self, values: U8, bits: int) -> U8:
        """Pack `[rows, cols]` values of `bits` bits: value j at bit `j * bits` of its row, least significant first."""
        ...

    def unpack(self, plane: U8, cols: int, bits: int) -> U8:
        """The inverse of `pack`: uint8 `[rows, cols]`."""
        ...

    def dequantize(
        self, codes: U8, clusters: U8 | None, levels: F32, row_scale: F32 | None, group: int, cols: int, kind: Kind
    ) -> Matrix:
        """`row_scale * levels[cluster, code]` in float32, rounded to nearest even into the dtype of `kind`."""
        ...

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
        """Write the packed codes of every part into `out`, uint8 `[k, rows, ceil(out_cols * out_bits / 8)]`.

        Part c holds `(code - zero[c] + base[c]) % 2**out_bits` where the cluster id is c (no plane of them: everywhere),
        and `base[c]` elsewhere and in the columns from `cols` on.
        """
        ...

    def transpose(self, x: Matrix, out: Matrix) -> None:
        """Write `x.T` into `out`; words of 1, 2 or 4 bytes, those of a row of x next to each other."""
        ...

    def crc32(self, data: U8) -> int:
        """The CRC-32 (that of zlib) of a contiguous uint8 array `[n]`."""
        ...


@cache
def kernels() -> Kernels:
    """The kernels in use; SpecError if the compiled ones are demanded and were not built."""
    wanted = os.environ.get("SPLITQUANT_KERNELS", "auto")
    if wanted not in ("auto", "native", "numpy"):
        raise SpecError(f"SPLITQUANT_KERNELS is {wanted!r}; expected 'auto', 'native' or 'numpy'")
    if wanted != "numpy":
        try:
            from splitquant.core.native import NativeKernels

            return NativeKernels()
        except ImportError as error:
            if wanted == "native":
                raise SpecError(
                    "SPLITQUANT_KERNELS is 'native' and this installation has no compiled kernels; "
                    "reinstall with a C++20 compiler at hand, or unset the variable"
                ) from error
    from splitquant.core.reference import NumpyKernels

    return NumpyKernels()
