"""What the tensors of a plan are called in the output, and that no two are called alike."""

from __future__ import annotations

import pytest

from splitquant.checkpoint.folder import Shard
from splitquant.checkpoint.safetensors import Entry
from splitquant.checkpoint.stored import refuse_clashes, shard_header, stored_names, stored_tensors
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError
from splitquant.plan.decide import decide
from splitquant.plan.layers import Layer
from splitquant.plan.recipe import Recipe

EMBED, UP, NORM = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
MODEL = (
    Layer(EMBED, "embedding", "BF16", (1000, 128), 256_000),
    Layer(UP, "linear", "BF16", (256, 128), 65_536),
    Layer(NORM, "other", "BF16", (128,), 256, kept_because="1-D", possible=False),
)


def decided(recipe=None):
    """The decisions by name."""
    return {decision.name: decision for decision in decide(MODEL, recipe or Recipe()).decisions}


def test_kept_tensors_keep_name_and_size():
    """A kept tensor has no planes and its own bytes."""
    kept = decided()[NORM]
    assert (stored_tensors(kept), kept.stored_bytes) == ([(NORM, "BF16", (128,))], 256)


def test_stored_names():
    """A quantized tensor is stored as its planes, each under the tensor's name."""
    plan = decided()
    assert stored_names(plan[UP]) == [
        f"{UP}.{p}" for p in ("codes", "clusters", "scale", "offset", "row_scale", "shape")
    ]
    assert f"{EMBED}.clusters" not in stored_names(plan[EMBED])
    assert f"{UP}.row_scale" not in stored_names(decided(Recipe(QuantSpec(granularity="tensor")))[UP])


def test_a_shard_has_a_place_for_everything():
    """The header of a shard holds all stored tensors, with the bytes that the plan says."""
    plan = decided()
    entries = tuple(Entry(one.name, one.dtype, one.shape, 0, one.nbytes) for one in MODEL)
    header, places = shard_header(Shard("model.safetensors", entries, {}), plan)
    assert sorted(place.name for place in places) == sorted(name for one in plan.values() for name in stored_names(one))
    assert sum(place.nbytes for place in places) == sum(one.stored_bytes for one in plan.values())
    assert b'"__metadata__":{"format":"pt"}' in header
    assert min(place.start for place in places) == len(header)


@pytest.mark.parametrize("other", [f"{UP}.codes", f"{UP}.shape"])
def test_two_tensors_of_one_name(other):
    layers = (*MODEL, Layer(other, "other", "BF16", (4,), 8, kept_because="1-D", possible=False))
    with pytest.raises(TensorError, match=rf"tensors '{UP}' and '{other}' would both be stored as '{other}'"):
        refuse_clashes(decide(layers, Recipe()))
    refuse_clashes(decide(layers, Recipe(exclude=(UP,))))
    refuse_clashes(decide(MODEL, Recipe()))
