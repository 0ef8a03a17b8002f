"""Sizes of folders that are known from their plans: right to some letters, and never too small."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders.folders import middling_folder, tree
from splitquant.api import dry_run, quantize
from splitquant.checkpoint.costs import FolderCosts
from splitquant.checkpoint.source import open_float_folder
from splitquant.core.spec import QuantSpec
from splitquant.plan.decide import kept
from splitquant.plan.plan import Plan


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of different sizes and distributions."""
    return middling_folder(tmp_path_factory.mktemp("source") / "m")


def test_what_is_said_of_a_tensor_is_what_it_adds_to_a_folder(source):
    """But for what tensors share, and some digits."""
    costs = FolderCosts(open_float_folder(source))
    plan = dry_run(source, target_bits=4.0)
    assert plan.quantized
    for number, decision in enumerate(plan.decisions):
        if decision.spec is None:
            continue
        other = kept(decision.layer, "kept by the size target")
        without = Plan((*plan.decisions[:number], other, *plan.decisions[number + 1 :]))
        less = costs.total(plan) - costs.total(without)
        side = costs.beside(decision) - costs.beside(other)
        assert side > 300
        assert abs(less - side - (decision.stored_bytes - decision.source_bytes)) < 400


@pytest.mark.parametrize(
    "spec", [QuantSpec(), QuantSpec(4, 1, granularity="group:32"), QuantSpec(3, 1, "lloyd")], ids=str
)
def test_the_total_of_any_plan(tmp_path, source, spec):
    """The count is right for plans of any origin: never below, and above by the letters of some figures."""
    total = FolderCosts(open_float_folder(source)).total(dry_run(source, spec))
    quantize(source, tmp_path / "q", spec)
    assert 0 <= total - sum(len(data) for data in tree(tmp_path / "q").values()) < 1000


def test_the_price_is_that_of_the_planes(tmp_path, source):
    """The bytes of a tensor that a plan says are those that it takes, and the name counts by its letters in UTF-8."""
    costs = FolderCosts(open_float_folder(source))
    for decision in dry_run(source, QuantSpec(3)).quantized:
        assert costs.price(decision.layer, decision.spec) == decision.stored_bytes
    ascii_one, umlaut = (replace(decision.layer, name=name) for name in ("a.weight", "ä.weight"))
    folder = replace(costs.folder, index_name=None)
    words = [FolderCosts(folder).beside(kept(layer, "")) for layer in (ascii_one, umlaut)]
    assert words[0] < words[1]
