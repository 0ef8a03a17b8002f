"""Claim: INT8 dynamic activations lose little beside the weights; what they lose is shown on its own.

    python -m benchmarks.quality.activations [--data DIR] [--docs]

Every model with float weights and with several kinds of quantized ones, each with float activations and with
`sqt.quantize(activations=...)` of every kind. Perplexity of two small language models, sentence embeddings of
all-MiniLM-L6-v2 (cosine to the float ones, 100 sentences), top-1 of a CIFAR-10 network. --docs rewrites
docs/results/activations.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import splitquant.torch as sqt
from benchmarks.quality import minilm
from benchmarks.quality.cifar10 import int8_activations, markdown
from benchmarks.quality.frontier_models import Subject, craftgpt, resnet, stories260k, subject
from splitquant import PAPER, QuantSpec

DATA = Path(__file__).parents[3] / "shared" / "data"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "activations.md"
SPECS = {
    "INT8 plain, per channel": QuantSpec(8, 1),
    "INT4 plain, per channel": QuantSpec(4, 1),
    "INT4 paper: k=3 kmeans, per tensor": PAPER,
    "INT4 k=2 residual, per tensor": QuantSpec(4, 2, "residual", "tensor"),
    "INT4 splitquant (default)": QuantSpec(),
}
KINDS = (None, *sqt.ACTIVATIONS)


def subjects(data: Path) -> Iterator[Subject]:
    """The models, one at a time."""
    yield stories260k(data)
    yield craftgpt(data)
    tokenizer, sentences = AutoTokenizer.from_pretrained(minilm.MODEL), minilm.real_sentences()[::3]
    encoder = AutoModel.from_pretrained(minilm.MODEL).eval()
    reference = minilm.embed(encoder, tokenizer, sentences)
    yield subject(
        "all-MiniLM-L6-v2",
        "cosine",
        True,
        encoder,
        lambda model: float((minilm.embed(model, tokenizer, sentences) * reference).sum(1).mean()),
    )
    yield resnet("ResNet-20", data)


def scores(subject: Subject) -> list[tuple[str, list[float]]]:
    """The rows of one model: weights, then its score with every kind of activations."""
    found = [subject.score_float]
    for kind in sqt.ACTIVATIONS:
        with int8_activations(subject.model, kind, subject.layers):
            found.append(subject.score(subject.model))
    rows = [("float32", found)]
    for name, spec in SPECS.items():
        scored = []
        for kind in KINDS:
            include, exclude = list(subject.layers), ["*"]
            quantized = sqt.quantize(subject.model, spec, include=include, exclude=exclude, activations=kind).model
            scored.append(subject.score(quantized))
        rows.append((name, scored))
    return rows


def table(subject: Subject, rows: list[tuple[str, list[float]]]) -> str:
    """The section of one model."""
    digits = 1 if subject.measure == "top-1" else 4 if subject.measure == "cosine" else 3
    lines = [(name, *(f"{score:.{digits}f}" for score in found)) for name, found in rows]
    head = ("weights", "float activations", *(f"`{kind}`" for kind in sqt.ACTIVATIONS))
    better = "higher is better" if subject.higher else "lower is better"
    return f"## {subject.name}: {subject.measure}, {better}\n\n{markdown(head, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the models and texts")
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/activations.md")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} is not there; it holds the models and texts")
    text = (
        "# INT8 activations\n\n"
        "Inputs of all quantized layers on a dynamic INT8 grid, one per token (of a convolution: per image) or per tensor (a batch),\n"
        "symmetric (`-sym`) or not. The row *float32* has INT8 activations alone, the column *float activations* INT8 or INT4\n"
        "weights alone. All linear and convolution layers but output heads over a vocabulary are quantized.\n"
        "Made by `python -m benchmarks.quality.activations --docs`.\n"
    )
    for one in subjects(options.data):
        section = table(one, scores(one))
        print(section, flush=True)
        text += "\n" + section
    if options.docs:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
