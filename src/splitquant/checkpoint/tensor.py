"""One tensor from its file to its planes: count, solve, encode, in windows of rows that fit the memory budget.

The bytes written do not depend on the windows, on the threads or on their order: histograms merge exactly, every row is
encoded alone, and every plane has its place in the output before the first byte is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from splitquant.checkpoint.safetensors import Entry
from splitquant.core.affine import Grid
from splitquant.core.arrays import U8, Matrix
from splitquant.core.error import NO_ERROR, ErrorFigures, ErrorSums, figures_of
from splitquant.core.interface import plane_widths
from splitquant.core.passes import Encoded, Map, Sink, Windows, count_passes, quantized
from splitquant.core.rows import pack_row_scale, to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.core.split import level_planes
from splitquant.errors import TensorError, tensor_error
from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPES
from splitquant.format.planes import Geometry, geometry, plane_key
from splitquant.plan.plan import TensorPlan
from splitquant.report.outcome import TensorOutcome, outcome_of
from splitquant.storage.checksum import Checksum, join
from splitquant.storage.files import SourceFile, TargetFile
from splitquant.storage.memory import MIB, Buffers, MemoryBudget

COPY_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class Streams:
    """Where a shard's tensors come from and go to: the open files, the places in the output, scratch memory, a meter."""

    source: SourceFile
    entries: Mapping[str, Entry]
    target: TargetFile
    places: Mapping[str, Entry]
    buffers: Buffers
    budget: MemoryBudget
    advance: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Written:
    """What a window put into each plane, by plane name, and the errors of its rows."""

    checksums: Mapping[str, Checksum]
    errors: ErrorSums


def transform_tensor(plan: TensorPlan, streams: Streams, pool: ThreadPoolExecutor | None) -> TensorOutcome:
    """Quantize or copy one tensor as planned; `pool` shares its windows between threads.

    Raises TensorError (NaN, infinity), SourceError and DestinationError, each naming the file and the tensor.
    """
    if plan.spec is None:
        checksums = {plan.name: _copy(streams, plan.name)}
        figures = None
    else:
        try:
            checksums, figures = _quantize(plan, plan.spec, streams, pool)
        except TensorError as error:
            raise tensor_error(streams.source.path, plan.name, error) from None
    return outcome_of(plan, figures, {name: str(checksum) for name, checksum in checksums.items()})


def is_cut(plan: TensorPlan, streams: Streams) -> bool:
    """Whether the matrices of a tensor are read in several windows (which all threads then share)."""
    return plan.spec is not None and len(_windows(plan, plan.spec, _geometry(plan), streams)) > 1


def _geometry(plan: TensorPlan) -> Geometry:
    return geometry(plan.shape, plan.role.axis, plan.role.stack)


def _windows(plan: TensorPlan, spec: QuantSpec, g: Geometry, streams: Streams) -> list[tuple[int, int]]:
    what = f"{streams.source.path}: tensor {plan.name!r}"
    return streams.budget.windows(what, g.rows, _row_bytes(plan, spec, g), can_be_cut=g.axis == 0)


def _copy(streams: Streams, name: str) -> Checksum:
    entry, place = streams.entries[name], streams.places[name]
    pieces = []
    for at in range(0, entry.nbytes, COPY_BYTES):
        buffer = streams.buffers.get("raw", min(COPY_BYTES, entry.nbytes - at))
        streams.source.read_into(buffer, entry.start + at)
        streams.target.write(buffer, place.start + at)
        pieces.append(Checksum.of(buffer))
        streams.advance(buffer.nbytes)
    return join(pieces)


def _quantize(
    plan: TensorPlan, spec: QuantSpec, streams: Streams, pool: ThreadPoolExecutor | None
) -> tuple[dict[str, Checksum], ErrorFigures]:
    g = _geometry(plan)
    pieces: dict[str, list[Checksum]] = {}
    figures = NO_ERROR
    for index in range(g.count):
        grid, written = _Matrix(plan, spec, g, index, streams).quantize(map if pool is None else pool.map)
        for window in written:
            for plane, checksum in window.checksums.items():
                pieces.setdefault(plane, []).append(checksum)
        for name, values in level_planes(spec, grid).items():
            pieces.setdefault(name, []).append(_put(streams, plan, name, index * values.nbytes, values.view(np.uint8)))
        figures = figures.merge(figures_of(g.rows * g.cols, [window.errors for window in written]))
    pieces["shape"] = [_put(streams, plan, "shape", 0, np.array(plan.shape, "<i8").view(np.uint8))]
    return {plane_key(plan.name, plane): join(checksums) for plane, checksums in pieces.items()}, figures


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix of a tensor, from its place in the source to its places in the planes."""

    plan: TensorPlan
    spec: QuantSpec
    geometry: Geometry
    index: int
    streams: Streams

    def quantize(self, shared: Map) -> tuple[Grid, list[_Written]]:
        """Its grid, and what was written of every window; `shared` gives several windows to several threads."""
        windows = [range(*window) for window in _windows(self.plan, self.spec, self.geometry, self.streams)]
        matrix = Windows(windows, self.load, shared)
        passes = count_passes(matrix, self.spec)
        matrix = replace(matrix, passed=lambda rows: self.streams.advance(len(rows) * self.row_bytes // passes))
        return quantized(matrix, self.spec, Sink(lambda _, blocks: self.write(*blocks), self.streams.buffers.get))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the source."""
        return self.plan.nbytes // (self.geometry.count * self.geometry.rows)

    def load(self, rows: range) -> Matrix:
        """Some rows (all of them where the channel axis is not the first)."""
        g, source = self.geometry, self.streams.source
        raw = self.streams.buffers.get("raw", len(rows) * self.row_bytes)
        first = self.index * g.rows + rows.start
        source.read_into(raw, self.streams.entries[self.plan.name].start + first * self.row_bytes)
        if g.axis == 0:
            return as_window(raw, self.plan.dtype, len(rows), g.cols)
        flat = as_window(raw, self.plan.dtype, 1, g.rows * g.cols)
        return to_matrix(flat.reshape(g.matrix_shape), g.axis)

    def write(self, rows: Encoded) -> _Written:
        """Put encoded rows into their places in the planes."""
        planes = {"codes": rows.planes.codes}
        if rows.planes.clusters is not None:
            planes["clusters"] = rows.planes.clusters
        if rows.scales is not None:
            kind = self.plan.weight(self.spec).scale_kind
            planes["row_scale"] = pack_row_scale(rows.scales.scale, kind).view(np.uint8)
        first = self.index * self.geometry.rows + rows.rows.start
        checksums = {
            name: _put(self.streams, self.plan, name, first * plane.shape[1], plane) for name, plane in planes.items()
        }
        return _Written(checksums, rows.errors)


def _put(streams: Streams, plan: TensorPlan, plane: str, at: int, data: U8) -> Checksum:
    flat = data.reshape(-1)
    streams.target.write(flat, streams.places[plane_key(plan.name, plane)].start + at)
    return Checksum.of(flat)


def _row_bytes(plan: TensorPlan, spec: QuantSpec, g: Geometry) -> int:
    """Memory that one row takes while it is quantized: as read, as a window, as planes and as row_scales."""
    transposed = 0 if g.axis == 0 else plan.nbytes // max(1, plan.weights)
    return (
        g.cols * (DTYPES[plan.dtype].window_bytes + transposed)
        + sum(plane_widths(g.cols, spec))
        + 12 * spec.groups(g.cols)
        + 32
    )
