"""A tensor split by value and quantized: the value itself, and how it is made from an array in memory.

The steps (`survey`, `solve`, `encode_rows`) are separate, so that a tensor larger than memory can go through them in
windows of rows and get the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import Grid, grid_for, levels
from splitquant.core.error import ErrorFigures, ErrorSums, exact_sum, figures_of
from splitquant.core.histogram import Kind, LowBits, ValueHistogram
from splitquant.core.kernels import Matrix, RowErrors, kernels
from splitquant.core.partition import objective_of, partition
from splitquant.core.rows import (
    LARGEST_FP16,
    LARGEST_MAGNITUDE,
    ScaleKind,
    from_matrix,
    inverse_of,
    matrix_shape,
    row_scale_from,
    row_scale_kind,
    to_matrix,
)
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
_UNIT = np.array([1.0])
FEW_ROWS = 1 << 14
_NONFINITE = "holds NaN or infinity; such weights cannot be quantized"


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """The kind of float a window holds: uint16 is bf16 by its bits; TensorError for anything else."""
    kinds: dict[str, Kind] = {"uint16": "bf16", "float16": "fp16", "float32": "fp32"}
    if dtype.name not in kinds:
        raise TensorError(f"dtype is {dtype}; expected uint16 (the bits of bf16), float16, float32")
    return kinds[dtype.name]


@dataclass(frozen=True, slots=True)
class RowScales:
    """The row_scales of a window of rows and their inverses, float32 `[rows, groups]`; group as in `Kernels`."""

    group: int
    scale: F32
    inverse: F32


def scale_rows(x: Matrix, spec: QuantSpec) -> RowScales | None:
    """The row_scales of a window (None for tensor granularity); TensorError for NaN or infinity."""
    group = spec.group_size(x.shape[1])
    if group == 0:
        return None
    absmax = kernels().absmax(x, group)
    if not np.isfinite(absmax).all():
        raise TensorError(_NONFINITE)
    _refuse_huge(float(absmax.max(initial=0.0)), kind_of(x.dtype))
    kind = row_scale_kind(kind_of(x.dtype), "channel" if spec.granularity == "channel" else "group")
    scale = row_scale_from(absmax, kind)
    return RowScales(group, scale, inverse_of(scale))


def _refuse_huge(magnitude: float, kind: Kind) -> None:
    largest = LARGEST_FP16 if kind == "fp16" else LARGEST_MAGNITUDE
    if magnitude > largest:
        raise TensorError(f"holds {magnitude:.3g}; {kind} magnitudes above {largest:.3g} cannot be quantized")


def needs_survey(spec: QuantSpec) -> bool:
    """Whether levels depend on all values; a plain symmetric grid over scaled rows is [-1, 1] whatever they are."""
    return not (spec.clusters == 1 and spec.symmetric and spec.granularity != "tensor")


def survey(x: Matrix, rows: RowScales | None) -> ValueHistogram:
    """The histogram of a window's values, after division by their row_scales where there are any."""
    kind = kind_of(x.dtype)
    if rows is None and kind != "fp32":
        return ValueHistogram(kind, kernels().count16(x))
    inverse, group = (None, 0) if rows is None else (rows.inverse, rows.group)
    counts = kernels().count32(x, inverse, group)
    return ValueHistogram("fp32", counts.counts, LowBits(*counts[1:]))


def solve(histogram: ValueHistogram | None, spec: QuantSpec) -> Grid:
    """The optimal grid for all values of a tensor (no histogram: see `needs_survey`); TensorError for NaN or infinity."""
    if histogram is None:
        return grid_for(-_UNIT, _UNIT, spec)
    if histogram.nonfinite:
        raise TensorError(_NONFINITE)
    bins = histogram.bins()
    if len(bins) == 0:
        return grid_for(np.zeros(1), np.zeros(1), spec)
    _refuse_huge(max(-bins.low[0], bins.high[-1]), histogram.kind)
    borders = partition(bins, spec.clusters, objective_of(spec))
    return grid_for(bins.low[borders[:-1]], bins.high[borders[1:] - 1], spec)


