"""Roles of the tensors of real checkpoints, by the names under which they are published."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from splitquant.checkpoint.roles import layers_of
from splitquant.core.spec import QuantSpec
from splitquant.format.dtypes import DTYPES
from splitquant.plan.layers import Layer


@dataclass(frozen=True)
class Header:
    """What is known of a tensor from its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def layer_of(name: str, dtype: str, shape: tuple[int, ...], config: dict[str, Any]) -> Layer:
    """The layer that a tensor of a checkpoint is."""
    header = Header(name, dtype, shape, DTYPES[dtype].nbytes(shape))
    (layer,) = layers_of([header], config)
    assert (layer.name, layer.dtype, layer.shape, layer.nbytes) == (name, dtype, shape, header.nbytes)
    assert (layer.names, layer.owner) == ((name,), name)
    return layer


@dataclass(frozen=True)
class Tensor:
    """A tensor as it is published, and the role that it must have.

    kept: a word of the reason for which it is kept, "" where it is to be quantized.
    """

    model: str
    name: str
    shape: tuple[int, ...]
    kind: str
    kept: str = ""
    axis: int = 0
    stack: bool = False
    dtype: str = "BF16"
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name of the case."""
        return f"{self.model}: {self.name}"


def linear(model, name, shape=(64, 32), **more):
    """A weight to be quantized along its rows."""
    return Tensor(model, name, shape, "linear", **more)


def embedding(model, name, shape=(1000, 32), **more):
    """A token embedding or an output head."""
    return Tensor(model, name, shape, "embedding", **more)


def conv(model, name, shape, **more):
    """A convolution."""
    return Tensor(model, name, shape, "conv", **more)


def expert(model, name, axis=1, **more):
    """A stack of experts."""
    return Tensor(model, name, (8, 64, 32), "expert", axis=axis, stack=True, **more)


def kept(model, name, shape, why, **more):
    """A tensor that stays as it is."""
    return Tensor(model, name, shape, "other", kept=why, **more)


def of_type(model_type, **nested):
    """A config.json that says only the model's type, and those of nested models."""
    return {"model_type": model_type} | {key: {"model_type": value} for key, value in nested.items()}


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GPT2, GPT_OSS, LLAMA4 = of_type("gpt2"), of_type("gpt_oss"), of_type("llama4", text_config="llama4_text")

