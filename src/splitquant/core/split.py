"""A tensor split by value and quantized: the value itself, and how it is made from an array in memory.

The steps (`survey`, `solve`, `encode_rows`) are separate, so that a tensor larger than memory can go through them in
windows of rows and get the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import Grid, level_table, part_levels
from splitquant.core.error import ErrorFigures, ErrorSums, exact_sum, figures_of
from splitquant.core.histogram import Kind, LowBits, ValueHistogram
from splitquant.core.kernels import Matrix, RowErrors, kernels
from splitquant.core.rows import (
    ScaleKind,
    from_matrix,
    inverse_of,
    matrix_shape,
    refuse_huge,
    row_scale_from,
    row_scale_kind,
    row_weight,
    to_matrix,
)
from splitquant.core.solve import NONFINITE, needs_survey, needs_weights, solve
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
FEW_ROWS = 1 << 14


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """The kind of float a window holds: uint16 is bf16 by its bits; TensorError for anything else."""
    kinds: dict[str, Kind] = {"uint16": "bf16", "float16": "fp16", "float32": "fp32"}
    if dtype.name not in kinds:
        raise TensorError(f"dtype is {dtype}; expected uint16 (the bits of bf16), float16, float32")
    return kinds[dtype.name]


@dataclass(frozen=True, slots=True)
class RowScales:
    """The row_scales of a window of rows and their inverses, float32 `[rows, groups]`; group as in `Kernels`.

    weight: uint32 `[rows, groups]`, what their values weigh in the survey, see `weighed`.
    """

    group: int
    scale: F32
    inverse: F32
    weight: NDArray[np.uint32] | None = None

    @property
    def heaviest(self) -> float:
        """The largest row_scale."""
        return float(self.scale.max(initial=0.0))

    def weighed(self, heaviest: float) -> RowScales:
        """The same with weights; `heaviest` is the largest row_scale of the whole tensor."""
        return replace(self, weight=row_weight(self.scale, heaviest))


def scale_rows(x: Matrix, spec: QuantSpec) -> RowScales | None:
    """The row_scales of a window (None for tensor granularity); TensorError for NaN or infinity."""
    group = spec.group_size(x.shape[1])
    if group == 0:
        return None
    absmax = kernels().absmax(x, group)
    if not np.isfinite(absmax).all():
        raise TensorError(NONFINITE)
    refuse_huge(float(absmax.max(initial=0.0)), kind_of(x.dtype))
    kind = row_scale_kind(kind_of(x.dtype), "channel" if spec.granularity == "channel" else "group")
    scale = row_scale_from(absmax, kind)
    return RowScales(group, scale, inverse_of(scale))


def weighed_rows(rows: RowScales | None, spec: QuantSpec, heaviest: float | None = None) -> RowScales | None:
    """Rows with their weights where these matter to the levels of a spec; heaviest: as in `weighed` (None: rows are all)."""
    if rows is None or not needs_weights(spec):
        return rows
    return rows.weighed(rows.heaviest if heaviest is None else heaviest)


def survey(x: Matrix, rows: RowScales | None) -> ValueHistogram:
    """The histogram of a window's values, after division by their row_scales where there are any."""
    kind = kind_of(x.dtype)
    if rows is None and kind != "fp32":
        return ValueHistogram(kind, kernels().count16(x))
    inverse, group = (None, 0) if rows is None else (rows.inverse, rows.group)
    weight = None if rows is None else rows.weight
    found = kernels().count32(x, inverse, group, weight)
    return ValueHistogram("fp32", found.counts, LowBits(*found[1:5]), None if weight is None else found.weights)


