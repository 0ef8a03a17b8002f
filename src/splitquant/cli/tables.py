"""Reports and plans as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from splitquant.cli.terminal import printable
from splitquant.report.outcome import Outcome, Report
from splitquant.report.summary import Row, by_outcome, decibels, total, what_became_of
from splitquant.sizes import shown_bytes


def console(**options: Any) -> Console:
    """A console for which patterns and tensor names are text, never markup."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def show(*tables: Table) -> None:
    """Print tables to standard output, an empty line between them."""
    # A file or a pipe has no width, and long names get room there.
    out = console(width=None if sys.stdout.isatty() else 160)
    for number, table in enumerate(tables):
        if number:
            out.print()
        out.print(table)


def summary_table(report: Report, *, planned: bool = False) -> Table:
    """Tensors by outcome: number, weights, size before and after, bits per weight, SQNR."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("tensors")
    for column in ("#", "before", "after", "bits/w", *(() if planned else ("SQNR",))):
        table.add_column(column, justify="right")
    for row in by_outcome(report):
        table.add_row(*_cells(row, planned=planned))
    table.add_section()
    table.add_row(*_cells(total(report), planned=planned), style="bold")
    return table


def tensor_table(outcomes: Iterable[Outcome]) -> Table:
    """One row per one."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("tensor", "dtype", "shape", "outcome"):
        table.add_column(column, overflow="fold")
    for column in ("bits/weight", "size", "SQNR"):
        table.add_column(column, justify="right")
    for one in outcomes:
        table.add_row(
            printable(one.name),
            one.dtype,
            "x".join(map(str, one.shape)),
            printable(what_became_of(one)),
            f"{one.bits_per_weight:.2f}",
            shown_bytes(one.stored_bytes),
            decibels(one.figures.sqnr_db) if one.figures else "",
        )
    return table


def _cells(row: Row, *, planned: bool) -> list[str]:
    cells = [
        printable(row.what),
        f"{len(row.outcomes)}",
        shown_bytes(row.source_bytes),
        shown_bytes(row.stored_bytes),
        f"{row.bits_per_weight:.2f}",
    ]
    return cells if planned else [*cells, row.sqnr]
