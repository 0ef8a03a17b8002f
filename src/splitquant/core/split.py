"""A tensor split by value and quantized: the value itself, and how it is made from an array in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from splitquant.core.affine import level_table, own_levels, part_levels
from splitquant.core.arrays import F32, I64, U8, Matrix
from splitquant.core.error import ErrorFigures, figures_of
from splitquant.core.floats import Kind, kind_of
from splitquant.core.interface import Planes, plane_width
from splitquant.core.kernels import kernels
from splitquant.core.passes import Sink, Windows, quantized
from splitquant.core.rows import RowScales, from_matrix, matrix_shape, row_scale_kind, to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError


class _Levels(Protocol):
    @property
    def scale(self) -> F32: ...
    @property
    def offset(self) -> F32: ...
    @property
    def levels(self) -> F32: ...


def level_planes(spec: QuantSpec, found: _Levels) -> dict[Literal["scale", "offset", "levels"], F32]:
    """What is stored of levels, by plane: `scale` and `offset` `[k]`, `levels` where they are free, nothing of own grids.

    Args:
        spec: what they are of.
        found: the levels, a grid's or a tensor's.
    """
    if spec.own_zero_points:
        return {}
    if spec.facts.free_levels:
        return {"levels": found.levels}
    return {"scale": found.scale, "offset": found.offset}


def levels_from(spec: QuantSpec, planes: Mapping[Any, F32]) -> tuple[F32, F32, F32]:
    """Scale, offset and levels from what is stored of them.

    Args:
        spec: what they are of.
        planes: float32, by name, as `level_planes` gives them.
    """
    if spec.own_zero_points:
        return own_levels(spec.bits)
    if spec.facts.free_levels:
        nothing = np.zeros(0, np.float32)
        return nothing, nothing, planes["levels"]
    return planes["scale"], planes["offset"], level_table(spec, planes["scale"], planes["offset"])


@dataclass(frozen=True, slots=True)
class SplitTensor:
    """A quantized tensor: one code and one cluster id per weight, an affine grid per cluster, a scale per row or group.

    shape: of the tensor; axis: its channel axis, whose slices are the rows of the planes.
    codes: uint8 `[rows, ceil(cols * code_bits / 8)]`; clusters: uint8 `[rows, ceil(cols * cluster_bits / 8)]` or None.
    scale, offset: float32 `[k]`; levels: float32 `[k, 2**bits]`, where parts add up `[1, 2**(k * bits)]`.
    row_scale: float32 `[rows, groups]` or None (tensor granularity); row_scale_kind: the dtype it is stored in.
    zero: uint8 `[rows, groups]`, the code that means zero, where zero_points are their own; else None.
    LAW: `W[i, j] = row_scale[i, j // group] * levels[c, q]`, with `levels[c, q] = scale[c] * q + offset[c]`; where parts add up
    `levels[0, q]` is the sum of that over the parts c, each with its bits of q; where levels are free they are stored instead
    of scale and offset, which are empty; where zero_points are their own
    `W[i, j] = row_scale[i, j // group] * ((q - zero[i, j // group]) / 2**(bits - 1))`.
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
    row_scale_kind: Kind
    figures: ErrorFigures | None = None
    zero: U8 | None = None

    @property
    def cols(self) -> int:
        """Weights of one row."""
        return matrix_shape(self.shape, self.axis)[1]

    @property
    def planes(self) -> Planes:
        """The codes and cluster ids with what is needed to read them."""
        return Planes.of(self.spec, self.cols, self.codes, self.clusters)

    @property
    def row_scales(self) -> RowScales | None:
        """The row_scales, and zero_points, with the group that shares one."""
        if self.row_scale is None:
            return None
        return RowScales(self.spec.group_size(self.cols), self.row_scale, zero=self.zero, bits=self.spec.bits)

    @property
    def zero_point(self) -> I64:
        """The code that means zero, int64 `[k]`, or `[rows, groups]` where every row or group has its own.

        Raises:
            TensorError: where the grids need not hold zero (fused and asymmetric, or free).
        """
        if not self.spec.zero_in_grid:
            raise TensorError(f"a {self.spec} tensor has no zero_point: its grids need not hold zero")
        if self.zero is not None:
            return self.zero.astype(np.int64)
        if self.spec.symmetric:
            return np.full(len(self.scale), self.spec.width.symmetric_zero, np.int64)
        point = np.zeros(len(self.scale), np.float64)
        np.divide(-self.offset.astype(np.float64), self.scale, out=point, where=self.scale > 0)
        return point.astype(np.int64)

    @property
    def bits_per_weight(self) -> float:
        """All stored bytes (codes, ids, scales, offsets, row_scales, zero_points) in bits over the number of weights."""
        stored = self.codes.nbytes + sum(values.nbytes for values in level_planes(self.spec, self).values())
        stored += 0 if self.clusters is None else self.clusters.nbytes
        if self.row_scale is not None:
            stored += self.row_scale.size * (4 if self.row_scale_kind == "fp32" else 2)
        if self.zero is not None:
            stored += len(self.zero) * plane_width(self.zero.shape[1], self.spec.bits)
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
        """The tensor that the codes stand for.

        Args:
            kind: whose dtype it has (bf16 as its uint16 bits).
        """
        return self._dequantize(self.levels, kind)

    def parts(self) -> tuple[F32, ...]:
        """The k tensors of the paper, float32: each weight in the part of its cluster, zero in all others.

        Their sum is `dequantize()` exactly; of residual parts, which all hold every weight, within rounding.
        Source: arXiv 2503.07657, section 3.
        """
        if self.spec.facts.additive:
            tables = part_levels(self.scale, self.offset, self.spec.bits)[:, None]
        else:
            every = np.arange(self.spec.clusters)[:, None]
            tables = np.stack([np.where(every == c, self.levels, np.float32(0)) for c in every.flat])
        return tuple(self._dequantize(table, "fp32") for table in tables)

    def integer_parts(self) -> tuple[U8, ...]:
        """The k integer layers: the code where the weight is in the part, the part's zero_point elsewhere.

        Part c stands for `row_scale * scale[c] * (code - zero_point[c])`. Needs zero in every grid, see `zero_point`.
        """
        code, bits = self.unpacked_codes(), self.spec.bits
        if self.zero is not None:
            return (code,)
        zeros = self.zero_point.tolist()
        if self.spec.facts.additive:
            return tuple(code >> np.uint8(c * bits) & np.uint8((1 << bits) - 1) for c in range(len(zeros)))
        cluster = self.unpacked_clusters()
        return tuple(np.where(cluster == c, code, np.uint8(zero)).astype(np.uint8) for c, zero in enumerate(zeros))

    def _dequantize(self, levels: F32, kind: Kind) -> Matrix:
        return self._tensor(kernels().dequantize(self.planes, levels, self.row_scales, kind))

    def _tensor(self, matrix: Matrix) -> Matrix:
        return from_matrix(matrix, self.shape, self.axis)


