"""Claim: real ONNX models keep their results at INT4 once they are split: speech, photos, labelled images, sentences, stories.

    python -m benchmarks.quality.onnx_real_models [--data ../shared/data] [--docs]

Every model goes through every scheme (QDQ) and runs in ONNX Runtime on real inputs; models or inputs that are not below
--data or not installed are left out with a sentence. Two are ONNX files as published, the others are exported from PyTorch
first. Needs torch, transformers, onnxscript, pillow and onnxruntime. --docs writes the section of docs/results/onnx.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import splitquant.onnx as sqo
from benchmarks.quality.onnx_page import put
from benchmarks.quality.onnx_tasks import Task, session, tasks
from splitquant import QuantSpec

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
THREE_PARTS = QuantSpec(bits=4, layout="parallel")


@dataclass(frozen=True)
class Scheme:
    """A row: no spec is the float model, split or not."""

    name: str
    spec: QuantSpec | None = None
    split: bool = False
    float_activations: bool = False


def plain(bits: int, granularity: str) -> QuantSpec:
    return QuantSpec(bits=bits, clusters=1, granularity=granularity, layout="parallel")


SCHEMES = (
    Scheme("float32"),
    Scheme("float32, split in 3", split=True),
    Scheme("INT8 plain, channel (default)", plain(8, "channel")),
    Scheme("INT4 plain, groups of 32 (--bits 4)", plain(4, "group:32")),
    Scheme("INT4 k=2 residual, channel", QuantSpec(4, 2, "residual")),
    Scheme("INT4 plain, tensor", plain(4, "tensor")),
    Scheme(
        "INT4 paper: k=3 kmeans, tensor", QuantSpec(bits=4, layout="parallel", granularity="tensor", strategy="kmeans")
    ),
    Scheme("INT4 k=3 min_error, tensor", QuantSpec(bits=4, layout="parallel", granularity="tensor")),
    Scheme("INT4 plain, channel", plain(4, "channel")),
    Scheme("INT4 k=3 min_error, channel", THREE_PARTS),
    Scheme("the same, float activations", THREE_PARTS, float_activations=True),
    Scheme("INT2 plain, channel", plain(2, "channel")),
    Scheme("INT2 k=3 min_error, channel", QuantSpec(bits=2, layout="parallel")),
)


@dataclass(frozen=True)
class Column:
    """A task under every scheme: what is left of it, and the converted weights in kB with their SQNR."""

    task: Task
    results: list[str]
    sizes: list[str]
    before: float


def measured(task: Task, out: Path) -> Column:
    """Convert and run one model under every scheme."""
    wanted = task.run(session(task.model))
    results, sizes, before = [], [], 0
    for scheme in SCHEMES:
        if scheme.spec is None and not scheme.split:
            results.append(task.cell(wanted, wanted))
            sizes.append("")
            continue
        if scheme.spec is None:
            done = sqo.split(task.model, out, THREE_PARTS, force=True)
        else:
            done = sqo.quantize(task.model, out, scheme.spec, force=True)
        got = task.run(session(out, float_activations=scheme.float_activations))
        results.append(task.cell(wanted, got))
        nodes = done.report.changed
        before = sum(node.source_bytes for node in nodes)
        size = f"{sum(node.stored_bytes for node in nodes) / 1000:.0f}"
        sizes.append(f"{size}, exact" if scheme.spec is None else f"{size}, {done.report.figures.sqnr_db:.1f}")
    print(f"{task.name}: {' | '.join(results)}", file=sys.stderr)
    return Column(task, results, sizes, before / 1000)


def table(columns: list[Column], rows: list[list[str]]) -> list[str]:
    """A markdown table with a column for each model."""
    head = ["weights", *(column.task.name for column in columns)]
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|---|" + "---:|" * len(columns), *lines[1:]]


def section(columns: list[Column], missing: list[str]) -> str:
    """The section of the page."""
    lines = [
        "## Real models",
        "",
        "Written by `python -m benchmarks.quality.onnx_real_models --docs`. Every model as QDQ in ONNX Runtime on one thread. Its MatMul",
        "kernels for low bits take INT8 activations, which is its default; one row shows float activations. Tables that Gather",
        "reads are INT8 in all quantized rows.",
        "",
        *(f"- {column.task.name}: {column.task.measure}" for column in columns),
        *missing,
        "",
        *table(columns, [[s.name, *(c.results[at] for c in columns)] for at, s in enumerate(SCHEMES)]),
        "",
        "What is stored of the converted weights, kB, and their SQNR, dB:",
        "",
        *table(
            columns,
            [
                [s.name, *(c.sizes[at] or f"{c.before:.0f}" for c in columns)]
                for at, s in enumerate(SCHEMES)
                if not s.float_activations
            ],
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results/onnx.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        found, missing = tasks(options.data, work)
        if not found:
            sys.exit("\n".join(missing))
        text = section([measured(task, work / "out.onnx") for task in found], missing)
    print(text)
    if options.docs:
        put("real models", text)


if __name__ == "__main__":
    main()