def plane_widths(cols: int, spec: QuantSpec) -> tuple[int, int]:
    """Bytes of one row of the codes plane and of the cluster-id plane (0: there is none)."""
    return -(-cols * spec.bits // 8), -(-cols * spec.cluster_bits // 8)


def encode_rows(x: Matrix, rows: RowScales | None, grid: Grid, codes: U8, clusters: U8 | None) -> RowErrors:
    """Quantize a window of rows into its part of the planes (written in place); returns the errors per row."""
    scale, inverse, group = (None, None, 0) if rows is None else (rows.scale, rows.inverse, rows.group)
    return kernels().encode(x, scale, inverse, group, grid, codes, clusters)


def sums_of(errors: RowErrors) -> ErrorSums:
    """The errors of a window's rows in one value."""
    largest = float(errors.max_error.max(initial=0.0))
    return ErrorSums(_few(errors.signal.tolist()), _few(errors.noise.tolist()), largest)


def _few(values: list[float]) -> tuple[float, ...]:
    # A few thousand floats may stay as they are: summing them without rounding takes three passes.
    return tuple(values) if len(values) <= FEW_ROWS else exact_sum(values)


@dataclass(frozen=True, slots=True)
class SplitTensor:
    """A quantized tensor: one code and one cluster id per weight, an affine grid per cluster, a scale per row or group.

    shape: of the tensor; axis: its channel axis, whose slices are the rows of the planes.
    codes: uint8 `[rows, ceil(cols * bits / 8)]`; clusters: uint8 `[rows, ceil(cols * cluster_bits / 8)]` or None (k = 1).
    scale, offset: float32 `[k]`; row_scale: float32 `[rows, groups]` or None (tensor granularity).
    LAW: `W[i, j] = row_scale[i, j // group] * levels[c, q]` with `levels[c, q] = scale[c] * q + offset[c]`.
    """

    shape: tuple[int, ...]
    axis: int
    spec: QuantSpec
    codes: U8
    clusters: U8 | None
    scale: F32
    offset: F32
    row_scale: F32 | None
    row_scale_kind: ScaleKind
    figures: ErrorFigures | None = None

    @property
    def cols(self) -> int:
        """Weights of one row."""
        return matrix_shape(self.shape, self.axis)[1]

    @property
    def levels(self) -> F32:
        """All representable values before the row_scale, float32 `[k, 2**bits]`."""
        return levels(self.scale, self.offset, self.spec.bits)

    @property
    def zero_point(self) -> NDArray[np.int64]:
        """The code that means zero, int64 `[k]`; TensorError where the grids need not hold zero (fused, asymmetric)."""
        if not self.spec.zero_in_grid:
            raise TensorError(f"a {self.spec} tensor has no zero_point: its grids cover each cluster's own range")
        if self.spec.symmetric:
            return np.full(len(self.scale), self.spec.width.symmetric_zero, np.int64)
        point = np.zeros(len(self.scale), np.float64)
        np.divide(-self.offset.astype(np.float64), self.scale, out=point, where=self.scale > 0)
        return point.astype(np.int64)

    @property
    def bits_per_weight(self) -> float:
        """All stored bytes (codes, ids, scales, offsets, row_scales) in bits over the number of weights."""
        stored = self.codes.nbytes + self.scale.nbytes + self.offset.nbytes
        stored += 0 if self.clusters is None else self.clusters.nbytes
        if self.row_scale is not None:
            stored += self.row_scale.size * (4 if self.row_scale_kind == "fp32" else 2)
        return 8.0 * stored / max(1, math.prod(self.shape))

    def unpacked_codes(self) -> U8:
        """The code of every weight, uint8 of the tensor's shape."""
        return self._tensor(kernels().unpack(self.codes, self.cols, self.spec.bits))

    def unpacked_clusters(self) -> U8:
        """The cluster id of every weight, uint8 of the tensor's shape (all 0 for k = 1)."""
        if self.clusters is None:
            return np.zeros(self.shape, np.uint8)
        return self._tensor(kernels().unpack(self.clusters, self.cols, self.spec.cluster_bits))

    def dequantize(self, kind: Kind = "fp32") -> Matrix:
        """The tensor that the codes stand for, in the dtype of `kind` (bf16 as its uint16 bits)."""
        return self._dequantize(self.levels, kind)

    def parts(self) -> tuple[F32, ...]:
        """The paper's k tensors, float32: each weight in the part of its cluster, zero in all others.

        Their sum is `dequantize()` exactly. Source: arXiv 2503.07657, section 3.
        """
        every = np.arange(self.spec.clusters)[:, None]
        return tuple(self._dequantize(np.where(every == c, self.levels, np.float32(0)), "fp32") for c in every.flat)

    def integer_parts(self) -> tuple[U8, ...]:
        """The paper's k integer layers: the code where the weight is in the part, the part's zero_point elsewhere.

        Part c stands for `row_scale * scale[c] * (code - zero_point[c])`. Needs zero in every grid, see `zero_point`.
        """
        code, cluster = self.unpacked_codes(), self.unpacked_clusters()
        return tuple(
            np.where(cluster == c, code, np.uint8(zero)).astype(np.uint8)
            for c, zero in enumerate(self.zero_point.tolist())
        )

    def _dequantize(self, levels: F32, kind: Kind) -> Matrix:
        group = self.spec.group_size(self.cols)
        return self._tensor(
            kernels().dequantize(self.codes, self.clusters, levels, self.row_scale, group, self.cols, kind)
        )

    def _tensor(self, matrix: Matrix) -> Matrix:
        return from_matrix(matrix, self.shape, self.axis)


def quantize_array(array: NDArray[Any], spec: QuantSpec, axis: int = 0) -> SplitTensor:
    """Split and quantize an array: uint16 (the bits of bf16), float16, float32 or float64 (rounded to float32).

    axis: the output-channel axis, whose slices get a row_scale each. The array is not changed.
    Raises TensorError for NaN, infinity, magnitudes above 2**126 (fp16: 2**15), another dtype, or an axis the array does not have.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if not 0 <= axis < max(1, array.ndim):
        raise TensorError(f"axis is {axis}; expected 0 to {max(0, array.ndim - 1)} for shape {array.shape}")
    kind = kind_of(array.dtype)
    x = to_matrix(array, axis)
    codes_width, clusters_width = plane_widths(x.shape[1], spec)
    codes = np.empty((x.shape[0], codes_width), np.uint8)
    clusters = np.empty((x.shape[0], clusters_width), np.uint8) if clusters_width else None
    rows = scale_rows(x, spec)
    grid = solve(survey(x, rows) if needs_survey(spec) else None, spec)
    errors = encode_rows(x, rows, grid, codes, clusters)
    return SplitTensor(
        shape=array.shape,
        axis=axis,
        spec=spec,
        codes=codes,
        clusters=clusters,
        scale=grid.scale,
        offset=grid.offset,
        row_scale=None if rows is None else rows.scale,
        row_scale_kind=row_scale_kind(kind, "channel" if spec.granularity == "channel" else "group"),
        figures=figures_of(array.size, [sums_of(errors)]),
    )
