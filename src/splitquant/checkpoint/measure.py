"""What every candidate spec would do to every tensor of a folder: the exact error, found by quantizing and throwing away.

A tensor of up to `SAMPLE_WEIGHTS` weights is measured whole, and the figures are those of the real run. Of a larger one a
fixed sample is measured, whole rows spread evenly over it (and over the matrices of a stack), and the noise is scaled up: in
seconds for a billion weights. The sample depends on the shape alone, so plans are reproducible on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from math import fsum

import numpy as np

from splitquant.checkpoint.folder import Folder
from splitquant.core.arrays import I64, Matrix
from splitquant.core.error import NO_ERROR, ErrorFigures, figures_of
from splitquant.core.passes import Sink, Windows, encoded, held, solved
from splitquant.core.rows import to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.errors import TensorError, tensor_error
from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPES
from splitquant.format.planes import Geometry, geometry
from splitquant.plan.candidates import Options
from splitquant.plan.plan import TensorPlan
from splitquant.storage.files import SourceFile
from splitquant.storage.memory import Buffers, MemoryBudget

SAMPLE_WEIGHTS = 1 << 20
_MATRICES = 8  # of a stack that is sampled


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows of one matrix of a tensor that are measured."""

    matrix: int
    rows: I64


def sample_of(g: Geometry) -> list[Sample]:
    """Which rows of which matrices of a tensor are measured: all of a small one, else an even spread."""
    if g.count * g.rows * g.cols <= SAMPLE_WEIGHTS:
        return [Sample(matrix, np.arange(g.rows)) for matrix in range(g.count)]
    matrices = min(g.count, _MATRICES)
    rows = min(g.rows, max(1, SAMPLE_WEIGHTS // (matrices * g.cols)))
    return [Sample(int(matrix), _spread(g.rows, rows)) for matrix in _spread(g.count, matrices)]


def _spread(length: int, count: int) -> I64:
    """The middles of `count` equal stretches of `length` places."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)


def measure_folder(
    folder: Folder,
    tensors: Sequence[TensorPlan],
    pool_of: Callable[[TensorPlan], Sequence[QuantSpec | None]],
    budget: MemoryBudget,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Options, ...]:
    """The options of some tensors of a folder, by their pools; `advance` is told source bytes, measured or passed over.

    Same result whatever the threads and the memory. Raises TensorError (NaN, infinity), SourceError, SpecError (memory).
    """
    with ExitStack() as stack:
        names = dict.fromkeys(folder.shard_of[tensor.name] for tensor in tensors)
        files = {name: stack.enter_context(SourceFile(folder.path / name)) for name in names}
        pool = stack.enter_context(ThreadPoolExecutor(budget.threads))
        buffers = Buffers()

        def measure(tensor: TensorPlan) -> Options:
            reader = _Reader(files[folder.shard_of[tensor.name]], folder.tensors[tensor.name].start, tensor, buffers)
            try:
                options = _measure(reader, pool_of(tensor), budget)
            except TensorError as error:
                raise tensor_error(reader.source.path, tensor.name, error) from None
            advance(tensor.nbytes)
            return options

        return tuple(pool.map(measure, tensors))


@dataclass(frozen=True, slots=True)
class _Reader:
    """A tensor in an open file."""

    source: SourceFile
    start: int
    tensor: TensorPlan
    buffers: Buffers

    def matrices(self, g: Geometry, budget: MemoryBudget) -> Iterator[Matrix]:
        """The sampled rows, matrix by matrix."""
        tensor = self.tensor
        matrix_bytes = tensor.nbytes // g.count
        for sample in sample_of(g):
            at = self.start + sample.matrix * matrix_bytes
            if g.axis == 0:
                yield self._rows(at, sample.rows, matrix_bytes // g.rows, g.cols)
                continue
            weight_bytes = DTYPES[tensor.dtype].window_bytes + tensor.nbytes // max(1, tensor.weights)
            what = f"{self.source.path}: tensor {tensor.name!r}"
            budget.windows(what, g.rows, g.cols * weight_bytes, can_be_cut=False)
            raw = self.buffers.get("raw", matrix_bytes)
            self.source.read_into(raw, at)
            whole = as_window(raw, tensor.dtype, 1, g.rows * g.cols)
            yield to_matrix(np.take(whole.reshape(g.matrix_shape), sample.rows, axis=g.axis), g.axis)

    def _rows(self, at: int, rows: I64, row_bytes: int, cols: int) -> Matrix:
        raw = self.buffers.get("raw", len(rows) * row_bytes)
        # Neighbouring rows are read at once.
        runs = groupby(enumerate(rows.tolist()), key=lambda item: item[1] - item[0])
        for _, run in runs:
            places = list(run)
            first, count = places[0], len(places)
            self.source.read_into(raw[first[0] * row_bytes : (first[0] + count) * row_bytes], at + first[1] * row_bytes)
        return as_window(raw, self.tensor.dtype, len(rows), cols)


def _measure(reader: _Reader, pool: Sequence[QuantSpec | None], budget: MemoryBudget) -> Options:
    tensor = reader.tensor
    g = geometry(tensor.shape, tensor.role.axis, tensor.role.stack)
    figures = [NO_ERROR] * len(pool)
    weights = 0
    signals = []
    for x in reader.matrices(g, budget):
        signal, found = _errors(x, pool, reader.buffers)
        signals.append(signal)
        figures = [sums if new is None else sums.merge(new) for sums, new in zip(figures, found, strict=True)]
        weights += x.size
    factor = tensor.weights / weights
    exact = weights == tensor.weights
    return Options(
        tensor=tensor,
        specs=tuple(pool),
        noise=tuple(figure.noise if exact else figure.noise * factor for figure in figures),
        signal=fsum(signals) * (1.0 if exact else factor),
        exact=exact,
    )


def _errors(x: Matrix, pool: Sequence[QuantSpec | None], buffers: Buffers) -> tuple[float, list[ErrorFigures | None]]:
    """The signal of a matrix, and its figures by every spec of the pool (None for None)."""
    found: list[ErrorFigures | None] = [None] * len(pool)
    sink = Sink(lambda _, blocks: next(blocks).errors, buffers.get)
    signal = 0.0
    for granularity in dict.fromkeys(spec.granularity for spec in pool if spec is not None):
        matrix = held(Windows.whole(x), granularity)
        specs = {n: spec for n, spec in enumerate(pool) if spec is not None and spec.granularity == granularity}
        for (number, spec), grid in zip(specs.items(), solved(matrix, [*specs.values()]), strict=True):
            found[number] = figures = figures_of(x.size, encoded(matrix, spec, grid, sink))
            signal = figures.signal
    return signal, found
