"""The main job as Python functions: the names that `import splitquant` offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.checkpoint.convert import apply_plan, plan_folder
from splitquant.checkpoint.folder import Folder
from splitquant.checkpoint.planner import Goal, measure_frontier, read_plan
from splitquant.checkpoint.restore import dequantize_folder
from splitquant.checkpoint.verify import Verified, verify_folder
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.plan import Plan, Recipe, patterns
from splitquant.plan.targets import embeddings_for, spec_for, target_of
from splitquant.report.outcome import Report
from splitquant.storage.json_file import read_edited_json
from splitquant.storage.memory import DEFAULT_MAX_MEMORY, parse_bytes
from splitquant.storage.resources import Resources

AnyPath = str | Path
_USUAL_EMBEDDINGS = 8


def quantize(
    source: AnyPath,
    destination: AnyPath,
    spec: QuantSpec | None = None,
    *,
    embeddings: QuantSpec | int | str | None = "auto",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    target: str | None = None,
    target_bits: float | None = None,
    target_size: int | str | None = None,
    weighting: str | Mapping[str, float] = "energy",
    fixed: Mapping[str, Any] | None = None,
    plan: AnyPath | None = None,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Report:
    """Quantize a Hugging Face folder into another one; prints nothing.

    spec: for linear, convolution and expert weights (None: `QuantSpec()`).
    embeddings: for token embeddings and output heads: a spec, a number of bits (per channel, symmetric), "keep", or "auto":
        8 bits, and with target_bits or target_size whatever is best.
    include, exclude: glob patterns of tensor names; `include` wins over `exclude`, both over the rules.
    target: what is to run the result, such as "linear-sym" (docs/targets.md): picks the spec, or checks the one given.
    target_bits, target_size: choose the spec of every tensor so that its stored bits per weight, or the bytes of the whole
        folder (or text such as "800MB"), are at most that, and the error is least (docs/budget.md). weighting: "energy",
        "relative", or numbers by tensor name or pattern, or a JSON file of them. fixed: fields of `QuantSpec` to hold fast.
    plan: a JSON file from `splitquant quantize --save-plan` that says what becomes of every tensor.
    max_memory: bound on the peak memory of the process, bytes or text such as "1GiB". threads: 0 takes all processors.
    advance: told the number of source bytes that are done, from any thread.
    Raises SpecError, SourceError, TensorError, DestinationError (see `splitquant.errors`); on an error nothing is left.
    """
    resources = Resources.of(max_memory, threads, force=force)
    wish = _Wish(spec, embeddings, include, exclude, target, target_bits, target_size, weighting, fixed, plan)
    folder, planned = wish.plan_for(Path(source), resources)
    return apply_plan(folder, planned, Path(destination), resources, advance)


def dry_run(
    source: AnyPath,
    spec: QuantSpec | None = None,
    *,
    embeddings: QuantSpec | int | str | None = "auto",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    target: str | None = None,
    target_bits: float | None = None,
    target_size: int | str | None = None,
    weighting: str | Mapping[str, float] = "energy",
    fixed: Mapping[str, Any] | None = None,
    plan: AnyPath | None = None,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
) -> Plan:
    """What `quantize` would do with every tensor of a folder, and why; reads headers only, unless a target is given."""
    wish = _Wish(spec, embeddings, include, exclude, target, target_bits, target_size, weighting, fixed, plan)
    return wish.plan_for(Path(source), Resources.of(max_memory, threads))[1]


def verify(source: AnyPath, destination: AnyPath, *, max_memory: int | str = DEFAULT_MAX_MEMORY) -> Verified:
    """Hold a quantized folder against its source; VerifyError names the first tensor that is off."""
    return verify_folder(Path(source), Path(destination), Resources.of(max_memory, 1).budget())


def dequantize(
    source: AnyPath, destination: AnyPath, *, max_memory: int | str = DEFAULT_MAX_MEMORY, force: bool = False
) -> int:
    """Write the plain float folder that a quantized one stands for; returns the bytes of its tensors."""
    return dequantize_folder(Path(source), Path(destination), Resources.of(max_memory, 1).budget(), force=force)


def recipe_of(
    spec: QuantSpec | None,
    embeddings: QuantSpec | int | str | None,
    include: Sequence[str] | str,
    exclude: Sequence[str] | str,
    target: str | None = None,
) -> Recipe:
    """The recipe of user-level options; SpecError names the option that is off."""
    embeddings = _USUAL_EMBEDDINGS if embeddings == "auto" else embeddings
    return Recipe(spec or QuantSpec(), embeddings_for(target, embeddings), patterns(include), patterns(exclude))


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a caller said of a folder; the fields are the arguments of `quantize`."""

    spec: QuantSpec | None
    embeddings: QuantSpec | int | str | None
    include: Sequence[str] | str
    exclude: Sequence[str] | str
    target: str | None
    target_bits: float | None
    target_size: int | str | None
    weighting: str | Mapping[str, float]
    fixed: Mapping[str, Any] | None
    plan: AnyPath | None

    def plan_for(self, source: Path, resources: Resources) -> tuple[Folder, Plan]:
        """The folder and what becomes of its tensors; SpecError for what does not go together."""
        goal = self._goal()
        spec = self.spec if goal is not None else self._spec()
        recipe = recipe_of(spec, self.embeddings, self.include, self.exclude, self.target)
        if goal is not None and spec is not None:
            raise SpecError("a spec and a target are given; hold some of its fields fast with fixed={...} instead")
        if self.plan is not None:
            if goal is not None or recipe != Recipe():
                raise SpecError("a plan says what becomes of every tensor; leave out all other choices")
            return read_plan(source, Path(self.plan))
        if goal is None:
            return plan_folder(source, recipe)
        frontier = measure_frontier(source, recipe, goal, resources)
        return frontier.folder, frontier.for_goal(goal).plan

    def _spec(self) -> QuantSpec | None:
        if self.target is None or self.spec is None:
            return self.spec if self.target is None else spec_for(self.target)
        target_of(self.target).refuse(self.spec)
        return self.spec

    def _goal(self) -> Goal | None:
        weighting, nbytes = self.weighting, self.target_size
        if self.target_bits is None and nbytes is None:
            if weighting != "energy" or self.fixed is not None:
                raise SpecError("weighting and fixed need target_bits or target_size")
            return None
        if isinstance(weighting, str) and weighting not in ("energy", "relative"):
            weighting = read_edited_json(Path(weighting))
        return Goal(
            bits=self.target_bits,
            nbytes=parse_bytes(nbytes) if isinstance(nbytes, str) else nbytes,
            weighting=weighting,
            fixed=self.fixed or {},
            choose_embeddings=self.embeddings == "auto",
            target=self.target,
        )
