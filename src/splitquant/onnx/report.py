"""What became of every node with a weight and of every weight without such a node, as frozen values with a JSON form."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from splitquant.core.error import NO_ERROR, ErrorFigures
from splitquant.core.spec import QuantSpec

Outcome = Literal["split", "quantized", "kept"]


@dataclass(frozen=True, slots=True)
class NodeOutcome:
    """What became of one node and its weight, or of a weight that no handled node reads (then `node` is "").

    form: `float`, `QDQ`, `MatMulNBits` or `Gather` (codes gathered, then scaled); "" where it is kept.
    stored_bytes: of all parts; a weight that several nodes share is counted at the first of them.
    """

    node: str
    op_type: str
    weight: str
    outcome: Outcome
    reason: str
    form: str
    parts: int
    dtype: str
    shape: tuple[int, ...]
    source_bytes: int
    stored_bytes: int
    spec: QuantSpec | None
    figures: ErrorFigures | None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights."""
        return 8.0 * self.stored_bytes / max(1, math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class OnnxReport:
    """All outcomes of a model in the order of its nodes, then the remaining weights; notes on what else was changed."""

    nodes: tuple[NodeOutcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def converted(self) -> tuple[NodeOutcome, ...]:
        """The nodes that were split or quantized."""
        return tuple(node for node in self.nodes if node.outcome != "kept")

    @property
    def kept(self) -> tuple[NodeOutcome, ...]:
        """The nodes and weights that were kept."""
        return tuple(node for node in self.nodes if node.outcome == "kept")

    @property
    def figures(self) -> ErrorFigures:
        """The error figures of all quantized weights together, each counted once."""
        total = NO_ERROR
        for node in self.nodes:
            if node.figures is not None and node.stored_bytes:
                total = total.merge(node.figures)
        return total

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the same input with the same options gives the same."""
        nodes = [{**asdict(node), "spec": node.spec.to_dict() if node.spec else None} for node in self.nodes]
        return {"nodes": nodes, "notes": list(self.notes)}
