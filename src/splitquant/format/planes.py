"""Which stored tensors a quantized tensor becomes, and their exact sizes: known from the spec and the shape alone.

Normative text: docs/format.md, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from splitquant.core.floats import Kind
from splitquant.core.interface import plane_widths
from splitquant.core.rows import matrix_shape, row_scale_kind
from splitquant.core.spec import QuantSpec
from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES

PlaneName = Literal["codes", "clusters", "scale", "offset", "levels", "row_scale", "shape"]
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


def geometry(shape: tuple[int, ...], axis: int, stack: bool) -> Geometry:
    """The matrices of a tensor; for a stacked tensor `axis` counts in the whole tensor."""
    count, inner, inner_axis = (shape[0], shape[1:], axis - 1) if stack else (1, shape, axis)
    rows, cols = matrix_shape(inner, inner_axis)
    return Geometry(count, rows, cols, inner, inner_axis)


def planes_of(shape: tuple[int, ...], axis: int, stack: bool, kind: Kind, spec: QuantSpec) -> tuple[Plane, ...]:
    """The stored tensors of a tensor of the given shape and source kind."""
    g = geometry(shape, axis, stack)
    head = (g.count,) if stack else ()
    codes_width, clusters_width = plane_widths(g.cols, spec)
    planes = [Plane("codes", "U8", (*head, g.rows, codes_width), "row")]
    if clusters_width:
        planes.append(Plane("clusters", "U8", (*head, g.rows, clusters_width), "row"))
    if spec.facts.free_levels:
        planes.append(Plane("levels", "F32", (*head, spec.clusters, spec.width.codes), "matrix"))
    else:
        planes += [Plane(name, "F32", (*head, spec.clusters), "matrix") for name in ("scale", "offset")]
    groups = spec.groups(g.cols)
    if groups:
        stored = DTYPE_OF_KIND[row_scale_kind(kind, spec.granularity)]
        planes.append(Plane("row_scale", stored.name, (*head, g.rows, groups), "row"))
    planes.append(Plane("shape", "I64", (len(shape),), "tensor"))
    return tuple(planes)
