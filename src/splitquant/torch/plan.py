"""What is to become of every module, and of its input: decided before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from splitquant.errors import SpecError
from splitquant.plan.decide import decide
from splitquant.plan.options import PlanOptions
from splitquant.plan.plan import Decision, Plan
from splitquant.plan.planner import frontier_of
from splitquant.plan.recipe import Recipe
from splitquant.plan.saved import plan_from_dict
from splitquant.storage.json_file import read_edited_json
from splitquant.torch.activations import DynamicInt8
from splitquant.torch.layers import ModuleLayer, module_layers
from splitquant.torch.measure import ModelCosts, measure_modules, stored_bytes

Planned = tuple[tuple[ModuleLayer, ...], Plan]
_MODULES = "modules with weights; print the report of a run without it to see their names"


def plan_split(model: nn.Module, recipe: Recipe) -> Planned:
    """The plan of a model whose layers become k float layers each."""
    layers = module_layers(model, in_parts=lambda _: True, tables=False)
    return layers, decide((found.layer for found in layers), recipe, None, what=_MODULES)


def plan_quantize(model: nn.Module, options: PlanOptions) -> Planned:
    """The plan of a model: by a file, by a size, or by a recipe."""
    recipe, goal = options.recipe(), options.goal()
    if recipe.embeddings is not None and recipe.embeddings.layout == "parallel":
        raise _table_in_parts(f"embeddings is {recipe.embeddings}")
    if options.plan_file is not None:
        return _read_plan(model, Path(options.plan_file))
    pool = (recipe.spec,) if goal is None else goal.pools(recipe)[0]
    parallel = any(spec is not None and spec.layout == "parallel" for spec in pool)
    layers = module_layers(model, in_parts=lambda _: parallel, tables=True)
    if goal is None:
        return layers, decide((found.layer for found in layers), recipe, stored_bytes, what=_MODULES)
    base = decide((found.layer for found in layers), goal.smallest(recipe), stored_bytes, what=_MODULES)
    modules = {found.layer.name: found.module for found in layers}
    measure = partial(measure_modules, modules)
    frontier = frontier_of(base, goal, recipe, ModelCosts.of(model, modules, base), measure, type(model).__name__)
    return layers, frontier.for_goal(goal).plan


def _read_plan(model: nn.Module, file: Path) -> Planned:
    """The plan that a file holds: of each layer that is to become k layers it is asked whether it can."""
    data = read_edited_json(file)

    def planned(in_parts: Callable[[str], bool]) -> Planned:
        layers = module_layers(model, in_parts=in_parts, tables=True)
        return layers, plan_from_dict(data, (found.layer for found in layers), str(file), stored_bytes)

    first = planned(lambda _: False)[1]
    in_parts = {d.name for d in first.decisions if d.spec is not None and d.spec.layout == "parallel"}
    layers, plan = planned(in_parts.__contains__)
    for decision in plan.quantized:
        if decision.layer.role == "embedding" and decision.name in in_parts:
            raise _table_in_parts(f"{file}: tensor {decision.name!r} has {decision.spec}")
    return layers, plan


def _table_in_parts(what: str) -> SpecError:
    return SpecError(f"{what}; expected the layout 'fused', since a table is looked up and not added")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A module, what becomes of it, and the grid of its input (None: no grid; then `reason` says why, if one was asked for)."""

    module: nn.Module
    decision: Decision
    activations: DynamicInt8 | None = None
    reason: str = ""

    @property
    def in_parts(self) -> bool:
        """Whether it becomes k layers."""
        spec = self.decision.spec
        return spec is not None and spec.layout == "parallel"


def _input_grid(found: ModuleLayer, decision: Decision, grid: DynamicInt8 | None) -> tuple[DynamicInt8 | None, str]:
    """The grid of a layer's input, or why it has none."""
    if grid is None or decision.spec is None or found.layer.role == "embedding":
        return None, ""
    if found.float_input and not (found.if_included and decision.reason.startswith("included by")):
        return None, f"its input stays float: {found.float_input}"
    return grid, ""


def _alike_where_shared(conversions: list[Conversion]) -> list[Conversion]:
    """Layers that share a weight have the same input grid, since it is the weight's."""
    floats: dict[str, str] = {}
    for c in conversions:
        if c.reason:
            floats.setdefault(c.decision.layer.owner, c.decision.name)
    found = []
    for c in conversions:
        other = floats.get(c.decision.layer.owner)
        if other is None or c.activations is None:
            found.append(c)
        else:
            reason = f"its input stays float: that of {other!r} does, whose weight it shares"
            found.append(replace(c, activations=None, reason=reason))
    return found


def conversions_of(planned: Planned, grid: DynamicInt8 | None) -> list[Conversion]:
    """Every module with its decision and the grid of its input, in the order of the plan."""
    layers, plan = planned
    return _alike_where_shared(
        [Conversion(f.module, d, *_input_grid(f, d, grid)) for f, d in zip(layers, plan.decisions, strict=True)]
    )
