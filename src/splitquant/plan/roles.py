"""What a tensor is, judged by its name, shape and dtype alone, since the model class is never built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

RoleKind = Literal["linear", "conv", "expert", "embedding", "other"]

FLOAT_DTYPES = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")

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
    r"(position|pos_emb|wpe\.|token_type|segment_emb|relative_attention_bias|rotary|inv_freq|alibi|time_embed)",
    re.IGNORECASE,
)
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings?|tok_embeddings?|token_embed(ding|s)?s?|tokens_embed|embed_in|shared|item_embeddings?"
    r"|embedding|embeddings|embed|word_embed|lm_head|embed_out|output|decoder|proj_out)\.weight$"
)
_HEADS_BY_NAME_ONLY = re.compile(r"(^|\.)(output|decoder|proj_out)\.weight$")
_HEAD_PLACES = re.compile(
    r"^(output|proj_out|(cls\.)?predictions\.decoder|cls\.predictions\.decoder|lm_head\.decoder)\.weight$"
)
_ROUTER = re.compile(
    r"((mlp|moe|block_sparse_moe|ffn|feed_forward)\.gate|router(\.[a-z_]+)?|shared_expert_gate|gate\.wg)\.weight$"
)
_EXPERT = re.compile(r"(^|\.)experts?\.")
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
    if dtype not in FLOAT_DTYPES:
        return Role("other", kept_because=f"not a float tensor ({dtype})", possible=False)
    if len(shape) < 2:
        return Role("other", kept_because=f"{len(shape)}-D: a norm, bias or scale", possible=False)
    if 0 in shape:
        return Role("other", kept_because="empty", possible=False)
    model_type = str(config.get("model_type", ""))
    if len(shape) == 3 and _EXPERT.search(name) and not name.endswith("bias"):
        return Role("expert", axis=2 if model_type in INPUT_FIRST_EXPERTS else 1, stack=True)
    if name.endswith("bias") and "relative_attention_bias" not in name:
        return Role("other", kept_because="a bias")
    if _POSITION.search(name):
        return Role("other", kept_because="a position or type embedding: small, and often read as raw values")
    if len(shape) >= 3:
        if name.endswith(".weight") and len(shape) <= 5:
            return Role("conv")
        return Role("other", kept_because=f"a {len(shape)}-D parameter that is no convolution or expert weight")
    if not name.endswith(".weight"):
        return Role("other", kept_because="a raw 2-D parameter, not the weight of a layer")
    if _NORM.search(name):
        return Role("other", kept_because="a norm")
    if _ROUTER.search(name):
        return Role("other", kept_because="an expert router: small, and decides where tokens go")
    if _EMBEDDING.search(name) and not (_HEADS_BY_NAME_ONLY.search(name) and not _HEAD_PLACES.search(name)):
        return Role("embedding")
    if CONV1D_NAMES.search(name) and model_type in CONV1D_MODELS:
        return Role("linear", axis=1)
    return Role("linear")
