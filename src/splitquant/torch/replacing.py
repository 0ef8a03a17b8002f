"""How a model is changed and reported on: copies, layers put in the place of others, outcomes under every name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.export import ExportedProgram

from splitquant.errors import SpecError
from splitquant.plan.plan import Decision
from splitquant.report.outcome import Fate, Outcome, Report, outcome_of

M = TypeVar("M", bound=nn.Module)


class Converted(NamedTuple, Generic[M]):
    """A converted model and what became of its modules: `model, report = split(model)`."""

    model: M
    report: Report


def own_copy(model: M, *, inplace: bool) -> M:
    """The model itself, or a copy of it; SpecError where it is no module, cannot be copied, or was compiled."""
    if not isinstance(model, nn.Module):
        raise SpecError(f"model is {_what_it_is(model)}")
    if inplace:
        _refuse_compiled(model)
        return model
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SpecError(f"the model cannot be copied ({error}); convert it with inplace=True") from error


def _what_it_is(model: object) -> str:
    """What was given in the place of a module, and what to do instead."""
    if isinstance(model, str | Path):
        return (
            f"the path {str(model)!r}; expected a torch.nn.Module: load it first, or quantize the folder or .onnx file itself "
            "with splitquant.quantize(source, destination)"
        )
    if isinstance(model, ExportedProgram):
        return (
            "an ExportedProgram, whose layers are operations already; expected a torch.nn.Module: quantize the module that it "
            "was exported from, and export the result"
        )
    if isinstance(model, Mapping) and any(isinstance(value, torch.Tensor) for value in model.values()):
        return (
            f"a state_dict of {len(model)} entries, which does not say what they are used for; expected a torch.nn.Module: build "
            "the model, load_state_dict() this into it and give the model"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"the class {model.__name__}; expected an instance of it"
    return f"a {type(model).__name__}; expected a torch.nn.Module"


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, OptimizedModule):
            raise SpecError(
                f"module {name!r} was compiled by torch.compile and would go on with its old layers; convert the model first, "
                "then compile it, or take a copy (inplace=False)"
            )


def replaced(model: M, new_layers: Mapping[int, nn.Module], *, inplace: bool) -> M:
    """Put new layers in the place of old ones, under every name that they have."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # noqa: SLF001 - assignment would refuse names that a class shadows
            if id(child) in new_layers:
                parent._modules[name] = new_layers[id(child)]  # noqa: SLF001
    found = new_layers.get(id(model), model)
    if inplace and found is not model:
        raise SpecError(
            f"the model is itself a {type(model).__name__} and cannot be replaced in place; use inplace=False"
        )
    return found  # type: ignore[return-value]


def module_outcome(decision: Decision, module: nn.Module, outcome: Fate, reason: str) -> Outcome:
    """What became of a module."""
    return replace(outcome_of(decision), outcome=outcome, reason=reason, kind=type(module).__name__)


def report_of(model: nn.Module, outcomes: Mapping[int, Outcome]) -> Report:
    """Outcomes in the order of the modules; a module with several names comes under each, its figures once."""
    rows: list[Outcome] = []
    seen: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        row = outcomes.get(id(module))
        if row is None:
            continue
        if id(module) in seen:
            row = replace(row, name=name, reason=f"the same module as {row.name!r}", figures=None)
            row = replace(row, source_bytes=0, stored_bytes=0)
        seen.add(id(module))
        rows.append(row)
    return Report(tuple(rows))
