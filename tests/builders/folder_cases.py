"""Small folders and options whose output is held byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import splitquant
from builders.folders import CONFIG, normal, tiny_folder, tiny_sharded, tree, write_folder
from splitquant import PAPER, QuantSpec


@dataclass(frozen=True)
class Case:
    """A source, by name, and how it is quantized."""

    name: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("default, bf16", "sharded"),
    Case("default, fp32", "fp32"),
    Case("paper", "sharded", {"spec": PAPER}),
    Case("INT2 in groups, fp16", "fp16", {"spec": QuantSpec(bits=2, granularity="group:16")}),
    Case("plain INT8", "sharded", {"spec": QuantSpec(bits=8, clusters=1, zero_points="shared"), "embeddings": "keep"}),
    Case("own zero_points, INT8", "sharded", {"spec": QuantSpec(bits=8, clusters=1), "embeddings": "keep"}),
    Case("own zero_points in groups, fp16", "fp16", {"spec": QuantSpec(bits=3, clusters=1, granularity="group:32")}),
    Case("textbook grids, fp32", "fp32", {"spec": QuantSpec(bits=4, clusters=1, polish=False)}),
    Case("residual", "sharded", {"spec": QuantSpec(strategy="residual")}),
    Case("magnitude", "sharded", {"spec": QuantSpec(strategy="magnitude", clusters=2, granularity="tensor")}),
    Case("lloyd", "sharded", {"spec": QuantSpec(bits=3, strategy="lloyd")}),
    Case("a size", "sharded", {"target_size": 60_000}),
    Case("bits for a target", "fp32", {"target_bits": 4.5, "target": "linear-asym", "weighting": "relative"}),
    Case("GPT-2", "gpt2"),
)


def source(name: str, place: Path) -> Path:
    """The folder of that name."""
    if name == "sharded":
        return tiny_sharded(place, files={"README.md": "---\nlicense: mit\n---\nhello", "tokenizer.json": "{}"})
    if name == "gpt2":
        tensors = {
            "h.0.attn.c_attn.weight": normal(3, 48, 144),
            "h.0.mlp.c_fc.weight": normal(4, 48, 192),
            "wte.weight": normal(5, 100, 48),
        }
        return write_folder(place, tensors, config={**CONFIG, "model_type": "gpt2"})
    return tiny_folder(place, dtype=name)


def written(case: Case, place: Path) -> dict[str, bytes]:
    """Every file that a case makes, by its path."""
    splitquant.quantize(source(case.source, place / "source"), place / "output", **case.options)
    return tree(place / "output")
