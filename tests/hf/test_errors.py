"""A folder that is damaged, or does not fit, is refused with the name of the tensor: never loaded with random weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import splitquant
from splitquant.errors import SourceError, TensorError

X = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def broken(llama, tmp_path):
    """`broken(change)`: a copy of the folder with `change(tensors, quantization_config)` applied."""

    def make(change):
        folder = tmp_path / "broken"
        shutil.copytree(llama.packed, folder)
        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        change(tensors, config["quantization_config"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("plane", ["codes", "clusters", "scale", "offset", "row_scale", "shape"])
def test_missing_plane(broken, plane):
    """A plane that is not in the file is named."""
    folder = broken(lambda tensors, _: tensors.pop(f"{X}.{plane}"))
    with pytest.raises(TensorError, match=rf"up_proj\.weight\.{plane}' is missing.*copy it again"):
        splitquant.load(folder)


def test_missing_tensor(broken):
    """A tensor of the table of which nothing is in the file is named."""

    def change(tensors, _):
        for key in [key for key in tensors if key.startswith(X)]:
            tensors.pop(key)

    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.up_proj\.weight\.codes' is missing.*config\.json"):
        splitquant.load(broken(change))


def test_plane_of_another_shape(broken):
    """A plane whose shape does not fit the spec is named, with what was found and expected."""

    def change(tensors, _):
        tensors[f"{X}.codes"] = tensors[f"{X}.codes"][:, :-1].contiguous()

    with pytest.raises(TensorError, match=r"up_proj\.weight\.codes' is torch\.uint8 \[48, 15\]; expected.*\[48, 16\]"):
        splitquant.load(broken(change))


def test_names_that_the_model_does_not_have(broken):
    """A tensor that has no place in the model stops the load where a parameter stays without values."""

    def change(tensors, config):
        other = X.replace("up_proj", "upward_proj")
        for key in [key for key in tensors if key.startswith(X)]:
            tensors[key.replace(X, other)] = tensors.pop(key)
        config["tensors"][other] = config["tensors"].pop(X)

    with pytest.raises(SourceError, match=r"upward_proj\.weight' of the folder has no place in LlamaForCausalLM"):
        splitquant.load(broken(change))


def test_another_model(llama):
    """A folder of which nothing fits the class is refused."""
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    config.quantization_config = json.loads((llama.packed / "config.json").read_text())["quantization_config"]
    with pytest.raises(SourceError, match="has no place in BertModel"):
        transformers.BertModel.from_pretrained(llama.packed, config=config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, config: config.update(format_version=3), "format_version 3 and this splitquant reads 1 and 2"),
        (lambda _, config: config.update(colour="red"), "unknown key 'colour'"),
        (lambda _, config: config["tensors"][X].update(colour="red"), "unknown key 'colour'"),
        (lambda _, config: config["tensors"][X].update(spec=7), "spec 7"),
        (lambda _, config: config["tensors"][X].update(dtype="int8"), "dtype 'int8'"),
        (lambda _, config: config["specs"][0].update(bits=9), "bits is 9"),
        (lambda _, config: config.pop("tensors"), "damaged"),
    ],
)
@pytest.mark.parametrize("through", ["load", "transformers"])
def test_damaged_table(broken, change, message, through):
    """A table that this version does not understand is refused, by load and by transformers itself."""
    folder = broken(change)
    with pytest.raises(SourceError, match=message):
        splitquant.load(folder) if through == "load" else transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_axis_beyond_the_shape(broken):
    """An axis that the tensor does not have is refused."""
    with pytest.raises(TensorError, match=r"up_proj\.weight.*axis 4"):
        splitquant.load(broken(lambda _, config: config["tensors"][X].update(axis=4)))


def test_loading_leaves_the_folder_alone(llama):
    """Loading does not change the folder."""
    before = {path.name: path.read_bytes() for path in llama.packed.iterdir()}
    model = splitquant.load(llama.packed)
    model(torch.tensor([[1]]))
    assert before == {path.name: path.read_bytes() for path in llama.packed.iterdir()}
