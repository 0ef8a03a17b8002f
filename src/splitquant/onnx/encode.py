"""One weight from where it is stored to its parts: survey, solve, encode, in windows of output channels.

The mathematics is that of `splitquant.core`; here are only the order of axes and the packing that ONNX wants. Windows
begin at multiples of eight channels, so that codes of 2 and 4 bits begin at whole bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from splitquant.core.affine import Grid
from splitquant.core.error import ErrorFigures, ErrorSums, figures_of
from splitquant.core.histogram import ValueHistogram
from splitquant.core.kernels import Matrix, kernels
from splitquant.core.rows import inverse_of, to_matrix
from splitquant.core.solve import needs_survey, solve
from splitquant.core.split import (
    RowScales,
    encode_rows,
    plane_widths,
    scale_rows,
    sums_of,
    survey,
    weighed_rows,
)
from splitquant.errors import TensorError
from splitquant.onnx.dtypes import converted, numpy_of
from splitquant.onnx.forms import Form, HalfScaleError
from splitquant.onnx.residual import Residual
from splitquant.onnx.scopes import Constant
from splitquant.onnx.sink import Place
from splitquant.onnx.transpose import transposed
from splitquant.storage.memory import Buffers, MemoryBudget

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
_CHUNK_WEIGHTS = 1 << 19  # what is worked on at a time: small enough for the caches
_WORK_BYTES = 24  # per weight of such a chunk, generously
_STEP = 8
_SURVEY_CHUNKS = 8  # a survey needs no scratch memory, and each one's histogram costs a merge
_LEAST_HALF = 64 * 2.0**-24  # float16 holds every number above within 1 %
_SCRATCH = Buffers()  # each thread converts one weight at a time, in the same memory


@dataclass(frozen=True, slots=True)
class PartPlaces:
    """Room for the tensors of one part."""

    codes: Place
    scale: Place | None
    zero_point: Place | None


def encode_weight(form: Form, places: Sequence[PartPlaces], budget: MemoryBudget) -> ErrorFigures:
    """Write all parts of a weight into their places; returns the error figures (no error for float parts).

    Raises TensorError for NaN, infinity, and for scales that float16 cannot hold.
    """
    reader = _Reader(form, budget)
    grid, row_scales = _solved(form, reader)
    row_scales = _within_half(row_scales, grid, form)
    writer = _Writer(form, grid, places, _residual(form, reader))
    errors: list[ErrorSums] = []
    for span in reader.spans():
        writer.begin(span)
        for start, matrix in span.chunks():
            rows = _rows_of(row_scales, span.start + start, matrix, form)
            widths = plane_widths(matrix.shape[1], form.spec)
            codes = _scratch("codes", len(matrix), widths[0])
            clusters = _scratch("clusters", len(matrix), widths[1]) if widths[1] else None
            errors.append(sums_of(encode_rows(matrix, rows, grid, codes, clusters)))
            writer.write(start, matrix, codes, clusters)
        writer.end()
    writer.write_scales(row_scales)
    weights = math.prod(form.shape)
    if form.name == "float":
        return ErrorFigures(weights, figures_of(weights, errors).signal, 0.0, 0.0)
    return figures_of(weights, errors)


def _residual(form: Form, reader: _Reader) -> Residual | None:
    """How float parts are rounded where they are residual."""
    if form.name != "float" or form.spec.strategy != "residual":
        return None

    def windows() -> Iterator[Matrix]:
        return (matrix for span in reader.spans() for _, matrix in span.chunks())

    return Residual.surveyed(form.spec, form.kind, windows, full_range=form.full_range)


def _scratch(name: str, *shape: int) -> U8:
    return _SCRATCH.get(name, math.prod(shape)).reshape(shape)


def _rows_of(row_scales: F32 | None, start: int, matrix: Matrix, form: Form) -> RowScales | None:
    """The row_scales of a chunk, from those of all rows."""
    if row_scales is None:
        return None
    scale = row_scales[start : start + len(matrix)]
    return RowScales(form.spec.group_size(form.cols), scale, inverse_of(scale))


def _solved(form: Form, reader: _Reader) -> tuple[Grid, F32 | None]:
    """The grid of a weight, and the row_scales of all its rows."""
    row_scales = _all_row_scales(reader, form)
    if not needs_survey(form.spec):
        return solve(None, form.spec), row_scales
    heaviest = float(row_scales.max(initial=0.0)) if row_scales is not None else 0.0
    histogram: ValueHistogram | None = None
    for span in reader.spans():
        for start, matrix in span.chunks(_SURVEY_CHUNKS):
            rows = _rows_of(row_scales, span.start + start, matrix, form)
            found = survey(matrix, weighed_rows(rows, form.spec, heaviest))
            histogram = found if histogram is None else histogram.merge(found)
    return solve(histogram, form.spec), row_scales


def _all_row_scales(reader: _Reader, form: Form) -> F32 | None:
    if form.spec.granularity == "tensor":
        return None
    chunks = (matrix for span in reader.spans() for _, matrix in span.chunks())
    return np.concatenate([rows.scale for matrix in chunks if (rows := scale_rows(matrix, form.spec)) is not None])


@dataclass(frozen=True, slots=True)
class _Span:
    """Some output channels in memory: the first of them, their matrix (a row each), and how many are worked on at a time."""

    start: int
    matrix: Matrix
    step: int

    def chunks(self, joined: int = 1) -> Iterator[tuple[int, Matrix]]:
        """(channel within the span, its rows of the matrix), chunk by chunk, so many `joined` to one."""
        step = self.step * joined
        for first in range(0, len(self.matrix), step):
            yield first, self.matrix[first : first + step]


class _Reader:
    """The channel matrix of a weight in spans that fit the memory bound; a weight that fits whole is read once."""

    def __init__(self, form: Form, budget: MemoryBudget) -> None:
        self._form = form
        weight = form.layer.weight
        kinds = weight.kinds
        assert kinds is not None
        self._kinds = kinds
        self._stored_axis = weight.perm[form.layer.axis]
        self._large = _channels_at_once(form, budget)
        self._small = max(_STEP, _CHUNK_WEIGHTS // max(1, form.cols) // _STEP * _STEP)
        if _must_be_whole(form):
            if form.rows > self._large:
                raise TensorError(
                    "has rows whose low-bit codes do not end at whole bytes, so that it is packed as a whole, and max-memory is not "
                    "enough for that: raise it, take the format matmulnbits, or 8 bits"
                )
            self._small = form.rows
        self._held: _Span | None = None

    def spans(self) -> Iterator[_Span]:
        """All channels, in order."""
        if self._held is not None:
            yield self._held
            return
        rows = self._form.rows
        for start in range(0, rows, self._large):
            span = _Span(start, self._matrix(start, min(start + self._large, rows)), self._small)
            if len(span.matrix) == rows:
                self._held = span
            yield span

    def _matrix(self, start: int, stop: int) -> Matrix:
        weight: Constant = self._form.layer.weight
        axis = self._form.layer.axis
        array = weight.tensor.slab(numpy_of(self._kinds[0]), self._stored_axis, start, stop, _SCRATCH)
        for kind in self._kinds[1:]:
            array = converted(array, kind)
        array = array.transpose(weight.perm)
        if array.ndim != 2 or axis != 1:
            return to_matrix(array, axis)
        out = _SCRATCH.get("matrix", array.nbytes).view(array.dtype).reshape(array.shape[::-1])
        return transposed(array, out)


def needs_all_memory(form: Form, budget: MemoryBudget) -> bool:
    """Whether a weight has to be in memory as a whole, and is more than one thread's share of it."""
    return _must_be_whole(form) and form.rows > _channels_at_once(form, budget)


