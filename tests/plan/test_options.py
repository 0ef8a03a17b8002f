"""What goes with what: one value of options for folders, modules and ONNX files, in Python and on the command line."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.options import PlanOptions
from splitquant.plan.planner import Goal
from splitquant.plan.recipe import Recipe
from splitquant.plan.targets import spec_for

FILE = Path("p.json")


def usual(**fixed):
    """What an adapter takes where nothing chooses."""
    return QuantSpec(**{"bits": 5, **fixed})


def test_nothing_asked():
    options = PlanOptions()
    assert options.recipe() == Recipe(QuantSpec(), EMBEDDING)
    assert options.recipe(usual) == Recipe(QuantSpec(5), EMBEDDING)
    assert options.goal() is None
    assert not options.by_size


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ({"spec": QuantSpec(3)}, QuantSpec(3)),
        ({"fixed": {"bits": 2}}, QuantSpec(2)),
        ({"fixed": {"clusters": 1}}, QuantSpec(5, 1)),
        ({"target": "linear-sym"}, spec_for("linear-sym")),
        ({"target": "linear-sym", "fixed": {"bits": 8}}, spec_for("linear-sym", bits=8)),
        ({"target": "linear-asym", "spec": PAPER}, PAPER),
        ({"preset": "paper"}, PAPER),
        (
            {"preset": "paper", "fixed": {"bits": 3, "clusters": 2}},
            QuantSpec(3, 2, "kmeans", "tensor", layout="parallel"),
        ),
    ],
    ids=str,
)
def test_whose_word_counts(options, spec):
    """A spec is itself; else a target, a preset or what is usual fills what is not fixed."""
    assert PlanOptions(**options).recipe(usual).spec == spec


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ("auto", EMBEDDING),
        ("keep", None),
        (None, None),
        (6, QuantSpec(6, 1, symmetric=True)),
        ("4", QuantSpec(4, 1, symmetric=True)),
    ],
    ids=str,
)
def test_embeddings(said, spec):
    """`auto` is 8 bits; a size alone chooses more."""
    assert PlanOptions(embeddings=said).recipe().embeddings == spec
    by_size = PlanOptions(embeddings=said, target_bits=4)
    assert by_size.recipe().embeddings == spec
    assert by_size.goal().choose_embeddings == (said == "auto")


def test_patterns_and_sizes():
    options = PlanOptions(include="a.*", exclude=["b", "c"], target_size="1.5kB", weighting={"a": 2}, fixed={"bits": 4})
    assert (options.recipe().include, options.recipe().exclude) == (("a.*",), ("b", "c"))
    assert options.goal() == Goal(nbytes=1500, weighting={"a": 2}, fixed={"bits": 4})
    assert PlanOptions(target_size=1 << 20).goal().nbytes == 1 << 20
    assert PlanOptions(target_bits=4.5, target="qnn").goal() == Goal(bits=4.5, target="qnn")


ALONE = "leave one of them out"
PLAN = r"a plan says what becomes of every tensor; leave out "
REFUSED = [
    ({"preset": "worst"}, "preset is 'worst'; expected one of best, paper"),
    ({"spec": QuantSpec(), "fixed": {"bits": 4}}, f"a spec and fixed fields of one are given; {ALONE}"),
    ({"spec": QuantSpec(), "target_bits": 4}, r"a spec and a target size are given; .*fixed=\{\.\.\.\} instead"),
    ({"spec": QuantSpec(), "target_size": "1MB"}, "a spec and a target size are given"),
    ({"spec": QuantSpec(), "preset": "paper"}, "the preset paper decides everything; leave it out, or the spec"),
    ({"target": "qnn", "preset": "paper"}, "the preset paper decides everything"),
    ({"target_bits": 4, "preset": "paper"}, "the preset paper decides everything"),
    ({"target_bits": 4, "target_size": 10}, "give one of target-bits and target-size"),
    ({"target_bits": 0}, "target-bits is 0; expected stored bits per weight"),
    ({"target_bits": float("nan")}, "target-bits is nan"),
    ({"target_bits": "5"}, "target-bits is '5'"),
    ({"target_size": "4 rods"}, "'4 rods' is not a size"),
    ({"weighting": "relative"}, "weighting needs target-bits or target-size"),
    ({"weighting": {"a": 1}}, "weighting needs target-bits or target-size"),
    ({"plan_file": FILE, "spec": QuantSpec(2)}, f"{PLAN}spec$"),
    ({"plan_file": FILE, "fixed": {"bits": 4}, "include": "x"}, f"{PLAN}bits, include$"),
    ({"plan_file": FILE, "target_bits": 4, "weighting": "relative"}, f"{PLAN}target-bits, weighting$"),
    ({"plan_file": FILE, "target_size": "1MB"}, f"{PLAN}target-size$"),
    ({"plan_file": FILE, "target": "qnn", "preset": "paper"}, f"{PLAN}preset, target$"),
    ({"plan_file": FILE, "embeddings": "keep", "exclude": ["x"]}, f"{PLAN}embeddings, exclude$"),
    ({"plan_file": FILE, "embeddings": 4}, f"{PLAN}embeddings$"),
    ({"plan_file": FILE, "embeddings": None}, f"{PLAN}embeddings$"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_what_does_not_go_together(options, message):
    with pytest.raises(SpecError, match=message):
        PlanOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": {"bits": 9}}, "bits is 9"),
        ({"fixed": {"strategy": "residual", "layout": "fused"}}, "the strategy residual is always layout parallel"),
        ({"target": "npu"}, "target is 'npu'; expected one of linear-asym"),
        ({"target": "linear-sym", "spec": QuantSpec()}, "cannot run asymmetric grids"),
        ({"target": "openvino", "fixed": {"bits": 5}}, "cannot run codes of 5 bits"),
        ({"target": "coreml", "embeddings": 5}, "embeddings INT5 .* cannot run indices of 5 bits"),
        ({"target": "onnxruntime", "embeddings": 3, "target_bits": 4}, "embeddings INT3 .* cannot run codes of 3 bits"),
        ({"embeddings": "none"}, "embeddings is 'none'; expected 'keep' or a number of bits"),
        ({"embeddings": "9"}, "bits is 9"),
        ({"preset": "paper", "fixed": {"strategy": "magnitude", "symmetric": False}}, "always symmetric true"),
    ],
    ids=str,
)
def test_what_makes_no_recipe(options, message):
    """What only the recipe shows is refused there, before anything is read."""
    asked = PlanOptions(**options)
    with pytest.raises(SpecError, match=message):
        asked.recipe()


def test_what_a_plan_leaves_open():
    """A plan file stands alone; what is only the usual said aloud is no other choice."""
    options = PlanOptions(plan_file=FILE, preset="best", embeddings="auto", weighting="energy", include=(), exclude="")
    assert options.plan_file == FILE


def test_options_are_a_frozen_value():
    assert PlanOptions(target_bits=4) == PlanOptions(target_bits=4)
    with pytest.raises(FrozenInstanceError):
        PlanOptions().target = "qnn"
