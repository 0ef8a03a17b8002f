"""One tensor from its file to its planes: survey, solve, encode, in windows of rows that fit the memory budget.

The bytes written do not depend on the windows, on the threads or on their order: histograms merge exactly, every row is
encoded alone, and every plane has its place in the output before the first byte is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeVar

import numpy as np

from splitquant.checkpoint.safetensors import Entry
from splitquant.core.affine import Grid
from splitquant.core.error import NO_ERROR, ErrorFigures, ErrorSums, figures_of
from splitquant.core.histogram import ValueHistogram
from splitquant.core.kernels import Matrix
from splitquant.core.rows import pack_row_scale, to_matrix
from splitquant.core.solve import needs_survey, needs_weights, solve
from splitquant.core.spec import QuantSpec
from splitquant.core.split import (
    RowScales,
    encode_rows,
    level_planes,
    plane_widths,
    scale_rows,
    sums_of,
    survey,
    weighed_rows,
)
from splitquant.errors import TensorError, tensor_error
from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPES
from splitquant.format.planes import Geometry, geometry, plane_key
from splitquant.plan.plan import TensorPlan
from splitquant.report.outcome import TensorOutcome, outcome_of
from splitquant.storage.checksum import Checksum, join
from splitquant.storage.files import U8, SourceFile, TargetFile
from splitquant.storage.memory import MIB, Buffers, MemoryBudget

COPY_BYTES = 8 * MIB

In = TypeVar("In")
Out = TypeVar("Out")


class Map(Protocol):
    """`map`, or a thread pool's."""

    def __call__(self, work: Callable[[In], Out], items: Iterable[In], /) -> Iterator[Out]: ...


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
        written, grid = _quantize_matrix(plan, spec, g, index, streams, pool)
        for window in written:
            for plane, checksum in window.checksums.items():
                pieces.setdefault(plane, []).append(checksum)
        for name, values in level_planes(spec, grid).items():
            pieces.setdefault(name, []).append(_put(streams, plan, name, index * values.nbytes, values.view(np.uint8)))
        figures = figures.merge(figures_of(g.rows * g.cols, [window.errors for window in written]))
    pieces["shape"] = [_put(streams, plan, "shape", 0, np.array(plan.shape, "<i8").view(np.uint8))]
    return {plane_key(plan.name, plane): join(checksums) for plane, checksums in pieces.items()}, figures


def _quantize_matrix(
    plan: TensorPlan, spec: QuantSpec, g: Geometry, index: int, streams: Streams, pool: ThreadPoolExecutor | None
) -> tuple[list[_Written], Grid]:
    """One matrix: held whole where it fits, else read once to survey it and once more to encode it.

    Rows of different weights are read once more before, since the largest row_scale has to be known.
    """
    windows = _windows(plan, spec, g, streams)
    if len(windows) == 1:
        x = _load(plan, g, index, (0, g.rows), streams)
        rows = scale_rows(x, spec)
        grid = solve(survey(x, weighed_rows(rows, spec)) if needs_survey(spec) else None, spec)
        written = [_encode(plan, spec, g, index, (0, g.rows), x, rows, grid, streams)]
        streams.advance(plan.nbytes // g.count)
        return written, grid
    shared: Map = map if pool is None else pool.map
    weight_bytes = plan.nbytes // max(1, plan.weights)
    passes = 1 + needs_survey(spec) + needs_weights(spec)

    def weigh(window: tuple[int, int]) -> float:
        x = _load(plan, g, index, window, streams)
        rows = scale_rows(x, spec)
        streams.advance(x.size * weight_bytes // passes)
        return 0.0 if rows is None else rows.heaviest

    def look(window: tuple[int, int]) -> ValueHistogram:
        x = _load(plan, g, index, window, streams)
        histogram = survey(x, weighed_rows(scale_rows(x, spec), spec, heaviest))
        streams.advance(x.size * weight_bytes // passes)
        return histogram

    def write(window: tuple[int, int]) -> _Written:
        x = _load(plan, g, index, window, streams)
        written = _encode(plan, spec, g, index, window, x, scale_rows(x, spec), grid, streams)
        streams.advance(x.size * weight_bytes // passes)
        return written

    heaviest = max(shared(weigh, windows)) if needs_weights(spec) else 0.0
    grid = solve(reduce(ValueHistogram.merge, shared(look, windows)) if needs_survey(spec) else None, spec)
    return list(shared(write, windows)), grid


def _load(plan: TensorPlan, g: Geometry, index: int, window: tuple[int, int], streams: Streams) -> Matrix:
    """Rows `window` of a matrix (all of them where the channel axis is not the first)."""
    entry = streams.entries[plan.name]
    matrix_bytes = plan.nbytes // g.count
    row_bytes = matrix_bytes // g.rows
    first, last = window
    raw = streams.buffers.get("raw", (last - first) * row_bytes)
    streams.source.read_into(raw, entry.start + index * matrix_bytes + first * row_bytes)
    if g.axis == 0:
        return as_window(raw, plan.dtype, last - first, g.cols)
    flat = as_window(raw, plan.dtype, 1, g.rows * g.cols)
    return to_matrix(flat.reshape(g.matrix_shape), g.axis)


def _encode(
    plan: TensorPlan,
    spec: QuantSpec,
    g: Geometry,
    index: int,
    window: tuple[int, int],
    x: Matrix,
    rows: RowScales | None,
    grid: Grid,
    streams: Streams,
) -> _Written:
    """Encode rows and put them into their places in the planes."""
    count = len(x)
    first = index * g.rows + window[0]
    codes_width, clusters_width = plane_widths(g.cols, spec)
    codes = streams.buffers.get("codes", count * codes_width).reshape(count, codes_width)
    clusters = (
        streams.buffers.get("clusters", count * clusters_width).reshape(count, clusters_width)
        if clusters_width
        else None
    )
    errors = encode_rows(x, rows, grid, codes, clusters)
    checksums = {"codes": _put(streams, plan, "codes", first * codes_width, codes)}
    if clusters is not None:
        checksums["clusters"] = _put(streams, plan, "clusters", first * clusters_width, clusters)
    if rows is not None:
        stored = pack_row_scale(rows.scale, plan.weight(spec).scale_kind).view(np.uint8)
        checksums["row_scale"] = _put(streams, plan, "row_scale", first * stored.shape[1], stored)
    return _Written(checksums, sums_of(errors))


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
