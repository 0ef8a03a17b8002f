"""Trained PyTorch models as ONNX files, by the usual exporter: CIFAR-10 ResNets, a sentence transformer, a Llama with a cache."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from transformers import AutoModel, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from benchmarks.quality import cifar10


def export(module: torch.nn.Module, args: tuple[Any, ...], path: Path, **options: Any) -> Path:
    """torch.onnx.export without its talk."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), args, path, dynamo=True, verbose=False, opset_version=18, **options)
    return path


def resnet(name: str, folder: Path, path: Path) -> Path:
    """A ResNet of `benchmarks/quality/cifar10.py` for batches of its size."""
    return export(cifar10.network(name, folder), (torch.zeros(cifar10.BATCH, 3, 32, 32),), path, input_names=["image"])


class Encoder(torch.nn.Module):
    """A transformer from token ids to hidden states."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def encoder(folder: Path, path: Path) -> Path:
    """A transformer encoder, any number of sentences of any length."""
    names = ["input_ids", "attention_mask"]
    ids = torch.ones(2, 9, dtype=torch.long)
    shape = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=512)}
    return export(Encoder(folder), (ids, ids), path, input_names=names, dynamic_shapes=dict.fromkeys(names, shape))


class Decoder(torch.nn.Module):
    """A Llama that takes and gives the keys and values of all tokens before."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[torch.Tensor]) -> Any:
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values))


def decoder(folder: Path, path: Path) -> tuple[Path, tuple[int, ...], int]:
    """A Llama with past key values; also the shape of one of these for no token, and how many there are."""
    model = Decoder(folder)
    config = model.model.config
    count = 2 * config.num_hidden_layers
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    args = (
        torch.ones(1, 4, dtype=torch.long),
        torch.ones(1, 7, dtype=torch.long),
        [torch.zeros(1, heads, 3, width) for _ in range(count)],  # one tensor given twice would be exported as one
    )
    export(
        model,
        args,
        path,
        input_names=["input_ids", "attention_mask", *(f"past{n}" for n in range(count))],
        output_names=["logits", *(f"present{n}" for n in range(count))],
        dynamic_shapes={
            "input_ids": {1: Dim.DYNAMIC},
            "attention_mask": {1: Dim.DYNAMIC},
            "past": [{2: Dim.DYNAMIC}] * count,
        },
    )
    return path, (1, heads, 0, width), count
