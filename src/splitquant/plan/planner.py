"""A size in, a plan out: of the measured candidates choose so that the output is never larger and the error least.

Works for every adapter: what a layer loses by a spec and what it takes are functions that the adapter brings.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, fsum, isfinite
from typing import Any, Protocol

from splitquant.core.error import ErrorFigures
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.budget import allocate, hull_budgets, least_bytes
from splitquant.plan.candidates import allowed_by, candidates, embedding_candidates, runs_on
from splitquant.plan.decide import kept
from splitquant.plan.frontier import Curve, Point, curve_of
from splitquant.plan.layers import Layer
from splitquant.plan.measured import Measured
from splitquant.plan.plan import Decision, Plan
from splitquant.plan.recipe import Recipe
from splitquant.plan.targets import target_of
from splitquant.plan.weighting import Weighting, importances

KEPT = "kept by the size target"
_SMALLEST = QuantSpec(bits=2, clusters=1, granularity="tensor")  # what this does not shrink, nothing does
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_MOST_MARKS = 14
_SHARED_BYTES = 512  # of a spec in the config and a row of the card, at most
_PARTS_OF_STEP = 32

Pool = tuple[QuantSpec | None, ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of a plan: one of `bits` and `nbytes`.

    Args:
        bits: at most so many stored bits per weight.
        nbytes: at most so many bytes of the whole output.
        weighting: what the error of a layer counts, see `plan.weighting`.
        fixed: fields of `QuantSpec` that are decided already.
        of_embeddings: those of embeddings, where the adapter stores no others; they win.
        choose_embeddings: whether embeddings are chosen too; else they are what the recipe says.
        target: what must run the result, see `plan.targets`.

    Raises:
        SpecError: for none or both of the two, and for bits that are none.
    """

    bits: float | None = None
    nbytes: int | None = None
    weighting: Weighting = "energy"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    choose_embeddings: bool = True
    target: str | None = None
    of_embeddings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.nbytes is None):
            raise SpecError("give one of target-bits and target-size")
        if self.bits is not None and not (isinstance(self.bits, (int, float)) and 0 < self.bits < 1e3):
            raise SpecError(f"target-bits is {self.bits!r}; expected stored bits per weight, for instance 4.5")
        if self.nbytes is not None and not (isinstance(self.nbytes, (int, float)) and isfinite(self.nbytes)):
            raise SpecError(f"target-size is {self.nbytes!r}; expected bytes, or text such as '800MB'")

    def smallest(self, recipe: Recipe) -> Recipe:
        """The recipe that quantizes whatever any candidate could shrink."""
        return replace(recipe, spec=_SMALLEST, embeddings=_SMALLEST if self.choose_embeddings else recipe.embeddings)

    def pools(self, recipe: Recipe) -> tuple[Pool, Pool]:
        """The candidates for weights and those for embeddings; None keeps a layer. SpecError where nothing is left."""
        pool, for_embeddings = self._pools()
        return pool, for_embeddings if self.choose_embeddings else (recipe.embeddings or EMBEDDING,)

    def _pools(self) -> tuple[Pool, Pool]:
        if self.target is None:
            return (*candidates(self.fixed), None), (*embedding_candidates({**self.fixed, **self.of_embeddings}), None)
        target = target_of(self.target)
        target.refuse_strategy(self.fixed.get("strategy"))
        fixed = {**allowed_by(target), **self.fixed}
        possible = candidates(fixed)
        pool = [spec for spec in possible if runs_on(target, spec)]
        asked = [spec for spec in possible if spec.strategy == self.fixed.get("strategy")] or possible
        if not set(asked) & set(pool):  # widths that nobody asked for are not why
            target.refuse(next((spec for spec in asked if target.width_of(spec) in target.grids), asked[0]))
        embeddings = [spec for spec in embedding_candidates({**fixed, **self.of_embeddings}) if runs_on(target, spec)]
        return (*pool, None), (*embeddings, None)


class Costs(Protocol):
    """What an adapter knows of sizes."""

    def price(self, layer: Layer, spec: QuantSpec) -> int:
        """The bytes of the stored tensors of a layer."""
        ...

    def beside(self, decision: Decision) -> int:
        """About the bytes that a layer adds to the output beside its stored tensors: names, nodes, rows of a report.

        Only for comparing plans; how large an output becomes says `total`.
        """
        ...

    def total(self, plan: Plan) -> int:
        """The bytes of the whole output, at most."""
        ...


