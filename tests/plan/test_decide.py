"""Decisions: patterns that win over rules, one order of reasons, shared weights alike, and a reason for every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import pytest

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SpecError
from splitquant.format.dtypes import DTYPES
from splitquant.format.weight import Weight
from splitquant.plan.decide import decide, kept, settled
from splitquant.plan.layers import Layer
from splitquant.plan.recipe import Recipe


def layer(name, shape, role="linear", dtype="BF16", **more):
    """A layer of that shape."""
    return Layer(name, role, dtype, shape, DTYPES[dtype].nbytes(shape), **more)


EMBED, HEAD, UP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
DOWN, NORM, ROUTER = "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "model.layers.0.mlp.gate.weight"
POSITION = "model.embed_positions.weight"
MODEL = (
    layer(EMBED, (1000, 128), "embedding"),
    layer(UP, (256, 128)),
    layer(DOWN, (128, 256)),
    layer(ROUTER, (64, 128), "other", kept_because="expert router"),
    layer(POSITION, (64, 128), "other", kept_because="position or type embedding"),
    layer(NORM, (128,), "other", kept_because="1-D (norm, bias, scale)", possible=False),
    layer(HEAD, (1000, 128), "embedding"),
)


def decided(recipe=None, layers=MODEL, **more):
    """The decisions by layer name."""
    return {decision.name: decision for decision in decide(layers, recipe or Recipe(), **more).decisions}


def test_default_plan():
    """Weights get the spec, embeddings and heads theirs, and the rest is kept with a reason."""
    plan = decided()
    assert list(plan) == [one.name for one in MODEL]
    assert plan[UP].spec == plan[DOWN].spec == QuantSpec()
    assert plan[EMBED].spec == plan[HEAD].spec == EMBEDDING
    assert plan[ROUTER].spec is plan[POSITION].spec is plan[NORM].spec is None
    for decision in plan.values():
        assert (decision.spec is None) == bool(decision.reason)
        assert decision.layer.weights == prod(decision.layer.shape)


def test_sums():
    """A plan's bytes are those of its layers, before and after."""
    plan = decide(MODEL, Recipe())
    assert plan.source_bytes == sum(one.nbytes for one in MODEL)
    assert plan.stored_bytes == sum(decision.stored_bytes for decision in plan.decisions)
    assert plan.stored_bytes < plan.source_bytes
    assert [decision.name for decision in plan.quantized] == [EMBED, UP, DOWN, HEAD]


def test_bytes_by_hand():
    """256 x 128 at 4 + 2 bits: 16384 + 8192 bytes of planes, two vectors of four floats, 256 bf16 scales, two integers."""
    assert decided()[UP].stored_bytes == 256 * 64 + 256 * 32 + 2 * 4 * 4 + 256 * 2 + 2 * 8


@dataclass(frozen=True)
class Choice:
    """Patterns, a layer, and what must become of it."""

    name: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    layer: str
    quantized: bool
    reason: str


@pytest.mark.parametrize(
    "case",
    [
        Choice("excluded", (), ("*.up_proj.weight",), UP, False, "excluded by '*.up_proj.weight'"),
        Choice("not excluded", (), ("*.up_proj.weight",), DOWN, True, ""),
        Choice("excluded embedding", (), (EMBED,), EMBED, False, f"excluded by '{EMBED}'"),
        Choice("exclude before the rule", (), ("*.gate.weight",), ROUTER, False, "excluded by '*.gate.weight'"),
        Choice("include beats a rule", ("*.gate.weight",), (), ROUTER, True, "included by '*.gate.weight'"),
        Choice("include beats exclude", ("*up_proj*",), ("model.layers.*",), UP, True, "included by '*up_proj*'"),
        Choice(
            "only what is included", ("*up_proj*",), ("model.layers.*",), DOWN, False, "excluded by 'model.layers.*'"
        ),
        Choice("include of a position", (POSITION,), (), POSITION, True, f"included by '{POSITION}'"),
        Choice("include of an embedding", (EMBED,), ("*",), EMBED, True, f"included by '{EMBED}'"),
        Choice("include cannot do the impossible", ("model.norm.*",), (), NORM, False, "1-D"),
        Choice("exclude cannot hide the impossible", (), ("model.norm.*",), NORM, False, "1-D"),
        Choice("the first pattern is named", ("*up*", "*proj*"), (), UP, True, "included by '*up*'"),
        Choice("its very name is named before", ("*up*", UP), (), UP, True, f"included by '{UP}'"),
        Choice("a class of characters", (), ("lm_hea[d].weight",), HEAD, False, "excluded by 'lm_hea[d].weight'"),
    ],
    ids=lambda case: case.name,
)
def test_include_wins_over_exclude_wins_over_rules(case):
    """Patterns decide in this order, and the reason names the one that did."""
    found = decided(Recipe(include=case.include, exclude=case.exclude))[case.layer]
    assert (found.spec is not None) == case.quantized
    assert case.reason in found.reason
    assert bool(case.reason) == bool(found.reason)


