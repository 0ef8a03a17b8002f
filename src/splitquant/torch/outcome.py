"""What became of every module of a model, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from torch import nn

from splitquant.core.error import NO_ERROR, ErrorFigures
from splitquant.core.spec import QuantSpec

Outcome = Literal["split", "quantized", "merged", "kept"]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class ModuleOutcome:
    """What became of one module that holds weights.

    name: in the model ("" is the model itself); kind: its class; shape, dtype: of its weight, or of its largest parameter.
    outcome: what was done; reason: why it was kept, or what there is to know.
    figures: what its weights lose by `spec`; of a split layer, what its parts will lose when each is quantized by `spec`.
    activations: the grid of its input ("": none).
    """

    name: str
    kind: str
    outcome: Outcome
    reason: str
    shape: tuple[int, ...]
    dtype: str
    spec: QuantSpec | None = None
    figures: ErrorFigures | None = None
    activations: str = ""

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        sqnr = "" if self.figures is None else f"{self.figures.sqnr_db:.1f} dB"
        words = (
            self.outcome,
            self.name or "(the model)",
            self.kind,
            shape,
            self.dtype,
            sqnr,
            self.activations,
            self.reason,
        )
        return "  ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What became of every module with weights, in the order of `model.named_modules()`, shared ones under each name."""

    modules: tuple[ModuleOutcome, ...]

    @property
    def changed(self) -> tuple[ModuleOutcome, ...]:
        """The modules that were split, quantized or merged."""
        return tuple(module for module in self.modules if module.outcome != "kept")

    @property
    def kept(self) -> tuple[ModuleOutcome, ...]:
        """The modules that were left alone, each with its reason."""
        return tuple(module for module in self.modules if module.outcome == "kept")

    @property
    def figures(self) -> ErrorFigures:
        """The error figures of all changed modules together; a shared one counts once."""
        total = NO_ERROR
        for module in self.modules:
            total = total if module.figures is None else total.merge(module.figures)
        return total

    def __getitem__(self, name: str) -> ModuleOutcome:
        """The outcome of the module of that name; KeyError if it holds no weights."""
        for module in self.modules:
            if module.name == name:
                return module
        raise KeyError(name)

    def __str__(self) -> str:
        head = f"{len(self.changed)} of {len(self.modules)} modules with weights changed"
        return "\n".join([head, *map(str, self.modules)])


class Converted(NamedTuple, Generic[M]):
    """A converted model and what became of its modules: `model, report = split(model)`."""

    model: M
    report: ModelReport
