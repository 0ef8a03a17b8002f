"""Which stored tensors a quantized tensor becomes, and their exact sizes: known from the spec and the shape alone.

Normative text: docs/format.md, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from splitquant.core.floats import Kind
from splitquant.core.interface import plane_widths
from splitquant.core.rows import matrix_shape, row_scale_kind
from splitquant.core.spec import QuantSpec

PlaneName = Literal["codes", "clusters", "scale", "offset", "levels", "row_scale", "shape"]
SAFETENSORS_DTYPE: dict[str, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
KIND_OF_DTYPE: dict[str, Kind] = {
    "BF16": "bf16",
    "F16": "fp16",
    "F32": "fp32",
    "F64": "fp32",  # rounded to float32 first
    "F8_E4M3": "bf16",  # bf16 holds every fp8 number exactly
    "F8_E5M2": "bf16",
}


@dataclass(frozen=True, slots=True)
class Plane:
    """One stored tensor of a quantized tensor."""

    name: PlaneName
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * {"U8": 1, "BF16": 2, "F16": 2, "F32": 4, "I64": 8}[self.dtype]


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
    planes = [Plane("codes", "U8", (*head, g.rows, codes_width))]
    if clusters_width:
        planes.append(Plane("clusters", "U8", (*head, g.rows, clusters_width)))
    if spec.facts.free_levels:
        planes.append(Plane("levels", "F32", (*head, spec.clusters, spec.width.codes)))
    else:
        planes += [Plane("scale", "F32", (*head, spec.clusters)), Plane("offset", "F32", (*head, spec.clusters))]
    groups = spec.groups(g.cols)
    if groups:
        dtype = SAFETENSORS_DTYPE[scale_kind_of(kind, spec)]
        planes.append(Plane("row_scale", dtype, (*head, g.rows, groups)))
    planes.append(Plane("shape", "I64", (len(shape),)))
    return tuple(planes)


def scale_kind_of(kind: Kind, spec: QuantSpec) -> Kind:
    """The stored dtype of row_scales for a source kind."""
    return row_scale_kind(kind, spec.granularity)
