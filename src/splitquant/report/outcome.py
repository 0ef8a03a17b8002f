"""What became of every tensor, as frozen values with a JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from splitquant.core.error import NO_ERROR, ErrorFigures
from splitquant.core.spec import QuantSpec
from splitquant.plan.plan import Plan, TensorPlan

REPORT_NAME = "splitquant_report.json"
REPORT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TensorOutcome:
    """What became of one tensor.

    outcome: `quantized` (with spec and figures) or `kept` (with the reason). checksums: CRC-32, as eight hexadecimal
    digits, of every stored tensor that stands for it.
    """

    name: str
    outcome: Literal["quantized", "kept"]
    reason: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    source_bytes: int
    stored_bytes: int
    spec: QuantSpec | None
    figures: ErrorFigures | None
    checksums: Mapping[str, str]

    @property
    def weights(self) -> int:
        """How many numbers the tensor has."""
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights."""
        return 8.0 * self.stored_bytes / max(1, self.weights)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        data = asdict(replace(self, checksums=dict(self.checksums)))
        return {**data, "shape": list(self.shape), "spec": None if self.spec is None else self.spec.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorOutcome:
        """Read the JSON form."""
        spec, figures = data["spec"], data["figures"]
        if not isinstance(data["checksums"], dict) or not isinstance(data["shape"], list):
            raise TypeError(f"tensor {data['name']!r} has no map of checksums or no list as its shape")
        if data["outcome"] not in ("quantized", "kept"):
            raise ValueError(f"tensor {data['name']!r} has the outcome {data['outcome']!r}")
        return cls(
            **{
                **data,
                "shape": tuple(data["shape"]),
                "spec": None if spec is None else QuantSpec.from_dict(spec),
                "figures": None if figures is None else ErrorFigures(**figures),
            }
        )


@dataclass(frozen=True, slots=True)
class Run:
    """How a run went: what differs from machine to machine, and so is never written into a quantized folder."""

    source: str
    destination: str
    wall_seconds: float
    peak_bytes: int
    threads: int
    kernels: str
    resumed_shards: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of every tensor of a folder, in the order of the source, and how the run went (None if only planned).

    left_out: files of the source that were not carried over, since they hold its weights in other formats.
    """

    tensors: tuple[TensorOutcome, ...]
    run: Run | None = None
    left_out: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[TensorOutcome, ...]:
        """The quantized tensors."""
        return tuple(tensor for tensor in self.tensors if tensor.outcome == "quantized")

    @property
    def kept(self) -> tuple[TensorOutcome, ...]:
        """The kept tensors."""
        return tuple(tensor for tensor in self.tensors if tensor.outcome == "kept")

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors after."""
        return sum(tensor.stored_bytes for tensor in self.tensors)

    @property
    def figures(self) -> ErrorFigures:
        """The error figures of all quantized tensors together."""
        return merged_figures(self.quantized)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; without the run it is the same for the same input and options."""
        data: dict[str, Any] = {
            "report_version": REPORT_VERSION,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "left_out": list(self.left_out),
        }
        if self.run is not None:
            data["run"] = asdict(self.run)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Read the JSON form."""
        if data["report_version"] != REPORT_VERSION:
            raise ValueError(f"report_version is {data['report_version']!r}; this splitquant reads {REPORT_VERSION}")
        run = data.get("run")
        tensors = tuple(TensorOutcome.from_dict(item) for item in data["tensors"])
        return cls(tensors, None if run is None else Run(**run), tuple(data["left_out"]))


def outcome_of(
    plan: TensorPlan, figures: ErrorFigures | None = None, checksums: Mapping[str, str] = MappingProxyType({})
) -> TensorOutcome:
    """What becomes of a tensor by its plan; figures and checksums are there once it was done."""
    return TensorOutcome(
        name=plan.name,
        outcome="kept" if plan.spec is None else "quantized",
        reason=plan.reason,
        role=plan.role.kind,
        dtype=plan.dtype,
        shape=plan.shape,
        source_bytes=plan.nbytes,
        stored_bytes=plan.stored_bytes,
        spec=plan.spec,
        figures=figures,
        checksums=checksums,
    )


def planned_report(plan: Plan) -> Report:
    """A plan in the form of a report: outcomes without figures."""
    return Report(tuple(outcome_of(tensor) for tensor in plan.tensors))


def merged_figures(tensors: tuple[TensorOutcome, ...]) -> ErrorFigures:
    """The error figures of several tensors together."""
    total = NO_ERROR
    for tensor in tensors:
        if tensor.figures is not None:
            total = total.merge(tensor.figures)
    return total
