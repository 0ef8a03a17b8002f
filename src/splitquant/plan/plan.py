"""The plan of a model: for every tensor what becomes of it, and why. A plain value: print it, compare it, store it."""

from __future__ import annotations

from dataclasses import dataclass

from splitquant.core.spec import QuantSpec
from splitquant.plan.layers import Layer


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one layer.

    Args:
        layer: what it is about.
        spec: by which it is quantized; None keeps it.
        reason: why it is kept, or what there is to know.
        stored_bytes: what it takes in the output; 0 where it shares the weight of a layer before it.
    """

    layer: Layer
    spec: QuantSpec | None
    reason: str
    stored_bytes: int

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self.layer.name

    @property
    def source_bytes(self) -> int:
        """What it takes in the source; 0 where it shares the weight of a layer before it."""
        return self.layer.nbytes if self.layer.tied_to is None else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of every layer of a model, in the order of the source."""

    decisions: tuple[Decision, ...]

    @property
    def quantized(self) -> tuple[Decision, ...]:
        """What is quantized."""
        return tuple(decision for decision in self.decisions if decision.spec is not None)

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(decision.source_bytes for decision in self.decisions)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors after."""
        return sum(decision.stored_bytes for decision in self.decisions)
