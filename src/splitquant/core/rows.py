"""Tensors as matrices of rows (output channels), and the scale of each row or group of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitquant.core.arrays import F32, U8, U32, Matrix
from splitquant.core.floats import Kind, to_float32
from splitquant.core.granularity import Granularity

N = TypeVar("N", bound=np.generic)

SMALLEST_ROW_SCALE = np.float32(2.0**-126)  # so that the inverse is a finite, normal float32
HEAVIEST = 2.0**30  # the weight of the row with the largest row_scale; sums of it stay below 2**63


def matrix_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of the matrix of a tensor: the channel axis moved first, all other axes flattened.

    Args:
        shape: of the tensor; `()` is one weight.
        axis: the channel axis.
    """
    if not shape:
        return 1, 1
    rows = shape[axis]
    return rows, math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])


def to_matrix(array: NDArray[N], axis: int) -> NDArray[N]:
    """The C-contiguous `[rows, cols]` matrix of a tensor (a view where axis is 0).

    Args:
        array: the tensor, of any dtype.
        axis: its channel axis.
    """
    rows, cols = matrix_shape(array.shape, axis)
    return np.ascontiguousarray(np.moveaxis(np.atleast_1d(array), axis, 0).reshape(rows, cols))


def from_matrix(matrix: NDArray[N], shape: tuple[int, ...], axis: int) -> NDArray[N]:
    """The inverse of `to_matrix`.

    Args:
        matrix: `[rows, cols]`.
        shape: of the tensor.
        axis: its channel axis.
    """
    if axis == 0 or not shape:
        return matrix.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


@dataclass(frozen=True, slots=True)
class RowScales:
    """The row_scales of some rows, and their zero_points where they have their own.

    group: how many neighbouring weights of a row share one. scale: float32 `[rows, groups]`, at least 0.
    weight: uint32 `[rows, groups]`, what the values of a group weigh in a histogram (None: alike), see `row_weight`.
    zero: uint8 `[rows, groups]`, the code that means zero (None: that is a matter of the levels). bits: of that code.
    """

    group: int
    scale: F32
    weight: U32 | None = None
    zero: U8 | None = None
    bits: int = 0

    @property
    def shift(self) -> F32 | None:
        """What is added to the levels of a group, float32 `[rows, groups]`: minus its zero_point in units of `own_levels`."""
        if self.zero is None:
            return None
        return self.zero.astype(np.float32) * np.float32(-(2.0 ** (1 - self.bits)))

    @property
    def inverse(self) -> F32:
        """1 / scale in float32 `[rows, groups]`, and 0 where the scale is 0."""
        inverse = np.zeros_like(self.scale)
        np.divide(np.float32(1), self.scale, out=inverse, where=self.scale > 0)
        return inverse

    @property
    def heaviest(self) -> float:
        """The largest row_scale."""
        return float(self.scale.max(initial=0.0))

    def weighed(self, heaviest: float) -> RowScales:
        """The same with weights.

        Args:
            heaviest: the largest row_scale of the whole tensor.
        """
        return replace(self, weight=row_weight(self.scale, heaviest))

    def of(self, rows: range) -> RowScales:
        """Those of some of the rows, without weights.

        Args:
            rows: their numbers, one after the other.
        """
        zero = None if self.zero is None else self.zero[rows.start : rows.stop]
        return RowScales(self.group, self.scale[rows.start : rows.stop], zero=zero, bits=self.bits)


def joined(parts: Sequence[RowScales]) -> RowScales:
    """Those of several stretches of rows as one, without weights.

    Args:
        parts: at least one, in the order of their rows.
    """
    zeros = [part.zero for part in parts if part.zero is not None]
    scale = np.concatenate([part.scale for part in parts])
    return RowScales(parts[0].group, scale, zero=np.concatenate(zeros) if zeros else None, bits=parts[0].bits)


def per_group(scales: RowScales | None) -> tuple[F32 | None, int]:
    """The scales (None where there are none) and the group that shares one.

    Args:
        scales: of some rows.
    """
    return (None, 0) if scales is None else (scales.scale, scales.group)


def inverse_per_group(scales: RowScales | None) -> tuple[F32 | None, int]:
    """Their inverses, in the same form; reading needs none, and stored scales may be too small to have any.

    Args:
        scales: of some rows.
    """
    return (None, 0) if scales is None else (scales.inverse, scales.group)


def spread(numbers: NDArray[N], group: int, cols: int) -> NDArray[N]:
    """Numbers per group repeated to be per weight, `[rows, cols]` (or `[rows, 1]` where a row is one group).

    Args:
        numbers: `[rows, groups]`.
        group: weights of one.
        cols: weights of a row.
    """
    return numbers if numbers.shape[1] == 1 else np.repeat(numbers, group, axis=1)[:, :cols]


def row_scale_kind(source: Kind, granularity: Granularity) -> Kind:
    """The dtype in which row_scales are stored, known before any data is read.

    A row_scale is the largest |w| of its group, so the source's own 16-bit dtype holds it exactly. For a float32
    source a channel's is stored as float32; a group's is rounded up to bf16, which halves its cost.

    Args:
        source: what the weights are.
        granularity: whose row_scales.
    """
    if source == "fp32":
        return "fp32" if granularity.kind == "channel" else "bf16"
    return source


def row_scale_from(absmax: F32, kind: Kind) -> F32:
    """The row_scale of each group from its largest |w|: float32 numbers that `kind` holds exactly, at least absmax.

    At least 2**-126 so that its inverse is a normal float32; 0 for a group of zeros.

    Args:
        absmax: float32 `[rows, groups]`.
        kind: what they will be stored as.
    """
    scale = np.maximum(absmax, SMALLEST_ROW_SCALE)
    if kind == "bf16":
        bits = scale.view(np.uint32)
        scale = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(absmax > 0, scale, np.float32(0))


def row_weight(row_scale: F32, heaviest: float) -> U32:
    """What the values of a row (or group) weigh in the histogram of a tensor: in proportion to row_scale squared.

    An error of the scaled value is one of row_scale times that in the weight, so this makes the error of the tensor what
    borders and grids are best for. Integers from 1 to 2**30, so that histograms merge exactly.

    Args:
        row_scale: float32 `[rows, groups]`.
        heaviest: the largest row_scale of the whole tensor.
    """
    share = row_scale.astype(np.float64) / heaviest if heaviest > 0.0 else np.ones(row_scale.shape)
    return np.maximum(1.0, np.rint(share * share * HEAVIEST)).astype(np.uint32)


def pack_row_scale(row_scale: F32, kind: Kind) -> Matrix:
    """A row_scale in its stored dtype (bf16 as uint16 bits).

    Args:
        row_scale: float32 `[rows, groups]`, as `row_scale_from` gave it.
        kind: that of the stored ones.

    LAW: `unpack_row_scale` gives it back exactly.
    """
    if kind == "fp32":
        return row_scale
    if kind == "fp16":
        return row_scale.astype(np.float16)
    return (row_scale.view(np.uint32) >> 16).astype(np.uint16)


def unpack_row_scale(stored: Matrix) -> F32:
    """The inverse of `pack_row_scale`, float32 of the same shape.

    Args:
        stored: bf16 (as its uint16 bits), float16 or float32.
    """
    return to_float32(stored)
