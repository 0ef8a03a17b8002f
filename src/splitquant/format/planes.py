"""Which stored tensors a quantized tensor becomes, and their exact sizes: known from the spec and the shape alone.

Normative text: docs/format.md, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from splitquant.core.rows import matrix_shape
from splitquant.format.dtypes import DTYPES

PlaneName = Literal["codes", "clusters", "scale", "offset", "levels", "row_scale", "zero_points", "shape"]
PLANE_NAMES: tuple[PlaneName, ...] = get_args(PlaneName)


def plane_key(tensor: str, plane: str) -> str:
    """What a plane of a tensor is called in a file."""
    return f"{tensor}.{plane}"


@dataclass(frozen=True, slots=True)
class Plane:
    """One stored tensor of a quantized tensor. per: what each of its entries along the first axes belongs to."""

    name: PlaneName
    dtype: str
    shape: tuple[int, ...]
    per: Literal["row", "matrix", "tensor"]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return DTYPES[self.dtype].nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a tensor falls into matrices: `count` of them (1 unless stacked), each `rows` by `cols`, channel axis `axis`."""

    count: int
    rows: int
    cols: int
    matrix_shape: tuple[int, ...]
    axis: int


def geometry(shape: tuple[int, ...], axis: int, *, stack: bool = False) -> Geometry:
    """The matrices of a tensor; for a stacked tensor `axis` counts in the whole tensor."""
    count, inner, inner_axis = (shape[0], shape[1:], axis - 1) if stack else (1, shape, axis)
    rows, cols = matrix_shape(inner, inner_axis)
    return Geometry(count, rows, cols, inner, inner_axis)
