"""from_pretrained(..., quantization_config=SplitQuantConfig(...))."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import splitquant
from splitquant import QuantSpec, SplitQuantConfig
from splitquant.checkpoint.quantized import open_quantized
from splitquant.errors import SpecError, TensorError
from splitquant.torch.carriers import packed_weights

DENSE = ("llama", "llama-tied", "llama-bf16", "gemma3", "bert", "gpt2", "opt", "t5", "whisper", "vit", "resnet")


@pytest.mark.parametrize("name", DENSE)
def test_same_as_quantizing_the_folder(folders, run, tmp_path, name):
    """Quantizing on load is quantizing the folder and loading that: same table, same planes, same output."""
    made = folders(name)
    model = made.model_class.from_pretrained(made.source, quantization_config=SplitQuantConfig())
    folder = splitquant.load(made.packed)
    ours, theirs = dict(packed_weights(model)), dict(packed_weights(folder))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].same_planes(theirs[key]) for key in ours)
    assert torch.equal(run(model, name), run(folder, name))
    table = json.loads((made.packed / "config.json").read_text())["quantization_config"]
    assert model.config.quantization_config.to_dict()["tensors"].keys() == table["tensors"].keys()
    model.save_pretrained(tmp_path)
    open_quantized(tmp_path)
    assert torch.equal(run(splitquant.load(tmp_path), name), run(model, name))


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(strategy="magnitude", granularity="tensor", layout="parallel"),
        QuantSpec(strategy="residual"),
        QuantSpec(bits=3, clusters=2, strategy="lloyd", granularity="group:16"),
        QuantSpec(bits=2, polish=False),
    ],
    ids=str,
)
def test_every_strategy(folders, tmp_path, spec):
    """A configuration takes every field of a spec, and gives the planes of the folder that `quantize` writes."""
    made = folders("llama")
    model = made.model_class.from_pretrained(made.source, quantization_config=SplitQuantConfig(**spec.to_dict()))
    splitquant.quantize(made.source, tmp_path / "packed", spec)
    ours, theirs = dict(packed_weights(model)), dict(packed_weights(splitquant.load(tmp_path / "packed")))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].same_planes(theirs[key]) for key in ours)
    assert ours["model.layers.0.mlp.up_proj.weight"].packing.spec == spec


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss"])
def test_experts_stay_float_with_a_warning(folders, run, tmp_path, caplog, name):
    """Experts in 3-D parameters stay as they were, the warning names them, and the model can be saved and loaded."""
    made = folders(name)
    with caplog.at_level(logging.WARNING, logger="splitquant"):
        model = made.model_class.from_pretrained(made.source, quantization_config=SplitQuantConfig())
    assert "experts" in caplog.text
    assert "stay float" in caplog.text
    source = dict(made.model_class.from_pretrained(made.source).named_parameters())
    experts = {n: p for n, p in model.named_parameters() if "experts" in n and p.dim() == 3}
    assert experts
    assert all(torch.equal(parameter, source[n]) for n, parameter in experts.items())
    model.save_pretrained(tmp_path)
    assert torch.equal(run(splitquant.load(tmp_path), name), run(model, name))


def test_options(llama):
    """Options reach the weights they are for."""
    config = SplitQuantConfig(bits=3, clusters=2, granularity="group:16", embeddings="keep")
    model = llama.model_class.from_pretrained(llama.source, quantization_config=config)
    specs = {weight.packing.spec for _, weight in packed_weights(model)}
    assert specs == {QuantSpec(bits=3, clusters=2, granularity="group:16")}
    assert isinstance(model.lm_head.weight, torch.nn.Parameter)


def test_modules_to_not_convert(llama):
    """Modules that are named, and those below them, stay float."""
    config = SplitQuantConfig(modules_to_not_convert=["lm_head", "model.layers.1"], exclude=["*up_proj*"])
    model = llama.model_class.from_pretrained(llama.source, quantization_config=config)
    names = [name for name, _ in packed_weights(model)]
    assert names
    assert not any(name.startswith(("lm_head", "model.layers.1")) or "up_proj" in name for name in names)


def test_dtype_is_applied_before(folders, run, tmp_path):
    """With dtype=bfloat16 the weights are rounded first, as if the folder had been bf16."""
    made = folders("llama")
    made.model_class.from_pretrained(made.source, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    splitquant.quantize(tmp_path / "bf16", tmp_path / "packed")
    model = made.model_class.from_pretrained(made.source, dtype=torch.bfloat16, quantization_config=SplitQuantConfig())
    assert torch.equal(run(model, "llama"), run(splitquant.load(tmp_path / "packed"), "llama"))


def test_nan_is_an_error_that_names_the_tensor(llama, tmp_path):
    """A weight that holds NaN stops the load, and the error names it."""
    state = load_file(llama.source / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.nan
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((llama.source / "config.json").read_text())
    with pytest.raises(TensorError, match=r"layers\.1\.mlp\.down_proj\.weight.*NaN"):
        llama.model_class.from_pretrained(tmp_path, quantization_config=SplitQuantConfig())


@pytest.mark.parametrize("options", [{"bits": 9}, {"embeddings": "some"}, {"granularity": "rows"}])
def test_bad_options(options):
    """An option that makes no sense is an error when the configuration is made."""
    with pytest.raises(SpecError):
        SplitQuantConfig(**options)


def test_config_from_dict():
    """The configuration can be given as a dict, and an unknown option is an error that names it."""
    assert SplitQuantConfig.from_dict({"quant_method": "splitquant", "bits": 3}).recipe.spec.bits == 3
    with pytest.raises(SpecError, match="bitz"):
        SplitQuantConfig.from_dict({"quant_method": "splitquant", "bitz": 3})