def quantize_array(array: NDArray[Any], spec: QuantSpec, axis: int = 0) -> SplitTensor:
    """Split and quantize an array, which is not changed.

    Args:
        array: uint16 (the bits of bf16), float16, float32 or float64 (rounded to float32), of any shape.
        spec: how.
        axis: the output-channel axis, whose slices get a row_scale each.

    Raises:
        TensorError: for NaN, infinity, magnitudes above 2**126 (fp16: 2**15), another dtype, or an axis the array does not have.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if not 0 <= axis < max(1, array.ndim):
        raise TensorError(f"axis is {axis}; expected 0 to {max(0, array.ndim - 1)} for shape {array.shape}")
    kind = kind_of(array.dtype)
    matrix = Windows.whole(to_matrix(array, axis))
    grid, (rows,) = quantized(matrix, spec, Sink(lambda _, blocks: next(blocks)))
    return SplitTensor(
        shape=array.shape,
        axis=axis,
        spec=spec,
        codes=rows.planes.codes,
        clusters=rows.planes.clusters,
        scale=grid.scale,
        offset=grid.offset,
        levels=grid.levels,
        row_scale=None if rows.scales is None else rows.scales.scale,
        row_scale_kind=row_scale_kind(kind, spec.granularity),
        figures=figures_of(array.size, [rows.errors]),
        zero=None if rows.scales is None else rows.scales.zero,
    )
