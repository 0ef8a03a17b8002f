"""A plan as a JSON file that can be edited and fed back.

    {"plan_version": 1, "tensors": {"model.layers.0.mlp.up_proj.weight": {"bits": 4, "clusters": 1}, "lm_head.weight": "keep"}}

Every tensor is named that a plan quantizes or chose to keep; a tensor that is not named is kept. A spec has the keys of
`QuantSpec`, and those left out have their defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from splitquant.errors import SpecError
from splitquant.plan.plan import Plan, TensorHeader, TensorPlan
from splitquant.plan.roles import role_of
from splitquant.plan.said import spec_as_said

PLAN_VERSION = 1
_KEYS = ("plan_version", "tensors")
_REASON = "kept by the plan file"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The JSON form of a plan."""
    tensors = {
        tensor.name: "keep" if tensor.spec is None else tensor.spec.to_dict()
        for tensor in plan.tensors
        if tensor.spec is not None or (tensor.role.possible and not tensor.role.kept_because)
    }
    return {"plan_version": PLAN_VERSION, "tensors": tensors}


def plan_from_dict(
    data: Mapping[str, Any], headers: Iterable[TensorHeader], config: Mapping[str, Any], file: str
) -> Plan:
    """The plan that a JSON form means for the tensors of a folder; SpecError, naming `file`, for what does not fit."""
    for key in data:
        if key not in _KEYS:
            raise SpecError(f"{file}: has the unknown key {key!r}; expected {', '.join(_KEYS)}")
    version, said = data.get("plan_version"), data.get("tensors")
    if type(version) is not int or version != PLAN_VERSION:
        raise SpecError(f"{file}: has plan_version {version!r}; this splitquant reads {PLAN_VERSION}")
    if not isinstance(said, Mapping):
        raise SpecError(f"{file}: has no 'tensors', a map of tensor names to specs or \"keep\"")
    headers = tuple(headers)
    names = [header.name for header in headers]
    for name in said:
        if name not in set(names):
            near = get_close_matches(name, names, 1)
            raise SpecError(
                f"{file}: names tensor {name!r}, which the model does not have"
                + (f"; did you mean {near[0]!r}?" if near else "; see its tensors with: splitquant inspect")
            )
    return Plan(tuple(_planned(header, said.get(header.name, "keep"), config, file) for header in headers))


def _planned(header: TensorHeader, said: Any, config: Mapping[str, Any], file: str) -> TensorPlan:
    role = role_of(header.name, header.dtype, header.shape, config)
    plan = TensorPlan(header.name, header.dtype, header.shape, header.nbytes, role, None, role.kept_because or _REASON)
    if said == "keep":
        return plan
    where = f"{file}: tensor {header.name!r}"
    if not isinstance(said, Mapping):
        raise SpecError(f'{where} has {said!r}; expected a spec, for instance {{"bits": 4}}, or "keep"')
    if not role.possible:
        raise SpecError(f'{where} cannot be quantized, {role.kept_because}; write "keep" or leave it out')
    try:
        return replace(plan, spec=spec_as_said(said), reason="")
    except (SpecError, TypeError) as error:
        raise SpecError(f"{where}: {error}") from None
