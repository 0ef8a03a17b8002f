"""An ONNX model that is opened, planned and ready to be converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import onnx
from onnx import ModelProto

from splitquant.errors import SourceError
from splitquant.onnx.assembly import Assembly
from splitquant.onnx.forms.form import as_possible
from splitquant.onnx.forms.options import TABLES, OnnxForm, checked_embeddings, usual_spec
from splitquant.onnx.graph.fold import fold_weights
from splitquant.onnx.graph.opset import FIRST_WITH_DEFAULTS, inline_functions, raise_opset
from splitquant.onnx.graph.scopes import Scope, open_scopes
from splitquant.onnx.layers import NodeLayer, node_layers
from splitquant.onnx.measure import OnnxCosts, measure_nodes
from splitquant.onnx.plan import NodePlan, needed_opset, node_plans, slow_convolutions
from splitquant.onnx.raised import check_raised
from splitquant.onnx.settle import layers_of_wide_scales, suspected_of_wide_scales
from splitquant.onnx.wire.destination import Destination
from splitquant.onnx.wire.sink import Sink
from splitquant.onnx.wire.source import Source
from splitquant.plan.decide import decide, kept
from splitquant.plan.options import PlanOptions
from splitquant.plan.plan import Decision, Plan
from splitquant.plan.planner import Frontier, Goal, PricedPlan, frontier_of
from splitquant.plan.recipe import Recipe
from splitquant.plan.saved import plan_from_dict
from splitquant.report.outcome import Report
from splitquant.storage.json_file import read_edited_json
from splitquant.storage.memory import MemoryBudget
from splitquant.storage.resources import Resources

Model = ModelProto | str | Path
USUAL_TARGET = "onnxruntime"
_NODES = "nodes and weights"
_CORRECTIONS = 3


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model and the report on it. path: where it was written; None where it is in memory."""

    report: Report
    path: Path | None
    held: ModelProto | None

    @property
    def model(self) -> ModelProto:
        """The graph, with the weights in it or pointing to external data beside `path`; read from there when asked for."""
        if self.held is not None:
            return self.held
        assert self.path is not None
        return onnx.load(self.path, load_external_data=False)


