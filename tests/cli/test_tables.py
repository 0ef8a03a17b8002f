"""Tables for people: nothing is lost, nothing is broken, at the usual widths of terminals."""

from __future__ import annotations

from io import StringIO

import pytest

from builders.folders import normal, tiny_folder, write_folder
from splitquant.api import dry_run, quantize
from splitquant.cli.tables import console, summary_table, tensor_table
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.report.outcome import planned_report
from splitquant.report.summary import by_outcome


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a tiny model by default options."""
    home = tmp_path_factory.mktemp("tables")
    return quantize(tiny_folder(home / "m"), home / "q")


def rendered(table, width):
    """The lines of a table on a terminal of the given width, without trailing blanks, as the command line prints."""
    terminal = console(width=width, file=StringIO(), color_system=None)
    terminal.print(table)
    return [line.rstrip() for line in terminal.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_summary_is_one_line_per_row(report, width):
    """The summary of a default run has one line per row at 80 and at 120 columns."""
    lines = rendered(summary_table(report), width)
    assert len([line for line in lines if line]) == 1 + len(by_outcome(report)) + 1
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "spec", [PAPER, QuantSpec(bits=3, clusters=8, granularity="group:128", symmetric=True)], ids=str
)
def test_summary_of_other_specs_keeps_all_words(tmp_path, spec, width):
    """A row that is too long is wrapped, and no word or figure is lost."""
    plan = dry_run(tiny_folder(tmp_path / "m"), spec, exclude=["*.layers.1.mlp.down_proj.weight"])
    report = planned_report(plan)
    lines = rendered(summary_table(report, planned=True), width)
    text = " ".join(lines)
    for row in by_outcome(report):
        assert all(word in text for word in row.what.split())
    assert max(map(len, lines)) <= width
    assert "SQNR" not in text
    assert "…" not in text


def test_summary_figures(report):
    """The last row is that of all tensors: their number, both sizes and the SQNR."""
    last = rendered(summary_table(report), 120)[-1].split()
    assert str(len(report.outcomes)) in last
    assert f"{report.figures.sqnr_db:.2f}" in last
    assert f"{8 * report.stored_bytes / sum(t.weights for t in report.outcomes):.2f}" in last


def test_tensor_table_has_a_line_per_tensor_where_there_is_room(report):
    """With room enough every tensor has one line with name, dtype, shape and outcome."""
    lines = rendered(tensor_table(report.outcomes), 200)
    assert len(lines) == 1 + len(report.outcomes)
    for line, tensor in zip(lines[1:], report.outcomes, strict=True):
        assert line.startswith(f"{tensor.name} ")
        assert "x".join(map(str, tensor.shape)) in line
        assert (str(tensor.spec) if tensor.spec else tensor.reason) in line


@pytest.mark.parametrize("width", [80, 120])
def test_tensor_table_loses_nothing(report, width):
    """In a narrow terminal no letter of a name or an outcome is lost."""
    lines = rendered(tensor_table(report.outcomes), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    letters = "".join("".join(lines).split())
    for tensor in report.outcomes:
        assert tensor.name.rsplit(".", 1)[0][:12] in letters


@pytest.mark.parametrize("name", ["a[bold].weight", "a[/b].weight", "layer:key:.weight", "[link=x]w.weight"])
def test_markup_in_names_is_text(tmp_path, name):
    """Names and patterns are shown as they are, whatever they would mean as markup."""
    source = write_folder(tmp_path / "m", {name: normal(1, 64, 64), "b.weight": normal(2, 64, 64)})
    report = planned_report(dry_run(source, exclude=[name.replace("[", "[[]")]))
    assert name in "\n".join(rendered(tensor_table(report.outcomes), 200))
    summary = "\n".join(rendered(summary_table(report, planned=True), 200))
    assert repr(name.replace("[", "[[]")) in summary
