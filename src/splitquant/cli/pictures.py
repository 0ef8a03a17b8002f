"""Pictures as files, by matplotlib: error along the depth of a model, and the values, grids and errors of a tensor."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitquant.core.bars import Bars
from splitquant.errors import MissingExtraError, SpecError, TensorError
from splitquant.report.distribution import Distribution, GridPicture
from splitquant.report.html.places import blocks_in_order, place_of
from splitquant.report.outcome import Outcome, Report, merged_figures
from splitquant.report.summary import decibels, what_became_of
from splitquant.sizes import shown_bytes
from splitquant.storage.files import write_whole

PICTURES = (".svg", ".png")
COLOURS = ("#4269d0", "#e8890c", "#e5484d", "#2fa58c", "#9a5be0", "#d6459b", "#7c8f1e", "#7a8699")
_BARS = 128
_AXES = {
    "value": "weight",
    "scaled": "weight over the scale of its row or group",
    "code": "code on the grid of its row or group",
}


def check_picture(target: Path | None, endings: Sequence[str] = PICTURES) -> None:
    """Refuse a picture that cannot be made before any work is done."""
    if target is None:
        return
    if target.suffix.lower() not in endings:
        raise SpecError(f"--plot is {target}; expected a file that ends in {', '.join(endings)}")
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None


def drawn(figure: Any, form: str) -> bytes:
    """A figure as PNG or SVG; the same figure gives the same bytes."""
    import matplotlib as mpl

    held = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "splitquant"}):
        figure.savefig(held, format=form, metadata={"Date": None} if form == "svg" else None, dpi=150)
    return held.getvalue()


def write_depth(target: Path, report: Report) -> None:
    """SQNR along the depth of a model, a line for each kind of layer.

    Raises:
        SpecError: where no tensor has error figures.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = depth_lines(report)
    if not lines:
        raise SpecError(
            f"{target}: there is nothing to draw, since no error figures are known; name a tensor with --tensor, or give a "
            "folder that splitquant quantized, with its splitquant_report.json"
        )
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (kind, points) in enumerate(lines.items()):
        axes.plot(
            list(points),
            list(points.values()),
            marker="." if len(points) < 120 else "",
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if number < len(COLOURS) else "--",
            label=_text(kind),
        )
    axes.set(xlabel="block", ylabel="SQNR of the weights, dB", title="Error along the depth")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    write_whole(target, drawn(figure, target.suffix.lower().removeprefix(".")))


def depth_lines(report: Report) -> dict[str, dict[int, float]]:
    """SQNR in dB by kind of layer and block; of a model without blocks, of its tensors in their order."""
    known = [one for one in report.outcomes if one.figures is not None and one.figures.noise > 0]
    blocks = blocks_in_order(one.name for one in known)
    if len(blocks) < 2:
        return {"tensors": dict(enumerate(map(_decibels, known)))} if known else {}
    members: dict[str, dict[int, list[Outcome]]] = {}
    for one in known:
        place = place_of(one.name)
        if place.block:
            members.setdefault(place.kind, {}).setdefault(blocks[place.block], []).append(one)
    return {kind: {at: _decibels(*some) for at, some in sorted(by.items())} for kind, by in members.items()}


def _decibels(*some: Outcome) -> float:
    return merged_figures(some).sqnr_db


def write_tensor(target: Path, name: str, outcome: Outcome | None, seen: Distribution) -> None:
    """The values of a tensor with its levels and borders, and its errors where they are known.

    Raises:
        TensorError: where there is no finite value to draw.
    """
    if not seen.values.total:
        raise TensorError(
            f"{target}: tensor {name!r} has no finite value, so there is nothing to draw; name another one"
        )
    from matplotlib.figure import Figure

    errors = seen.errors.total > 0
    figure = Figure(figsize=(8, 6.5 if errors else 4), layout="constrained")
    rows = figure.subplots(2 if errors else 1, 1, squeeze=False, height_ratios=[3, 2] if errors else [1])[:, 0]
    _draw_values(rows[0], seen)
    says = [_text(name)]
    if outcome is not None:
        sqnr = [decibels(outcome.figures.sqnr_db)] if outcome.figures is not None else []
        says.append(", ".join([_text(what_became_of(outcome)), shown_bytes(outcome.stored_bytes), *sqnr]))
    rows[0].set_title("\n".join(says), fontsize=10)
    if errors:
        _draw_bars(rows[1], seen.errors.middle(0.999), [(-np.inf, np.inf, 2)])
        rows[1].set(xlabel="stored weight minus weight (the middle 99.9 %)", ylabel="weights")
    write_whole(target, drawn(figure, target.suffix.lower().removeprefix(".")))


def _draw_values(axes: Any, seen: Distribution) -> None:
    grid = seen.grid
    if grid is None:
        _draw_bars(axes, seen.values, [(-np.inf, np.inf, 7)])
        axes.set(xlabel=_AXES["value"], ylabel="weights")
        return
    borders = _borders(grid)
    ends = [-np.inf, *borders, np.inf]
    stretches = [(ends[i], ends[i + 1], one.cluster) for i, one in enumerate(grid.segments)] or [(-np.inf, np.inf, 0)]
    _draw_bars(axes, grid.bars, stretches)
    for border in borders:
        axes.axvline(border, color="black", linestyle="--", linewidth=0.8)
    low, _ = axes.get_ylim()
    for cluster, levels in enumerate(grid.levels):
        drop = 0.0 if grid.segments else 0.03 * cluster
        inside = [level for level in levels if axes.get_xlim()[0] <= level <= axes.get_xlim()[1]]
        transform = axes.get_xaxis_transform()
        axes.vlines(
            inside,
            -0.03 - drop,
            0 - drop,
            color=COLOURS[cluster % len(COLOURS)],
            linewidth=0.8,
            transform=transform,
            clip_on=False,
        )
    axes.set_ylim(bottom=low)
    axes.tick_params(axis="x", pad=8 + (0 if grid.segments else 8 * (len(grid.levels) - 1)))
    which = f" (the first of {seen.matrices} matrices)" if seen.matrices > 1 else ""
    axes.set(xlabel=f"{_AXES[grid.axis]}{which}; ticks are levels", ylabel="weights")


def _borders(grid: GridPicture) -> list[float]:
    """Half-way between the values of neighbouring clusters."""
    return [(one.high + two.low) / 2 for one, two in zip(grid.segments, grid.segments[1:], strict=False)]


def _draw_bars(axes: Any, bars: Bars, stretches: Sequence[tuple[float, float, int]]) -> None:
    wide = bars.at_most(_BARS)
    edges = (np.arange(len(wide.counts) + 1) + wide.first) * wide.width
    for low, high, colour in stretches:
        left, right = np.maximum(edges[:-1], low), np.minimum(edges[1:], high)
        some = (left < right) & (wide.counts > 0)
        axes.bar(
            left[some], wide.counts[some], (right - left)[some], align="edge", color=COLOURS[colour % len(COLOURS)]
        )
    axes.set_xlim(edges[0], edges[-1])
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _text(name: str) -> str:
    """A name that matplotlib takes for text: a dollar sign begins a formula."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name).replace("$", r"\$")