Measure = Callable[[Sequence[tuple[Layer, Pool]]], Sequence[Measured]]
"""What every layer loses by every candidate."""


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """A plan and what it costs.

    Args:
        plan: the plan.
        tensor_bytes, weights, figures: of the layers that there was a choice for; figures are measured, on a sample where a
            layer is large.
        total_bytes: of the whole output, at most.
    """

    plan: Plan
    tensor_bytes: int
    weights: int
    total_bytes: int
    figures: ErrorFigures

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the layers over their weights."""
        return 8.0 * self.tensor_bytes / max(1, self.weights)


@dataclass(frozen=True, slots=True)
class _Choice:
    """One layer that there is a choice for: its candidates, what each takes, and what its noise counts."""

    measured: Measured
    nbytes: tuple[int, ...]
    importance: float

    def curve(self, beside: Sequence[int]) -> Curve:
        """Size against noise; `beside`: bytes on top of each candidate's own."""
        sizes = map(int.__add__, self.nbytes, beside)
        return curve_of(
            [Point(n, self.importance * noise) for n, noise in zip(sizes, self.measured.noise, strict=True)]
        )

    def decision(self, base: Decision, at: int) -> Decision:
        """The layer by candidate `at`."""
        spec = self.measured.specs[at]
        return kept(base.layer, KEPT) if spec is None else replace(base, spec=spec, stored_bytes=self.nbytes[at])


@dataclass(frozen=True, slots=True)
class Frontier:
    """Everything that is possible for a model, after one measurement: each size has its best plan."""

    base: Plan
    costs: Costs
    choices: Mapping[str, _Choice]
    curves: tuple[Curve, ...]

    @property
    def weights(self) -> int:
        """The weights that there is a choice for."""
        return sum(choice.measured.layer.weights for choice in self.choices.values())

    def at(self, tensor_bytes: int) -> PricedPlan:
        """The plan with the least error whose tensors take at most so many bytes (at least the smallest possible)."""
        return self._plan(self.curves, tensor_bytes)

    def _plan(self, curves: Sequence[Curve], budget: int) -> PricedPlan:
        at = {
            name: curve.source[point]
            for name, curve, point in zip(self.choices, curves, allocate(curves, budget), strict=True)
        }
        decided = {d.name: self._decided(d, at) for d in self.base.decisions}
        plan = Plan(tuple(decided.values()))
        picks = [(self.choices[name].measured, at[name]) for name in at]
        signal, noise = fsum(m.signal for m, _ in picks), fsum(m.noise[i] for m, i in picks)
        nbytes = sum(decided[name].stored_bytes for name in at)
        return PricedPlan(
            plan, nbytes, self.weights, self.costs.total(plan), ErrorFigures(self.weights, signal, noise, 0.0)
        )

    def _decided(self, base: Decision, at: Mapping[str, int]) -> Decision:
        owner = base.layer.owner
        if owner not in at:
            return base
        found = self.choices[owner].decision(base, at[owner])
        return found if base.layer.tied_to is None else replace(found, stored_bytes=0)

    def for_goal(self, goal: Goal) -> PricedPlan:
        """The plan for a goal; SpecError names the smallest possible size where the goal is smaller."""
        return self.for_bits(goal.bits) if goal.bits is not None else self.for_size(goal.nbytes or 0)

    def for_bits(self, bits: float) -> PricedPlan:
        """The plan with at most so many stored bits per weight."""
        least = least_bytes(self.curves)
        budget = int(bits * self.weights / 8)
        if budget < least:
            smallest = ceil(8000 * least / max(1, self.weights)) / 1000
            raise SpecError(
                f"target-bits is {bits:g}; the smallest possible here is {smallest:.3f} stored bits per weight: "
                "allow more, or leave more open (bits, granularity, embeddings)"
            )
        return self.at(budget)

    def for_size(self, nbytes: int) -> PricedPlan:
        """The plan of an output with at most so many bytes in all its files."""
        curves = self._curves_of_all()
        least = least_bytes(curves)
        smallest = self._plan(curves, least)
        if nbytes < smallest.total_bytes:
            raise SpecError(
                f"target-size is {nbytes} bytes; the smallest plan makes an output of {smallest.total_bytes} bytes: "
                "allow more, or leave more open (bits, granularity, embeddings)"
            )
        # What layers share is known of whole plans only. Every budget tried below is one of a list that does not depend
        # on `nbytes`, and the largest that fits is taken, so a larger output never has more noise.
        budgets = hull_budgets(curves)
        shared = _SHARED_BYTES * (1 + len({decision.spec for decision in smallest.plan.quantized}))
        at = bisect_right(budgets, nbytes - (smallest.total_bytes - least) + shared) - 1
        while (found := self._plan(curves, budgets[at])).total_bytes > nbytes:
            at -= 1
        if at + 1 == len(budgets):
            return found
        step = budgets[at + 1] - budgets[at]
        for part in range(_PARTS_OF_STEP, 0, -1):
            more = (step - 1) * part // _PARTS_OF_STEP
            if more <= nbytes - found.total_bytes + shared:
                trial = self._plan(curves, budgets[at] + more)
                if trial.total_bytes <= nbytes:
                    return trial
        return found

    def _curves_of_all(self) -> tuple[Curve, ...]:
        """The curves of all that a layer takes: a small one that is quantized may need more words than it saves bytes."""
        bases = {decision.name: decision for decision in self.base.decisions}

        def curve(name: str, choice: _Choice) -> Curve:
            candidates = range(len(choice.nbytes))
            return choice.curve([self.costs.beside(choice.decision(bases[name], at)) for at in candidates])

        return tuple(curve(name, choice) for name, choice in self.choices.items())

    def marks(self) -> list[PricedPlan]:
        """About a dozen plans from the smallest to the largest that quantizes, at round numbers of bits per weight."""
        least = least_bytes(self.curves)
        most = sum(
            max(
                (n for n, spec in zip(choice.nbytes, choice.measured.specs, strict=True) if spec is not None),
                default=choice.measured.layer.nbytes,
            )
            for choice in self.choices.values()
        )
        per_bit = max(1, self.weights) / 8
        low, high = least / per_bit, most / per_bit
        step = next((step for step in _STEPS if (high - low) / step <= _MOST_MARKS), _STEPS[-1])
        between = (number * step for number in range(int(low / step) + 1, ceil(high / step)))
        sizes = [least, *(int(bits * per_bit) for bits in between if bits < high - step / 10), max(least, most)]
        found: list[PricedPlan] = []
        for size in sizes:
            mark = self.at(size)
            if not found or mark.tensor_bytes > found[-1].tensor_bytes:
                found.append(mark)
        return found


