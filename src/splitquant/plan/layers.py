"""What may be quantized, in the form that every adapter brings it into: tensors of a folder, modules, nodes of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from splitquant.core.spec import QuantSpec
from splitquant.format.dtypes import DTYPES
from splitquant.format.planes import Geometry, geometry
from splitquant.format.weight import Weight

Role = Literal["linear", "conv", "expert", "embedding", "other"]


def of_unknown_use(dimensions: int) -> str:
    """Why a parameter is kept whose name tells nothing of what it is multiplied with."""
    return f"raw {dimensions}-D parameter"


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor of a model, and what is known of it before any of its numbers is read.

    Args:
        name: by which reports, errors and patterns call it.
        role: what it is.
        dtype: of its numbers, a name of `format.dtypes.DTYPES`.
        shape: of the tensor.
        nbytes: what it takes in the source.
        axis: its output-channel axis.
        stack: whether axis 0 numbers independent matrices.
        aliases: what patterns may call it too.
        tied_to: the name of the layer before it whose very weight this is (None: it has its own).
        kept_because: why it stays as it is unless somebody asks for it by name ("" where it is to be quantized).
        possible: whether it can be quantized at all.
    """

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    axis: int = 0
    stack: bool = False
    aliases: tuple[str, ...] = ()
    tied_to: str | None = None
    kept_because: str = ""
    possible: bool = True

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def owner(self) -> str:
        """The name of the first of the layers that share its weight: its own where it shares with none before it."""
        return self.name if self.tied_to is None else self.tied_to

    @property
    def names(self) -> tuple[str, ...]:
        """All that patterns may call it."""
        return (self.name, *self.aliases)

    @property
    def is_of_unknown_use(self) -> bool:
        """Whether nothing is known of it but that it is floats of several dimensions."""
        return self.kept_because == of_unknown_use(len(self.shape))

    @property
    def geometry(self) -> Geometry:
        """The matrices it consists of."""
        return geometry(self.shape, self.axis, stack=self.stack)

    def weight(self, spec: QuantSpec) -> Weight:
        """What it is stored as by a spec."""
        kind = DTYPES[self.dtype].kind
        assert kind is not None
        return Weight(self.shape, self.axis, spec, kind, self.stack)
