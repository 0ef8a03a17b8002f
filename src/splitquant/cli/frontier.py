"""What each size would cost: the frontier as a table, as a drawing in plain characters, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from splitquant.cli.pictures import PICTURES, drawn
from splitquant.plan.planner import PricedPlan
from splitquant.report.summary import decibels
from splitquant.sizes import shown_bytes
from splitquant.storage.files import write_whole

_WIDTH, _HEIGHT = 60, 12
FRONTIER_PICTURES = (*PICTURES, ".html")


def with_chosen(marks: Sequence[PricedPlan], chosen: PricedPlan) -> list[PricedPlan]:
    """The marks and the chosen plan, by size."""
    others = [mark for mark in marks if mark.tensor_bytes != chosen.tensor_bytes]
    return sorted([*others, chosen], key=lambda choice: choice.tensor_bytes)


def frontier_table(choices: Sequence[PricedPlan], chosen: PricedPlan) -> Table:
    """One row per size."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("size", "bits/w", "SQNR"):
        table.add_column(column, justify="right")
    table.add_column("")
    for choice in choices:
        here = choice is chosen
        table.add_row(
            shown_bytes(choice.total_bytes),
            f"{choice.bits_per_weight:.2f}",
            decibels(choice.figures.sqnr_db),
            "<- this plan" if here else "",
            style="bold" if here else "",
        )
    return table


def frontier_drawing(choices: Sequence[PricedPlan], chosen: PricedPlan) -> Text:
    """SQNR over bits per weight, the chosen plan as `O`."""
    points = [(c.bits_per_weight, c.figures.sqnr_db, c is chosen) for c in choices if c.figures.noise > 0]
    if len(points) < 2:
        return Text("")
    left, right = points[0][0], points[-1][0]
    low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
    rows = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for x, y, here in sorted(points, key=lambda point: point[2]):
        column = round((x - left) / ((right - left) or 1) * (_WIDTH - 1))
        row = round((high - y) / ((high - low) or 1) * (_HEIGHT - 1))
        rows[row][column] = "O" if here else "*"
    labels = {0: f"{high:.0f} dB", _HEIGHT - 1: f"{low:.0f} dB"}
    lines = [f"{labels.get(number, ''):>7} |{''.join(row).rstrip()}" for number, row in enumerate(rows)]
    scale = f"{left:.2f}"
    lines += [" " * 8 + "+" + "-" * _WIDTH, " " * 9 + scale + f"{right:.2f} bits/weight".rjust(_WIDTH - len(scale))]
    return Text("\n".join(lines))


def frontier_dict(choices: Sequence[PricedPlan], chosen: PricedPlan) -> list[dict[str, Any]]:
    """The frontier for a JSON report."""
    return [
        {
            "total_bytes": choice.total_bytes,
            "bits_per_weight": choice.bits_per_weight,
            "sqnr_db": choice.figures.sqnr_db if choice.figures.noise > 0 else None,
            "chosen": choice is chosen,
        }
        for choice in choices
    ]


def write_picture(target: Path, choices: Sequence[PricedPlan], chosen: PricedPlan) -> None:
    """SQNR over bits per weight as SVG, PNG or HTML; the same input gives the same SVG."""
    from matplotlib.figure import Figure

    kind = target.suffix.lower().removeprefix(".")
    points = [choice for choice in choices if choice.figures.noise > 0]
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    axes.plot([c.bits_per_weight for c in points], [c.figures.sqnr_db for c in points], marker=".", label="frontier")
    if chosen.figures.noise > 0:
        label = f"this plan, {shown_bytes(chosen.total_bytes)}"
        axes.plot([chosen.bits_per_weight], [chosen.figures.sqnr_db], "o", label=label)
    axes.set(xlabel="stored bits per weight", ylabel="SQNR of the weights, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    data = drawn(figure, "png" if kind == "png" else "svg")
    if kind == "html":
        data = b'<!doctype html>\n<meta charset="utf-8">\n<title>size and error</title>\n' + data[data.index(b"<svg") :]
    write_whole(target, data)
