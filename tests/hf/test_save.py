"""save_pretrained and dequantize."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import splitquant
from splitquant.checkpoint.quantized import open_quantized
from splitquant.torch.carriers import packed_weights


def _tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "llama-bf16", "bert", "gpt2", "opt", "t5", "whisper", "resnet"]
)
def test_saved_folder_is_the_loaded_folder(folders, run, tmp_path, name):
    """Loading and saving a quantized folder gives the same tensors and the same table, bit for bit."""
    made = folders(name)
    model = splitquant.load(made.packed)
    model.save_pretrained(tmp_path)
    before, after = _tensors(made.packed), _tensors(tmp_path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    tables = [json.loads((path / "config.json").read_text())["quantization_config"] for path in (made.packed, tmp_path)]
    assert tables[0]["tensors"].keys() == tables[1]["tensors"].keys()
    assert len(open_quantized(tmp_path).tensors) == len(tables[0]["tensors"])
    assert torch.equal(run(splitquant.load(tmp_path), name), run(model, name))


@pytest.mark.parametrize("name", ["llama-tied", "mixtral"])
def test_sharded(folders, run, tmp_path, name):
    """Many small shards load like one file, and the checkpoint reader accepts them."""
    made = folders(name)
    model = splitquant.load(made.packed)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= 3
    open_quantized(tmp_path)
    assert torch.equal(run(splitquant.load(tmp_path), name), run(model, name))


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss"])
def test_experts_are_saved_as_floats(folders, run, tmp_path, name):
    """Experts, which were loaded as floats, are saved as floats under the names of the checkpoint."""
    made = folders(name)
    model = splitquant.load(made.packed)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        experts = [key for key in file.keys() if ".experts." in key]  # noqa: SIM118
    source = [key for key in load_file(made.source / "model.safetensors") if ".experts." in key]
    assert sorted(experts) == sorted(source)
    assert torch.equal(run(splitquant.load(tmp_path), name), run(model, name))


@pytest.mark.parametrize("name", ["llama-tied", "llama-bf16", "gpt2", "mixtral", "resnet"])
def test_dequantize(folders, run, tmp_path, name):
    """model.dequantize() gives a plain float model with the same output, tied as before, which saves as a plain folder."""
    made = folders(name)
    model = splitquant.load(made.packed)
    expected = run(model, name)
    plain = copy.deepcopy(model).dequantize()
    assert not list(packed_weights(plain))
    assert torch.equal(run(plain, name), expected)
    if getattr(plain.config, "tie_word_embeddings", False) and plain.get_output_embeddings() is not None:
        assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    plain.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again, twin = _tensors(tmp_path), _tensors(made.twin)
    assert again.keys() == twin.keys()
    assert all(torch.equal(again[key], twin[key]) for key in twin)


def test_not_trainable(llama):
    """A packed model says that it cannot be trained."""
    assert splitquant.load(llama.packed).hf_quantizer.is_trainable is False
