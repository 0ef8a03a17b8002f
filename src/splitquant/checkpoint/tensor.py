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
from splitquant.core.kernels import kernels
from splitquant.core.passes import Encoded, Map, Sink, Windows, count_passes, quantized
from splitquant.core.rows import pack_row_scale, to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.core.split import level_planes
from splitquant.errors import TensorError, tensor_error
from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPES
from splitquant.format.planes import Geometry, plane_key
from splitquant.plan.plan import Decision
from splitquant.report.outcome import Outcome, outcome_of
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


def transform_tensor(decision: Decision, streams: Streams, pool: ThreadPoolExecutor | None) -> Outcome:
    """Quantize or copy one tensor as planned; `pool` shares its windows between threads.

    Raises TensorError (NaN, infinity), SourceError and DestinationError, each naming the file and the tensor.
    """
    if decision.spec is None:
        checksums = {decision.name: _copy(streams, decision.name)}
        figures = None
    else:
        try:
            checksums, figures = _quantize(decision, decision.spec, streams, pool)
        except TensorError as error:
            raise tensor_error(streams.source.path, decision.name, error) from None
    return outcome_of(decision, figures, {name: str(checksum) for name, checksum in checksums.items()})


def is_cut(decision: Decision, streams: Streams) -> bool:
    """Whether the matrices of a tensor are read in several windows (which all threads then share)."""
    return decision.spec is not None and len(_windows(decision, decision.spec, decision.layer.geometry, streams)) > 1


def _windows(decision: Decision, spec: QuantSpec, g: Geometry, streams: Streams) -> list[tuple[int, int]]:
    what = f"{streams.source.path}: tensor {decision.name!r}"
    return streams.budget.windows(what, g.rows, _row_bytes(decision, spec, g), can_be_cut=g.axis == 0)


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
    decision: Decision, spec: QuantSpec, streams: Streams, pool: ThreadPoolExecutor | None
) -> tuple[dict[str, Checksum], ErrorFigures]:
    g = decision.layer.geometry
    pieces: dict[str, list[Checksum]] = {}
    figures = NO_ERROR
    for index in range(g.count):
        grid, written = _Matrix(decision, spec, g, index, streams).quantize(map if pool is None else pool.map)
        for window in written:
            for plane, checksum in window.checksums.items():
                pieces.setdefault(plane, []).append(checksum)
        for name, values in level_planes(spec, grid).items():
            pieces.setdefault(name, []).append(
                _put(streams, decision, name, index * values.nbytes, values.view(np.uint8))
            )
        figures = figures.merge(figures_of(g.rows * g.cols, [window.errors for window in written]))
    pieces["shape"] = [_put(streams, decision, "shape", 0, np.array(decision.layer.shape, "<i8").view(np.uint8))]
    return {plane_key(decision.name, plane): join(checksums) for plane, checksums in pieces.items()}, figures


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix of a tensor, from its place in the source to its places in the planes."""

    decision: Decision
    spec: QuantSpec
    geometry: Geometry
    index: int
    streams: Streams

    def quantize(self, shared: Map) -> tuple[Grid, list[_Written]]:
        """Its grid, and what was written of every window; `shared` gives several windows to several threads."""
        windows = [range(*window) for window in _windows(self.decision, self.spec, self.geometry, self.streams)]
        matrix = Windows(windows, self.load, shared)
        passes = count_passes(matrix, self.spec)
        matrix = replace(matrix, passed=lambda rows: self.streams.advance(len(rows) * self.row_bytes // passes))
        return quantized(matrix, self.spec, Sink(lambda _, blocks: self.write(*blocks), self.streams.buffers.get))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the source."""
        return self.decision.layer.nbytes // (self.geometry.count * self.geometry.rows)

    def load(self, rows: range) -> Matrix:
        """Some rows (all of them where the channel axis is not the first)."""
        g, source = self.geometry, self.streams.source
        raw = self.streams.buffers.get("raw", len(rows) * self.row_bytes)
        first = self.index * g.rows + rows.start
        source.read_into(raw, self.streams.entries[self.decision.name].start + first * self.row_bytes)
        if g.axis == 0:
            return as_window(raw, self.decision.layer.dtype, len(rows), g.cols)
        flat = as_window(raw, self.decision.layer.dtype, 1, g.rows * g.cols)
        return to_matrix(flat.reshape(g.matrix_shape), g.axis)

    def write(self, rows: Encoded) -> _Written:
        """Put encoded rows into their places in the planes."""
        planes = {"codes": rows.planes.codes}
        if rows.planes.clusters is not None:
            planes["clusters"] = rows.planes.clusters
        if rows.scales is not None:
            kind = self.decision.layer.weight(self.spec).scale_kind
            planes["row_scale"] = pack_row_scale(rows.scales.scale, kind).view(np.uint8)
            if rows.scales.zero is not None:
                planes["zero_points"] = kernels().pack(rows.scales.zero, self.spec.bits)
        first = self.index * self.geometry.rows + rows.rows.start
        checksums = {
            name: _put(self.streams, self.decision, name, first * plane.shape[1], plane)
            for name, plane in planes.items()
        }
        return _Written(checksums, rows.errors)


def _put(streams: Streams, decision: Decision, plane: str, at: int, data: U8) -> Checksum:
    flat = data.reshape(-1)
    streams.target.write(flat, streams.places[plane_key(decision.name, plane)].start + at)
    return Checksum.of(flat)


def _row_bytes(decision: Decision, spec: QuantSpec, g: Geometry) -> int:
    """Memory that one row takes while it is quantized: as read, as a window, as planes and as row_scales."""
    transposed = 0 if g.axis == 0 else decision.layer.nbytes // max(1, decision.layer.weights)
    return (
        g.cols * (DTYPES[decision.layer.dtype].window_bytes + transposed)
        + sum(plane_widths(g.cols, spec))
        + (21 if spec.own_zero_points else 12) * spec.groups(g.cols)
        + 32
    )