def _channels_at_once(form: Form, budget: MemoryBudget) -> int:
    """How many output channels, as read and as written, a thread may hold."""
    kinds = form.layer.weight.kinds
    assert kinds is not None
    item = max(numpy_of(kind).itemsize for kind in kinds)
    written = item if form.name == "float" else form.stored_bits / 8
    per_weight = item * (1 + len(kinds)) + form.parts * written
    room = max(0, budget.thread_bytes - _CHUNK_WEIGHTS * _WORK_BYTES)
    return max(_STEP, int(room / (per_weight * max(1, form.cols))) // _STEP * _STEP)


def _must_be_whole(form: Form) -> bool:
    """Whether a line of the stored tensor ends inside a byte, so that only the whole can be packed."""
    if form.name not in ("QDQ", "Integer") or form.stored_bits == 8:
        return False
    axis = form.layer.axis
    line = math.prod(form.shape[axis:])
    return math.prod(form.shape[:axis]) > 1 and line * form.stored_bits % 8 != 0


class _Writer:
    """Puts chunks of codes into the places of the parts, in the order that the form wants.

    A tensor whose channels are not its first axis is gathered span by span, so that it is written in long runs.
    """

    def __init__(self, form: Form, grid: Grid, places: Sequence[PartPlaces], residual: Residual | None) -> None:
        self._form = form
        self._grid = grid
        self._residual = residual
        self._places = places
        self._zero = _zero_points(form, grid)
        axis, shape = form.layer.axis, form.shape
        self._before, self._after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        self._span: _Span | None = None
        self._gathered: list[NDArray[Any]] = []

    def begin(self, span: _Span) -> None:
        """Take up a span."""
        self._span = span
        if self._before > 1 and self._form.name != "MatMulNBits" and not _must_be_whole(self._form):
            width = self._bytes_of(len(span.matrix))
            self._gathered = [np.empty((self._before, width), np.uint8) for _ in self._places]

    def end(self) -> None:
        """Write what was gathered of the span."""
        assert self._span is not None
        for place, gathered in zip(self._places, self._gathered, strict=False):
            place.codes.put(gathered, self._bytes_of(self._form.rows), self._bytes_of(self._span.start))
        self._gathered = []

    def write(self, start: int, matrix: Matrix, codes: U8, clusters: U8 | None) -> None:
        """Write the parts of a chunk; `start` counts within the span."""
        if self._form.name == "float":
            parts: Iterable[U8] = self._float_parts(matrix, clusters)
        else:
            parts = self._code_parts(matrix.shape[1], codes, clusters)
        for c, lines in enumerate(parts):
            self._put(c, start, lines)

    def _float_parts(self, matrix: Matrix, clusters: U8 | None) -> Iterator[U8]:
        if self._residual is not None:
            for part in self._residual.parts(matrix):
                yield self._in_order(part).view(np.uint8)
            return
        values = self._in_order(matrix)
        if clusters is None:
            yield values.view(np.uint8)
            return
        cluster = self._in_order(kernels().unpack(clusters, matrix.shape[1], self._form.spec.cluster_bits))
        zero = np.zeros((), values.dtype)
        for c in range(self._form.parts):
            yield np.where(cluster == c, values, zero).view(np.uint8)

    def _code_parts(self, cols: int, codes: U8, clusters: U8 | None) -> U8:
        """The codes of every part, packed as they are stored; zero behind the columns that there are."""
        form = self._form
        bits, cluster_bits, stored_cols = form.spec.code_bits, form.spec.cluster_bits, cols
        if form.name == "MatMulNBits":
            stored_cols = form.blocks * form.block
        elif self._before > 1 or cols * form.stored_bits % 8:
            codes = self._in_order(kernels().unpack(codes, cols, bits))
            clusters = None if clusters is None else self._in_order(kernels().unpack(clusters, cols, cluster_bits))
            stored_cols = cols = codes.shape[1]
            bits = cluster_bits = 8
        zero = np.array(self._zero, np.uint8)
        base = np.zeros_like(zero) if form.signed else zero
        parts = _scratch("parts", form.parts, len(codes), -(-stored_cols * form.stored_bits // 8))
        if form.spec.strategy == "residual":
            joint, width = kernels().unpack(codes, cols, bits), form.spec.bits
            for c in range(form.parts):
                of_part = joint >> np.uint8(c * width) & np.uint8((1 << width) - 1)
                one = slice(c, c + 1)
                kernels().part_planes(
                    of_part, 8, None, 0, cols, zero[one], base[one], parts[one], form.stored_bits, stored_cols
                )
            return parts
        kernels().part_planes(
            codes, bits, clusters, cluster_bits, cols, zero, base, parts, form.stored_bits, stored_cols
        )
        return parts

    def _put(self, c: int, start: int, lines: U8) -> None:
        assert self._span is not None
        form, place = self._form, self._places[c].codes
        if form.name == "MatMulNBits":
            place.put(lines.reshape(1, -1), 0, (self._span.start + start) * lines.shape[1])
        elif _must_be_whole(form):
            place.put(lines, 0, 0)
        elif self._gathered:
            at = self._bytes_of(start)
            self._gathered[c][:, at : at + lines.shape[1]] = lines
        else:
            place.put(lines.reshape(1, -1), 0, self._bytes_of(self._span.start + start))

    def _in_order(self, rows: NDArray[Any]) -> NDArray[Any]:
        """A chunk `[channels, weights]` in the axes of the weight, as lines along its channel axis (one where it is whole)."""
        if _must_be_whole(self._form):
            return np.ascontiguousarray(self._lines(rows)).reshape(1, -1)
        return self._lines(rows)

    def _lines(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self._before == 1:
            return rows.reshape(1, -1)
        if self._after == 1:
            return transposed(rows)
        lines = rows.reshape(len(rows), self._before, self._after).transpose(1, 0, 2)
        return np.ascontiguousarray(lines).reshape(self._before, -1)

    def _bytes_of(self, channels: int) -> int:
        """The bytes of one line with so many channels."""
        form = self._form
        assert self._span is not None
        bits = 8 * self._span.matrix.itemsize if form.name == "float" else form.stored_bits
        return channels * self._after * bits // 8 if self._before > 1 else channels * form.cols * bits // 8

    def write_scales(self, row_scales: F32 | None) -> None:
        """Write the scales and zero_points of all parts."""
        form = self._form
        if form.name == "float":
            return
        for c, place in enumerate(self._places):
            assert place.scale is not None
            scale = self._scale(c, row_scales)
            place.scale.put(_bytes(_as_scale_type(scale, form)), 0, 0)
            if place.zero_point is not None:
                count = scale.size
                if form.name == "Integer":
                    place.zero_point.put(np.full((1, 1), self._zero[c], np.uint8), 0, 0)
                elif form.name == "MatMulNBits":
                    zeros = np.full((form.rows, form.blocks), self._zero[c], np.uint8)
                    place.zero_point.put(_packed(zeros, form.stored_bits).reshape(1, -1), 0, 0)
                else:
                    flat = np.full((1, count), self._zero[c], np.uint8)
                    place.zero_point.put(_packed(flat, form.stored_bits), 0, 0)

    def _scale(self, c: int, row_scales: F32 | None) -> F32:
        form = self._form
        scale = self._grid.scale[c]
        if form.name == "MatMulNBits":
            rows = np.ones((form.rows, 1), np.float32) if row_scales is None else row_scales
            return np.ascontiguousarray(np.broadcast_to(rows * scale, (form.rows, form.blocks)))
        if row_scales is None:
            return np.array(scale, np.float32).reshape(1)
        scales: F32 = row_scales * scale
        if form.blocked and form.layer.axis > (form.layer.reduction or 0):
            return np.ascontiguousarray(scales.T)
        return scales


def _zero_points(form: Form, grid: Grid) -> list[int]:
    if form.spec.symmetric:
        return [form.spec.width.symmetric_zero] * form.parts
    if form.name == "float":
        return [0] * form.parts
    pairs = zip(grid.offset.tolist(), grid.scale.tolist(), strict=True)
    return [0 if scale == 0.0 else round(-offset / scale) for offset, scale in pairs]


def _packed(values: U8, bits: int) -> U8:
    return values if bits == 8 else kernels().pack(np.ascontiguousarray(values), bits)


def _within_half(row_scales: F32 | None, grid: Grid, form: Form) -> F32 | None:
    """Raise the scales of rows that are too small for float16 (dead channels) to the least that it holds well.

    Only where another row has a coarser scale still; where all are too small, `_as_scale_type` refuses.
    """
    used = grid.scale[grid.scale > 0]
    if row_scales is None or form.name == "float" or form.scale_type != TensorProto.FLOAT16 or used.size == 0:
        return row_scales
    least = np.float32(_LEAST_HALF / float(used.min()))
    if row_scales.max(initial=0.0) <= least:
        return row_scales
    return np.where((row_scales > 0) & (row_scales < least), least, row_scales)


def _as_scale_type(scale: F32, form: Form) -> NDArray[Any]:
    if form.scale_type != TensorProto.FLOAT16:
        return scale
    half = scale.astype(np.float16)
    lost = np.abs(half.astype(np.float32) - scale) > 0.01 * scale
    if lost.any() or not np.isfinite(half).all():
        raise HalfScaleError("has weights too small or too large for float16 scales")
    return half


def _bytes(array: NDArray[Any]) -> U8:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(1, -1)
