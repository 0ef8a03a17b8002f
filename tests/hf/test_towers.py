"""A tower loaded out of the folder of a composite model has that folder's weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

import splitquant
from splitquant.errors import SourceError
from splitquant.torch.carriers import packed_weights

TOWERS = [
    ("clip", "CLIPVisionModel"),
    ("clip", "CLIPTextModel"),
    ("clip", "CLIPVisionModelWithProjection"),
    ("clip", "CLIPTextModelWithProjection"),
    ("siglip", "SiglipVisionModel"),
    ("siglip", "SiglipTextModel"),
    ("owlvit", "OwlViTVisionModel"),
    ("owlvit", "OwlViTTextModel"),
]


def output(model):
    """The main output of a tower for a fixed input."""
    with torch.no_grad():
        if "Vision" in type(model).__name__:
            return model(torch.cos(torch.arange(768.0)).reshape(1, 3, 16, 16))[0]
        return model(torch.tensor([[1, 5, 9, 60, 5, 33, 8, 2]]))[0]


@pytest.mark.parametrize(("folder", "tower"), TOWERS)
def test_a_tower_is_that_of_the_float_folder(folders, folder, tower):
    """A tower of a quantized folder gives what that of the float folder it stands for gives, and is packed.

    A product of one row and no bias may add up in another order, as the memory of the matrix lies.
    """
    made, cls = folders(folder), getattr(transformers, tower)
    model = cls.from_pretrained(made.packed)
    torch.testing.assert_close(output(model), output(cls.from_pretrained(made.twin)), rtol=1e-5, atol=1e-6)
    assert len(list(packed_weights(model))) > 4


@pytest.mark.parametrize("folder", ["clip", "siglip"])
def test_saving_and_dequantizing_the_whole(folders, tmp_path, folder):
    """What save_pretrained writes has towers too; what dequantize makes is plain in nested configurations."""
    made = folders(folder)
    model = splitquant.load(made.packed)
    model.save_pretrained(tmp_path / "saved")
    tower = next(name for of, name in TOWERS if of == folder)
    cls = getattr(transformers, tower)
    assert torch.equal(output(cls.from_pretrained(tmp_path / "saved")), output(cls.from_pretrained(made.twin)))
    model.dequantize().save_pretrained(tmp_path / "plain")
    assert "splitquant" not in (tmp_path / "plain/config.json").read_text()
    splitquant.dequantize(made.packed, tmp_path / "floats")
    assert json.loads((tmp_path / "floats/config.json").read_text()) == json.loads(
        (made.source / "config.json").read_text()
    )
    splitquant.verify(made.source, made.packed)


def test_a_model_whose_weights_did_not_arrive_is_refused(folders, tmp_path):
    """Packed weights under another prefix than the model's stop the load, where random ones would be used instead."""
    made = folders("clip")
    shutil.copytree(made.packed, tmp_path / "q")
    config = transformers.CLIPVisionConfig.from_pretrained(tmp_path / "q")
    config.num_hidden_layers = 1
    model = transformers.CLIPVisionModel.from_pretrained(tmp_path / "q", config=config)  # fewer layers are no fault
    assert len(list(packed_weights(model))) > 3
    for mapping in ({r"^vision_model\.encoder": "elsewhere.encoder"}, {r"layers\.1\.": "layer.1."}):
        with pytest.raises(
            SourceError, match=r"has no place in CLIPVisionModel, and the model's '.*layers.*' got no values"
        ):
            transformers.CLIPVisionModel.from_pretrained(tmp_path / "q", key_mapping=mapping)


def test_a_new_head_is_no_fault(folders):
    """A class with a head of its own takes the body and draws the head, as with floats."""
    model = transformers.BertForSequenceClassification.from_pretrained(folders("bert").packed)
    assert len(list(packed_weights(model))) > 10
