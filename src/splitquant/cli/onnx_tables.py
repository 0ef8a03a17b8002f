"""The report of an ONNX conversion as tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table

from splitquant.cli.tables import show
from splitquant.cli.terminal import say, write_json
from splitquant.onnx.report import OnnxReport
from splitquant.report.summary import decibels, size


def show_report(report: OnnxReport, output: Path, json_file: Path | None, *, quiet: bool, verbose: bool) -> None:
    """Print what became of the nodes: all of them with `verbose`, else the converted ones and the reasons of the others."""
    write_json(json_file, report.to_dict())
    if quiet or str(json_file) == "-":
        return
    show(_table(report, verbose=verbose))
    if not verbose:
        for reason, count in Counter(node.reason for node in report.kept).most_common():
            say(f"kept: {count} x {reason}")
    for note in report.notes:
        say(f"note: {note}")
    total = size(sum(node.source_bytes for node in report.nodes)), size(sum(node.stored_bytes for node in report.nodes))
    say(f"{len(report.converted)} nodes converted; weights {total[0]} before, {total[1]} after")
    say(f"written to {output}; next: splitquant verify SRC {output}")


def _table(report: OnnxReport, *, verbose: bool) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("node", "operator", "weight", "shape", "outcome"):
        table.add_column(column, overflow="fold")
    for column in ("bits/weight", "SQNR"):
        table.add_column(column, justify="right")
    for node in report.nodes if verbose else report.converted:
        what = (
            f"kept: {node.reason}"
            if node.outcome == "kept"
            else f"{node.outcome}: {node.parts} x {node.form}, {node.spec}"
        )
        table.add_row(
            node.node,
            node.op_type,
            node.weight,
            "x".join(map(str, node.shape)),
            what if node.outcome == "kept" or not node.reason else f"{what} ({node.reason})",
            f"{node.bits_per_weight:.2f}" if node.stored_bytes else "",
            decibels(node.figures.sqnr_db) if node.figures else "",
        )
    return table
