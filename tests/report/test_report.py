"""Reports are values with a JSON form, few rows for people, and a model card."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from builders.folders import tiny_folder
from splitquant.api import quantize
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.plan.decide import decide
from splitquant.plan.layers import Layer
from splitquant.plan.recipe import Recipe
from splitquant.report.card import model_card, original_card_name
from splitquant.report.outcome import REPORT_VERSION, Outcome, Report, Run, planned_report
from splitquant.report.summary import by_outcome, decibels, total, what_became_of


def outcome(name="a.weight", **changes):
    """A quantized tensor of 64 weights."""
    return replace(
        Outcome(
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
        Outcome.from_dict(data)


def test_sums():
    """Bytes, weights and error energies of a report are sums over its tensors."""
    report = Report((outcome(), kept(), outcome("b", figures=ErrorFigures(64, 50.0, 2.0, 0.25))))
    assert (report.source_bytes, report.stored_bytes) == (384, 48 + 128 + 48)
    assert report.figures == ErrorFigures(128, 150.0, 3.0, 0.5)
    assert [tensor.name for tensor in report.changed] == ["a.weight", "b"]
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
    assert sum(len(row.outcomes) for row in rows) == len(tensors)
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


def test_the_card_begins_with_how_to_load():
    """Whoever opens the folder sees first how to load it, and what happens without splitquant; then what to know of it."""
    text = model_card(Report((outcome(),), notes=("the source has no config.json",)), None, "README.original.md")
    first = text.split("# Quantized with splitquant")[1].split("## What was done")[0]
    assert "splitquant.load(" in first
    assert "random weights" in first
    assert first.endswith("\nNote: the source has no config.json.\n\n")


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


NODE = outcome("fc", kind="MatMul", weight="W", form="QDQ", parts=2, checksums={}, dtype="F32")
MODULE = outcome("hidden", kind="Linear", activations="int8 per token", checksums={})


def test_what_only_some_adapters_know_is_left_out_where_it_is_empty():
    """One JSON form for folders, modules and graphs; a folder's is what it always was."""
    keys = set(outcome().to_dict())
    assert keys == {
        *("name", "outcome", "reason", "role", "dtype", "shape", "source_bytes", "stored_bytes", "spec", "figures"),
        "checksums",
    }
    assert set(NODE.to_dict()) - keys == {"kind", "weight", "form", "parts"}
    assert set(MODULE.to_dict()) - keys == {"kind", "activations"}
    for one in (NODE, MODULE, replace(NODE, outcome="split"), kept(kind="Add", weight="S")):
        assert Outcome.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_notes_are_in_the_json_where_there_are_some():
    report = Report((NODE,), notes=("opset raised from 17 to 21",))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["notes"] == ["opset raised from 17 to 21"]
    assert Report.from_dict(data) == report
    assert "notes" not in Report((NODE,)).to_dict()


@pytest.mark.parametrize("fate", ["lost", "", None])
def test_an_outcome_that_is_none_is_an_error(fate):
    with pytest.raises(ValueError, match="has the outcome"):
        Outcome.from_dict({**outcome().to_dict(), "outcome": fate})


def test_a_report_is_a_collection():
    """Its layers come one by one, by number of them, and by name: of several with one name the first."""
    report = Report((outcome(), kept(), outcome("a.weight", reason="the second")))
    assert [one.name for one in report] == ["a.weight", "norm.weight", "a.weight"]
    assert len(report) == 3
    assert report["a.weight"].reason == ""
    with pytest.raises(KeyError, match="nothing"):
        report["nothing"]
    assert str(report).splitlines()[0] == "2 of 3 layers changed"
    assert len(str(report).splitlines()) == 4


def test_what_was_changed():
    """Quantized, split and merged are changes; kept is none."""
    fates = ("quantized", "split", "merged", "kept")
    report = Report(tuple(outcome(fate, outcome=fate) for fate in fates))
    assert [one.name for one in report.changed] == ["quantized", "split", "merged"]
    assert [one.name for one in report.kept] == ["kept"]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (outcome(), str(QuantSpec())),
        (NODE, f"{QuantSpec()}, 2 x QDQ"),
        (replace(NODE, outcome="split", form="float", parts=3), f"split for {QuantSpec()}, 3 x float"),
        (replace(NODE, reason="shares its weight"), f"{QuantSpec()}, 2 x QDQ (shares its weight)"),
        (kept(), "kept: a norm"),
    ],
    ids=["folder", "graph", "split", "with a reason", "kept"],
)
def test_what_became_of_a_layer(one, words):
    assert what_became_of(one) == words


def test_a_planned_report_is_that_of_the_plan():
    """A plan in the form of a report: no figures, no checksums, shared weights once."""
    layers = [Layer("a", "linear", "F32", (64, 64), 16384), Layer("b", "linear", "F32", (64, 64), 16384, tied_to="a")]
    plan = decide(layers, Recipe(QuantSpec(4, 1)))
    report = planned_report(plan)
    assert (report.source_bytes, report.stored_bytes) == (plan.source_bytes, plan.stored_bytes)
    assert [(one.name, one.outcome, one.spec, one.figures) for one in report] == [
        (name, "quantized", QuantSpec(4, 1), None) for name in "ab"
    ]
    assert report.outcomes[1].stored_bytes == 0


def test_a_shared_weight_counts_once_in_every_sum():
    """Bits per weight of layers that share a weight are those of the weight, not half of them."""
    layers = [Layer("a", "linear", "F32", (64, 64), 16384), Layer("b", "linear", "F32", (64, 64), 16384, tied_to="a")]
    for options in ({}, {"exclude": ("*",)}):
        report = planned_report(decide(layers, Recipe(QuantSpec(4, 1), **options)))
        assert total(report).weights == 64 * 64
        assert total(report).bits_per_weight == report.outcomes[0].bits_per_weight
