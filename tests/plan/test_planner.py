"""A size in, a plan out, for any adapter: here for layers that lie in memory and costs that are made up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import SpecError
from splitquant.plan.decide import decide, plane_bytes
from splitquant.plan.layers import Layer
from splitquant.plan.measured import measured_by
from splitquant.plan.plan import Plan
from splitquant.plan.planner import KEPT, Goal, frontier_of
from splitquant.plan.recipe import Recipe

WORDS = 150  # of a quantized layer, beside its planes
REST = 5000
QUICK = {"granularity": "channel", "strategy": "min_error", "polish": False}


@dataclass(frozen=True)
class Costs:
    """Planes, some words beside them, and a rest."""

    def price(self, layer, spec):
        return plane_bytes(layer, spec)

    def beside(self, decision):
        return 0 if decision.spec is None or decision.layer.owner != decision.name else WORDS

    def total(self, plan):
        specs = {decision.spec for decision in plan.quantized}
        beside = sum(self.beside(decision) for decision in plan.decisions)
        return REST + plan.stored_bytes + beside + 100 * len(specs)


def model():
    """Layers of different sizes and distributions, two of which share a weight, and what each holds."""
    chance = np.random.default_rng(7)
    arrays = {
        "embed": chance.standard_normal((200, 32)),
        "up": chance.standard_normal((128, 64)) * 0.02,
        "down": chance.standard_t(2, (64, 128)),
        "small": chance.standard_normal((8, 16)),
        "norm": np.ones(64),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    layers = [
        Layer(
            name,
            "embedding" if name == "embed" else "linear",
            "F32",
            array.shape,
            array.nbytes,
            kept_because="1-D" if array.ndim < 2 else "",
            possible=array.ndim > 1,
        )
        for name, array in arrays.items()
    ]
    layers.insert(3, Layer("up again", "linear", "F32", (128, 64), arrays["up"].nbytes, tied_to="up"))
    return tuple(layers), arrays


LAYERS, ARRAYS = model()


def measure(asked):
    """What every layer loses by every candidate."""
    return [measured_by(layer, pool, [ARRAYS[layer.name]]) for layer, pool in asked]


def frontier(goal, recipe=None, **more):
    """The frontier of the model."""
    recipe = recipe or Recipe()
    base = decide(LAYERS, goal.smallest(recipe))
    return frontier_of(base, goal, recipe, Costs(), measure, "the model", **more)


BITS = Goal(bits=4.0, fixed=QUICK)


@pytest.fixture(scope="module")
def found():
    """The frontier with a small pool."""
    return frontier(BITS)


def decision(plan, name):
    """What becomes of a layer."""
    return next(one for one in plan.decisions if one.name == name)


def test_what_there_is_a_choice_for(found):
    """Each weight once, whatever shares it; not what cannot be quantized."""
    assert list(found.choices) == ["embed", "up", "down", "small"]
    assert found.weights == sum(ARRAYS[name].size for name in found.choices)


def test_sizes_are_kept_and_noise_falls(found):
    """LAW: never over the size, and a larger one never has more noise."""
    smallest, largest = found.marks()[0].total_bytes, found.marks()[-1].total_bytes + 2000
    noise = []
    for nbytes in range(smallest, largest, 211):
        choice = found.for_size(nbytes)
        assert Costs().total(choice.plan) == choice.total_bytes <= nbytes
        noise.append(choice.figures.noise)
    assert noise == sorted(noise, reverse=True)
    assert noise[0] > noise[-1]


def test_bits_are_kept_and_noise_falls(found):
    """LAW: the same of stored bits per weight, those of shared weights counted once."""
    noise = []
    for bits in np.arange(2.75, 9, 0.25):
        choice = found.for_bits(float(bits))
        assert choice.bits_per_weight <= bits
        assert choice.tensor_bytes == sum(
            one.stored_bytes for one in choice.plan.decisions if one.name in found.choices
        )
        noise.append(choice.figures.noise)
    assert noise == sorted(noise, reverse=True)


def test_the_smallest_are_named_and_possible(found):
    with pytest.raises(SpecError, match=r"target-size is 10 bytes; the smallest plan makes an output of") as error:
        found.for_size(10)
    nbytes = int(re.search(r"an output of (\d+) bytes", str(error.value))[1])
    assert found.for_size(nbytes).total_bytes == nbytes
    with pytest.raises(SpecError, match="the smallest plan makes"):
        found.for_size(nbytes - 1)
    with pytest.raises(SpecError, match="target-bits is 1; the smallest possible here is") as error:
        found.for_bits(1)
    assert found.for_bits(float(re.search(r"here is ([\d.]+) stored", str(error.value))[1]))


def test_shared_weights_have_one_spec(found):
    """Whatever the size, and count once."""
    for mark in [*found.marks(), found.at(10**9)]:
        one, other = decision(mark.plan, "up"), decision(mark.plan, "up again")
        assert (one.spec, one.reason) == (other.spec, other.reason)
        assert (other.source_bytes, other.stored_bytes) == (0, 0)


def test_what_is_kept_stays_kept(found):
    """What the rules keep is not for the size to decide; what the size keeps says so, and takes its own bytes."""
    plan = found.at(10**9).plan
    assert {one.reason for one in plan.decisions} == {KEPT, "1-D"}
    assert plan.stored_bytes == plan.source_bytes == sum(array.nbytes for array in ARRAYS.values())


def test_what_is_included_is_not_kept():
    recipe = Recipe(include=("up",), exclude=("d*",))
    plan = frontier(BITS, recipe).at(10**9).plan
    assert decision(plan, "up").spec is not None
    assert decision(plan, "embed").reason == KEPT
    assert decision(plan, "down").reason == "excluded by 'd*'"


def test_what_is_included_by_the_name_of_a_layer_that_shares_its_weight():
    plan = frontier(BITS, Recipe(include=("up again",))).at(10**9).plan
    assert decision(plan, "up").spec == decision(plan, "up again").spec
    assert decision(plan, "up").spec is not None
    assert decision(plan, "down").reason == KEPT


def test_what_is_said_of_embeddings():
    """Chosen, or what the recipe says; included while embeddings are kept they are what they usually are."""
    chosen = frontier(BITS)
    assert {spec.symmetric for spec in chosen.choices["embed"].measured.specs if spec} == {False}
    fixed = Goal(bits=6.0, fixed=QUICK, choose_embeddings=False)
    six = QuantSpec(6, 1, symmetric=True)
    assert frontier(fixed, Recipe(embeddings=six)).choices["embed"].measured.specs == (six,)
    assert "embed" not in frontier(fixed, Recipe(embeddings=None)).choices
    asked = frontier(fixed, Recipe(embeddings=None, include=("embed",)))
    assert asked.choices["embed"].measured.specs == (EMBEDDING,)


def test_what_the_adapter_cannot_store_is_not_chosen(found):
    """A layer has those candidates that can be stored, and may always stay as it is."""
    four = frontier(BITS, possible=lambda layer, spec: spec.bits == 4 or layer.name != "up")
    assert {spec and spec.bits for spec in four.choices["up"].measured.specs} == {4, None}
    assert four.choices["down"].measured.specs == found.choices["down"].measured.specs


def test_figures_are_those_of_the_specs(found):
    """The noise of a plan is that of its specs, each weight counted once."""
    choice = found.for_bits(4.0)
    noise = sum(
        quantize_array(ARRAYS[one.name], one.spec).figures.noise
        for one in choice.plan.quantized
        if one.layer.owner == one.name
    )
    assert choice.figures.noise == pytest.approx(noise, rel=1e-12)
    assert choice.figures.signal == pytest.approx(
        sum(float((ARRAYS[n].astype(float) ** 2).sum()) for n in found.choices)
    )


def test_marks_rise(found):
    marks = found.marks()
    assert 6 <= len(marks) <= 16
    for smaller, larger in pairwise(marks):
        assert smaller.tensor_bytes < larger.tensor_bytes
        assert smaller.figures.noise > larger.figures.noise


def test_weighting_moves_bits():
    def bits(weighting):
        goal = Goal(bits=4.0, fixed=QUICK, weighting=weighting)
        return decision(frontier(goal).for_goal(goal).plan, "up").stored_bytes

    assert bits({"u[p]": 0, "*": 1}) <= bits("energy") < bits("relative") <= bits({"up": 1e6})
    assert bits({"up again": 1e6}) == bits({"up": 1e6})  # which has its weight


def test_nothing_to_choose():
    with pytest.raises(SpecError, match="the model: has no tensor that can be quantized under these options"):
        frontier(BITS, Recipe(exclude=("*",)))
    with pytest.raises(SpecError, match="there is no spec with"):
        frontier(Goal(bits=4.0, fixed={"strategy": "residual", "bits": 8}))


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "give one of target-bits and target-size"),
        ({"bits": 4.0, "nbytes": 10}, "give one of target-bits and target-size"),
        ({"bits": float("inf")}, "target-bits is inf"),
        ({"bits": -1}, "target-bits is -1"),
        ({"nbytes": float("nan")}, "target-size is nan; expected bytes, or text such as '800MB'"),
        ({"nbytes": [800]}, r"target-size is \[800\]"),
    ],
    ids=str,
)
def test_no_goals(goal, message):
    with pytest.raises(SpecError, match=message):
        Goal(**goal)


def test_a_goal_within_a_target():
    goal = Goal(bits=6.5, target="ethos-u")
    specs = {one.spec for one in frontier(goal).for_goal(goal).plan.quantized}
    assert specs
    assert all(spec.symmetric and spec.zero_in_grid and spec.bits in (4, 8) for spec in specs)


def test_the_same_plan_every_time(found):
    assert frontier(BITS).for_goal(BITS) == found.for_goal(BITS)
    assert isinstance(found.for_goal(BITS).plan, Plan)