def frontier_of(  # noqa: PLR0913, PLR0917 - what an adapter brings
    base: Plan,
    goal: Goal,
    recipe: Recipe,
    costs: Costs,
    measure: Measure,
    label: str,
    possible: Callable[[Layer, QuantSpec], bool] = lambda layer, spec: True,  # noqa: ARG005 - names of a protocol
) -> Frontier:
    """Measure what the layers of a model can become.

    Args:
        base: the plan of the recipe `goal.smallest(recipe)`: what it keeps stays.
        goal: what will be asked of the frontier; only the candidates depend on it.
        recipe: what was asked for; its `spec` counts for nothing.
        costs: of the adapter.
        measure: of the adapter.
        label: what errors call the model.
        possible: whether the adapter can store a layer by a spec.

    Raises:
        SpecError: where there is nothing to choose, and what `Goal.pools` raises.
    """
    pool, for_embeddings = goal.pools(recipe)
    asked: list[tuple[Layer, Pool]] = []
    tables = {decision.layer.owner for decision in base.quantized if decision.layer.role == "embedding"}
    included = {decision.layer.owner for decision in base.quantized if decision.reason}
    for decision in base.quantized:
        layer = decision.layer
        if layer.tied_to is not None:
            continue
        specs = for_embeddings if layer.name in tables else pool
        ready = [spec for spec in specs if spec is not None and possible(layer, spec)]
        smaller = tuple(spec for spec in ready if costs.price(layer, spec) < layer.nbytes)
        may_stay = None in specs and layer.name not in included  # what was asked for is not kept
        asked.append((layer, (*smaller, None) if may_stay or not smaller else smaller))
    if not asked:
        raise SpecError(f"{label}: has no tensor that can be quantized under these options; see why with --dry-run -v")
    measured = measure(asked)
    choices = {
        one.layer.name: _Choice(
            one, tuple(one.layer.nbytes if s is None else costs.price(one.layer, s) for s in one.specs), importance
        )
        for one, importance in zip(measured, importances(_by_all_names(base, measured), goal.weighting), strict=True)
    }
    curves = tuple(choice.curve([0] * len(choice.nbytes)) for choice in choices.values())
    return Frontier(base, costs, choices, curves)


def _by_all_names(base: Plan, measured: Sequence[Measured]) -> list[Measured]:
    """What was measured, of layers that can be called by the names of those that share their weight too."""
    names: dict[str, list[str]] = {}
    for decision in base.quantized:
        names.setdefault(decision.layer.owner, []).extend(decision.layer.names)
    return [replace(one, layer=replace(one.layer, aliases=tuple(names[one.layer.name]))) for one in measured]
