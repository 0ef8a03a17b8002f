"""Loading a quantized folder: it is the float model with the dequantized weights, whatever the architecture."""

from __future__ import annotations

import pytest
import torch
import transformers

import splitquant
from splitquant.torch.carriers import packed_weights

MODELS = (
    "llama", "llama-tied", "llama-bf16", "gemma3", "bert", "gpt2", "opt", "mixtral", "qwen2-moe", "gpt-oss", "t5",
    "whisper", "vit", "resnet",
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_same_output_as_dequantized_weights(folders, run, name):
    """A quantized folder gives, bit for bit, the output of a float model that has its dequantized weights."""
    made = folders(name)
    packed = made.model_class.from_pretrained(made.packed)
    plain = made.model_class.from_pretrained(made.twin)
    assert len(list(packed_weights(packed))) > 0
    assert not torch.equal(run(plain, name), run(made.model_class.from_pretrained(made.source), name))
    assert torch.equal(run(packed, name), run(plain, name))


@pytest.mark.parametrize("name", ["llama-tied", "gemma3", "bert", "gpt2", "opt", "t5", "whisper"])
def test_tied_weights_share_their_planes(folders, name):
    """An output head that is tied to the embedding is the very same packed weight, also after tie_weights()."""
    model = folders(name).model_class.from_pretrained(folders(name).packed)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_untied_heads_have_planes_of_their_own(llama):
    """Without tie_word_embeddings the head has its own weight."""
    model = splitquant.load(llama.packed)
    assert not model.lm_head.weight.same_planes(model.model.embed_tokens.weight)


def test_weights_stay_packed_in_memory(llama):
    """A loaded model takes fewer bytes than its float twin, and no float copy of a packed weight is kept."""
    model, plain = splitquant.load(llama.packed), llama.model_class.from_pretrained(llama.twin)
    model(torch.tensor([[1, 2, 3]]))
    assert model.get_memory_footprint() < 0.45 * plain.get_memory_footprint()
    assert not any(name.endswith("proj.weight") for name, _ in model.named_parameters())


def test_base_model_from_head_model_folder(folders, run):
    """AutoModel takes the folder of a ...ForMaskedLM: the prefix of the names is taken off as for a float folder."""
    made = folders("bert")
    packed = transformers.AutoModel.from_pretrained(made.packed)
    assert type(packed).__name__ == "BertModel"
    assert torch.equal(run(packed, "bert"), run(transformers.AutoModel.from_pretrained(made.twin), "bert"))


def test_head_model_from_base_model_folder(folders, run, tmp_path):
    """A ...ForSequenceClassification takes the folder of a base model: the prefix is put on, the new head is float."""
    made = folders("bert")
    transformers.AutoModel.from_pretrained(made.source).save_pretrained(tmp_path / "base")
    splitquant.quantize(tmp_path / "base", tmp_path / "packed")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "packed")
    base = splitquant.load(tmp_path / "packed")
    assert torch.equal(run(model.base_model, "bert"), run(base, "bert"))
    assert isinstance(model.classifier.weight, torch.nn.Parameter)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss"])
def test_experts_are_loaded_as_floats(folders, name):
    """Experts that transformers holds as one 3-D parameter get their dequantized weights."""
    model = splitquant.load(folders(name).packed)
    experts = {n: p for n, p in model.named_parameters() if "experts" in n and p.dim() == 3}
    assert experts
    twin = dict(folders(name).model_class.from_pretrained(folders(name).twin).named_parameters())
    assert all(torch.equal(parameter, twin[n]) for n, parameter in experts.items())


def test_experts_of_which_some_are_kept(folders, run, tmp_path):
    """Experts go to their places also where only some of them are quantized."""
    made = folders("mixtral")
    splitquant.quantize(made.source, tmp_path / "packed", exclude=["*experts.1.*", "*layers.1*experts.2.w3.weight"])
    splitquant.dequantize(tmp_path / "packed", tmp_path / "plain")
    packed, plain = (made.model_class.from_pretrained(tmp_path / n) for n in ("packed", "plain"))
    assert torch.equal(run(packed, "mixtral"), run(plain, "mixtral"))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "t5", "mixtral"])