def plane_widths(cols: int, spec: QuantSpec) -> tuple[int, int]:
    """Bytes of one row of the codes plane and of the cluster-id plane (0: there is none)."""
    return -(-cols * spec.code_bits // 8), -(-cols * spec.cluster_bits // 8)


class _Levels(Protocol):
    @property
    def scale(self) -> F32: ...
    @property
    def offset(self) -> F32: ...
    @property
    def levels(self) -> F32: ...


def level_planes(spec: QuantSpec, found: _Levels) -> dict[Literal["scale", "offset", "levels"], F32]:
    """What is stored of the levels of a grid or a tensor: `scale` and `offset` `[k]`, or `levels` where they are free."""
    if spec.strategy == "lloyd":
        return {"levels": found.levels}
    return {"scale": found.scale, "offset": found.offset}


def levels_from(spec: QuantSpec, planes: Mapping[Any, F32]) -> tuple[F32, F32, F32]:
    """Scale, offset and levels from what is stored of them."""
    if spec.strategy == "lloyd":
        nothing = np.zeros(0, np.float32)
        return nothing, nothing, planes["levels"]
    return planes["scale"], planes["offset"], level_table(spec, planes["scale"], planes["offset"])


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
    codes: uint8 `[rows, ceil(cols * code_bits / 8)]`; clusters: uint8 `[rows, ceil(cols * cluster_bits / 8)]` or None.
    scale, offset: float32 `[k]`; levels: float32 `[k, 2**bits]`, for `residual` `[1, 2**(k * bits)]`.
    row_scale: float32 `[rows, groups]` or None (tensor granularity).
    LAW: `W[i, j] = row_scale[i, j // group] * levels[c, q]`, with `levels[c, q] = scale[c] * q + offset[c]`; for `residual`
    `levels[0, q]` is the sum of that over the parts c, each with its bits of q; for `lloyd` the levels are stored instead of
    scale and offset, which are empty.
    """

    shape: tuple[int, ...]
    axis: int
    spec: QuantSpec
    codes: U8
    clusters: U8 | None
    scale: F32
    offset: F32
    levels: F32
    row_scale: F32 | None
    row_scale_kind: ScaleKind
    figures: ErrorFigures | None = None

    @property
    def cols(self) -> int:
        """Weights of one row."""
        return matrix_shape(self.shape, self.axis)[1]

    @property
    def zero_point(self) -> NDArray[np.int64]:
        """The code that means zero, int64 `[k]`; TensorError where the grids need not hold zero (fused, asymmetric; lloyd)."""
        if not self.spec.zero_in_grid:
            raise TensorError(f"a {self.spec} tensor has no zero_point: its grids need not hold zero")
        if self.spec.symmetric:
            return np.full(len(self.scale), self.spec.width.symmetric_zero, np.int64)
        point = np.zeros(len(self.scale), np.float64)
        np.divide(-self.offset.astype(np.float64), self.scale, out=point, where=self.scale > 0)
        return point.astype(np.int64)

    @property
    def bits_per_weight(self) -> float:
        """All stored bytes (codes, ids, scales, offsets, row_scales) in bits over the number of weights."""
        stored = self.codes.nbytes + sum(values.nbytes for values in level_planes(self.spec, self).values())
        stored += 0 if self.clusters is None else self.clusters.nbytes
        if self.row_scale is not None:
            stored += self.row_scale.size * (4 if self.row_scale_kind == "fp32" else 2)
        return 8.0 * stored / max(1, math.prod(self.shape))

    def unpacked_codes(self) -> U8:
        """The code of every weight (for residual the joint one of all parts), uint8 of the tensor's shape."""
        return self._tensor(kernels().unpack(self.codes, self.cols, self.spec.code_bits))

    def unpacked_clusters(self) -> U8:
        """The cluster id of every weight, uint8 of the tensor's shape (all 0 where there is no plane of them)."""
        if self.clusters is None:
            return np.zeros(self.shape, np.uint8)
        return self._tensor(kernels().unpack(self.clusters, self.cols, self.spec.cluster_bits))

    def dequantize(self, kind: Kind = "fp32") -> Matrix:
        """The tensor that the codes stand for, in the dtype of `kind` (bf16 as its uint16 bits)."""
        return self._dequantize(self.levels, kind)

    def parts(self) -> tuple[F32, ...]:
        """The k tensors of the paper, float32: each weight in the part of its cluster, zero in all others.

        Their sum is `dequantize()` exactly; of residual parts, which all hold every weight, within rounding.
        Source: arXiv 2503.07657, section 3.
        """
        if self.spec.strategy == "residual":
            tables = part_levels(self.scale, self.offset, self.spec.bits)[:, None]
        else:
            every = np.arange(self.spec.clusters)[:, None]
            tables = np.stack([np.where(every == c, self.levels, np.float32(0)) for c in every.flat])
        return tuple(self._dequantize(table, "fp32") for table in tables)

    def integer_parts(self) -> tuple[U8, ...]:
        """The k integer layers: the code where the weight is in the part, the part's zero_point elsewhere.

        Part c stands for `row_scale * scale[c] * (code - zero_point[c])`. Needs zero in every grid, see `zero_point`.
        """
        code, zeros, bits = self.unpacked_codes(), self.zero_point.tolist(), self.spec.bits
        if self.spec.strategy == "residual":
            return tuple(code >> np.uint8(c * bits) & np.uint8((1 << bits) - 1) for c in range(len(zeros)))
        cluster = self.unpacked_clusters()
        return tuple(np.where(cluster == c, code, np.uint8(zero)).astype(np.uint8) for c, zero in enumerate(zeros))

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
    grid = solve(survey(x, weighed_rows(rows, spec)) if needs_survey(spec) else None, spec)
    errors = encode_rows(x, rows, grid, codes, clusters)
    return SplitTensor(
        shape=array.shape,
        axis=axis,
        spec=spec,
        codes=codes,
        clusters=clusters,
        scale=grid.scale,
        offset=grid.offset,
        levels=grid.levels,
        row_scale=None if rows is None else rows.scale,
        row_scale_kind=row_scale_kind(kind, "channel" if spec.granularity == "channel" else "group"),
        figures=figures_of(array.size, [sums_of(errors)]),
    )
