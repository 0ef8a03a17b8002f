"""A size in, a plan out: measure every candidate, then choose so that the folder is never larger and the error least."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, fsum
from pathlib import Path
from typing import Any

from splitquant.checkpoint.convert import open_float_folder, plan_folder
from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.measure import measure_folder
from splitquant.checkpoint.size import folder_bytes, side_bytes
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.budget import allocate, hull_budgets, least_bytes
from splitquant.plan.candidates import Options, allowed_by, candidates, embedding_candidates, runs_on
from splitquant.plan.frontier import Curve, curve_of
from splitquant.plan.plan import Plan, Recipe, TensorPlan, refuse_clashes
from splitquant.plan.saved import plan_from_dict
from splitquant.plan.targets import target_of
from splitquant.plan.weighting import Weighting, importances
from splitquant.storage.json_file import read_edited_json
from splitquant.storage.resources import Resources

KEPT = "kept by the size target"
_SMALLEST = QuantSpec(bits=2, clusters=1, granularity="tensor")  # what this does not shrink, nothing does
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_MOST_MARKS = 14
_SHARED_BYTES = 512  # of a spec in the config and a row of the card, at most
_PARTS_OF_STEP = 32


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of a plan: at most `bits` stored bits per weight, or at most `nbytes` of the whole folder.

    weighting: what a tensor's error counts, see `plan.weighting`. fixed: fields of `QuantSpec` that are decided already.
    choose_embeddings: whether embeddings are chosen too; else they are what the recipe says. target: what must run the
    result, see `plan.targets`.
    """

    bits: float | None = None
    nbytes: int | None = None
    weighting: Weighting = "energy"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    choose_embeddings: bool = True
    target: str | None = None

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.nbytes is None):
            raise SpecError("give one of target-bits and target-size")
        if self.bits is not None and not (isinstance(self.bits, (int, float)) and 0 < self.bits < 1e3):
            raise SpecError(f"target-bits is {self.bits!r}; expected stored bits per weight, for instance 4.5")

    def pools(self) -> tuple[tuple[QuantSpec | None, ...], tuple[QuantSpec | None, ...]]:
        """The candidates for weights and those for embeddings; None keeps a tensor. SpecError where nothing is left."""
        if self.target is None:
            return (*candidates(self.fixed), None), (*embedding_candidates(self.fixed), None)
        target = target_of(self.target)
        target.refuse_strategy(self.fixed.get("strategy"))
        fixed = {**allowed_by(target), **self.fixed}
        possible = candidates(fixed)
        pool = [spec for spec in possible if runs_on(target, spec)]
        asked = [spec for spec in possible if spec.strategy == self.fixed.get("strategy")] or possible
        if not set(asked) & set(pool):  # widths that nobody asked for are not why
            target.refuse(next((spec for spec in asked if target.width_of(spec) in target.grids), asked[0]))
        embeddings = [spec for spec in embedding_candidates(fixed) if runs_on(target, spec)]
        return (*pool, None), (*embeddings, None)


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan and what it costs. tensor_bytes, weights and figures are of the tensors that there was a choice for.

    folder_bytes: of the whole output, at most. figures: measured, on a sample where a tensor is large.
    """

    plan: Plan
    tensor_bytes: int
    weights: int
    folder_bytes: int
    figures: ErrorFigures

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the tensors over their weights."""
        return 8.0 * self.tensor_bytes / max(1, self.weights)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Everything that is possible for a folder, after one measurement: each size has its best plan.

    importance: what the noise of each tensor counts. curves: of the stored tensors alone.
    """

    folder: Folder
    base: Plan
    options: tuple[Options, ...]
    importance: tuple[float, ...]
    curves: tuple[Curve, ...]

    @property
    def weights(self) -> int:
        """The weights that there is a choice for."""
        return sum(option.tensor.weights for option in self.options)

    def at(self, tensor_bytes: int) -> Choice:
        """The plan with the least error whose tensors take at most so many bytes (at least the smallest possible)."""
        return self._choice(self.curves, tensor_bytes)

    def _choice(self, curves: Sequence[Curve], budget: int) -> Choice:
        chosen: dict[str, tuple[Options, int]] = {}
        for option, curve, at in zip(self.options, curves, allocate(curves, budget), strict=True):
            chosen[option.tensor.name] = (option, curve.source[at])
        plan = Plan(tuple(_decided(tensor, chosen.get(tensor.name)) for tensor in self.base.tensors))
        refuse_clashes(plan)
        picks = chosen.values()
        figures = ErrorFigures(
            self.weights,
            fsum(option.signal for option, _ in picks),
            fsum(option.noise[i] for option, i in picks),
            0.0,
        )
        nbytes = sum(option.nbytes(option.specs[i]) for option, i in picks)
        return Choice(plan, nbytes, self.weights, folder_bytes(self.folder, plan), figures)

    def for_goal(self, goal: Goal) -> Choice:
        """The plan for a goal; SpecError names the smallest possible size where the goal is smaller."""
        return self.for_bits(goal.bits) if goal.bits is not None else self.for_size(goal.nbytes or 0)

    def for_bits(self, bits: float) -> Choice:
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

    def for_size(self, nbytes: int) -> Choice:
        """The plan of a folder with at most so many bytes in all its files."""
        curves = self._curves_in_folder()
        least = least_bytes(curves)
        smallest = self._choice(curves, least)
        if nbytes < smallest.folder_bytes:
            raise SpecError(
                f"target-size is {nbytes} bytes; the smallest plan makes a folder of {smallest.folder_bytes} bytes: "
                "allow more, or leave more open (bits, granularity, embeddings)"
            )
        # What tensors share is known of whole plans only. Every budget tried below is one of a list that does not depend
        # on `nbytes`, and the largest that fits is taken, so a larger folder never has more noise.
        budgets = hull_budgets(curves)
        shared = _SHARED_BYTES * (1 + len({tensor.spec for tensor in smallest.plan.quantized}))
        at = bisect_right(budgets, nbytes - (smallest.folder_bytes - least) + shared) - 1
        while (found := self._choice(curves, budgets[at])).folder_bytes > nbytes:
            at -= 1
        if at + 1 == len(budgets):
            return found
        step = budgets[at + 1] - budgets[at]
        for part in range(_PARTS_OF_STEP, 0, -1):
            more = (step - 1) * part // _PARTS_OF_STEP
            if more <= nbytes - found.folder_bytes + shared:
                choice = self._choice(curves, budgets[at] + more)
                if choice.folder_bytes <= nbytes:
                    return choice
        return found

    def _curves_in_folder(self) -> tuple[Curve, ...]:
        """The curves of all that a tensor takes: a small one that is quantized may need more words than it saves bytes."""

        def curve(option: Options, importance: float) -> Curve:
            kept = replace(option.tensor, spec=None, reason=KEPT)

            def side(spec: QuantSpec | None) -> int:
                return side_bytes(self.folder, kept if spec is None else replace(option.tensor, spec=spec))

            return curve_of(option.points(importance, side))

        return tuple(map(curve, self.options, self.importance))

    def marks(self) -> list[Choice]:
        """About a dozen plans from the smallest to the largest that quantizes, at round numbers of bits per weight."""
        least = least_bytes(self.curves)
        most = sum(max(option.nbytes(spec) for spec in option.specs if spec is not None) for option in self.options)
        per_bit = max(1, self.weights) / 8
        low, high = least / per_bit, most / per_bit
        step = next((step for step in _STEPS if (high - low) / step <= _MOST_MARKS), _STEPS[-1])
        between = (number * step for number in range(int(low / step) + 1, ceil(high / step)))
        sizes = [least, *(int(bits * per_bit) for bits in between if bits < high - step / 10), max(least, most)]
        found: list[Choice] = []
        for size in sizes:
            choice = self.at(size)
            if not found or choice.tensor_bytes > found[-1].tensor_bytes:
                found.append(choice)
        return found


def _decided(tensor: TensorPlan, chosen: tuple[Options, int] | None) -> TensorPlan:
    if chosen is None:
        return tensor
    option, i = chosen
    spec = option.specs[i]
    return replace(tensor, spec=spec, reason=KEPT if spec is None else tensor.reason)


def measure_frontier(
    source: Path,
    recipe: Recipe,
    goal: Goal,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Frontier:
    """Measure what a folder's tensors can become; the recipe's `spec` counts for nothing, its patterns and embeddings do.

    Same result for the same input and options, whatever the threads and the memory.
    """
    pool, for_embeddings = goal.pools()
    embeddings: tuple[QuantSpec | None, ...] = pool if recipe.embeddings is None else (recipe.embeddings,)
    if goal.choose_embeddings:
        embeddings = for_embeddings
    smallest = replace(recipe, spec=_SMALLEST, embeddings=_SMALLEST if goal.choose_embeddings else recipe.embeddings)
    folder, base = plan_folder(source, smallest)

    def pool_of(tensor: TensorPlan) -> tuple[QuantSpec | None, ...]:
        specs = embeddings if tensor.role.kind == "embedding" else pool
        return tuple(spec for spec in specs if spec is not None or not tensor.reason)  # what was asked for is not kept

    options = measure_folder(folder, base.quantized, pool_of, resources.budget(len(base.tensors)), advance)
    if not options:
        raise SpecError(f"{source}: has no tensor that can be quantized under these options; see why with --dry-run -v")
    importance = tuple(importances(options, goal.weighting))
    curves = tuple(curve_of(option.points(number)) for option, number in zip(options, importance, strict=True))
    return Frontier(folder, base, options, importance, curves)


def read_plan(source: Path, file: Path) -> tuple[Folder, Plan]:
    """A folder and the plan for it that a file holds; SpecError where the file does not fit."""
    folder = open_float_folder(source)
    headers = (entry for shard in folder.shards for entry in shard.entries)
    plan = plan_from_dict(read_edited_json(file), headers, folder.config, str(file))
    refuse_clashes(plan)
    return folder, plan
