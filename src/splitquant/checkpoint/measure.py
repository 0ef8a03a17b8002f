"""The rows of a folder's tensors that a planner measures, see `plan.sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from splitquant.checkpoint.folder import Folder
from splitquant.core.arrays import Matrix
from splitquant.core.rows import to_matrix
from splitquant.errors import TensorError, tensor_error
from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPES
from splitquant.format.planes import Geometry
from splitquant.plan.layers import Layer
from splitquant.plan.measured import Measured, measured_by
from splitquant.plan.planner import Pool
from splitquant.plan.sample import sample_of
from splitquant.storage.files import SourceFile
from splitquant.storage.memory import Buffers, MemoryBudget

I64 = NDArray[np.int64]


def measure_folder(
    folder: Folder,
    asked: Sequence[tuple[Layer, Pool]],
    budget: MemoryBudget,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Measured, ...]:
    """What some tensors of a folder lose by each of their candidates.

    Same result whatever the threads and the memory.

    Args:
        folder: where they are.
        asked: the tensors, and the candidates of each.
        budget: of memory and threads.
        advance: told source bytes, measured or passed over.

    Raises:
        TensorError: for NaN and infinity. SourceError, SpecError: as the reading of windows does.
    """
    with ExitStack() as stack:
        names = dict.fromkeys(folder.shard_of[layer.name] for layer, _ in asked)
        files = {name: stack.enter_context(SourceFile(folder.path / name)) for name in names}
        pool = stack.enter_context(ThreadPoolExecutor(budget.threads))
        buffers = Buffers()

        def measure(one: tuple[Layer, Pool]) -> Measured:
            layer, specs = one
            reader = _Reader(files[folder.shard_of[layer.name]], folder.tensors[layer.name].start, layer, buffers)
            try:
                measured = measured_by(layer, specs, reader.matrices(layer.geometry, budget), buffers.get)
            except TensorError as error:
                raise tensor_error(reader.source.path, layer.name, error) from None
            advance(layer.nbytes)
            return measured

        return tuple(pool.map(measure, asked))


@dataclass(frozen=True, slots=True)
class _Reader:
    """A tensor in an open file."""

    source: SourceFile
    start: int
    layer: Layer
    buffers: Buffers

    def matrices(self, g: Geometry, budget: MemoryBudget) -> Iterator[Matrix]:
        """The sampled rows, matrix by matrix."""
        tensor = self.layer
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
        return as_window(raw, self.layer.dtype, len(rows), cols)
