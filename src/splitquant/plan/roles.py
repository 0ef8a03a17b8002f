"""What a tensor is, judged by its name, shape and dtype alone, since the model class is never built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from splitquant.format.dtypes import DTYPES

RoleKind = Literal["linear", "conv", "expert", "embedding", "other"]

# transformers' Conv1D keeps its weight as [in, out]; these model types are built of it.
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
CONV1D_NAMES = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
# Stacked experts are [experts, out, in], but for these model types [experts, in, out].
INPUT_FIRST_EXPERTS = frozenset(
    {
        "aria",
        "aria_text",
        "gpt_oss",
        "llama4",
        "llama4_text",
        "openai_privacy_filter",
        "qwen3_vl_moe",
        "qwen3_vl_moe_text",
    }
)

_POSITION = re.compile(
    r"(position|pos_emb|wpe\.|token_type|segment_emb|relative_attention_bias|rotary|inv_freq|alibi|time_embed"
    r"|(^|\.)(rel_embeddings|rel_attn_embed|distance_embedding|level_embed)\.)",
    re.IGNORECASE,
)
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens(_per_layer)?|embed_(audio|text)_tokens|wte|((?!patch_|linear_|box_linear_)[a-z_]+_)?embeddings?"
    r"|token_embeds?|tokens_embed|embed_in|input_embeds_layers?|shared|embed|word_embed|lm_heads?|embed_out|generator_lm_head"
    r"|vocab_projector|lm_loss|output_projection)(\.\d+)?\.weight$"
)
_HEAD = re.compile(
    r"(^(output|proj_out|decoder|head|pred_layer\.proj|(transformer\.)?output_layer)"
    r"|(^|\.)(predictions|lm_head|head)\.(decoder|out_proj))\.weight$"
)
_ROUTER = re.compile(
    r"((mlp|moe|mixer|block_sparse_moe|ffn|feed_forward)\.gate|router(\.[a-z_]+)?|shared_expert_gate|gate\.wg)\.weight$"
)
_EXPERT = re.compile(r"(^|\.)experts?\.|\.(input|output)_linear\.weight$")
_NORM = re.compile(r"(norm|layernorm|ln_[a-z0-9]+)\.weight$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is. axis: its output-channel axis; stack: whether axis 0 numbers independent matrices.

    kept_because: why it stays as it is unless somebody asks for it by name ("" where it is to be quantized).
    possible: whether it can be quantized at all.
    """

    kind: RoleKind
    axis: int = 0
    stack: bool = False
    kept_because: str = ""
    possible: bool = True


def role_of(name: str, dtype: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> Role:
    """The role of a tensor; `config` is the folder's config.json ({} where there is none)."""
    if DTYPES[dtype].kind is None:
        return Role("other", kept_because=f"not float ({dtype})", possible=False)
    if len(shape) < 2:
        return Role("other", kept_because=f"{len(shape)}-D (norm, bias, scale)", possible=False)
    if 0 in shape:
        return Role("other", kept_because="empty", possible=False)
    model_types = _model_types(config)
    if len(shape) == 3 and _EXPERT.search(name) and not name.endswith("bias"):
        return Role("expert", axis=2 if model_types & INPUT_FIRST_EXPERTS else 1, stack=True)
    if name.endswith("bias") and "relative_attention_bias" not in name:
        return Role("other", kept_because="bias")
    if _POSITION.search(name):
        return Role("other", kept_because="position or type embedding")
    if len(shape) >= 3:
        if name.endswith(".weight") and len(shape) <= 5:
            return Role("conv")
        return Role("other", kept_because=f"raw {len(shape)}-D parameter")
    if not name.endswith(".weight"):
        return Role("other", kept_because="raw 2-D parameter")
    if _NORM.search(name):
        return Role("other", kept_because="norm")
    if _ROUTER.search(name):
        return Role("other", kept_because="expert router")
    if _EMBEDDING.search(name) or _HEAD.search(name):
        return Role("embedding")
    if CONV1D_NAMES.search(name) and model_types & CONV1D_MODELS:
        return Role("linear", axis=1)
    return Role("linear")


def _model_types(config: Mapping[str, Any]) -> frozenset[str]:
    """The model type of a configuration and of those nested in it (the decoder of an image captioner, for instance)."""
    configs = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return frozenset(str(item["model_type"]) for item in configs if "model_type" in item)
