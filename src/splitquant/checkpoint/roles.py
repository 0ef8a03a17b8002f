"""What a tensor is, judged by its name, shape and dtype alone, since the model class is never built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from splitquant.format.dtypes import DTYPES
from splitquant.plan.layers import Layer, Role, of_unknown_use

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
# Weights that are no `.weight`: directions of weight_norm (in both spellings), projections of nn.MultiheadAttention,
# recurrent layers (two dimensions), and attention that keeps its heads apart (XLNet, Funnel: three).
_DIRECTION = re.compile(r"\.(weight_v|parametrizations\.weight\.original1)$")
_MAGNITUDE = re.compile(r"\.(weight_g|parametrizations\.weight\.original0)$")
_MATRIX = re.compile(r"(^|\.)((in|q|k|v)_proj_weight|weight_(ih|hh|hr)(_l\d+(_reverse)?)?)$")
_HEADS = re.compile(r"(^|\.)(rel_attn\.[qkvor]|r_kernel)$")


class TensorHeader(Protocol):
    """What is known of a tensor from the header of its file."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


def layers_of(headers: Iterable[TensorHeader], config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """The layers of a checkpoint, one for every tensor; `config` is the folder's config.json ({} where there is none)."""
    model_types = _model_types(config)
    return tuple(_layer_of(header, model_types) for header in headers)


def _layer_of(header: TensorHeader, model_types: frozenset[str]) -> Layer:  # noqa: C901, PLR0911, PLR0912 - a flat list of checks, each with its reason, reads best in one piece
    name, dtype, shape = header.name, header.dtype, header.shape

    def layer(role: Role, axis: int = 0, *, stack: bool = False, kept: str = "", possible: bool = True) -> Layer:
        return Layer(name, role, dtype, shape, header.nbytes, axis, stack, kept_because=kept, possible=possible)

    if DTYPES[dtype].kind is None:
        return layer("other", kept=f"not float ({dtype})", possible=False)
    if len(shape) < 2:
        return layer("other", kept=f"{len(shape)}-D (norm, bias, scale)", possible=False)
    if 0 in shape:
        return layer("other", kept="empty", possible=False)
    if len(shape) == 3 and _EXPERT.search(name) and not name.endswith("bias"):
        return layer("expert", axis=2 if model_types & INPUT_FIRST_EXPERTS else 1, stack=True)
    if name.endswith("bias") and "relative_attention_bias" not in name:
        return layer("other", kept="bias")
    if _POSITION.search(name):
        return layer("other", kept="position or type embedding")
    if _MAGNITUDE.search(name):
        return layer("other", kept="magnitudes of weight_norm")
    if _DIRECTION.search(name) and len(shape) <= 5:
        return layer("conv" if len(shape) >= 3 else "linear")
    if (len(shape) == 2 and _MATRIX.search(name)) or (len(shape) == 3 and _HEADS.search(name)):
        return layer("linear")
    if len(shape) >= 3:
        if name.endswith(".weight") and len(shape) <= 5:
            return layer("conv")
        return layer("other", kept=of_unknown_use(len(shape)))
    if not name.endswith(".weight"):
        return layer("other", kept=of_unknown_use(2))
    if _NORM.search(name):
        return layer("other", kept="norm")
    if _ROUTER.search(name):
        return layer("other", kept="expert router")
    if _EMBEDDING.search(name) or _HEAD.search(name):
        return layer("embedding")
    if CONV1D_NAMES.search(name) and model_types & CONV1D_MODELS:
        return layer("linear", axis=1)
    return layer("linear")


def _model_types(config: Mapping[str, Any]) -> frozenset[str]:
    """The model type of a configuration and of those nested in it (the decoder of an image captioner, for instance)."""
    configs = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return frozenset(str(item["model_type"]) for item in configs if "model_type" in item)
