"""What is in the pool, and what given options make of it."""

from __future__ import annotations

import pytest

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.candidates import allowed_by, candidates, embedding_candidates, runs_on
from splitquant.plan.targets import TARGETS


def plain(granularity, bits, **more):
    return QuantSpec(bits, 1, granularity=granularity, **more)


@pytest.mark.parametrize(
    "fixed", [{}, {"strategy": "kmeans"}, {"strategy": "lloyd"}, {"strategy": "residual"}], ids=str
)
def test_plain_is_always_there(fixed):
    pool = candidates(fixed)
    for granularity in ("channel", "group:32", "group:64", "group:128"):
        for bits in range(2, 9):
            assert plain(granularity, bits) in pool
    assert len(set(pool)) == len(pool)


@pytest.mark.parametrize("strategy", ["min_error", "kmeans", "magnitude", "residual", "lloyd"])
def test_a_strategy_is_of_split_tensors(strategy):
    pool = candidates({"strategy": strategy})
    assert {spec.strategy for spec in pool if spec.clusters > 1 or spec.strategy == "lloyd"} == {strategy}
    assert all(spec.code_bits + spec.cluster_bits <= 8 for spec in pool)


@pytest.mark.parametrize(
    "fixed",
    [
        {"bits": 4},
        {"clusters": 3},
        {"granularity": "tensor"},
        {"granularity": "group:16"},
        {"layout": "parallel"},
        {"symmetric": True},
        {"bits": 8, "clusters": 4},
        {"clusters": 1, "polish": False},
    ],
    ids=str,
)
def test_what_is_fixed_holds_for_all(fixed):
    pool = candidates(fixed)
    assert pool
    for name, value in fixed.items():
        assert {spec.to_dict()[name] for spec in pool} == {value}


def test_a_choice_among_some():
    fixed = {"granularity": ("tensor", "channel"), "bits": (4, 8), "strategy": ("magnitude", "residual")}
    pool = candidates(fixed)
    assert {spec.granularity.kind for spec in pool} <= {"tensor", "channel"}
    assert {spec.bits for spec in pool} == {4, 8}
    assert {spec.strategy for spec in pool if spec.clusters > 1} == {"magnitude", "residual"}


def test_everything_fixed_is_one_spec():
    fixed = QuantSpec(4, 4, "kmeans", "group:32").to_dict()
    assert candidates(fixed) == (QuantSpec(4, 4, "kmeans", "group:32"),)


def test_free_levels_in_clusters_where_both_are_said():
    pool = candidates({"strategy": "lloyd", "clusters": 4})
    assert QuantSpec(4, 4, "lloyd") in pool
    assert {(spec.strategy, spec.clusters) for spec in pool} == {("lloyd", 4)}


def test_embeddings_are_plain():
    assert {(spec.clusters, spec.strategy) for spec in embedding_candidates({})} == {(1, "min_error")}


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"bits": 9}, "bits is 9; expected 2 to 8"),
        ({"layout": "round"}, "layout is 'round'"),
        ({"strategy": "foo"}, "strategy is 'foo'; expected one of min_error"),
        ({"strategy": "residual", "bits": 8}, "no spec with strategy residual, bits 8"),
        ({"strategy": "residual", "layout": "fused"}, "strategy residual is always layout parallel"),
        ({"strategy": "magnitude", "symmetric": False}, "strategy magnitude is always symmetric true"),
        ({"bit": 4}, "unknown key 'bit' among the fixed options; known keys: bits, clusters"),
        ({"strategy": "lloyd", "clusters": 2, "symmetric": True}, "lloyd"),
        ({"strategy": "lloyd", "clusters": 2, "bits": (8,)}, "no spec with strategy lloyd, clusters 2, bits"),
    ],
    ids=str,
)
def test_nothing_left(fixed, message):
    with pytest.raises(SpecError, match=message):
        candidates(fixed)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_target_has_a_pool(target):
    pool = [spec for spec in candidates(allowed_by(target)) if runs_on(target, spec)]
    assert any(spec.clusters == 1 for spec in pool)
    for spec in pool:
        target.refuse(spec)
