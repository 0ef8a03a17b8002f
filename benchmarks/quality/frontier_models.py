"""The trained models that quantized weights are judged on, each with its own measure of what is left of it.

Only weights change: every linear or convolution weight is replaced by the values that its codes stand for, and the float model
computes as before. Embeddings and output heads stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitquant.evaluate import LanguageModel, Run, perplexity

DIALOGUES = 128
STORIES, TOKENS = 40, 256


@dataclass(frozen=True)
class Subject:
    """A float model, the names of the layers to quantize, and what it is judged by.

    measure: of `score(model)`; higher: whether more of it is better; score_float: what the float model gets.
    """

    name: str
    measure: str
    higher: bool
    model: nn.Module
    layers: tuple[str, ...]
    score: Callable[[nn.Module], float]
    score_float: float

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The weights to quantize, float32 `[outputs, ...]`, by the names of their layers."""
        return {name: self.model.get_submodule(name).weight.detach() for name in self.layers}


def subject(name: str, measure: str, higher: bool, model: nn.Module, score: Callable[[nn.Module], float]) -> Subject:
    """A subject of all linear and convolution layers, but for output heads over a vocabulary."""
    layers = tuple(
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not layer.endswith("lm_head")
    )
    return Subject(name, measure, higher, model, layers, score, score(model))


def minilm() -> Subject:
    """all-MiniLM-L6-v2 by the cosine between its sentence embeddings and those of the float model."""
    from transformers import AutoModel, AutoTokenizer

    from benchmarks.quality.minilm import MODEL, embed, real_sentences

    tokenizer, sentences = AutoTokenizer.from_pretrained(MODEL), real_sentences()
    model = AutoModel.from_pretrained(MODEL).eval()
    reference = embed(model, tokenizer, sentences)
    return subject(
        "all-MiniLM-L6-v2",
        "cosine",
        True,
        model,
        lambda m: float((embed(m, tokenizer, sentences) * reference).sum(1).mean()),
    )


def language_model(name: str, folder: Path, documents: list[list[int]], batch: int) -> Subject:
    """A causal language model by its perplexity on documents of token ids, so many at once."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return subject(
        name,
        "perplexity",
        False,
        model,
        lambda m: perplexity(LanguageModel(m), documents, run=Run(batch)).perplexity.value,
    )


def craftgpt(data: Path) -> Subject:
    """A dialogue model of 5 million parameters, on dialogues sampled from it."""
    ids = json.loads((data / "craftgpt-5m" / "self_sampled_dialogues_ids.json").read_text())
    return language_model("craftgpt-5m", data / "craftgpt-5m" / "hf-opt-fp32", ids[:DIALOGUES], 32)


def stories260k(data: Path) -> Subject:
    """A Llama of 260 thousand parameters, on stories of the kind it was trained on."""
    from transformers import AutoTokenizer

    folder = data / "stories260K" / "hf-fp32"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stories = json.loads((data / "tinystories-text" / "tinystories_1000.json").read_text())
    ascii_only = [story for story in stories if story.isascii()][:STORIES]
    documents = [tokenizer(story).input_ids[:TOKENS] for story in ascii_only]
    return language_model("stories260K", folder, documents, 1)


def resnet(name: str, data: Path) -> Subject:
    """A CIFAR-10 network by its top-1 on 1,000 test images."""
    from benchmarks.quality.cifar10 import images, network, top1

    pixels, labels = images(data / "cifar10")
    return subject(
        name, "top-1", True, network(name, data / "cifar10"), lambda model: 100 * top1(model, pixels, labels)
    )


def subjects(data: Path) -> tuple[list[Subject], list[str]]:
    """Every model that can be had, and a sentence for each that cannot."""
    found, missing = [minilm()], []
    makers: list[tuple[str, Callable[[], Subject]]] = [
        ("craftgpt-5m", lambda: craftgpt(data)),
        ("stories260K", lambda: stories260k(data)),
        ("cifar10", lambda: resnet("ResNet-20", data)),
        ("cifar10", lambda: resnet("ResNet-56", data)),
    ]
    for folder, make in makers:
        if (data / folder).is_dir():
            found.append(make())
        else:
            missing.append(f"{data / folder} is not there: its model is left out")
    return found, missing