@dataclass(frozen=True, slots=True)
class OnnxJob:
    """An opened model and what becomes of it. A context manager: it holds the files of the source.

    Args:
        source: the opened model.
        scopes: its graphs.
        layers: its nodes.
        storage: how weights are stored.
        plan: what becomes of every node.
        notes: what else was changed.
        frontier, chosen: where the plan was chosen by size: everything that was possible, and what was taken.
    """

    source: Source
    scopes: list[Scope]
    layers: tuple[NodeLayer, ...]
    storage: OnnxForm
    plan: Plan
    notes: tuple[str, ...]
    frontier: Frontier | None = None
    chosen: PricedPlan | None = None

    def apply(self, destination: Path, resources: Resources, advance: Callable[[int], None] = lambda _: None) -> Report:
        """Write the converted model, see `convert`."""
        return self.convert(destination, resources, advance).report

    def convert(
        self, out_path: Path | None, resources: Resources, advance: Callable[[int], None] = lambda _: None
    ) -> Converted:
        """Convert the model as planned, once.

        Args:
            out_path: what to write, complete or not at all; None: the model stays in memory.
            resources: what may be used.
            advance: told the bytes of weights that are done, from any thread.

        Raises:
            SourceError: where there is nothing to convert, or the model cannot be raised to the opset it needs, or does not do
                the same there (which is looked at where onnxruntime is installed).
            TensorError, DestinationError: on an error nothing is written.
        """
        source, budget = self.source, resources.budget(len(self.layers))
        before = source.copied()
        plans, scopes, note = self._raised(budget)
        notes = [*self.notes, note]
        if note:
            notes.append(check_raised(before, source, resources.max_memory_bytes))
        with ExitStack() as stack:
            assembly = Assembly(source, scopes, plans, stack.enter_context(Sink()))
            target = None
            if out_path is not None:
                if all(plan.form is None for plan in plans):
                    raise SourceError(_nothing_to_do(source.label, plans))
                target = stack.enter_context(
                    Destination(out_path, source.paths, force=resources.force, durable=resources.durable)
                )
            notes += [assembly.rewire(), assembly.open(target), slow_convolutions(plans)]
            figures = assembly.encode(budget, advance)
            assembly.finish()
            if target is not None:
                target.publish()
            report = Report(assembly.outcomes(figures), notes=tuple(filter(None, notes)))
        return Converted(report, None if target is None else target.path, source.proto if target is None else None)

    def foretold(self, resources: Resources) -> Report:
        """The report of `apply` as far as it is known before; reads only weights that would get scales of float16."""
        assembly, notes = self._rewired_copy(resources.budget(len(self.layers)))
        return Report(assembly.outcomes({}), notes=tuple(filter(None, (*self.notes, *notes))))

    def written_bytes(self, budget: MemoryBudget) -> int:
        """The bytes of all files that `convert` would write, exactly."""
        return self._rewired_copy(budget)[0].written_bytes()

    def _rewired_copy(self, budget: MemoryBudget) -> tuple[Assembly, list[str]]:
        """The model as it will be, without weights, and notes on it; this one stays as it is."""
        source = self.source.copied()
        scopes = open_scopes(source)
        job = replace(self, source=source, scopes=scopes, layers=node_layers(scopes, self.storage))
        plans, scopes, note = job._raised(budget)  # noqa: SLF001 - it is a job of this very class
        assembly = Assembly(source, scopes, plans, Sink())
        return assembly, [note, assembly.rewire(), slow_convolutions(plans)]

    def _raised(self, budget: MemoryBudget) -> tuple[list[NodePlan], list[Scope], str]:
        """The model at the opset that its forms need, what becomes of its nodes then, and a note where it was raised."""
        source, scopes, layers = self.source, self.scopes, self.layers
        wide = layers_of_wide_scales(layers, self.plan, self.storage, budget, source.label)
        plans = node_plans(layers, self.plan, self.storage, wide)
        source.proto, note = raise_opset(source.proto, needed_opset(plans), source.label)
        if note:
            scopes = open_scopes(source)
            layers = node_layers(scopes, self.storage)
            plans = node_plans(layers, _same(self.plan, layers), self.storage, wide)
        return plans, scopes, note

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.files.close()


def prepare_model(
    model: Model,
    options: PlanOptions,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
    **storage: Any,
) -> OnnxJob:
    """Open a model and plan it; only a size makes its weights be read.

    Args:
        model: a file, or a model in memory.
        options: what was asked for.
        resources: for measuring.
        advance: told bytes of weights, measured or passed over, from any thread.
        **storage: fields of `OnnxForm`.

    Raises:
        SourceError, SpecError, TensorError: see `splitquant.errors`.
    """
    form = OnnxForm(**storage, target=options.target)
    if options.by_size and options.target is None:
        options = replace(options, target=USUAL_TARGET)
    recipe, goal = options.recipe(partial(usual_spec, form)), options.goal()
    if goal is None and options.plan_file is None:
        recipe = replace(recipe, spec=form.checked(recipe.spec))
    if recipe.embeddings is not None:
        checked_embeddings(recipe.embeddings)
    source = Source(model)
    try:
        notes = [_take_out_of_inputs(source.proto)]
        source.proto, note = inline_functions(source.proto, source.label)
        notes += [note, fold_weights(source)]
        scopes = open_scopes(source)
        job = OnnxJob(source, scopes, node_layers(scopes, form), form, Plan(()), tuple(notes))
        return _planned(job, options, recipe, goal, resources, advance)
    except BaseException:
        source.files.close()
        raise


