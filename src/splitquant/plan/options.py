"""What can be asked of a quantization, in one value: the options of the Python functions and of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.explicit import explicit_spec
from splitquant.plan.planner import Goal
from splitquant.plan.recipe import Recipe, patterns
from splitquant.plan.targets import embeddings_for, spec_for, target_of
from splitquant.plan.weighting import Weighting
from splitquant.sizes import parse_bytes


class PlanningOptions(TypedDict, total=False):
    """The options of `PlanOptions` that adapters for models in memory pass on as they are."""

    fixed: Mapping[str, Any]
    target: str | None
    target_bits: float | None
    target_size: int | str | None
    weighting: Weighting
    plan_file: Path | str | None


PRESETS = ("best", "paper")
_USUAL_EMBEDDINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How a plan is made.

    Args:
        spec: for linear, convolution and expert weights; None: what is usual, with `fixed`.
        fixed: fields of `QuantSpec` that are decided; the others are chosen.
        preset: `best`, or `paper`: SplitQuantV2 as published.
        embeddings: for token embeddings and output heads: a spec, a number of bits (per channel, symmetric), "keep" or None,
            or "auto": 8 bits, and with a size whatever is best.
        include, exclude: names or glob patterns of tensors; `include` wins over `exclude`, both over the rules of taste.
        target: what is to run the result, see `plan.targets`: chooses what is not fixed, or checks the spec given.
        target_bits: choose by tensor, so that the stored bits per weight are at most that.
        target_size: choose by tensor, so that the bytes of the whole output (or text such as "800MB") are at most that.
        weighting: what the error of a tensor counts, see `plan.weighting`.
        plan_file: a file that says what becomes of every tensor, see `plan.saved`.

    Raises:
        SpecError: for what does not go together.
    """

    spec: QuantSpec | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "best"
    embeddings: QuantSpec | int | str | None = "auto"
    include: Sequence[str] | str = ()
    exclude: Sequence[str] | str = ()
    target: str | None = None
    target_bits: float | None = None
    target_size: int | str | None = None
    weighting: Weighting = "energy"
    plan_file: Path | str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SpecError(f"preset is {self.preset!r}; expected one of {', '.join(PRESETS)}")
        if self.plan_file is not None and (others := [*self.fixed, *self._explicit()]):
            raise SpecError(f"a plan says what becomes of every tensor; leave out {', '.join(others)}")
        if self.spec is not None and self.fixed:
            raise SpecError("a spec and fixed fields of one are given; leave one of them out")
        if self.preset == "paper" and (self.spec is not None or self.target is not None or self.by_size):
            raise SpecError("the preset paper decides everything; leave it out, or the spec, the target or the size")
        if self.by_size:
            if self.spec is not None:
                raise SpecError(
                    "a spec and a target size are given; hold some of its fields fast with fixed={...} instead"
                )
            self.goal()
        elif self.weighting != "energy":
            raise SpecError("weighting needs target-bits or target-size")

    def _explicit(self) -> list[str]:
        """The options, beside fixed fields, that say something else than nothing."""
        usual = {"preset": "best", "embeddings": "auto", "weighting": "energy"}
        names = (
            "spec",
            "preset",
            "embeddings",
            "include",
            "exclude",
            "target",
            "target_bits",
            "target_size",
            "weighting",
        )
        given = {name: getattr(self, name) for name in names}
        said = {name: value for name, value in given.items() if value != usual.get(name)}
        return [name.replace("_", "-") for name, value in said.items() if value or name == "embeddings"]

    @property
    def by_size(self) -> bool:
        """Whether the plan is to be chosen by size."""
        return self.target_bits is not None or self.target_size is not None

    def goal(self) -> Goal | None:
        """The size that was asked for (None: none was)."""
        if not self.by_size:
            return None
        return Goal(
            bits=self.target_bits,
            nbytes=parse_bytes(self.target_size) if isinstance(self.target_size, str) else self.target_size,
            weighting=self.weighting,
            fixed=self.fixed,
            choose_embeddings=self.embeddings == "auto",
            target=self.target,
        )

    def recipe(self, usual: Callable[..., QuantSpec] = lambda **fixed: explicit_spec(fixed)) -> Recipe:
        """The recipe that is meant; by size its spec counts for nothing.

        Args:
            usual: the spec of the fixed fields, where neither target nor preset chooses.

        Raises:
            SpecError: for fields that make no spec, and what the target cannot run.
        """
        embeddings = _USUAL_EMBEDDINGS if self.embeddings == "auto" else self.embeddings
        return Recipe(
            spec=QuantSpec() if self.by_size else self._spec(usual),
            embeddings=embeddings_for(self.target, embeddings),
            include=patterns(self.include),
            exclude=patterns(self.exclude),
        )

    def _spec(self, usual: Callable[..., QuantSpec]) -> QuantSpec:
        if self.spec is not None:
            if self.target is not None:
                target_of(self.target).refuse(self.spec)
            return self.spec
        if self.target is not None:
            return spec_for(self.target, **self.fixed)
        if self.preset == "paper":
            return explicit_spec(self.fixed, **PAPER.to_dict())
        return usual(**self.fixed)
