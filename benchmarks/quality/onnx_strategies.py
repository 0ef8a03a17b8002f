"""Claim: in ONNX two residual layers are nearer to the model, smaller and faster than three by value.

    python -m benchmarks.quality.onnx_strategies [--data ../shared/data] [--docs]

Every strategy on real models, in ONNX Runtime on one thread: what is left of their results, what is stored of the
converted weights, and for the transformer the time of a batch in both formats. --docs writes the section of
docs/results/onnx.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import splitquant.onnx as sqo
from benchmarks.quality.onnx_page import put
from benchmarks.quality.onnx_tasks import Task, session, tasks
from splitquant import QuantSpec

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = ("all-MiniLM-L6-v2", "stories260K", "ultraface RFB-320", "ResNet-20")
TIMED = NAMES[0]
ROUNDS = 7


def spec(
    bits: int, clusters: int, strategy: str, granularity: str = "channel", *, symmetric: bool = False
) -> QuantSpec:
    return QuantSpec(bits, clusters, strategy, granularity, symmetric, "parallel")


SPECS = (
    spec(8, 1, "min_error"),
    spec(4, 1, "min_error"),
    spec(4, 2, "min_error"),
    spec(4, 3, "min_error"),
    spec(4, 2, "magnitude"),
    spec(4, 3, "magnitude"),
    spec(4, 2, "residual"),
    spec(4, 2, "residual", symmetric=True),
    spec(4, 2, "residual", "tensor"),
    spec(4, 2, "residual", "tensor", symmetric=True),
    spec(2, 3, "min_error"),
    spec(2, 3, "magnitude"),
    spec(2, 3, "residual"),
    spec(2, 4, "residual"),
)


@dataclass(frozen=True)
class Cell:
    """A model under a spec: its result, its weights' kB and SQNR, and where to find the QDQ and MatMulNBits models."""

    result: str
    size: str
    paths: tuple[Path, ...]


def converted(task: Task, wanted: Any, one: QuantSpec, folder: Path) -> Cell:
    """Convert, and run the QDQ model with float activations."""
    paths = []
    for form in ("qdq", "matmulnbits") if task.name == TIMED else ("qdq",):
        path = folder / f"{form} {one}.onnx".replace(" ", "-")
        done = sqo.quantize(task.model, path, one, format=form, force=True)
        if form == "qdq":
            nodes = done.report.changed
            stored = sum(node.stored_bytes for node in nodes if node.form != "Gather") / 1000
            size = f"{stored:.0f} kB, {done.report.figures.sqnr_db:.1f} dB"
        paths.append(path)
    return Cell(task.cell(wanted, task.run(session(paths[0], float_activations=True))), size, tuple(paths))


def batch_times(models: list[Path]) -> list[float]:
    """The least ms of a batch of 8 sentences of 32 tokens, over rounds in turn."""
    sessions = [session(path) for path in models]
    ids = np.random.default_rng(0).integers(1000, 20000, (8, 32))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    best = [np.inf] * len(models)
    for _ in range(ROUNDS):
        for at, one in enumerate(sessions):
            start = time.perf_counter()
            one.run(None, feeds)
            best[at] = min(best[at], 1000 * (time.perf_counter() - start))
    return best


def section(found: list[Task], missing: list[str], folder: Path) -> str:
    """The section of the page."""
    columns = []
    times: list[tuple[float, ...]] = []
    for task in found:
        wanted = task.run(session(task.model))
        columns.append([Cell(task.cell(wanted, wanted), "", ()), *(converted(task, wanted, s, folder) for s in SPECS)])
        print(f"{task.name}: {[cell.result for cell in columns[-1]]}", file=sys.stderr)
        if task.name == TIMED:
            cells = columns[-1]
            (plain,) = batch_times([task.model])
            times = [(plain, plain), *zip(*(batch_times([c.paths[n] for c in cells[1:]]) for n in (0, 1)), strict=True)]
    head = ["weights", *(task.name for task in found), *(f"{task.name}, weights" for task in found)]
    head += ["ms, QDQ", "ms, MatMulNBits"] if times else []
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for at, name in enumerate(["float32", *map(str, SPECS)]):
        row = [name, *(c[at].result for c in columns), *(c[at].size for c in columns)]
        row += [f"{ms:.1f}" for ms in times[at]] if times else []
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(
        [
            "## Strategies",
            "",
            "Written by `python -m benchmarks.quality.onnx_strategies --docs`. Results are those of QDQ models with float activations in ONNX",
            f"Runtime on one thread; times are of 8 sentences of 32 tokens with its default, INT8 activations (the least of {ROUNDS}).",
            "",
            *(f"- {task.name}: {task.measure}" for task in found),
            *missing,
            "",
            *lines,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results/onnx.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found, missing = tasks(options.data, Path(name))
        text = section([task for task in found if task.name in NAMES], missing, Path(name))
    print(text)
    if options.docs:
        put("strategies", text)


if __name__ == "__main__":
    main()
