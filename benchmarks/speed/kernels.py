"""Nanoseconds per weight of every kernel on one core, compiled and in NumPy: `python -m benchmarks.speed.kernels [--quick]`.

Weights are Student-t distributed with row scales of their own, as in trained layers; each figure is the best of several
runs. `SPLITQUANT_ISA` chooses the instruction set of the compiled kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np

from splitquant import _native
from splitquant.core.arrays import Matrix
from splitquant.core.floats import FLOATS, Kind, from_float32
from splitquant.core.histogram import ValueHistogram, Values
from splitquant.core.interface import Kernels, Planes
from splitquant.core.native import NativeKernels
from splitquant.core.partition import costs_of, objective_of
from splitquant.core.reference import NumpyKernels
from splitquant.core.rows import RowScales, row_scale_from, row_scale_kind
from splitquant.core.solve import solve
from splitquant.core.spec import QuantSpec

Call = Callable[[Kernels], object]
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


def scaled(kind: Kind, x: Matrix, spec: QuantSpec) -> tuple[RowScales, ValueHistogram]:
    """Row scales, and the histogram of what is left after division by them."""
    group = spec.group_size(x.shape[1])
    rows = RowScales(group, row_scale_from(NATIVE.absmax(x, group), row_scale_kind(kind, spec.granularity)))
    return rows, NATIVE.count32(x, rows)


def calls(kind: Kind, x: Matrix, granularity: str) -> Iterator[tuple[str, Call]]:
    """What quantizing one matrix calls, with the arguments it would have."""
    spec, cols = QuantSpec(granularity=granularity), x.shape[1]
    rows, histogram = scaled(kind, x, spec)
    grid, planes = solve(histogram, spec), Planes.room(spec, *x.shape)
    NATIVE.encode(x, rows, grid, planes)
    yield f"absmax {granularity}", lambda k: k.absmax(x, rows.group)
    yield f"count32 {granularity}", lambda k: k.count32(x, rows)
    yield f"encode {granularity}", lambda k: k.encode(x, rows, grid, planes)
    yield f"dequantize {granularity}", lambda k: k.dequantize(planes, grid.levels, rows, kind)
    if granularity == "channel":
        if kind != "fp32":
            yield "count16", lambda k: k.count16(x)
        yield "unpack 4 bits", lambda k: k.unpack(planes.codes, cols, 4)
        values = NATIVE.unpack(planes.codes, cols, 4)
        yield "pack 4 bits", lambda k: k.pack(values, 4)


def cells_calls(kind: Kind, x: Matrix) -> Iterator[tuple[str, Call]]:
    """Encoding by borders: 16, 64 and 256 free levels."""
    for spec in (QuantSpec(2, 4, "lloyd"), QuantSpec(4, 4, "lloyd"), QuantSpec(8, 1, "lloyd")):
        rows, histogram = scaled(kind, x, spec)
        arguments = (x, rows, solve(histogram, spec), Planes.room(spec, *x.shape))
        yield f"encode_cells channel, {spec.clusters << spec.bits} cells", lambda k, a=arguments: k.encode(*a)


def polish_calls(x: Matrix) -> Iterator[tuple[str, Call]]:
    _, histogram = scaled("bf16", x, QuantSpec())
    values, grid = Values.of(histogram.bins()), solve(histogram, QuantSpec(polish=False))
    yield f"polish {len(values.mean)} bins", lambda k: k.polish(values, grid)


def partition_calls(x: Matrix) -> Iterator[tuple[str, Call]]:
    bins = scaled("bf16", x, QuantSpec())[1].bins()
    for spec in (QuantSpec(), QuantSpec(strategy="kmeans")):
        costs = costs_of(bins, objective_of(spec))
        yield f"partition {len(bins)} bins, {spec.strategy}", lambda k, costs=costs: k.partition(costs, 4)


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
    for kind in FLOATS:
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