def test_generate(folders, name):
    """Greedy generation gives the tokens of the float twin."""
    made = folders(name)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([[1, 5, 9, 60]])
    found, expected = (
        made.model_class.from_pretrained(path).generate(ids, attention_mask=torch.ones_like(ids), **options)
        for path in (made.packed, made.twin)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "spec",
    [
        splitquant.PAPER,
        splitquant.QuantSpec(bits=3, clusters=2, granularity="group:16"),
        splitquant.QuantSpec(bits=2, clusters=8, granularity="tensor"),
        splitquant.QuantSpec(bits=8, clusters=1, symmetric=True),
        splitquant.QuantSpec(strategy="magnitude", granularity="tensor"),
        splitquant.QuantSpec(strategy="residual"),
        splitquant.QuantSpec(bits=2, clusters=3, strategy="residual", granularity="group:16", symmetric=True),
        splitquant.QuantSpec(strategy="lloyd"),
        splitquant.QuantSpec(bits=3, clusters=1, strategy="lloyd", granularity="tensor"),
        splitquant.QuantSpec(polish=False),
    ],
    ids=str,
)
def test_specs(folders, run, tmp_path, spec):
    """Every kind of spec loads, embeddings with the same spec too."""
    made = folders("llama-tied")
    splitquant.quantize(made.source, tmp_path / "packed", spec, embeddings=spec)
    splitquant.dequantize(tmp_path / "packed", tmp_path / "plain")
    packed, plain = (made.model_class.from_pretrained(tmp_path / n) for n in ("packed", "plain"))
    assert torch.equal(run(packed, "llama"), run(plain, "llama"))
    assert all(weight.packing.spec == spec for _, weight in packed_weights(packed))
    packed.save_pretrained(tmp_path / "again")
    assert torch.equal(run(splitquant.load(tmp_path / "again"), "llama"), run(packed, "llama"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["llama-tied", "llama-bf16", "mixtral", "gemma3"])
def test_dtype_follows_the_model(folders, run, name, dtype):
    """from_pretrained(dtype=...) and to(dtype) give the output of the float twin in that dtype; levels stay float32."""
    made = folders(name)
    plain = run(made.model_class.from_pretrained(made.twin, dtype=dtype), name)
    packed = made.model_class.from_pretrained(made.packed, dtype=dtype)
    assert packed.model.layers[0].mlp.state_dict() is not None
    assert plain.dtype == dtype
    assert torch.equal(run(packed, name), plain)
    for _, weight in packed_weights(packed):
        assert (weight.scale.dtype, weight.dtype) == (torch.float32, dtype)
    if name != "mixtral":  # its experts are floats, which a cast rounds once more
        cast = made.model_class.from_pretrained(made.packed).to(dtype)
        assert torch.equal(run(cast, name), run(made.model_class.from_pretrained(made.twin).to(dtype), name))
        assert all(weight.scale.dtype == torch.float32 for _, weight in packed_weights(cast))


def test_int8_activations(folders, run):
    """The inputs of a loaded model's layers can be put on INT8 grids: the output of the float twin with such inputs."""
    from splitquant.torch import DynamicInt8

    made, grid = folders("llama-tied"), DynamicInt8()
    packed, plain = splitquant.load(made.packed), made.model_class.from_pretrained(made.twin)
    before = run(packed, "llama")
    for _, weight in packed_weights(packed):
        weight.activations = grid
    for module in plain.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (grid(args[0]),))
    assert not torch.equal(run(packed, "llama"), before)
    assert torch.equal(run(packed, "llama"), run(plain, "llama"))


def test_device_map(folders, run):
    """device_map does not change the output."""
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    made = folders("llama-tied")
    model = made.model_class.from_pretrained(made.packed, device_map="cpu")
    assert torch.equal(run(model, "llama"), run(splitquant.load(made.packed), "llama"))


def test_other_vocabulary_size(folders):
    """A head of another size is left out as for a float folder, where the caller says so."""
    made = folders("vit")
    model = made.model_class.from_pretrained(made.packed, num_labels=7, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (7, 32)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        made.model_class.from_pretrained(made.packed, num_labels=7)


def test_state_dict_of_a_caller(folders, run):
    """from_pretrained(None, state_dict=...) reads planes from memory."""
    from safetensors.torch import load_file

    made = folders("llama-tied")
    state = load_file(made.packed / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(made.packed)
    model = made.model_class.from_pretrained(None, config=config, state_dict=state)
    assert torch.equal(run(model, "llama"), run(splitquant.load(made.packed), "llama"))