def test_include_wins_over_kept_embeddings():
    """An embedding that is asked for by name is quantized as embeddings usually are, even where embeddings are kept."""
    plan = decided(Recipe(embeddings=None, include=(HEAD,)))
    assert plan[HEAD].spec == EMBEDDING
    assert plan[HEAD].reason == f"included by '{HEAD}'"
    assert plan[EMBED].spec is None
    assert plan[EMBED].reason == "embeddings are kept"


def test_embeddings_have_their_own_spec():
    """The recipe's second spec is for embeddings and heads alone, included or not."""
    spec = QuantSpec(6, 1)
    plan = decided(Recipe(embeddings=spec, include=(HEAD,)))
    assert plan[EMBED].spec == plan[HEAD].spec == spec
    assert plan[UP].spec == QuantSpec()


@pytest.mark.parametrize("patterns", [{"include": ("*.nothing",)}, {"exclude": ("*.nothing",)}], ids=str)
def test_a_pattern_without_a_layer_is_refused(patterns):
    """A pattern that matches nothing is most likely a slip, so it is an error that names it."""
    with pytest.raises(
        SpecError, match=r"the pattern '\*\.nothing' matches none of the 7 tensors; .*splitquant inspect"
    ):
        decided(Recipe(**patterns))


def test_what_has_no_layer_may_be_named_too():
    """A pattern may name what is no layer, in vain; the error counts it, and calls it what the adapter does."""
    assert decided(Recipe(exclude=("table",)), more_names=["table"]).keys() == {one.name for one in MODEL}
    with pytest.raises(SpecError, match=r"the pattern 'chair' matches none of the 8 nodes$"):
        decided(Recipe(exclude=("chair",)), what="nodes", more_names=["table"])


def test_patterns_know_upper_case():
    """Patterns are matched with the case of letters, on every system."""
    with pytest.raises(SpecError, match="matches none"):
        decided(Recipe(exclude=("LM_HEAD.weight",)))


def test_what_would_not_get_smaller_is_kept():
    """A layer whose planes are as large as itself stays, and the reason says both sizes."""
    found = decided(layers=(layer("a.weight", (2, 3)),))["a.weight"]
    planes = Weight((2, 3), 0, QuantSpec(), "bf16").planes
    assert found.spec is None
    assert found.reason == f"would not get smaller ({sum(p.nbytes for p in planes)} bytes instead of 12)"
    assert found.stored_bytes == 12


def test_included_layers_must_get_smaller_too():
    """Asking by name does not make a file larger."""
    found = decided(Recipe(include=("a.weight",)), (layer("a.weight", (2, 3)),))["a.weight"]
    assert found.spec is None
    assert "would not get smaller" in found.reason


def test_a_price_decides_and_none_does_not():
    """What a layer takes is the adapter's affair; where it is of no concern, nothing is too large."""
    small = (layer("a.weight", (2, 3)),)
    assert decided(layers=small, price=lambda *_: 11)["a.weight"].stored_bytes == 11
    assert decided(layers=small, price=lambda *_: 12)["a.weight"].spec is None
    free = decided(layers=small, price=None)["a.weight"]
    assert (free.spec, free.stored_bytes) == (QuantSpec(), 12)


def test_fp8_has_to_get_smaller_than_fp8():
    """An fp8 tensor is one byte per weight: 8 bits and ids are no gain, 4 bits and ids are."""
    layers = (layer(UP, (256, 128), dtype="F8_E4M3"),)
    assert decided(Recipe(QuantSpec(8, 4)), layers)[UP].spec is None
    assert decided(Recipe(QuantSpec(4, 4)), layers)[UP].spec is not None


def test_an_empty_model():
    """No layers, no plan, no error; but no pattern can match."""
    plan = decide((), Recipe())
    assert (plan.decisions, plan.source_bytes, plan.stored_bytes) == ((), 0, 0)
    with pytest.raises(SpecError, match="matches none of the 0 tensors"):
        decide((), Recipe(include=("*",)))


