"""A folder that is planned and ready to be quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from splitquant.checkpoint.convert import apply_plan
from splitquant.checkpoint.costs import FolderCosts
from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.measure import measure_folder
from splitquant.checkpoint.sidecar import notes_on
from splitquant.checkpoint.source import open_float_folder, plan_folder, read_plan
from splitquant.checkpoint.stored import refuse_clashes
from splitquant.plan.explicit import explicit_spec
from splitquant.plan.layers import Layer
from splitquant.plan.measured import Measured
from splitquant.plan.options import PlanOptions
from splitquant.plan.plan import Plan
from splitquant.plan.planner import Frontier, Goal, Pool, PricedPlan, frontier_of
from splitquant.plan.recipe import Recipe
from splitquant.report.outcome import Report, planned_report
from splitquant.storage.resources import Resources


@dataclass(frozen=True, slots=True)
class FolderJob:
    """A folder and what becomes of it.

    Args:
        folder: the source.
        plan: what becomes of every tensor.
        frontier, chosen: where the plan was chosen by size: everything that was possible, and what was taken.
    """

    folder: Folder
    plan: Plan
    frontier: Frontier | None = None
    chosen: PricedPlan | None = None

    def foretold(self, resources: Resources) -> Report:  # noqa: ARG002 - graphs are rewired for it
        """The report of `apply` as far as it is known before."""
        return replace(planned_report(self.plan), notes=notes_on(self.folder))

    def apply(self, destination: Path, resources: Resources, advance: Callable[[int], None] = lambda _: None) -> Report:
        """Do it, see `checkpoint.convert.apply_plan`."""
        return apply_plan(self.folder, self.plan, destination, resources, advance)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: a folder's files are open only while they are read."""


def prepare_folder(
    source: Path, options: PlanOptions, resources: Resources, advance: Callable[[int], None] = lambda _: None
) -> FolderJob:
    """Open a folder and plan it; only a size makes its weights be read.

    Args:
        source: the folder.
        options: what was asked for.
        resources: for measuring.
        advance: told source bytes, measured or passed over, from any thread.

    Raises:
        SourceError, SpecError, TensorError: see `splitquant.errors`.
    """
    folder = open_float_folder(source)
    if options.plan_file is not None:
        return FolderJob(folder, read_plan(folder, Path(options.plan_file)))
    recipe, goal = options.recipe(lambda **fixed: explicit_spec(fixed)), options.goal()
    if goal is None:
        return FolderJob(folder, plan_folder(folder, recipe))
    frontier = folder_frontier(folder, goal, recipe, resources, advance)
    chosen = frontier.for_goal(goal)
    refuse_clashes(chosen.plan)
    return FolderJob(folder, chosen.plan, frontier, chosen)


def folder_frontier(
    folder: Folder,
    goal: Goal,
    recipe: Recipe,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Frontier:
    """Measure what the tensors of a folder can become, see `plan.planner.frontier_of`."""
    base = plan_folder(folder, goal.smallest(recipe))
    budget = resources.budget(len(base.decisions))

    def measure(asked: Sequence[tuple[Layer, Pool]]) -> Sequence[Measured]:
        return measure_folder(folder, asked, budget, advance)

    return frontier_of(base, goal, recipe, FolderCosts(folder), measure, str(folder.path))
