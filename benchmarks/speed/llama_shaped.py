"""Make a folder of Llama shapes with heavy-tailed random bf16 weights, so that speed can be measured at full size.

    python -m benchmarks.speed.llama_shaped 1b DIR     # 2.47 GB, the shapes of Llama 3.2 1B
    python -m benchmarks.speed.llama_shaped 8b DIR     # 16.1 GB in 4 shards, the shapes of Llama 3.1 8B

Each matrix is normal with a lognormal scale per row and 0.1 % of Student-t outliers. The weights are no model: error
figures of these folders mean nothing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitquant.checkpoint.safetensors import build_header


@dataclass(frozen=True)
class Shapes:
    """The numbers that fix a Llama's tensors."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    shards: int


SIZES = {
    "tiny": Shapes(2, 256, 512, 4, 2, 64, 1000, tied=True, shards=1),
    "1b": Shapes(16, 2048, 8192, 32, 8, 64, 128256, tied=True, shards=1),
    "8b": Shapes(32, 4096, 14336, 32, 8, 128, 128256, tied=False, shards=4),
}


def tensors_of(s: Shapes) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by name."""
    out: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (s.vocab, s.hidden),
        "model.norm.weight": (s.hidden,),
    }
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i in range(s.layers):
        layer = f"model.layers.{i}."
        out |= {
            f"{layer}self_attn.q_proj.weight": (q, s.hidden),
            f"{layer}self_attn.k_proj.weight": (kv, s.hidden),
            f"{layer}self_attn.v_proj.weight": (kv, s.hidden),
            f"{layer}self_attn.o_proj.weight": (s.hidden, q),
            f"{layer}mlp.gate_proj.weight": (s.intermediate, s.hidden),
            f"{layer}mlp.up_proj.weight": (s.intermediate, s.hidden),
            f"{layer}mlp.down_proj.weight": (s.hidden, s.intermediate),
            f"{layer}input_layernorm.weight": (s.hidden,),
            f"{layer}post_attention_layernorm.weight": (s.hidden,),
        }
    if not s.tied:
        out["lm_head.weight"] = (s.vocab, s.hidden)
    return out


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random bf16 weights as their uint16 bits."""
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)
    w = rng.standard_normal(shape, dtype=np.float32)
    w *= (0.02 * rng.lognormal(0.0, 0.3, (shape[0], 1))).astype(np.float32)
    outliers = rng.integers(0, w.size, w.size // 1000)
    w.reshape(-1)[outliers] *= (3.0 * rng.standard_t(2.0, len(outliers))).clip(-25, 25).astype(np.float32)
    return (w.view(np.uint32) >> 16).astype(np.uint16)


def make(size: str, folder: Path) -> None:
    """Write the folder; matrices are drawn in blocks of rows to bound the memory."""
    s = SIZES[size]
    folder.mkdir(parents=True)
    shapes = tensors_of(s)
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for shard in range(s.shards):
        file = "model.safetensors" if s.shards == 1 else f"model-{shard + 1:05}-of-{s.shards:05}.safetensors"
        mine = names[shard * len(names) // s.shards : (shard + 1) * len(names) // s.shards]
        header, entries = build_header([(name, "BF16", shapes[name]) for name in mine], {"format": "pt"})
        with (folder / file).open("wb") as out:
            out.write(header)
            for number, entry in enumerate(entries):
                rng = np.random.default_rng([shard, number])
                step = entry.shape[0] if len(entry.shape) == 1 else max(1, (1 << 24) // entry.shape[1])
                for first in range(0, entry.shape[0], step):
                    rows = min(step, entry.shape[0] - first)
                    heavy_tailed(rng, (rows, *entry.shape[1:])).tofile(out)
        weight_map |= dict.fromkeys(mine, file)
    if s.shards > 1:
        total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "vocab_size": s.vocab,
        "tie_word_embeddings": s.tied,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
