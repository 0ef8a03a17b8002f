"""Plans as JSON: there and back, edited, and wrong in every way."""

from __future__ import annotations

import json
from math import prod

import pytest

from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.decide import decide
from splitquant.plan.layers import Layer
from splitquant.plan.recipe import Recipe
from splitquant.plan.saved import plan_from_dict, plan_to_dict


def layer(name, shape, role="linear", **more):
    """A layer of bf16."""
    return Layer(name, role, "BF16", shape, 2 * prod(shape), **more)


LAYERS = (
    layer("a.up.weight", (256, 256)),
    layer("a.norm.weight", (256,), "other", kept_because="1-D (norm, bias, scale)", possible=False),
    layer("lm_head.weight", (512, 256), "embedding"),
)


def read(tensors, version=1, **more):
    return plan_from_dict({"plan_version": version, "tensors": tensors, **more}, LAYERS, "p.json")


@pytest.mark.parametrize("spec", [QuantSpec(), PAPER, QuantSpec(3, 1, "lloyd")], ids=str)
def test_there_and_back(spec):
    plan = decide(LAYERS, Recipe(spec, embeddings=None))
    data = json.loads(json.dumps(plan_to_dict(plan)))
    assert set(data["tensors"]) == {"a.up.weight", "lm_head.weight"}
    assert data["tensors"]["lm_head.weight"] == "keep"
    again = plan_from_dict(data, LAYERS, "p.json")
    assert [decision.spec for decision in again.decisions] == [decision.spec for decision in plan.decisions]
    assert plan_to_dict(again) == data


def test_edited():
    plan = read({"a.up.weight": {"bits": 2}})
    assert [decision.spec for decision in plan.decisions] == [QuantSpec(2), None, None]
    reasons = [decision.reason for decision in plan.decisions]
    assert reasons == ["", "1-D (norm, bias, scale)", "kept by the plan file"]


@pytest.mark.parametrize(
    ("tensors", "spec"),
    [({"a": {"bits": 4}, "b": {"bits": 8}}, QuantSpec(4)), ({"a": {"bits": 4}, "b": "keep"}, None)],
    ids=["the first decides", "or neither"],
)
def test_layers_that_share_a_weight_are_alike(tensors, spec):
    """A file may say two things of one weight; the plan says what is done."""
    two = (layer("a", (256, 256)), layer("b", (256, 256), tied_to="a"))
    plan = plan_from_dict({"plan_version": 1, "tensors": tensors}, two, "p.json")
    assert [decision.spec for decision in plan.decisions] == [spec, spec]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.upp.weight": "keep"}, "p.json: names tensor 'a.upp.weight'.*did you mean 'a.up.weight'"),
        ({"zzz": "keep"}, "p.json: names tensor 'zzz'.*; a report and --dry-run -v list its names"),
        ({"a.up.weight": {"bit": 4}}, "p.json: tensor 'a.up.weight': unknown key 'bit'"),
        ({"a.up.weight": {"bits": 1}}, "p.json: tensor 'a.up.weight': bits is 1"),
        ({"a.up.weight": {"bits": "4"}}, "p.json: tensor 'a.up.weight': bits is '4'"),
        ({"a.up.weight": {"granularity": 4}}, "p.json: tensor 'a.up.weight': granularity is 4"),
        ({"a.up.weight": {"strategy": ["kmeans"]}}, "p.json: tensor 'a.up.weight'"),
        ({"a.up.weight": 4}, "p.json: tensor 'a.up.weight' has 4; expected a spec"),
        ({"a.norm.weight": {"bits": 4}}, "p.json: tensor 'a.norm.weight' cannot be quantized, 1-D"),
        (
            {"a.up.weight": {"strategy": "magnitude", "symmetric": False}},
            "'a.up.weight': symmetric is false, and the strategy magnitude is always symmetric true",
        ),
        ({"a.up.weight": {"strategy": "lloyd", "polish": True}}, "polish is true, and the strategy lloyd"),
        ({"a.up.weight": None}, "p.json: tensor 'a.up.weight' has None; expected a spec"),
        ([], "p.json: has no 'tensors'"),
    ],
    ids=str,
)
def test_wrong(tensors, message):
    with pytest.raises(SpecError, match=message):
        read(tensors)


def test_wrong_head():
    with pytest.raises(SpecError, match=r"p\.json: has plan_version 2; this splitquant reads 1"):
        read({}, version=2)
    with pytest.raises(SpecError, match=r"p\.json: has the unknown key 'more'"):
        read({}, more=1)
