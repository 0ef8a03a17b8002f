"""A report in few rows: tensors by what became of them. Read by the table of the command line and by the model card."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from splitquant.report.outcome import Outcome, Report, merged_figures


@dataclass(frozen=True, slots=True)
class Row:
    """Some layers with the same outcome."""

    what: str
    outcomes: tuple[Outcome, ...]

    @property
    def weights(self) -> int:
        """How many numbers they have together; those that layers share count once."""
        return sum(one.weights for one in self.outcomes if one.source_bytes)

    @property
    def source_bytes(self) -> int:
        """Their bytes before."""
        return sum(one.source_bytes for one in self.outcomes)

    @property
    def stored_bytes(self) -> int:
        """Their bytes after."""
        return sum(one.stored_bytes for one in self.outcomes)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights."""
        return 8.0 * self.stored_bytes / max(1, self.weights)

    @property
    def sqnr(self) -> str:
        """Their SQNR in dB as text ("" for kept tensors)."""
        return decibels(merged_figures(self.outcomes).sqnr_db) if any(one.figures for one in self.outcomes) else ""


def by_outcome(report: Report) -> list[Row]:
    """One row per spec and role of changed tensors, then one per reason of kept ones, each by falling size."""

    def changed(tensor: Outcome) -> str:
        return f"{_ROLE[tensor.role]}: {what_became_of(replace(tensor, reason=''))}"

    return [*_grouped(report.changed, changed), *_grouped(report.kept, what_became_of)]


def what_became_of(outcome: Outcome) -> str:
    """What was done with a layer and how, or why not."""
    if outcome.outcome == "kept":
        return f"kept: {outcome.reason}"
    form = f", {outcome.parts} x {outcome.form}" if outcome.form else ""
    done = "split for " if outcome.outcome == "split" else ""
    return f"{done}{outcome.spec}{form}" + (f" ({outcome.reason})" if outcome.reason else "")


def total(report: Report) -> Row:
    """All tensors in one row."""
    return Row("all", report.outcomes)


def decibels(value: float) -> str:
    """An SQNR for people."""
    return "exact" if math.isinf(value) and value > 0 else f"{value:.2f} dB"


_ROLE = {
    "linear": "linear",
    "conv": "convolution",
    "expert": "experts",
    "embedding": "embedding",
    "other": "other",
}


def _grouped(outcomes: tuple[Outcome, ...], key: Callable[[Outcome], str]) -> list[Row]:
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(key(one), []).append(one)
    rows = [Row(what, tuple(members)) for what, members in groups.items()]
    return sorted(rows, key=lambda row: (-row.source_bytes, row.what))