DECODERS = [
    embedding("llama", "model.embed_tokens.weight"),
    embedding("llama", "lm_head.weight"),
    *(linear("llama", f"model.layers.0.self_attn.{name}.weight") for name in ATTENTION),
    *(linear("llama", f"model.layers.0.mlp.{name}.weight") for name in ("gate_proj", "up_proj", "down_proj")),
    kept("llama", "model.layers.0.input_layernorm.weight", (32,), "1-D"),
    kept("llama", "model.norm.weight", (32,), "1-D"),
    kept("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (16,), "1-D", dtype="F32"),
    embedding("llama, Meta's names", "tok_embeddings.weight"),
    embedding("llama, Meta's names", "output.weight"),
    linear("llama, Meta's names", "layers.0.attention.wq.weight"),
    linear("llama, Meta's names", "layers.0.feed_forward.w1.weight"),
    kept("qwen2", "model.layers.0.self_attn.q_proj.bias", (64,), "1-D"),
    kept("qwen3", "model.layers.0.self_attn.q_norm.weight", (32,), "1-D"),
    linear("qwen", "transformer.h.0.attn.c_attn.weight", (96, 32), config=of_type("qwen")),
    embedding("qwen", "transformer.wte.weight"),
    linear("phi", "model.layers.0.mlp.fc1.weight"),
    linear("phi", "model.layers.0.self_attn.dense.weight"),
    embedding("phi-1", "transformer.embd.wte.weight"),
    linear("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
    linear("falcon", "transformer.h.0.self_attention.query_key_value.weight"),
    linear("falcon", "transformer.h.0.mlp.dense_4h_to_h.weight"),
    embedding("falcon", "transformer.word_embeddings.weight"),
    kept("falcon", "transformer.h.0.ln_attn.weight", (32,), "1-D"),
    embedding("bloom", "word_embeddings.weight"),
    kept("bloom", "word_embeddings_layernorm.weight", (32,), "1-D"),
    linear("bloom", "h.0.self_attention.query_key_value.weight"),
    embedding("gemma", "model.embed_tokens.weight"),
    embedding("gemma3n", "model.language_model.embed_tokens_per_layer.weight"),
    embedding("gemma3n", "model.embed_tokens_per_layer.weight"),
    linear("gemma3n", "model.language_model.per_layer_model_projection.weight"),
    linear("gemma3n", "model.language_model.layers.0.per_layer_input_gate.weight"),
    linear("gemma3n", "model.language_model.layers.0.laurel.linear_left.weight"),
    embedding("opt", "model.decoder.embed_tokens.weight"),
    kept("opt", "model.decoder.embed_positions.weight", (2050, 32), "position"),
    linear("opt", "model.decoder.project_in.weight"),
    linear("opt", "model.decoder.layers.0.fc1.weight"),
    embedding("gpt_neox", "gpt_neox.embed_in.weight"),
    embedding("gpt_neox", "embed_out.weight"),
    linear("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
    kept("gpt_neox", "gpt_neox.layers.0.attention.bias", (1, 1, 64, 64), "bias"),
    kept("gpt_neox", "gpt_neox.layers.0.attention.bias", (1, 1, 64, 64), "float", dtype="BOOL"),
    linear("gptj", "transformer.h.0.mlp.fc_in.weight"),
    linear("gpt_bigcode", "transformer.h.0.attn.c_attn.weight", (96, 32), config=of_type("gpt_bigcode")),
    linear("gpt_bigcode", "transformer.h.0.mlp.c_fc.weight", (128, 32), config=of_type("gpt_bigcode")),
    linear("mpt", "transformer.blocks.0.attn.Wqkv.weight"),
    embedding("internlm2", "model.tok_embeddings.weight"),
    embedding("internlm2", "output.weight"),
    linear("internlm2", "model.layers.0.attention.wqkv.weight"),
    embedding("chatglm", "transformer.embedding.word_embeddings.weight"),
    embedding("chatglm", "transformer.output_layer.weight"),
    linear("chatglm", "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight"),
    embedding("mamba", "backbone.embeddings.weight"),
    embedding("mamba, the authors' names", "backbone.embedding.weight"),
    linear("mamba", "backbone.layers.0.mixer.in_proj.weight"),
    linear("mamba", "backbone.layers.0.mixer.dt_proj.weight"),
    conv("mamba", "backbone.layers.0.mixer.conv1d.weight", (64, 1, 4)),
    kept("mamba", "backbone.layers.0.mixer.A_log", (64, 16), "raw"),
    kept("mamba", "backbone.layers.0.mixer.D", (64,), "1-D"),
    embedding("rwkv", "rwkv.embeddings.weight"),
    embedding("rwkv", "head.weight"),
    linear("rwkv", "rwkv.blocks.0.feed_forward.key.weight"),
    kept("rwkv", "rwkv.blocks.0.attention.time_mix_key", (1, 1, 32), "raw"),
    embedding("xlnet", "transformer.word_embedding.weight"),
    embedding("xlnet", "lm_loss.weight"),
    *(linear("xlnet", f"transformer.layer.0.rel_attn.{name}", (32, 4, 8)) for name in "qkvor"),
    kept("xlnet", "transformer.layer.0.rel_attn.seg_embed", (2, 4, 8), "raw"),
    embedding("biogpt", "output_projection.weight"),
    embedding("bark", "semantic.input_embeds_layer.weight"),
    embedding("bark", "fine_acoustics.input_embeds_layers.0.weight"),
    embedding("bark", "fine_acoustics.lm_heads.0.weight"),
    embedding("cpmant", "cpmant.input_embedding.weight"),
]

CONV1D = [
    linear("gpt2", "transformer.h.0.mlp.c_fc.weight", (32, 128), axis=1, config=GPT2),
    linear("gpt2", "transformer.h.0.mlp.c_proj.weight", (128, 32), axis=1, config=GPT2),
    linear("gpt2", "transformer.h.0.attn.c_attn.weight", (32, 96), axis=1, config=GPT2),
    linear("gpt2 base", "h.0.attn.c_proj.weight", (32, 32), axis=1, config=GPT2),
    linear("gpt2", "transformer.h.0.crossattention.q_attn.weight", (32, 32), axis=1, config=GPT2),
    embedding("gpt2", "transformer.wte.weight", config=GPT2),
    embedding("gpt2", "lm_head.weight", config=GPT2),
    kept("gpt2", "transformer.wpe.weight", (1024, 32), "position", config=GPT2),
    kept("gpt2", "wpe.weight", (1024, 32), "position", config=GPT2),
    kept("gpt2", "h.0.attn.bias", (1, 1, 64, 64), "bias", dtype="F32", config=GPT2),
    linear("openai-gpt", "h.0.attn.c_attn.weight", (32, 96), axis=1, config=of_type("openai-gpt")),
    embedding("openai-gpt", "tokens_embed.weight", config=of_type("openai-gpt")),
    kept("openai-gpt", "positions_embed.weight", (512, 32), "position", config=of_type("openai-gpt")),
    linear(
        "vit-gpt2",
        "decoder.transformer.h.0.attn.c_attn.weight",
        (32, 96),
        axis=1,
        config=of_type("vision-encoder-decoder", encoder="vit", decoder="gpt2"),
    ),
    linear(
        "vit-gpt2", "encoder.encoder.layer.0.attention.attention.query.weight", config=of_type("vision-encoder-decoder")
    ),
    linear("a model without a config", "transformer.h.0.mlp.c_fc.weight", (128, 32)),
]

EXPERTS = [
    linear("qwen2_moe", "model.layers.0.mlp.experts.0.gate_proj.weight"),
    linear("qwen2_moe", "model.layers.0.mlp.shared_expert.up_proj.weight"),
    kept("qwen2_moe", "model.layers.0.mlp.gate.weight", (60, 32), "router"),
    kept("qwen2_moe", "model.layers.0.mlp.shared_expert_gate.weight", (1, 32), "router"),
    expert("qwen3_moe", "model.layers.0.mlp.experts.gate_up_proj", config=of_type("qwen3_moe")),
    expert("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.gate_up_proj", 2, config=of_type("qwen3_vl_moe")),
    expert("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.down_proj", 2, config=of_type("qwen3_vl_moe")),
    linear("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
    kept("mixtral", "model.layers.0.block_sparse_moe.gate.weight", (8, 32), "router"),
    expert("mixtral", "model.layers.0.mlp.experts.gate_up_proj", config=of_type("mixtral")),
    expert("mixtral", "model.layers.0.mlp.experts.down_proj", config=of_type("mixtral")),
    kept("deepseek_v3", "model.layers.3.mlp.gate.weight", (256, 32), "router"),
    kept("deepseek_v3", "model.layers.3.mlp.gate.e_score_correction_bias", (256,), "1-D"),
    linear("deepseek_v3", "model.layers.3.mlp.shared_experts.down_proj.weight"),
    linear("deepseek_v3", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"),
    expert("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj", 2, config=GPT_OSS),
    expert("gpt_oss", "model.layers.0.mlp.experts.down_proj", 2, config=GPT_OSS),
    kept("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_bias", (8, 64), "bias", config=GPT_OSS),
    kept(
        "gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_blocks", (8, 64, 2, 16), "float", dtype="U8", config=GPT_OSS
    ),
    kept("gpt_oss", "model.layers.0.mlp.router.weight", (8, 32), "router", config=GPT_OSS),
    kept("gpt_oss", "model.layers.0.self_attn.sinks", (64,), "1-D", config=GPT_OSS),
    expert("llama4", "language_model.model.layers.0.feed_forward.experts.gate_up_proj", 2, config=LLAMA4),
    kept("llama4", "language_model.model.layers.0.feed_forward.router.weight", (16, 32), "router", config=LLAMA4),
    linear("llama4", "language_model.model.layers.0.feed_forward.shared_expert.down_proj.weight", config=LLAMA4),
    expert("aria", "language_model.model.layers.0.mlp.experts.fc1.weight", 2, config=of_type("aria")),
    kept("aria", "language_model.model.layers.0.mlp.router.weight", (64, 32), "router", config=of_type("aria")),
    expert("granitemoe", "model.layers.0.block_sparse_moe.input_linear.weight", config=of_type("granitemoe")),
    expert("granitemoe", "model.layers.0.block_sparse_moe.output_linear.weight", config=of_type("granitemoe")),
    kept("granitemoe", "model.layers.0.block_sparse_moe.router.layer.weight", (8, 32), "router"),
    kept("dbrx", "transformer.blocks.0.ffn.router.layer.weight", (16, 32), "router"),
    kept("dbrx", "transformer.blocks.0.ffn.experts.mlp.w1", (1024, 32), "raw"),
    kept("jamba", "model.layers.1.feed_forward.router.weight", (16, 32), "router"),
    linear("switch", "encoder.block.1.layer.1.mlp.experts.expert_0.wi.weight"),
    kept("switch", "encoder.block.1.layer.1.mlp.router.classifier.weight", (8, 32), "router"),
    kept("nllb-moe", "model.encoder.layers.3.ffn.router.classifier.weight", (128, 32), "router"),
    kept("hunyuan", "model.layers.0.mlp.gate.wg.weight", (64, 32), "router"),
    kept("nemotron_h", "backbone.layers.1.mixer.gate.weight", (8, 32), "router"),
    linear("minimax", "model.layers.0.self_attn.output_gate.weight"),
]

ENCODERS = [
    embedding("bert", "bert.embeddings.word_embeddings.weight"),
    kept("bert", "bert.embeddings.position_embeddings.weight", (512, 32), "position"),
    kept("bert", "bert.embeddings.token_type_embeddings.weight", (2, 32), "type"),
    kept("bert", "bert.embeddings.position_ids", (1, 512), "float", dtype="I64"),
    kept("bert", "bert.embeddings.LayerNorm.weight", (32,), "1-D"),
    linear("bert", "bert.encoder.layer.0.attention.self.query.weight"),
    linear("bert", "bert.encoder.layer.0.attention.output.dense.weight"),
    linear("bert", "bert.encoder.layer.0.output.dense.weight"),
    linear("bert", "bert.pooler.dense.weight"),
    linear("sentence transformer", "pooler.dense.weight"),
    linear("bert", "classifier.weight", (2, 32)),
    linear("llama classifier", "score.weight", (2, 32)),
    linear("bert", "qa_outputs.weight", (2, 32)),
    embedding("bert", "cls.predictions.decoder.weight"),
    linear("bert", "cls.predictions.transform.dense.weight"),
    linear("bert", "cls.seq_relationship.weight", (2, 32)),
    embedding("roberta", "lm_head.decoder.weight"),
    linear("roberta", "lm_head.dense.weight"),
    embedding("distilbert", "vocab_projector.weight"),
    linear("distilbert", "vocab_transform.weight"),
    embedding("electra", "generator_lm_head.weight"),
    linear("electra", "generator_predictions.dense.weight"),
    linear("electra", "electra.embeddings_project.weight"),
    linear("albert", "albert.encoder.embedding_hidden_mapping_in.weight"),
    embedding("modernbert", "model.embeddings.tok_embeddings.weight"),
    embedding("modernbert", "decoder.weight"),
    linear("modernbert", "model.layers.0.mlp.Wi.weight"),
    linear("modernbert", "head.dense.weight"),
    kept("deberta", "deberta.encoder.rel_embeddings.weight", (512, 32), "position"),
    linear("deberta", "deberta.encoder.layer.0.attention.self.pos_proj.weight"),
    linear("deberta", "deberta.encoder.layer.0.attention.self.in_proj.weight"),
    kept("mpnet", "mpnet.encoder.relative_attention_bias.weight", (32, 12), "position"),
    embedding("xlm", "transformer.embeddings.weight"),
    embedding("xlm", "pred_layer.proj.weight"),
    embedding("luke", "luke.entity_embeddings.entity_embeddings.weight"),
]

ENCODER_DECODERS = [
    embedding("t5", "shared.weight"),
    embedding("t5", "encoder.embed_tokens.weight"),
    linear("t5", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    linear("t5", "decoder.block.0.layer.1.EncDecAttention.o.weight"),
    linear("t5", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
    kept("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "position"),
    kept("t5", "encoder.block.0.layer.0.layer_norm.weight", (32,), "1-D"),
    embedding("t5", "lm_head.weight"),
    embedding("t5gemma", "lm_head.out_proj.weight"),
    embedding("bart", "model.shared.weight"),
    linear("bart", "model.encoder.layers.0.self_attn.out_proj.weight"),
    kept("bart", "model.encoder.embed_positions.weight", (1026, 32), "position"),
    kept("marian", "final_logits_bias", (1, 1000), "bias"),
    embedding("fsmt", "model.decoder.output_projection.weight"),
    embedding("whisper", "model.decoder.embed_tokens.weight"),
    embedding("whisper", "proj_out.weight"),
    kept("whisper", "model.encoder.embed_positions.weight", (1500, 32), "position"),
    conv("whisper", "model.encoder.conv1.weight", (32, 80, 3)),
    linear("whisper", "model.decoder.layers.0.encoder_attn.k_proj.weight"),
    embedding("musicgen", "decoder.model.decoder.embed_tokens.0.weight"),
    embedding("musicgen", "decoder.lm_heads.3.weight"),
    embedding("trocr", "decoder.output_projection.weight"),
]

VISION = [
    conv("vit", "vit.embeddings.patch_embeddings.projection.weight", (32, 3, 16, 16)),
    kept("vit", "vit.embeddings.position_embeddings", (1, 197, 32), "position"),
    kept("vit", "vit.embeddings.cls_token", (1, 1, 32), "raw"),
    linear("vit", "vit.encoder.layer.0.intermediate.dense.weight"),
    kept("vit", "vit.encoder.layer.0.layernorm_before.weight", (32,), "1-D"),
    conv("clip", "vision_model.embeddings.patch_embedding.weight", (32, 3, 14, 14)),
    kept("clip", "vision_model.embeddings.position_embedding.weight", (257, 32), "position"),
    kept("clip", "vision_model.embeddings.class_embedding", (32,), "1-D"),
    embedding("clip", "text_model.embeddings.token_embedding.weight"),
    kept("clip", "text_model.embeddings.position_embedding.weight", (77, 32), "position"),
    linear("clip", "visual_projection.weight"),
    kept("clip", "logit_scale", (), "0-D"),
    linear("siglip2", "vision_model.embeddings.patch_embedding.weight", (32, 768)),
    linear("siglip", "vision_model.head.attention.in_proj_weight", (96, 32)),
    kept("siglip", "vision_model.head.probe", (1, 1, 32), "raw"),
    kept("swin", "swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", (169, 3), "position"),
    linear("swin", "swin.encoder.layers.0.downsample.reduction.weight"),
    conv("resnet", "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", (64, 64, 3, 3)),
    conv("torchvision", "layer1.0.conv1.weight", (64, 64, 3, 3)),
    linear("torchvision", "fc.weight", (1000, 512)),
    conv("convnext", "convnext.encoder.stages.0.layers.0.dwconv.weight", (96, 1, 7, 7)),
    conv("qwen2_vl", "visual.patch_embed.proj.weight", (32, 3, 2, 14, 14)),
    linear("qwen2_vl", "visual.blocks.0.attn.qkv.weight"),
    kept("qwen3_vl", "model.visual.pos_embed.weight", (2304, 32), "position"),
    embedding("llava", "language_model.model.embed_tokens.weight"),
    embedding("llava", "language_model.lm_head.weight"),
    linear("llava", "multi_modal_projector.linear_1.weight"),
    linear("fuyu", "vision_embed_tokens.weight"),
    embedding("blip", "text_decoder.cls.predictions.decoder.weight"),
    kept("mask2former", "model.transformer_module.level_embed.weight", (3, 32), "position"),
    linear("sam", "mask_decoder.transformer.layers.0.mlp.lin1.weight"),
    conv("wav2vec2", "wav2vec2.feature_extractor.conv_layers.0.conv.weight", (512, 1, 10)),
    conv("wav2vec2", "wav2vec2.encoder.pos_conv_embed.conv.weight_v", (768, 48, 128)),
    conv("wav2vec2", "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1", (768, 48, 128)),
    kept("wav2vec2", "wav2vec2.encoder.pos_conv_embed.conv.weight_g", (1, 1, 128), "magnitudes of weight_norm"),
    kept("wav2vec2", "encoder.pos_conv_embed.conv.parametrizations.weight.original0", (1, 1, 128), "magnitudes"),
    linear("a weight-normed linear", "fc.weight_v"),
    conv("encodec", "encoder.layers.0.conv.parametrizations.weight.original1", (32, 1, 7)),
    linear("encodec", "encoder.layers.13.lstm.weight_ih_l0", (128, 32)),
    linear("encodec", "encoder.layers.13.lstm.weight_hh_l1", (128, 32)),
    linear("a bidirectional LSTM", "lstm.weight_ih_l0_reverse", (128, 32)),
    linear("a projected LSTM", "lstm.weight_hr_l0", (16, 32)),
    linear("a cell", "decoder.cell.weight_hh", (128, 32)),
    linear("a model that is an LSTM", "weight_ih_l0", (128, 32)),
    kept("an LSTM", "lstm.bias_ih_l0", (128,), "1-D"),
    linear("detr", "attn.q_proj_weight"),
    linear("open_clip", "transformer.resblocks.0.attn.in_proj_weight", (96, 32)),
    kept("open_clip", "text_projection", (32, 32), "raw"),
    linear("funnel", "funnel.encoder.blocks.0.0.attention.r_kernel", (32, 4, 8)),
    kept("funnel", "funnel.encoder.blocks.0.0.attention.seg_embed", (2, 4, 8), "raw"),
    kept("funnel", "funnel.encoder.blocks.0.0.attention.r_w_bias", (4, 8), "bias"),
    embedding("wav2vec2", "lm_head.weight", (32, 768)),
    kept("wav2vec2-bert", "encoder.layers.0.self_attn.distance_embedding.weight", (73, 64), "position"),
]

CASES = [*DECODERS, *CONV1D, *EXPERTS, *ENCODERS, *ENCODER_DECODERS, *VISION]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_role(case):
    """A tensor of a published checkpoint is what its architecture says, or kept for a reason that says why."""
    layer = layer_of(case.name, case.dtype, case.shape, case.config)
    assert layer.role == case.kind
    if case.kept:
        assert case.kept in layer.kept_because
    else:
        assert layer.kept_because == ""
        assert layer.possible
        assert (layer.axis, layer.stack) == (case.axis, case.stack)


@pytest.mark.parametrize("dtype", [name for name, dtype in DTYPES.items() if dtype.kind is not None])
def test_every_float_dtype_can_be_quantized(dtype):
    """Any float dtype will do; fp8 is read as bf16."""
    assert layer_of("model.layers.0.mlp.up_proj.weight", dtype, (4, 4), {}).role == "linear"


@pytest.mark.parametrize("dtype", ["I64", "I32", "U8", "BOOL", "I8", "F4", "C64"])
def test_other_dtypes_are_impossible(dtype):
    """What is no float is kept whatever it is called, and the reason names the dtype."""
    layer = layer_of("model.layers.0.mlp.up_proj.weight", dtype, (4, 4), {})
    assert not layer.possible
    assert dtype in layer.kept_because


@dataclass(frozen=True)
class Impossible:
    """A shape that is never quantized."""

    shape: tuple[int, ...]
    kept: str


@pytest.mark.parametrize(
    "case",
    [Impossible((), "0-D"), Impossible((7,), "1-D"), Impossible((0, 4), "empty"), Impossible((4, 0, 3), "empty")],
    ids=str,
)
def test_impossible_shapes(case):
    """Numbers, vectors and empty tensors are kept even if somebody asks for them."""
    layer = layer_of("model.layers.0.mlp.up_proj.weight", "BF16", case.shape, {})
    assert not layer.possible
    assert case.kept in layer.kept_because


def test_kept_but_possible():
    """What is kept by a rule can be asked for by name."""
    layer = layer_of("model.layers.0.mlp.gate.weight", "BF16", (8, 32), {})
    assert layer.kept_because
    assert layer.possible


def test_more_than_five_dimensions_are_kept():
    """No convolution has a 6-D weight."""
    assert "6-D" in layer_of("a.weight", "BF16", (2, 2, 2, 2, 2, 2), {}).kept_because


def test_config_may_be_odd():
    """A model type that is no text, or a nested value that is no model, is no error."""
    for config in (
        {},
        {"model_type": None},
        {"model_type": 7, "text_config": None},
        {"text_config": {"hidden_size": 3}},
    ):
        assert layer_of("model.layers.0.mlp.experts.gate_up_proj", "BF16", (2, 4, 4), config).axis == 1


def test_model_type_decides_about_axes():
    """The configuration is read once for all tensors, and the axis decides about the planes."""
    shape = (128, 512)
    headers = [Header(f"transformer.h.{i}.mlp.c_fc.weight", "BF16", shape, 2 * 128 * 512) for i in range(2)]
    for config, axis, rows in ((GPT2, 1, 512), ({}, 0, 128)):
        for layer in layers_of(iter(headers), config):
            assert layer.axis == axis
            assert layer.weight(QuantSpec()).planes[0].shape == (rows, shape[1 - axis] // 2)
