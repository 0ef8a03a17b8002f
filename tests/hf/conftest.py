"""Tiny random models of real architectures, their quantized folders, and the float folders these stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import splitquant
from splitquant.core.split import quantize_array
from splitquant.format.config import parse_table

# Without the extra 'hf' nothing here can be imported: this file imports it only inside of functions.
if not all(find_spec(need) for need in ("torch", "transformers", "safetensors")):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            # transformers and its dependencies deprecate parts of each other and of Python; none of it is ours
            item.add_marker(
                pytest.mark.filterwarnings("ignore::DeprecationWarning:(transformers|huggingface_hub|torch)")
            )
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning:(transformers|huggingface_hub|torch)"))


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def decoded(monkeypatch):
    """Products by decoded weights, whose bits are those of a float model; tests/hf/test_products.py has the kernels."""
    monkeypatch.setattr("splitquant.torch.packed._by_kernel", lambda *_: None)


def _text(**more):
    return {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 95,
        **more,
    }


def _build(cls: str, config: str, **options):
    import transformers

    return getattr(transformers, cls)(getattr(transformers, config)(**options))


_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
_PICTURE = {"image_size": 16, "patch_size": 4}

BUILDERS: dict[str, Callable] = {
    "llama": lambda: _build("LlamaForCausalLM", "LlamaConfig", **_text(tie_word_embeddings=False)),
    "llama-tied": lambda: _build("LlamaForCausalLM", "LlamaConfig", **_text(tie_word_embeddings=True)),
    "llama-bf16": lambda: _build("LlamaForCausalLM", "LlamaConfig", **_text(tie_word_embeddings=True)).bfloat16(),
    "gemma3": lambda: _build(
        "Gemma3ForCausalLM", "Gemma3TextConfig", **_text(head_dim=8, sliding_window=16, tie_word_embeddings=True)
    ),
    "bert": lambda: _build("BertForMaskedLM", "BertConfig", **_text()),
    "gpt2": lambda: _build(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=96,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=95,
    ),
    "opt": lambda: _build(
        "OPTForCausalLM",
        "OPTConfig",
        vocab_size=96,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        pad_token_id=0,
    ),
    "mixtral": lambda: _build(
        "MixtralForCausalLM", "MixtralConfig", **_text(num_local_experts=3, tie_word_embeddings=False)
    ),
    "qwen2-moe": lambda: _build(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        **_text(num_experts=3, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts_per_tok=2),
    ),
    "gpt-oss": lambda: _build(
        "GptOssForCausalLM",
        "GptOssConfig",
        **_text(num_local_experts=3, num_experts_per_tok=2, head_dim=8, sliding_window=16),
    ),
    "t5": lambda: _build(
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "whisper": lambda: _build(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        vocab_size=96,
        num_mel_bins=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        d_model=32,
        max_source_positions=20,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    ),
    "vit": lambda: _build(
        "ViTForImageClassification",
        "ViTConfig",
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
    ),
    "clip": lambda: _build(
        "CLIPModel",
        "CLIPConfig",
        text_config={**_TOWER, "vocab_size": 96, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**_TOWER, **_PICTURE},
        projection_dim=32,
    ),
    "siglip": lambda: _build(
        "SiglipModel",
        "SiglipConfig",
        text_config={**_TOWER, "vocab_size": 96, "max_position_embeddings": 16},
        vision_config={**_TOWER, **_PICTURE},
    ),
    "owlvit": lambda: _build(
        "OwlViTModel",
        "OwlViTConfig",
        text_config={**_TOWER, "vocab_size": 96, "max_position_embeddings": 16},
        vision_config={**_TOWER, **_PICTURE},
        projection_dim=32,
    ),
    "xlnet": lambda: _build(
        "XLNetLMHeadModel", "XLNetConfig", vocab_size=96, d_model=32, n_layer=2, n_head=4, d_inner=48
    ),
    "funnel": lambda: _build(
        "FunnelForMaskedLM",
        "FunnelConfig",
        vocab_size=96,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=48,
    ),
    "wav2vec2": lambda: _build(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    ),
    "encodec": lambda: _build(
        "EncodecModel", "EncodecConfig", hidden_size=16, num_filters=4, codebook_size=16, upsampling_ratios=[4, 2]
    ),
    "resnet": lambda: _build(
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    ),
}


@dataclass(frozen=True)
class Folders:
    """source: the float model; packed: quantized from it; twin: plain floats, those that `packed` stands for."""

    name: str
    source: Path
    packed: Path
    twin: Path

    @property
    def model_class(self):
        import transformers

        return getattr(transformers, json.loads((self.source / "config.json").read_text())["architectures"][0])


def output(model, name: str):
    """The main output of a model for a fixed input."""
    import torch

    dtype, ids = model.dtype, torch.tensor([[1, 5, 9, 60, 5, 2, 33, 8]])
    with torch.no_grad():
        if name == "whisper":
            sound = torch.sin(torch.arange(320.0)).reshape(1, 8, 40).to(dtype)
            return model(input_features=sound, decoder_input_ids=ids).logits
        if name in ("vit", "resnet"):
            return model(torch.cos(torch.arange(768.0)).reshape(1, 3, 16, 16).to(dtype)).logits
        if name == "t5":
            return model(input_ids=ids, decoder_input_ids=ids).logits
        result = model(ids)
        return result.logits if hasattr(result, "logits") else result.last_hidden_state


def write_twin(source: Path, packed: Path, twin: Path) -> None:
    """The float folder of a quantized one, made of the source by core alone."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from splitquant.torch.packing import from_numpy, to_numpy

    table = parse_table(json.loads((packed / "config.json").read_text())["quantization_config"])
    tensors = {}
    with safe_open(source / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if name in table:
                entry, array = table[name], to_numpy(tensor)
                parts = array if entry.stack else array[None]
                axis = entry.axis - int(entry.stack)
                whole = np.stack([quantize_array(part, entry.spec, axis).dequantize(entry.kind) for part in parts])
                tensor = from_numpy(whole if entry.stack else whole[0])
            tensors[name] = tensor.contiguous()
    twin.mkdir()
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    (twin / "config.json").write_text((source / "config.json").read_text())


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Callable[[str], Folders]:
    """Makes the folders of a model, once."""
    made: dict[str, Folders] = {}

    def make(name: str) -> Folders:
        if name not in made:
            import torch

            torch.manual_seed(len(name))
            base = tmp_path_factory.mktemp(name)
            made[name] = Folders(name, base / "source", base / "packed", base / "twin")
            model = BUILDERS[name]().eval()
            model.save_pretrained(made[name].source)
            splitquant.quantize(made[name].source, made[name].packed, threads=1)
            write_twin(made[name].source, made[name].packed, made[name].twin)
        return made[name]

    return make


@pytest.fixture(scope="session")
def llama(folders) -> Folders:
    return folders("llama")


@pytest.fixture(scope="session")
def run() -> Callable:
    """`run(model, name)`: the main output of a model for a fixed input."""
    return output
