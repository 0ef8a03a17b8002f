"""Nanoseconds per weight of every kernel on one core, compiled and in NumPy: `python benchmarks/kernels.py [--quick]`.

Weights are Student-t distributed with row scales of their own, as in trained layers; each figure is the best of several
runs. `SPLITQUANT_ISA` chooses the instruction set of the compiled kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from splitquant import _native
from splitquant.core.histogram import Kind, LowBits, ValueHistogram, Values
from splitquant.core.kernels import Kernels, Matrix
from splitquant.core.native import NativeKernels
from splitquant.core.partition import objective_of, prefix_arrays
from splitquant.core.reference import NumpyKernels, from_float32
from splitquant.core.rows import inverse_of, row_scale_from, row_scale_kind
from splitquant.core.solve import solve
from splitquant.core.spec import QuantSpec
from splitquant.core.split import plane_widths

Call = Callable[[Kernels], object]
KINDS: tuple[Kind, ...] = ("bf16", "fp16", "fp32")
NATIVE, TWIN = NativeKernels(), NumpyKernels()


def weights(kind: Kind, rows: int, cols: int) -> Matrix:
    rng = np.random.default_rng(0)
    row_scales = np.exp(0.3 * rng.standard_normal((rows, 1))) * 0.02
    return from_float32((rng.standard_t(5, (rows, cols)) * row_scales).astype(np.float32), kind)


def seconds(call: Callable[[], object], budget: float) -> float:
    """The best time of as many calls as fit the budget, at least one."""
    best, spent = float("inf"), 0.0
    while spent < budget or best == float("inf"):
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        best, spent = min(best, elapsed), spent + elapsed
    return best


def calls(kind: Kind, x: Matrix, granularity: str) -> Iterator[tuple[str, Call]]:
    """What quantizing one matrix calls, with the arguments it would have."""
    spec = QuantSpec(granularity=granularity)
    rows, cols = x.shape
    group = spec.group_size(cols)
    scale = row_scale_from(NATIVE.absmax(x, group), row_scale_kind(kind, "channel"))
    inverse = inverse_of(scale)
    counts = NATIVE.count32(x, inverse, group)
    grid = solve(ValueHistogram("fp32", counts.counts, LowBits(*counts[1:5])), spec)
    codes, clusters = (np.zeros((rows, width), np.uint8) for width in plane_widths(cols, spec))
    NATIVE.encode(x, scale, inverse, group, grid, codes, clusters)
    yield f"absmax {granularity}", lambda k: k.absmax(x, group)
    yield f"count32 {granularity}", lambda k: k.count32(x, inverse, group)
    yield f"encode {granularity}", lambda k: k.encode(x, scale, inverse, group, grid, codes, clusters)
    yield f"dequantize {granularity}", lambda k: k.dequantize(codes, clusters, grid.levels, scale, group, cols, kind)
    if granularity == "channel":
        if kind != "fp32":
            yield "count16", lambda k: k.count16(x)
        yield "unpack 4 bits", lambda k: k.unpack(codes, cols, 4)
        values = NATIVE.unpack(codes, cols, 4)
        yield "pack 4 bits", lambda k: k.pack(values, 4)


def cells_calls(kind: Kind, x: Matrix) -> Iterator[tuple[str, Call]]:
    """Encoding by borders: 16, 64 and 256 free levels."""
    rows, cols = x.shape
    scale = row_scale_from(NATIVE.absmax(x, cols), row_scale_kind(kind, "channel"))
    inverse = inverse_of(scale)
    counts = NATIVE.count32(x, inverse, cols)
    histogram = ValueHistogram("fp32", counts.counts, LowBits(*counts[1:5]))
    for spec in (QuantSpec(2, 4, "lloyd"), QuantSpec(4, 4, "lloyd"), QuantSpec(8, 1, "lloyd")):
        grid = solve(histogram, spec)
        codes, ids = (np.zeros((rows, width), np.uint8) for width in plane_widths(cols, spec))
        planes = codes, ids if spec.cluster_bits else None
        yield (
            f"encode_cells channel, {spec.clusters << spec.bits} cells",
            lambda k, g=grid, p=planes: k.encode(x, scale, inverse, cols, g, *p),
        )


def polish_calls(x: Matrix) -> Iterator[tuple[str, Call]]:
    inverse = inverse_of(NATIVE.absmax(x, x.shape[1]))
    counts = NATIVE.count32(x, inverse, x.shape[1])
    histogram = ValueHistogram("fp32", counts.counts, LowBits(*counts[1:5]))
    values, grid = Values.of(histogram.bins()), solve(histogram, QuantSpec(polish=False))
    yield f"polish {len(values.mean)} bins", lambda k: k.polish(values, grid)


def partition_calls(x: Matrix) -> Iterator[tuple[str, Call]]:
    inverse = inverse_of(NATIVE.absmax(x, x.shape[1]))
    counts = NATIVE.count32(x, inverse, x.shape[1])
    bins = ValueHistogram("fp32", counts.counts, LowBits(*counts[1:5])).bins()
    for spec in (QuantSpec(), QuantSpec(strategy="kmeans")):
        arrays: tuple[Any, ...] = prefix_arrays(bins, objective_of(spec))
        kmeans = spec.strategy == "kmeans"
        yield f"partition {len(bins)} bins, {spec.strategy}", lambda k, a=arrays, m=kmeans: k.partition(*a, 4, m)


def line(name: str, unit: str, per: float, call: Call, budget: float) -> None:
    native = seconds(lambda: call(NATIVE), budget) * per
    numpy = seconds(lambda: call(TWIN), 0.0) * per
    print(f"{name:36} {native:10.3f} {numpy:10.2f} {unit:3} {numpy / native:8.0f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small matrix and few repetitions")
    quick = parser.parse_args().quick
    rows, cols, budget = (64, 4096, 0.05) if quick else (512, 8192, 1.0)
    print(f"{rows} x {cols} weights, instruction set {_native.isa()}, one thread, k = 4, 4 bits")
    print(f"{'kernel':36} {'native':>10} {'numpy':>10}     {'ratio':>9}")
    for kind in KINDS:
        x = weights(kind, rows, cols)
        for granularity in ("channel", "group:32", "group:128") if kind == "bf16" else ("channel",):
            for name, call in calls(kind, x, granularity):
                line(f"{kind} {name}", "ns", 1e9 / x.size, call, budget)
        for name, call in cells_calls(kind, x):
            line(f"{kind} {name}", "ns", 1e9 / x.size, call, budget)
    x = weights("bf16", rows, cols)
    for name, call in (*partition_calls(x), *polish_calls(x)):
        line(name, "ms", 1e3, call, budget)


if __name__ == "__main__":
    main()