def test_plans_are_values():
    """The same layers give an equal plan; any iterable of layers will do."""
    assert decide(MODEL, Recipe()) == decide(iter(MODEL), Recipe())


def shared(*roles, axes=None, **more):
    """Layers `l0`, `l1`, ... that share the weight of the first."""
    return tuple(
        layer(f"l{n}", (64, 64), role, axis=(axes or [0] * 9)[n], tied_to="l0" if n else None, **more)
        for n, role in enumerate(roles)
    )


def test_a_shared_weight_counts_once():
    """The layers that share a weight have one spec, and its bytes are those of the first, before and after."""
    layers = shared("linear", "linear", "linear")
    plan = decided(layers=layers)
    assert {decision.spec for decision in plan.values()} == {QuantSpec()}
    assert [decision.source_bytes for decision in plan.values()] == [64 * 64 * 2, 0, 0]
    assert plan["l0"].stored_bytes == layers[0].weight(QuantSpec()).nbytes
    assert plan["l1"].stored_bytes == plan["l2"].stored_bytes == 0
    keep = decide(layers, Recipe(exclude=("*",)))
    assert [decision.stored_bytes for decision in keep.decisions] == [64 * 64 * 2, 0, 0]


@pytest.mark.parametrize("roles", [("embedding", "linear"), ("linear", "embedding")], ids=" before ".join)
def test_a_table_decides_for_what_shares_it(roles):
    """A table is looked up, so what it can be is what its weight is in every layer."""
    plan = decided(layers=shared(*roles))
    assert {decision.spec for decision in plan.values()} == {EMBEDDING}
    kept_table = decided(Recipe(embeddings=None), shared(*roles))
    assert {decision.spec for decision in kept_table.values()} == {None}
    table, other = sorted(kept_table.values(), key=lambda decision: decision.layer.role)
    assert table.reason == "embeddings are kept"
    assert other.reason == f"its weight is that of {table.name!r}, which is kept"


@pytest.mark.parametrize("excluded", ["l0", "l1"])
def test_shared_with_what_is_kept(excluded):
    """A weight is quantized in all of its layers or in none; each says why."""
    plan = decided(Recipe(exclude=(excluded,)), shared("linear", "linear"))
    other = "l1" if excluded == "l0" else "l0"
    assert plan[excluded].reason == f"excluded by '{excluded}'"
    assert plan[other].reason == f"its weight is that of '{excluded}', which is kept"
    assert [decision.spec for decision in plan.values()] == [None, None]
    asked = decided(Recipe(exclude=(excluded,), include=(other,)), shared("linear", "linear"))
    assert [decision.spec for decision in asked.values()] == [None, None]  # no layer can do without the other


def test_shared_with_what_is_laid_out_otherwise():
    """Rows of the one are columns of the other: no planes can be of both."""
    plan = decided(layers=shared("linear", "linear", axes=[0, 1]))
    assert [decision.reason for decision in plan.values()] == [
        "its weight is that of 'l1', which is laid out otherwise",
        "its weight is that of 'l0', which is laid out otherwise",
    ]


def test_shared_and_not_smaller():
    """Whether a weight gets smaller is asked once, and the answer is that of all its layers."""
    tiny = tuple(replace(one, shape=(2, 3), nbytes=12) for one in shared("linear", "linear"))
    plan = decided(layers=tiny)
    assert [decision.spec for decision in plan.values()] == [None, None]
    assert len({decision.reason for decision in plan.values()}) == 1
    assert "would not get smaller" in plan["l1"].reason


def test_what_is_settled_may_grow_where_it_was_written_down():
    """Who writes a plan file means it, even where nothing is gained; a shared weight is alike all the same."""
    small = layer("a.weight", (2, 3))
    wanted = [replace(kept(small, ""), spec=QuantSpec())]
    assert settled(wanted, lambda *_: 99).quantized == ()
    (decision,) = settled(wanted, lambda *_: 99, may_grow=True).quantized
    assert decision.stored_bytes == 99
    one, two = shared("linear", "linear")
    plan = settled([replace(kept(one, ""), spec=QuantSpec()), kept(two, "kept by the plan file")], None, may_grow=True)
    assert plan.quantized == ()
    assert plan.decisions[0].reason == "its weight is that of 'l1', which is kept"
