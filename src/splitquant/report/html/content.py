"""What a page shows, as frozen values, and as the JSON that the page's script reads."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from splitquant.core.bars import Bars
from splitquant.core.error import ErrorFigures
from splitquant.plan.planner import PricedPlan
from splitquant.report.distribution import Distribution, GridPicture
from splitquant.report.html.places import blocks_in_order, place_of
from splitquant.report.outcome import Outcome, Report
from splitquant.report.summary import by_outcome, what_became_of
from splitquant.version import __version__

BARS = 128
MIDDLE = 0.999
_STEPS_PER_OCTAVE = 1024


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one's own, shown under the figures: rows of texts and numbers, None where there is nothing."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows.

    Args:
        source, destination: what the model and what was made of it are called.
        report: what became of every tensor.
        distributions: by tensor; those that are missing have no pictures.
        frontier: plans of other sizes, by size, where the plan was chosen by size.
        chosen: the plan among them that was taken.
        tables: more to be shown.
    """

    source: str
    destination: str
    report: Report
    distributions: Mapping[str, Distribution] = field(default_factory=lambda: MappingProxyType({}))
    frontier: Sequence[PricedPlan] = ()
    chosen: PricedPlan | None = None
    tables: Sequence[Table] = ()


def content_dict(content: Content) -> dict[str, Any]:
    """The JSON form; short keys where something stands there once per tensor.

    Args:
        content: what is shown.
    """
    outcomes = content.report.outcomes
    blocks = blocks_in_order(one.name for one in outcomes if one.figures is not None)
    kinds: dict[str, int] = {}
    specs: dict[str, int] = {}
    tensors = [_tensor(one, content.distributions.get(one.name), blocks, kinds, specs) for one in outcomes]
    return {
        "version": __version__,
        "source": content.source,
        "destination": content.destination,
        "tensors": tensors,
        "blocks": list(blocks),
        "kinds": list(kinds),
        "specs": list(specs),
        "groups": [
            [row.what, len(row.outcomes), row.weights, row.source_bytes, row.stored_bytes, _decibels(row.outcomes)]
            for row in by_outcome(content.report)
        ],
        "frontier": [
            {
                "bytes": plan.total_bytes,
                "bits": _short(plan.bits_per_weight),
                "sqnr": _short(plan.figures.sqnr_db) if plan.figures.noise > 0 else None,
                "chosen": plan is content.chosen,
            }
            for plan in content.frontier
        ],
        "tables": [{"title": one.title, "columns": one.columns, "rows": one.rows} for one in content.tables],
        "notes": list(content.report.notes),
        "middle": MIDDLE,
    }


def _tensor(
    one: Outcome, seen: Distribution | None, blocks: Mapping[str, int], kinds: dict[str, int], specs: dict[str, int]
) -> dict[str, Any]:
    place = place_of(one.name)
    data: dict[str, Any] = {
        "n": one.name,
        "d": one.dtype,
        "s": list(one.shape),
        "b": one.source_bytes,
        "a": one.stored_bytes,
        "t": specs.setdefault(what_became_of(one), len(specs)),
        "k": kinds.setdefault(place.kind, len(kinds)),
    }
    if one.outcome == "kept":
        data["kept"] = 1
    if place.block in blocks:
        data["l"] = blocks[place.block]
    if one.figures is not None:
        data["f"] = _figures(one.figures)
    if seen is None or not seen.values.total:
        return data
    data["v"] = _bars(seen.values)
    if seen.errors.total:
        data["e"] = _bars(seen.errors)
    if seen.grid is not None:
        data["g"] = _grid(seen.grid, seen)
    if seen.matrices > 1:
        data["m"] = seen.matrices
    if seen.not_finite:
        data["x"] = seen.not_finite
    return data


def _figures(figures: ErrorFigures) -> list[float]:
    """Signal, noise and largest error; of what JSON has no number for, the largest that it has."""
    largest = 1e300
    return [_short(min(value, largest)) for value in (figures.signal, figures.noise, figures.max_error)]


def _grid(grid: GridPicture, seen: Distribution) -> dict[str, Any]:
    data: dict[str, Any] = {
        "axis": grid.axis,
        "levels": [_levels(row) for row in grid.levels],
        "parts": [[_short(one.low), _short(one.high), one.cluster] for one in grid.segments],
    }
    if grid.axis != "value" or seen.matrices > 1:
        data["v"] = _bars(grid.bars)
    return data


def _levels(row: Sequence[float]) -> dict[str, Any]:
    """Evenly spaced levels by the first, the step and the number, others one by one."""
    step = (row[-1] - row[0]) / max(1, len(row) - 1)
    if len(row) > 2 and all(abs(level - row[0] - i * step) <= 1e-3 * step for i, level in enumerate(row)):
        return {"from": _short(row[0]), "step": _short(step), "n": len(row)}
    return {"at": [_short(level) for level in row]}


def _bars(bars: Bars) -> list[Any]:
    """All of the bars, and the middle of them in finer ones where these are much finer."""
    whole, middle = bars.at_most(BARS), bars.middle(MIDDLE).at_most(BARS)
    return [_one(whole), *([_one(middle)] if middle.exponent < whole.exponent else [])]


def _one(bars: Bars) -> list[Any]:
    """First bin, exponent of the width, and counts: `log2(1 + count)` in steps of 1/1024, 16 bits each, base64."""
    logs = np.rint(np.log2(1.0 + bars.counts) * _STEPS_PER_OCTAVE).astype("<u2")
    return [bars.first, bars.exponent, base64.b64encode(logs.tobytes()).decode("ascii")]


def _decibels(outcomes: Sequence[Outcome]) -> float | None:
    figures = [one.figures for one in outcomes if one.figures is not None]
    signal, noise = sum(one.signal for one in figures), sum(one.noise for one in figures)
    return _short(10.0 * math.log10(signal / noise)) if signal > 0 and noise > 0 else None


def _short(value: float) -> float:
    """Six digits are enough to be drawn."""
    return float(f"{value:.6g}")
