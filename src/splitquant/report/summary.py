"""A report in few rows: tensors by what became of them. Read by the table of the command line and by the model card."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from splitquant.report.outcome import Report, TensorOutcome, merged_figures


@dataclass(frozen=True, slots=True)
class Row:
    """Some tensors with the same outcome."""

    what: str
    tensors: tuple[TensorOutcome, ...]

    @property
    def weights(self) -> int:
        """How many numbers they have together."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        """Their bytes before."""
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Their bytes after."""
        return sum(tensor.stored_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights."""
        return 8.0 * self.stored_bytes / max(1, self.weights)

    @property
    def sqnr(self) -> str:
        """Their SQNR in dB as text ("" for kept tensors)."""
        return decibels(merged_figures(self.tensors).sqnr_db) if any(tensor.figures for tensor in self.tensors) else ""


def by_outcome(report: Report) -> list[Row]:
    """One row per spec and role of quantized tensors, then one per reason of kept ones, each by falling size."""

    def quantized(tensor: TensorOutcome) -> str:
        return f"{_ROLE[tensor.role]}: {tensor.spec}"

    def kept(tensor: TensorOutcome) -> str:
        return f"kept: {tensor.reason}"

    return [*_grouped(report.quantized, quantized), *_grouped(report.kept, kept)]


def total(report: Report) -> Row:
    """All tensors in one row."""
    return Row("all", report.tensors)


def decibels(value: float) -> str:
    """An SQNR for people."""
    return "exact" if math.isinf(value) and value > 0 else f"{value:.2f} dB"


def size(nbytes: float) -> str:
    """A number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if round(nbytes, 1) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


_ROLE = {
    "linear": "linear",
    "conv": "convolution",
    "expert": "experts",
    "embedding": "embedding",
    "other": "other",
}


def _grouped(tensors: tuple[TensorOutcome, ...], key: Callable[[TensorOutcome], str]) -> list[Row]:
    groups: dict[str, list[TensorOutcome]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    rows = [Row(what, tuple(members)) for what, members in groups.items()]
    return sorted(rows, key=lambda row: (-row.source_bytes, row.what))
