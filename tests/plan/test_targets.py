"""Targets: what they take, what is chosen for them, and that the choice is what the figures say."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.targets import PARTS, TARGETS, best_cut, spec_for, target_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "quality" / "targets.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_targets", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models():
    """Weights without tails, and weights with heavy ones."""
    rng = np.random.default_rng(0)
    shape = (64, 128)
    return {
        "gaussian": {"w": rng.standard_normal(shape).astype(np.float32)},
        "heavy-tailed": {"w": rng.standard_t(3, shape).astype(np.float32)},
    }


@pytest.mark.parametrize("kind", PARTS)
def test_choices_are_what_the_rule_says(benchmark, models, kind):
    for bits in benchmark.WIDTHS:
        scores = {choice: score.mean for choice, score in benchmark.measure(models, kind, bits).items()}
        assert list(benchmark.disagreements(kind, bits, scores)) == []


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_spec_for_every_width(name):
    target = target_of(name)
    for bits, granularities in target.grids.items():
        for granularity in granularities:
            said = {} if granularity == "group" else {"granularity": granularity}
            spec = spec_for(name, bits=bits, **said)
            assert str(spec.granularity) == said.get("granularity", granularities[0])
            assert spec.symmetric or not target.symmetric
            assert spec.zero_in_grid or target.codebook
            assert spec == spec_for(name, **spec.to_dict())


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("linear-asym", {}, QuantSpec(4, 2, "residual", "channel")),
        ("linear-sym", {"granularity": "tensor"}, QuantSpec(4, 2, "residual", "tensor", symmetric=True)),
        ("linear-sym", {"bits": 6}, QuantSpec(6, 2, "magnitude", layout="parallel")),
        ("linear-sym", {"bits": 8}, QuantSpec(8, 1, symmetric=True, layout="parallel")),
        ("codebook", {}, QuantSpec(4, 1, "lloyd")),
        ("codebook", {"clusters": 4}, QuantSpec(4, 4, "lloyd")),
        ("codebook", {"strategy": "min_error"}, QuantSpec(4, 4, "min_error")),
        ("coreml", {"bits": 6}, QuantSpec(6, 1, "lloyd", "tensor")),
        ("linear-sym", {"clusters": 3}, QuantSpec(4, 3, "magnitude", layout="parallel")),
        ("linear-asym", {"clusters": 3}, QuantSpec(4, 3, "min_error", layout="parallel")),
        ("linear-asym", {"clusters": 0}, QuantSpec(4, 2, "residual")),
        ("linear-asym", {"clusters": 1}, QuantSpec(4, 1, "min_error", layout="parallel")),
        ("linear-asym", {"strategy": "kmeans"}, QuantSpec(4, 3, "kmeans", layout="parallel")),
        ("linear-asym", {"strategy": "kmeans", "bits": 6}, QuantSpec(6, 2, "kmeans", layout="parallel")),
        ("linear-asym", {"symmetric": True}, QuantSpec(4, 2, "residual", symmetric=True)),
        ("tensorrt", {}, QuantSpec(4, 2, "residual", "group:128", symmetric=True)),
        ("xnnpack", {"granularity": "group:32"}, QuantSpec(4, 2, "residual", "group:32", symmetric=True)),
    ],
)
def test_what_is_said_wins_and_the_rest_is_chosen(name, said, expected):
    assert spec_for(name, **said) == expected


def test_parts_for_another_tools_grid():
    """Residual parts need the grid that they were made for; where a tool's differs, segments of magnitudes are chosen."""
    assert spec_for("intel-npu").strategy == "residual"
    assert spec_for("intel-npu", refit=True) == QuantSpec(4, 3, "magnitude", layout="parallel", polish=False)
    assert spec_for("openvino", refit=True, symmetric=True).strategy == "magnitude"
    for name in ("linear-sym", "linear-asym"):
        assert spec_for(name, refit=True) == replace(spec_for(name), polish=False)


def test_parts_for_another_tools_granularity():
    """A residual part is found again in slices of its own kind only, so the split is made for the tool's default."""
    assert spec_for("openvino", refit=True) == QuantSpec(4, 2, "residual", "group:128", polish=False)
    assert spec_for("openvino", refit=True, granularity="channel").granularity.kind == "channel"
    assert spec_for("openvino", refit=True, bits=8).granularity.kind == "channel"
    assert spec_for("openvino").granularity.kind == "channel"


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("openvino", {"bits": 5}, r"target openvino .* cannot run codes of 5 bits; it takes 4, 8 bits"),
        (
            "ethos-u",
            {"granularity": "group:32"},
            r"cannot run granularity 'group:32' at 4 bits; it takes channel, tensor",
        ),
        ("intel-npu", {"granularity": "group:64"}, r"'group:64' at 4 bits; it takes channel, group:128"),
        ("linear-sym", {"symmetric": False, "clusters": 1}, r"cannot run asymmetric grids; it takes symmetric ones"),
        (
            "linear-asym",
            {"layout": "fused", "strategy": "min_error"},
            r"no zero in its grids; it takes the parallel layout",
        ),
        ("linear-sym", {"strategy": "lloyd"}, r"cannot run the strategy lloyd, whose levels are free"),
        ("coreml", {"clusters": 2}, r"cannot run indices of 5 bits; it takes 2, 3, 4, 6, 8 bits"),
        ("linear-sym", {"strategy": "residual", "clusters": 3}, r"clusters \* bits of at most 8"),
        ("codebook", {"layout": "parallel"}, r"the target codebook .*: lloyd with a parallel layout"),
        ("linear-sym", {"strategy": "residual", "layout": "fused"}, r"layout is fused, and the strategy residual"),
        ("linear-sym", {"bits": 9}, r"bits is 9"),
        ("linear-sym", {"clusters": 9}, r"clusters is 9"),
        ("linear-sym", {"clusters": -5}, r"clusters is -5"),
        ("linear-sym", {"clusters": "3"}, r"clusters is '3'"),
        ("linear-sym", {"bits": [4]}, r"bits is \[4\]"),
        ("linear-sym", {"strategy": "best"}, r"strategy is 'best'"),
        ("coreml", {"refit": True}, r"cannot run float parts; it takes one table per tensor"),
        ("tensorflow", {}, r"target is 'tensorflow'; expected one of linear-asym, linear-sym, codebook, onnxruntime"),
    ],
)
def test_refusals_name_the_option_and_the_target(name, said, message):
    with pytest.raises(SpecError, match=message):
        spec_for(name, **said)


def test_pick_takes_fewer_parts_within_the_tie(benchmark):
    one, two, three = (benchmark.Cut("magnitude", k) for k in (1, 2, 3))
    assert benchmark.pick({one: 10.0, two: 19.6, three: 20.0}) == two
    assert benchmark.pick({one: 10.0, two: 19.4, three: 20.0}) == three
    first, second = benchmark.Cut("residual", 2), benchmark.Cut("kmeans", 2)
    assert benchmark.pick({first: 10.0, second: 10.4}) == first


def test_best_choice_for_any_number_of_parts():
    assert best_cut("linear-sym", 2, 4) == ("residual", 4)
    assert best_cut("linear-sym", 4, 8) == ("magnitude", 8)


def test_the_page_says_what_is_chosen():
    """docs/targets.md has a row for every target, with what `spec_for` gives."""
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line.split("|") for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == list(TARGETS)
    for name, cells in rows.items():
        assert cells[3].strip() == str(spec_for(name)), name
        assert cells[4].strip() == ("" if TARGETS[name].codebook else str(spec_for(name, refit=True))), name
