"""Tensors as matrices of rows (output channels), and the scale of each row or group of a row."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitquant.core.histogram import Kind
from splitquant.core.reference import to_float32
from splitquant.errors import TensorError

F32 = NDArray[np.float32]
ScaleKind = Literal["bf16", "fp16", "fp32"]

SMALLEST_ROW_SCALE = np.float32(2.0**-126)  # so that the inverse is a finite, normal float32
HEAVIEST = 2.0**30  # the weight of the row with the largest row_scale; sums of it stay below 2**63
LARGEST_MAGNITUDE = 2.0**126  # of a weight: ranges, levels and inverses then stay finite and normal in float32
LARGEST_FP16 = 2.0**15  # of a float16 weight: a level a little beyond it is still finite in float16


def refuse_huge(magnitude: float, kind: Kind) -> None:
    """TensorError for a magnitude that cannot be quantized."""
    largest = LARGEST_FP16 if kind == "fp16" else LARGEST_MAGNITUDE
    if magnitude > largest:
        raise TensorError(f"holds {magnitude:.3g}; {kind} magnitudes above {largest:.3g} cannot be quantized")


def matrix_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of the matrix of a tensor: the channel `axis` moved first, all other axes flattened."""
    if not shape:
        return 1, 1
    rows = shape[axis]
    return rows, math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])


def to_matrix(array: NDArray[np.generic], axis: int) -> NDArray[np.generic]:
    """The C-contiguous `[rows, cols]` matrix of a tensor (a view where axis is 0)."""
    rows, cols = matrix_shape(array.shape, axis)
    return np.ascontiguousarray(np.moveaxis(np.atleast_1d(array), axis, 0).reshape(rows, cols))


def from_matrix(matrix: NDArray[np.generic], shape: tuple[int, ...], axis: int) -> NDArray[np.generic]:
    """The inverse of `to_matrix`."""
    if axis == 0 or not shape:
        return matrix.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def row_scale_kind(source: Kind, granularity_kind: str) -> ScaleKind:
    """The dtype in which row_scales are stored, known before any data is read.

    A row_scale is the largest |w| of its group, so the source's own 16-bit dtype holds it exactly. For a float32
    source a channel's is stored as float32; a group's is rounded up to bf16, which halves its cost.
    """
    if source == "fp32":
        return "fp32" if granularity_kind == "channel" else "bf16"
    return source


def row_scale_from(absmax: F32, kind: ScaleKind) -> F32:
    """The row_scale of each group from its largest |w|: float32 numbers that `kind` holds exactly, at least absmax.

    At least 2**-126 so that its inverse is a normal float32; 0 for a group of zeros.
    """
    scale = np.maximum(absmax, SMALLEST_ROW_SCALE)
    if kind == "bf16":
        bits = scale.view(np.uint32)
        scale = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(absmax > 0, scale, np.float32(0))


def inverse_of(row_scale: F32) -> F32:
    """1 / row_scale in float32, and 0 where the row_scale is 0."""
    inverse = np.zeros_like(row_scale)
    np.divide(np.float32(1), row_scale, out=inverse, where=row_scale > 0)
    return inverse


def row_weight(row_scale: F32, heaviest: float) -> NDArray[np.uint32]:
    """What the values of a row (or group) weigh in the histogram of a tensor: in proportion to row_scale squared.

    An error of the scaled value is one of row_scale times that in the weight, so this makes the error of the tensor what
    borders and grids are best for. heaviest: the largest row_scale of the whole tensor. Integers from 1 to 2**30, so
    that histograms merge exactly.
    """
    share = row_scale.astype(np.float64) / heaviest if heaviest > 0.0 else np.ones(row_scale.shape)
    return np.maximum(1.0, np.rint(share * share * HEAVIEST)).astype(np.uint32)


def pack_row_scale(row_scale: F32, kind: ScaleKind) -> NDArray[np.generic]:
    """A row_scale in its stored dtype (bf16 as uint16 bits); exact for numbers that `row_scale_from` gave."""
    if kind == "fp32":
        return row_scale
    if kind == "fp16":
        return row_scale.astype(np.float16)
    return (row_scale.view(np.uint32) >> 16).astype(np.uint16)


def unpack_row_scale(stored: NDArray[np.generic]) -> F32:
    """The inverse of `pack_row_scale`."""
    return to_float32(stored)
