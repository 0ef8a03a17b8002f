"""What the tensors of a plan are called in the output, and where they lie in its shards."""

from __future__ import annotations

from collections.abc import Mapping

from splitquant.checkpoint.folder import Shard
from splitquant.checkpoint.safetensors import Entry, build_header
from splitquant.errors import TensorError
from splitquant.plan.plan import Decision, Plan


def stored_tensors(decision: Decision) -> list[tuple[str, str, tuple[int, ...]]]:
    """The (name, dtype, shape) of everything that a tensor becomes in the output."""
    layer = decision.layer
    if decision.spec is None:
        return [(layer.name, layer.dtype, layer.shape)]
    return layer.weight(decision.spec).stored(layer.name)


def stored_names(decision: Decision) -> list[str]:
    """The names of everything that a tensor becomes in the output."""
    return [name for name, _, _ in stored_tensors(decision)]


def refuse_clashes(plan: Plan) -> None:
    """Two tensors must never be stored under one name, and a plane of one may be called as the other; TensorError."""
    owner: dict[str, str] = {}
    for decision in plan.decisions:
        for name in stored_names(decision):
            if name in owner:
                raise TensorError(
                    f"tensors {owner[name]!r} and {decision.name!r} would both be stored as {name!r}; "
                    f"keep the quantized one as it is with --exclude {owner[name]!r} or --exclude {decision.name!r}"
                )
            owner[name] = decision.name


def shard_header(shard: Shard, decisions: Mapping[str, Decision]) -> tuple[bytes, list[Entry]]:
    """The header of a shard of the output, and the places of its tensors."""
    stored = [item for entry in shard.entries for item in stored_tensors(decisions[entry.name])]
    return build_header(stored, shard.metadata or {"format": "pt"})
