"""Weights that are no `.weight`: heads kept apart, directions of weight_norm, in_proj_weight, recurrent layers."""

from __future__ import annotations

import pytest
import torch

import splitquant

OTHERS = {
    "xlnet": ("rel_attn.q", "rel_attn.o", "rel_attn.r"),
    "funnel": ("attention.r_kernel",),
    "siglip": ("head.attention.in_proj_weight",),
    "wav2vec2": ("pos_conv_embed.conv.parametrizations.weight.original1",),
    "encodec": ("lstm.weight_ih_l0", "lstm.weight_hh_l1", "conv.parametrizations.weight.original1"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_they_are_quantized_and_loaded(folders, name):
    """They are in the table, a loaded model has the values of the float folder, and nothing that multiplies is kept as unknown."""
    made = folders(name)
    plan = splitquant.dry_run(made.source)
    done = [decision.name for decision in plan.quantized]
    for ending in OTHERS[name]:
        assert any(one.endswith(ending) for one in done), ending
    unknown = {d.name.split(".")[-1] for d in plan.decisions if d.spec is None and d.layer.is_of_unknown_use}
    assert unknown <= {"seg_embed", "mask_emb", "probe", "embed", "embed_avg"}  # tokens, and the code books of a codec
    model, twin = splitquant.load(made.packed).dequantize(), made.model_class.from_pretrained(made.twin)
    found, expected = model.state_dict(), twin.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
