"""What became of every layer, as frozen values with a JSON form: one for folders, modules and graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite, prod
from types import MappingProxyType
from typing import Any, Literal, get_args

from splitquant.core.error import NO_ERROR, ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.plan.layers import Role
from splitquant.plan.plan import Decision, Plan

REPORT_NAME = "splitquant_report.json"
REPORT_VERSION = 1

Fate = Literal["quantized", "split", "merged", "kept"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one layer.

    Args:
        name: of the layer; of a graph: of its node, or of a weight that no handled node reads.
        outcome: what was done.
        reason: why it was kept, or what there is to know.
        role: what it is.
        dtype, shape: of its weight.
        source_bytes, stored_bytes: what the weight took, and takes; 0 where it is that of a layer before.
        spec: by which it was quantized or split (None: it was not).
        figures: what its weights lose; of a layer split into floats, what they will lose when each part is quantized.
        kind: its class or operator ("": of a folder).
        weight: of a graph: the name of its weight.
        form: of a graph: how a part of it is stored.
        parts: of a graph: how many parts it became.
        activations: of a module: the grid of its input ("": none).
        checksums: of a folder: CRC-32, as eight hexadecimal digits, of every stored tensor that stands for it.
    """

    name: str
    outcome: Fate
    reason: str
    role: Role
    dtype: str
    shape: tuple[int, ...]
    source_bytes: int
    stored_bytes: int
    spec: QuantSpec | None = None
    figures: ErrorFigures | None = None
    kind: str = ""
    weight: str = ""
    form: str = ""
    parts: int = 0
    activations: str = ""
    checksums: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def weights(self) -> int:
        """How many numbers the weight has."""
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights."""
        return 8.0 * self.stored_bytes / max(1, self.weights)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what only some adapters know is left out where it is empty."""
        data = asdict(replace(self, checksums=dict(self.checksums)))
        data["shape"] = list(self.shape)
        data["spec"] = None if self.spec is None else self.spec.to_stored()
        return {name: value for name, value in data.items() if value or name not in _OF_SOME}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """Read the JSON form."""
        spec, figures = data["spec"], data["figures"]
        if not isinstance(data["checksums"], dict) or not isinstance(data["shape"], list):
            raise TypeError(f"tensor {data['name']!r} has no map of checksums or no list as its shape")
        for key, allowed in (("outcome", get_args(Fate)), ("role", get_args(Role))):
            if data[key] not in allowed:
                raise ValueError(f"tensor {data['name']!r} has the {key} {data[key]!r}")
        for key in ("name", "reason", "dtype"):
            if not isinstance(data[key], str):
                raise TypeError(f"tensor {data['name']!r} has the {key} {data[key]!r}, which is no text")
        counts = {"source_bytes": data["source_bytes"], "stored_bytes": data["stored_bytes"]}
        for key, number in (*counts.items(), *(("shape", size) for size in data["shape"])):
            if type(number) is not int or number < 0:
                raise ValueError(f"tensor {data['name']!r} has the {key} {number!r}, which is no count")
        for key, number in ({} if figures is None else figures).items():
            if type(number) not in (int, float) or not isfinite(number) or number < 0:
                raise ValueError(f"tensor {data['name']!r} has the {key} {number!r}, which is no figure")
        return cls(
            **{
                **data,
                "shape": tuple(data["shape"]),
                "spec": None if spec is None else QuantSpec.from_stored(spec),
                "figures": None if figures is None else ErrorFigures(**figures),
            }
        )

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        sqnr = "" if self.figures is None else f"{self.figures.sqnr_db:.1f} dB"
        words = (self.outcome, self.name or "(the model)", self.kind, shape, self.dtype, sqnr, self.activations)
        return "  ".join(word for word in (*words, self.reason) if word)


_OF_SOME = frozenset({"kind", "weight", "form", "parts", "activations"})
assert {item.name for item in fields(Outcome)} > _OF_SOME


@dataclass(frozen=True, slots=True)
class Run:
    """How a run went: what differs from machine to machine, and so is never written into a quantized model."""

    source: str
    destination: str
    wall_seconds: float
    peak_bytes: int
    threads: int
    kernels: str
    resumed_shards: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of every layer of a model, in the order of the source.

    Args:
        outcomes: one for every layer; a module with several names comes under each.
        run: how the run went (None: it was only planned, or the model is in memory).
        left_out: of a folder: files that were not carried over, since they hold its weights in other formats.
        notes: what else was changed, and what to know before the result is used.
    """

    outcomes: tuple[Outcome, ...]
    run: Run | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[Outcome, ...]:
        """What was quantized, split or merged."""
        return tuple(outcome for outcome in self.outcomes if outcome.outcome != "kept")

    @property
    def kept(self) -> tuple[Outcome, ...]:
        """What was left alone, each with its reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.outcome == "kept")

    @property
    def source_bytes(self) -> int:
        """Bytes of all weights before."""
        return sum(outcome.source_bytes for outcome in self.outcomes)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights after."""
        return sum(outcome.stored_bytes for outcome in self.outcomes)

    @property
    def figures(self) -> ErrorFigures:
        """The error figures of all weights together; a shared one counts once."""
        return merged_figures(self.outcomes)

    def __getitem__(self, name: str) -> Outcome:
        """The outcome of the layer of that name; KeyError if there is none."""
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise KeyError(name)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __str__(self) -> str:
        head = f"{len(self.changed)} of {len(self.outcomes)} layers changed"
        return "\n".join([head, *map(str, self.outcomes)])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; without the run it is the same for the same input and options."""
        data: dict[str, Any] = {
            "report_version": REPORT_VERSION,
            "tensors": [outcome.to_dict() for outcome in self.outcomes],
            "left_out": list(self.left_out),
        }
        if self.notes:
            data["notes"] = list(self.notes)
        if self.run is not None:
            data["run"] = asdict(self.run)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read the JSON form."""
        if data["report_version"] != REPORT_VERSION:
            raise ValueError(f"report_version is {data['report_version']!r}; this splitquant reads {REPORT_VERSION}")
        run = data.get("run")
        outcomes = tuple(Outcome.from_dict(item) for item in data["tensors"])
        notes = tuple(data.get("notes", ()))
        return cls(outcomes, None if run is None else Run(**run), tuple(data["left_out"]), notes)


def outcome_of(
    decision: Decision, figures: ErrorFigures | None = None, checksums: Mapping[str, str] = MappingProxyType({})
) -> Outcome:
    """What becomes of a layer by its decision; figures and checksums are there once it was done."""
    layer = decision.layer
    return Outcome(
        name=layer.name,
        outcome="kept" if decision.spec is None else "quantized",
        reason=decision.reason,
        role=layer.role,
        dtype=layer.dtype,
        shape=layer.shape,
        source_bytes=decision.source_bytes,
        stored_bytes=decision.stored_bytes,
        spec=decision.spec,
        figures=figures,
        checksums=checksums,
    )


def planned_report(plan: Plan) -> Report:
    """A plan in the form of a report: outcomes without figures."""
    return Report(tuple(outcome_of(decision) for decision in plan.decisions))


def merged_figures(outcomes: Iterable[Outcome]) -> ErrorFigures:
    """The error figures of several layers together."""
    total = NO_ERROR
    for outcome in outcomes:
        if outcome.figures is not None:
            total = total.merge(outcome.figures)
    return total
