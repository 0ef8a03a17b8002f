"""A quantized weight as it is stored: the one value that says how its planes are to be read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from splitquant.core.floats import Kind
from splitquant.core.interface import plane_width, plane_widths
from splitquant.core.rows import row_scale_kind
from splitquant.core.spec import QuantSpec
from splitquant.format.dtypes import DTYPE_OF_KIND
from splitquant.format.planes import Geometry, Plane, geometry, plane_key


@dataclass(frozen=True, slots=True)
class Weight:
    """What is known of a quantized weight beside its planes (docs/format.md, sections 1 and 2).

    Args:
        shape: of the weight; () where only config.json was read, which does not hold it.
        axis: its output-channel axis, whose slices are the rows of the planes.
        spec: by which it is quantized.
        kind: the float that it dequantizes to.
        stack: whether its first axis numbers independent matrices.
    """

    shape: tuple[int, ...]
    axis: int
    spec: QuantSpec
    kind: Kind
    stack: bool = False

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def geometry(self) -> Geometry:
        """The matrices it consists of."""
        return geometry(self.shape, self.axis, stack=self.stack)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The stored tensors that stand for it."""
        g, spec = self.geometry, self.spec
        head = (g.count,) if self.stack else ()
        codes_width, clusters_width = plane_widths(g.cols, spec)
        planes = [Plane("codes", "U8", (*head, g.rows, codes_width), "row")]
        if clusters_width:
            planes.append(Plane("clusters", "U8", (*head, g.rows, clusters_width), "row"))
        if spec.own_zero_points:
            pass  # every grid is its row_scale and zero_point
        elif spec.facts.free_levels:
            planes.append(Plane("levels", "F32", (*head, spec.clusters, spec.width.codes), "matrix"))
        else:
            planes += [Plane("scale", "F32", (*head, spec.clusters), "matrix")]
            planes += [Plane("offset", "F32", (*head, spec.clusters), "matrix")]
        groups = spec.groups(g.cols)
        if groups:
            planes.append(Plane("row_scale", DTYPE_OF_KIND[self.scale_kind].name, (*head, g.rows, groups), "row"))
        if spec.own_zero_points:
            planes.append(Plane("zero_points", "U8", (*head, g.rows, plane_width(groups, spec.bits)), "row"))
        planes.append(Plane("shape", "I64", (len(self.shape),), "tensor"))
        return tuple(planes)

    @property
    def nbytes(self) -> int:
        """The bytes of all its planes."""
        return sum(plane.nbytes for plane in self.planes)

    @property
    def scale_kind(self) -> Kind:
        """The float in which its row_scales are stored."""
        return row_scale_kind(self.kind, self.spec.granularity)

    def stored(self, name: str) -> list[tuple[str, str, tuple[int, ...]]]:
        """The (name, dtype, shape) of every plane in a file, for a weight of that name."""
        return [(plane_key(name, plane.name), plane.dtype, plane.shape) for plane in self.planes]
