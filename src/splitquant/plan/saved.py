"""A plan as a JSON file that can be edited and fed back.

    {"plan_version": 1, "tensors": {"model.layers.0.mlp.up_proj.weight": {"bits": 4, "clusters": 1}, "lm_head.weight": "keep"}}

Every layer is named that a plan quantizes or chose to keep; a layer that is not named is kept. A spec has the keys of
`QuantSpec`, and those left out have their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.decide import Price, kept, plane_bytes, settled
from splitquant.plan.explicit import explicit_spec
from splitquant.plan.layers import Layer
from splitquant.plan.plan import Decision, Plan

PLAN_VERSION = 1
_KEYS = ("plan_version", "tensors")
_REASON = "kept by the plan file"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The JSON form of a plan."""
    tensors = {
        decision.name: "keep" if decision.spec is None else decision.spec.to_dict()
        for decision in plan.decisions
        if decision.spec is not None or (decision.layer.possible and not decision.layer.kept_because)
    }
    return {"plan_version": PLAN_VERSION, "tensors": tensors}


Check = Callable[[Layer, QuantSpec], QuantSpec]
"""The spec of a layer as an adapter means it; SpecError for what it cannot store."""


def plan_from_dict(
    data: Mapping[str, Any],
    layers: Iterable[Layer],
    file: str,
    price: Price | None = plane_bytes,
    check: Check = lambda _, spec: spec,
) -> Plan:
    """The plan that a JSON form means for the layers of a model; SpecError, naming `file`, for what does not fit."""
    for key in data:
        if key not in _KEYS:
            raise SpecError(f"{file}: has the unknown key {key!r}; expected {', '.join(_KEYS)}")
    version, tensors = data.get("plan_version"), data.get("tensors")
    if type(version) is not int or version != PLAN_VERSION:
        raise SpecError(f"{file}: has plan_version {version!r}; this splitquant reads {PLAN_VERSION}")
    if not isinstance(tensors, Mapping):
        raise SpecError(f"{file}: has no 'tensors', a map of tensor names to specs or \"keep\"")
    layers = tuple(layers)
    names = [layer.name for layer in layers]
    for name in tensors:
        if name not in set(names):
            near = get_close_matches(name, names, 1)
            raise SpecError(
                f"{file}: names tensor {name!r}, which the model does not have"
                + (f"; did you mean {near[0]!r}?" if near else "; a report and --dry-run -v list its names")
            )
    wanted = [_wanted(layer, tensors.get(layer.name, "keep"), file, check) for layer in layers]
    return settled(wanted, price, may_grow=True)


def _wanted(layer: Layer, written: Any, file: str, check: Check) -> Decision:
    decision = kept(layer, layer.kept_because or _REASON)
    if written == "keep":
        return decision
    where = f"{file}: tensor {layer.name!r}"
    if not isinstance(written, Mapping):
        raise SpecError(f'{where} has {written!r}; expected a spec, for instance {{"bits": 4}}, or "keep"')
    if not layer.possible:
        raise SpecError(f'{where} cannot be quantized, {layer.kept_because}; write "keep" or leave it out')
    try:
        return replace(decision, spec=check(layer, explicit_spec(written)), reason="")
    except (SpecError, TypeError) as error:
        raise SpecError(f"{where}: {error}") from None
