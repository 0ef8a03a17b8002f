"""Where a layer is in its model, by its name."""

from __future__ import annotations

import pytest

from splitquant.report.html.places import blocks_in_order, place_of


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "model.layers.11", "self_attn.q_proj"),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "encoder.block.3", "layer.*.SelfAttention.q"),
        ("model.layers.2.mlp.experts.17.up_proj.weight", "model.layers.2", "mlp.experts.*.up_proj"),
        ("layer1.0.conv1.weight", "layer1.0", "conv1"),
        ("/model/layers.0/attn/MatMul", "model.layers.0", "attn.MatMul"),
        ("model.layers.0.input_layernorm.bias", "model.layers.0", "input_layernorm.bias"),
        ("lm_head.weight", "", "lm_head"),
        ("weight", "", "weight"),
        ("a.3", "", "a.*"),
        ("0.weight", "", "*"),
        ("", "", ""),
    ],
)
def test_place(name, block, kind):
    place = place_of(name)
    assert (place.block, place.kind) == (block, kind)


def test_blocks_are_in_order():
    """Numbers count by value; those without a number are in no block."""
    names = ["h.10.a", "h.2.a", "b.0.x", "h.2.b", "lm_head", "layer2.0.c", "layer1.1.c", "layer10.0.c"]
    assert blocks_in_order(names) == {"b.0": 0, "h.2": 1, "h.10": 2, "layer1.1": 3, "layer2.0": 4, "layer10.0": 5}