def _planned(  # noqa: PLR0913, PLR0917 - the second half of `prepare_model`
    job: OnnxJob,
    options: PlanOptions,
    recipe: Recipe,
    goal: Goal | None,
    resources: Resources,
    advance: Callable[[int], None],
) -> OnnxJob:
    costs = OnnxCosts.of(job.source, job.scopes, job.layers, job.storage)
    grows = job.storage.format == "float"
    layers = [found.layer for found in job.layers]
    more_names = [name for scope in job.scopes for name in scope.constants]
    if options.plan_file is not None:
        file = Path(options.plan_file)
        plan = plan_from_dict(read_edited_json(file), layers, str(file), costs.price, job.storage.checked_for)
        return replace(job, plan=_possible(plan, job))
    if goal is None:
        plan = decide(layers, recipe, costs.price, what=_NODES, more_names=more_names, may_grow=grows)
        return replace(job, plan=_possible(plan, job))
    budget = resources.budget(len(layers))
    goal = replace(goal, of_embeddings=TABLES)
    wide = suspected_of_wide_scales(job.layers, budget)
    told = advance
    while True:
        costs = replace(costs, wide=wide)
        base = decide(layers, goal.smallest(recipe), costs.price, what=_NODES, more_names=more_names)
        measure = partial(measure_nodes, job.layers, budget, told)
        frontier = frontier_of(base, goal, recipe, costs, measure, job.source.label, costs.possible)
        chosen = frontier.for_goal(goal)
        more = layers_of_wide_scales(job.layers, chosen.plan, job.storage, budget, job.source.label) - wide
        if not more:
            break
        wide, told = wide | more, lambda _: None
    job = replace(job, plan=chosen.plan, frontier=frontier, chosen=chosen)
    return job if goal.nbytes is None else _filled(job, goal.nbytes, budget)


def _possible(plan: Plan, job: OnnxJob) -> Plan:
    """The plan with the specs that its layers get where theirs cannot be: convolutions have no groups."""
    operands = {found.layer.name: found.operand for found in job.layers}

    def possible(decision: Decision) -> Decision:
        operand = operands[decision.name]
        if decision.spec is None or operand is None:
            return decision
        spec, remark = as_possible(operand, decision.spec, job.storage)
        return replace(decision, spec=spec, reason="; ".join(filter(None, (decision.reason, remark))))

    return Plan(tuple(map(possible, plan.decisions)))


def _filled(job: OnnxJob, nbytes: int, budget: MemoryBudget) -> OnnxJob:
    """The job with what the estimate of its size was too careful about spent as well.

    `OnnxCosts.total` says what a model takes at most; what it takes exactly only the rewired graph tells.
    """
    chosen = job.chosen
    assert job.frontier is not None
    assert chosen is not None
    written = job.written_bytes(budget)
    more = chosen.total_bytes - written
    for _ in range(_CORRECTIONS):
        found = job.frontier.for_size(nbytes + more)
        if found.plan == job.plan:
            break
        trial = replace(job, plan=found.plan)
        size = trial.written_bytes(budget)
        if size > nbytes:
            more //= 2
        else:
            job, chosen, written = trial, found, size
            more = found.total_bytes - size
    return replace(job, chosen=replace(chosen, total_bytes=written))


def _same(plan: Plan, layers: Sequence[NodeLayer]) -> Plan:
    """The plan for the layers of the same model after its opset was raised: its nodes may have come into another order."""
    decisions = {decision.name: decision for decision in plan.decisions}
    return Plan(
        tuple(decisions.get(found.layer.name) or kept(found.layer, "made by the version converter") for found in layers)
    )


def _nothing_to_do(label: str, plans: Sequence[NodePlan]) -> str:
    reasons = Counter(plan.reason for plan in plans).most_common(3)
    found = (
        "; ".join(f"{count} x {reason}" for reason, count in reasons)
        or "no MatMul, Gemm, Conv, ConvTranspose or Gather"
    )
    return f"{label}: holds nothing to convert ({found}), and nothing was written; use the model as it is"


def _take_out_of_inputs(model: ModelProto) -> str:
    """Before IR version 4 all initializers are among the inputs, and are constants all the same.

    Later versions mean by it that a caller may give another value: see `Assembly.rewire`.
    """
    if model.ir_version >= FIRST_WITH_DEFAULTS:
        return ""
    graph = model.graph
    constants = {proto.name for proto in graph.initializer}
    listed = [value for value in graph.input if value.name in constants]
    for value in listed:
        graph.input.remove(value)
    return (
        f"{len(listed)} initializers were listed among the graph inputs too, and were taken out of these"
        if listed
        else ""
    )
