"""The passes over a matrix of weights: scale its rows and weigh them, count their values, solve, encode.

A matrix comes in windows of rows. A single window is loaded once and held. Where there are several, every pass loads them
again and computes their row_scales again, so that no more than a window per thread is in memory. The result is the same:
histograms merge exactly, and every row is encoded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Generic, Protocol, TypeVar

from splitquant.core.affine import Grid
from splitquant.core.arrays import Matrix
from splitquant.core.error import ErrorSums
from splitquant.core.floats import kind_of, refuse_unfit
from splitquant.core.histogram import ValueHistogram
from splitquant.core.interface import Memory, Planes, new_memory
from splitquant.core.kernels import kernels
from splitquant.core.own import OwnGrids
from splitquant.core.rows import RowScales, joined, row_scale_from, row_scale_kind
from splitquant.core.scaling import Scaling
from splitquant.core.solve import needs_histogram, needs_weights, solve
from splitquant.core.spec import QuantSpec

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")


class Map(Protocol):
    """`map`, or a thread pool's: results come in the order of the items."""

    def __call__(self, work: Callable[[In], Out], items: Iterable[In], /) -> Iterator[Out]: ...


@dataclass(frozen=True, slots=True)
class Windows:
    """A matrix whose rows are loaded window by window.

    Args:
        ranges: the rows of each window, in order.
        load: reads the weights of some rows, `[rows, cols]` in the dtype of a kind. They hold until the same thread loads again:
            its buffer is then overwritten.
        map: shares the windows between threads.
        passed: is told the rows of a window whenever a pass is done with them.
        scales: the row_scales of all rows, where they are known; else every pass computes those of a window.
    """

    ranges: Sequence[range]
    load: Callable[[range], Matrix]
    map: Map = map
    passed: Callable[[range], None] = lambda _: None
    scales: RowScales | None = None

    @classmethod
    def whole(cls, x: Matrix) -> Windows:
        """A matrix that is in memory.

        Args:
            x: `[rows, cols]` in the dtype of a kind.
        """
        return cls((range(len(x)),), lambda _: x)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Some rows and what they are stored as.

    rows: which rows of the matrix; x: their weights; scales: their row_scales; errors: what encoding cost.
    """

    rows: range
    x: Matrix
    scales: RowScales | None
    planes: Planes
    errors: ErrorSums


@dataclass(frozen=True, slots=True)
class Sink(Generic[T]):
    """Where encoded rows go.

    put: is called once for every window, with its rows and with all of them encoded, block by block. What it returns is the
        result of the window.
    memory: where the planes of a block lie. block: how many rows are encoded at a time (0: a whole window).
    """

    put: Callable[[range, Iterator[Encoded]], T]
    memory: Memory = new_memory
    block: int = 0


def quantized(matrix: Windows, spec: QuantSpec, sink: Sink[T]) -> tuple[Grid, list[T]]:
    """Quantize a matrix: its grid, and what the sink gave for every window, in order.

    Args:
        matrix: the weights.
        spec: how.
        sink: takes the encoded rows.

    Raises:
        TensorError: for NaN, infinity, and magnitudes that cannot be quantized.
    """
    matrix = held(matrix, Scaling.of(spec))
    (grid,) = solved(matrix, [spec])
    return grid, list(encoded(matrix, spec, grid, sink))


def count_passes(matrix: Windows, spec: QuantSpec) -> int:
    """How many passes `quantized` makes over the windows of a matrix.

    Args:
        matrix: the weights.
        spec: how they are to be quantized.
    """
    return 1 + needs_histogram(spec) + (needs_weights(spec) and len(matrix.ranges) > 1)


def held(matrix: Windows, scaling: Scaling) -> Windows:
    """A matrix of one window in memory and with its row_scales; another one as it is.

    Args:
        matrix: the weights.
        scaling: of its rows.

    Raises:
        TensorError: see `scale_rows`.
    """
    if len(matrix.ranges) > 1:
        return matrix
    x = matrix.load(matrix.ranges[0])
    scales = scale_rows(x, scaling) if matrix.scales is None else matrix.scales
    return replace(matrix, load=lambda _: x, map=map, scales=scales)


def scaled(matrix: Windows, scaling: Scaling) -> Windows:
    """A matrix with the row_scales of all its rows, in a pass where they are not known.

    Args:
        matrix: the weights.
        scaling: of its rows.

    Raises:
        TensorError: see `scale_rows`.
    """
    matrix = held(matrix, scaling)
    if matrix.scales is not None or scaling.granularity.kind == "tensor":
        return matrix
    found = [scales for scales in _each(matrix, scaling, lambda _, __, scales: scales) if scales is not None]
    return replace(matrix, scales=joined(found) if found else None)


def solved(matrix: Windows, specs: Sequence[QuantSpec]) -> list[Grid]:
    """The grids of a matrix by several specs, which share the passes over it.

    Args:
        matrix: the weights.
        specs: at least one, all of one scaling.

    Raises:
        TensorError: for NaN, infinity, and magnitudes that cannot be quantized.
    """
    scaling, histogram = Scaling.of(specs[0]), None
    heaviest = _heaviest(matrix, scaling) if any(map(needs_weights, specs)) else None

    def count(_: range, x: Matrix, scales: RowScales | None) -> ValueHistogram:
        return histogram_of(x, scales if scales is None or heaviest is None else scales.weighed(heaviest))

    if any(map(needs_histogram, specs)):
        histogram = reduce(ValueHistogram.merge, _each(matrix, scaling, count))
    return [solve(histogram if needs_histogram(spec) else None, spec) for spec in specs]


def _heaviest(matrix: Windows, scaling: Scaling) -> float:
    """The largest row_scale of a matrix, in a pass where they are not known."""
    if matrix.scales is not None:
        return matrix.scales.heaviest
    return max(_each(matrix, scaling, lambda _, __, scales: 0.0 if scales is None else scales.heaviest))


def encoded(matrix: Windows, spec: QuantSpec, grid: Grid, sink: Sink[T]) -> Iterator[T]:
    """Encode all rows: what the sink gave for every window, in order.

    With the builtin `map` a window is encoded when its result is asked for.

    Args:
        matrix: the weights.
        spec: how they are quantized.
        grid: their levels.
        sink: takes the encoded rows.

    Raises:
        TensorError: see `scale_rows`.
    """

    def blocks(window: range, x: Matrix, scales: RowScales | None) -> Iterator[Encoded]:
        step = sink.block or max(1, len(window))
        for first in range(0, max(1, len(window)), step):
            part = x[first : first + step]
            own = None if scales is None else scales.of(range(first, first + step))
            planes = Planes.room(spec, len(part), x.shape[1], sink.memory)
            errors = kernels().encode(part, own, grid, planes)
            yield Encoded(window[first : first + step], part, own, planes, errors.sums)

    return _each(matrix, Scaling.of(spec), lambda window, x, scales: sink.put(window, blocks(window, x, scales)))


def scale_rows(x: Matrix, scaling: Scaling) -> RowScales | None:
    """The row_scales of a window (None where there are none).

    Args:
        x: weights.
        scaling: of its rows.

    Raises:
        TensorError: for NaN, infinity, and magnitudes that cannot be quantized, where there are row_scales.
    """
    group = scaling.granularity.group_size(x.shape[1])
    if group == 0:
        return None
    kind = kind_of(x.dtype)
    absmax = kernels().absmax(x, group)
    refuse_unfit(float(absmax.max(initial=0.0)), kind)
    stored = row_scale_kind(kind, scaling.granularity)
    if not scaling.bits:
        return RowScales(group, row_scale_from(absmax, stored))
    scale, zero = kernels().own_grids(x, OwnGrids(group, scaling.bits, stored, scaling.fitted))
    return RowScales(group, scale, zero=zero, bits=scaling.bits)


def histogram_of(x: Matrix, scales: RowScales | None) -> ValueHistogram:
    """The histogram of a window's values, after division by their row_scales where there are any.

    Args:
        x: weights.
        scales: their row_scales, with weights where values are to weigh them.
    """
    if scales is None and kind_of(x.dtype) != "fp32":
        return kernels().count16(x)
    return kernels().count32(x, scales)


def _each(matrix: Windows, scaling: Scaling, work: Callable[[range, Matrix, RowScales | None], T]) -> Iterator[T]:
    """One pass: every window with its weights and row_scales."""

    def step(window: range) -> T:
        x = matrix.load(window)
        done = work(window, x, scale_rows(x, scaling) if matrix.scales is None else matrix.scales.of(window))
        matrix.passed(window)
        return done

    return matrix.map(step, matrix.ranges)
