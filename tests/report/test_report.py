"""Reports are values with a JSON form, few rows for people, and a model card."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from folders import tiny_folder
from splitquant.api import quantize
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.report.card import model_card, original_card_name
from splitquant.report.outcome import REPORT_VERSION, Report, Run, TensorOutcome
from splitquant.report.summary import by_outcome, decibels, size, total


def outcome(name="a.weight", **changes):
    """A quantized tensor of 64 weights."""
    return replace(
        TensorOutcome(
            name=name,
            outcome="quantized",
            reason="",
            role="linear",
            dtype="BF16",
            shape=(8, 8),
            source_bytes=128,
            stored_bytes=48,
            spec=QuantSpec(),
            figures=ErrorFigures(64, 100.0, 1.0, 0.5),
            checksums={f"{name}.codes": "00000000"},
        ),
        **changes,
    )


def kept(name="norm.weight", reason="a norm", **changes):
    """A kept tensor of 64 numbers."""
    more = {"outcome": "kept", "reason": reason, "role": "other", "spec": None, "figures": None, "stored_bytes": 128}
    return outcome(name, **{**more, **changes})


RUN = Run("m", "q", 1.5, 1000, 2, "numpy", 1)


@pytest.mark.parametrize("run", [None, RUN], ids=["no run", "run"])
def test_json_round_trip(run):
    """A report is the same after its JSON form."""
    report = Report((outcome(), kept(), outcome("e", role="embedding", spec=EMBEDDING)), run)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert Report.from_dict(data) == report
    assert data["report_version"] == REPORT_VERSION
    assert ("run" in data) == (run is not None)


def test_json_round_trip_of_a_real_report(tmp_path):
    """The report of a run is the same after its JSON form."""
    report = quantize(tiny_folder(tmp_path / "m"), tmp_path / "q")
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


@pytest.mark.parametrize("key", ["name", "figures", "spec", "shape", "checksums"])
def test_a_missing_key_is_an_error(key):
    """A tensor without one of its keys is no outcome."""
    data = outcome().to_dict()
    del data[key]
    with pytest.raises((KeyError, TypeError)):
        TensorOutcome.from_dict(data)


def test_sums():
    """Bytes, weights and error energies of a report are sums over its tensors."""
    report = Report((outcome(), kept(), outcome("b", figures=ErrorFigures(64, 50.0, 2.0, 0.25))))
    assert (report.source_bytes, report.stored_bytes) == (384, 48 + 128 + 48)
    assert report.figures == ErrorFigures(128, 150.0, 3.0, 0.5)
    assert [tensor.name for tensor in report.quantized] == ["a.weight", "b"]
    assert [tensor.name for tensor in report.kept] == ["norm.weight"]
    assert outcome().bits_per_weight == 6.0
    assert outcome(shape=(0, 3)).weights == 0
    assert outcome(shape=()).weights == 1


def test_rows_by_outcome():
    """One row per role and spec, then one per reason, each by falling size; all rows together are all tensors."""
    tensors = (
        kept(),
        outcome(),
        outcome("big", source_bytes=999),
        outcome("e", role="embedding", spec=EMBEDDING, source_bytes=500),
        kept("ids", "not a float tensor (I64)", source_bytes=900),
    )
    rows = by_outcome(Report(tensors))
    says = [("linear", str(QuantSpec())), ("embedding", str(EMBEDDING)), ("kept", "(I64)"), ("kept", "a norm")]
    assert all(word in row.what for words, row in zip(says, rows, strict=True) for word in words)
    assert sum(len(row.tensors) for row in rows) == len(tensors)
    assert [row.sqnr for row in rows] == ["20.00 dB", "20.00 dB", "", ""]


@pytest.mark.parametrize("first", ["quantized", "kept"])
def test_total_has_the_sqnr_of_what_was_quantized(first):
    """The total's SQNR is there, whatever tensor comes first."""
    tensors = (outcome(), kept()) if first == "quantized" else (kept(), outcome())
    assert total(Report(tensors)).sqnr == "20.00 dB"


@pytest.mark.parametrize("tensors", [(), (kept(),)], ids=["no tensors", "kept only"])
def test_total_without_figures(tensors):
    """Where nothing was quantized there is no SQNR."""
    assert total(Report(tensors)).sqnr == ""


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (2.5e9, "2.50 GB"), (7e12, "7000.00 GB")],
)
def test_sizes_for_people(nbytes, text):
    """Sizes are in powers of ten."""
    assert size(nbytes) == text


@pytest.mark.parametrize("nbytes", [999_950, 999_999, 999_949_999, 999_999_999])
def test_sizes_do_not_say_a_thousand(nbytes):
    """A size just below the next unit is not shown as 1000.0 of the smaller one."""
    assert not size(nbytes).startswith("1000")


def test_decibels_for_people():
    """An SQNR has two digits; nothing lost is exact."""
    assert decibels(math.inf) == "exact"
    assert decibels(12.345) == "12.35 dB" or decibels(12.345) == "12.34 dB"
    assert decibels(-math.inf) == "-inf dB"


def test_card():
    """The card has a row per kind, the way to load it, and a link to the report; the same report gives the same text."""
    report = Report((outcome(), kept()), RUN)
    text = model_card(report, None, "README.original.md")
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert f"{QuantSpec()} | 1 | 64 | 128 B | 48 B | 6.00 | 20.00 dB |" in text
    assert "| 2 | 128 | 256 B | 176 B | 11.00 | 20.00 dB |" in text
    assert "README.original.md" not in text
    assert "splitquant_report.json" in text
    assert "1.5" not in text
    assert text == model_card(replace(report, run=None), None, "README.original.md")


@pytest.mark.parametrize(
    ("original", "head"),
    [
        ("---\nlicense: mit\n---\n\n# x", "---\nlicense: mit\n---\n\n"),
        ("---\nlicense: mit\n---", "---\nlicense: mit\n---\n"),
        ("---\ntext: a --- b\n---\n# x", "---\ntext: a --- b\n---\n"),
        ("# x", "---\nlibrary_name: transformers\n"),
        ("---\nnever closed", "---\nlibrary_name: transformers\n"),
        ("a\n---\nb: c\n---\n", "---\nlibrary_name: transformers\n"),
    ],
    ids=["usual", "no last newline", "dashes inside", "none", "never closed", "not at the top"],
)
def test_front_matter(original, head):
    """The YAML head of the source's card, which hubs read, heads the new one."""
    text = model_card(Report((outcome(),)), original, "README.original.md")
    assert text.startswith(head)
    assert "[README.original.md](README.original.md)" in text


def test_pipes_in_patterns_do_not_break_the_card():
    """A reason that quotes a pattern cannot add columns to the table."""
    text = model_card(Report((kept(reason="excluded by 'a|b'"),)), None, "x")
    row = next(line for line in text.splitlines() if "excluded" in line)
    assert row.replace("\\|", "").count("|") == 8


def test_original_card_name():
    """The name of the original card is the first free one."""
    assert original_card_name([]) == "README.original.md"
    assert original_card_name(["README.original.md"]) == "README.original2.md"
