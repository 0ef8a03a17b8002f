"""One weight from where it is stored to its parts: count, solve, encode, in windows of output channels.

The mathematics is that of `splitquant.core`; here are only the order of axes and the packing that ONNX wants. Windows
begin at multiples of eight channels, so that codes of 2 and 4 bits begin at whole bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from splitquant.core.affine import Grid
from splitquant.core.arrays import F32, U8, Matrix
from splitquant.core.error import ErrorFigures, ErrorSums, figures_of
from splitquant.core.interface import Parts, Planes, plane_width
from splitquant.core.kernels import kernels
from splitquant.core.passes import Encoded, Sink, Windows, encoded, scaled, solved
from splitquant.core.rows import RowScales, to_matrix
from splitquant.core.scaling import Scaling
from splitquant.errors import TensorError
from splitquant.onnx.dtypes import converted, numpy_of
from splitquant.onnx.forms.form import Form
from splitquant.onnx.forms.residual import Residual
from splitquant.onnx.forms.transpose import transposed
from splitquant.onnx.wire.sink import Place
from splitquant.storage.memory import Buffers, MemoryBudget

_CHUNK_WEIGHTS = 1 << 19  # what is worked on at a time: small enough for the caches
_WORK_BYTES = 24  # per weight of such a chunk, generously
_STEP = 8
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

    Raises TensorError for NaN, infinity. The scales of a form of float16 fit it, see `fits_half`.
    """
    matrix = scaled(_windows(form, budget), Scaling.of(form.spec))
    (grid,) = solved(matrix, [form.spec])
    matrix = replace(matrix, scales=_within_half(matrix.scales, grid, form))
    writer = _Writer(form, grid, places, _residual(form, matrix))
    sink = Sink(writer.write, _SCRATCH.get, _rows_of_chunk(form))
    errors = [error for window in encoded(matrix, form.spec, grid, sink) for error in window]
    writer.write_scales(matrix.scales)
    weights = math.prod(form.shape)
    if form.name == "float":
        return ErrorFigures(weights, figures_of(weights, errors).signal, 0.0, 0.0)
    return figures_of(weights, errors)


def fits_half(form: Form, budget: MemoryBudget) -> bool:
    """Whether float16 holds the scales of a weight, those of some rows raised where they are too small."""
    matrix = scaled(_windows(form, budget), Scaling.of(form.spec))
    (grid,) = solved(matrix, [form.spec])
    rows = _within_half(matrix.scales, grid, form)
    scales = None if rows is None else rows.scale
    return all(_holds_half(_scales_of(form, grid, part, scales)) for part in range(form.parts))


def _residual(form: Form, matrix: Windows) -> Residual | None:
    """How float parts are rounded where they are residual."""
    if form.name != "float" or not form.spec.facts.additive:
        return None
    return Residual.with_ranges(
        form.spec, form.kind, partial(map, matrix.load, matrix.ranges), full_range=form.full_range
    )


def _windows(form: Form, budget: MemoryBudget) -> Windows:
    """The channel matrix of a weight, in windows that fit the memory bound."""
    rows, step = form.rows, _channels_at_once(form, budget)
    if _must_be_whole(form) and rows > step:
        raise TensorError(
            "has rows whose low-bit codes do not end at whole bytes, so that it is packed as a whole, and max-memory is not "
            "enough for that: raise it, take the format matmulnbits, or 8 bits"
        )
    windows = [range(start, min(start + step, rows)) for start in range(0, rows, step)]
    return Windows(windows, lambda window: _load(form, window))


def _load(form: Form, rows: range) -> Matrix:
    weight, axis = form.operand.weight, form.operand.axis
    assert weight.kinds is not None
    first, *others = weight.kinds
    array = weight.tensor.slab(numpy_of(first), weight.perm[axis], rows.start, rows.stop, _SCRATCH)
    for kind in others:
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
    kinds = form.operand.weight.kinds
    assert kinds is not None
    item = max(numpy_of(kind).itemsize for kind in kinds)
    written = item if form.name == "float" else form.stored_bits / 8
    per_weight = item * (1 + len(kinds)) + form.parts * written
    room = max(0, budget.thread_bytes - _CHUNK_WEIGHTS * _WORK_BYTES)
    return max(_STEP, int(room / (per_weight * max(1, form.cols))) // _STEP * _STEP)


def _rows_of_chunk(form: Form) -> int:
    """How many output channels are worked on at a time."""
    if _must_be_whole(form):
        return form.rows
    return max(_STEP, _CHUNK_WEIGHTS // max(1, form.cols) // _STEP * _STEP)


def _must_be_whole(form: Form) -> bool:
    """Whether a line of the stored tensor ends inside a byte, so that only the whole can be packed."""
    if form.name not in ("QDQ", "Integer") or form.stored_bits == 8:
        return False
    axis = form.operand.axis
    line = math.prod(form.shape[axis:])
    return math.prod(form.shape[:axis]) > 1 and line * form.stored_bits % 8 != 0


class _Writer:
    """Puts chunks of codes into the places of the parts, in the order that the form wants.

    A tensor whose channels are not its first axis is gathered window by window, so that it is written in long runs.
    """

    def __init__(self, form: Form, grid: Grid, places: Sequence[PartPlaces], residual: Residual | None) -> None:
        self._form = form
        self._grid = grid
        self._residual = residual
        self._places = places
        self._zero = _zero_points(form, grid)
        axis, shape = form.operand.axis, form.shape
        self._before, self._after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        self._gathered: list[U8] = []

    def write(self, window: range, blocks: Iterable[Encoded]) -> list[ErrorSums]:
        """Write the parts of all blocks of a window; returns their errors."""
        if self._before > 1 and self._form.name != "MatMulNBits" and not _must_be_whole(self._form):
            width = self._bytes_of(len(window))
            self._gathered = [np.empty((self._before, width), np.uint8) for _ in self._places]
        errors = []
        for block in blocks:
            parts = self._float_parts(block) if self._form.name == "float" else self._code_parts(block)
            for c, lines in enumerate(parts):
                self._put(c, block.rows.start, block.rows.start - window.start, lines)
            errors.append(block.errors)
        for place, gathered in zip(self._places, self._gathered, strict=False):
            place.codes.put(gathered, self._bytes_of(self._form.rows), self._bytes_of(window.start))
        return errors

    def _float_parts(self, block: Encoded) -> Iterator[U8]:
        if self._residual is not None:
            for part in self._residual.parts(block.x):
                yield self._in_order(part).view(np.uint8)
            return
        values, planes = self._in_order(block.x), block.planes
        if planes.clusters is None:
            yield values.view(np.uint8)
            return
        cluster = self._in_order(kernels().unpack(planes.clusters, planes.cols, planes.cluster_bits))
        zero = np.zeros((), values.dtype)
        for c in range(self._form.parts):
            yield np.where(cluster == c, values, zero).view(np.uint8)

    def _code_parts(self, block: Encoded) -> U8:
        """The codes of every part, packed as they are stored; zero behind the columns that there are."""
        form, planes = self._form, block.planes
        cols = planes.cols
        if form.name == "MatMulNBits":
            cols = form.blocks * form.block
            if cols > planes.cols and block.scales is not None and block.scales.zero is not None:
                planes = _continued(planes, cols, block.scales.zero[:, -1:])
        elif self._before > 1 or cols * form.stored_bits % 8:
            codes = self._in_order(kernels().unpack(planes.codes, cols, planes.bits))
            clusters = None
            if planes.clusters is not None:
                clusters = self._in_order(kernels().unpack(planes.clusters, cols, planes.cluster_bits))
            cols = codes.shape[1]
            planes = Planes(codes, 8, clusters, 8, cols)
        zero = np.array(self._zero, np.uint8)
        base = np.zeros_like(zero) if form.signed else zero
        shape = (form.parts, len(planes.codes), plane_width(cols, form.stored_bits))
        out = _SCRATCH.get("parts", math.prod(shape)).reshape(shape)
        if not form.spec.facts.additive:
            kernels().part_planes(planes, Parts(out, form.stored_bits, cols, zero, base))
            return out
        joint, bits = kernels().unpack(planes.codes, planes.cols, planes.bits), form.spec.bits
        for c in range(form.parts):
            of_part = Planes(joint >> np.uint8(c * bits) & np.uint8((1 << bits) - 1), 8, None, 0, planes.cols)
            one = slice(c, c + 1)
            kernels().part_planes(of_part, Parts(out[one], form.stored_bits, cols, zero[one], base[one]))
        return out

    def _put(self, c: int, channel: int, in_window: int, lines: U8) -> None:
        """Put the lines of channels, of which the first is `channel`, into part c."""
        form, place = self._form, self._places[c].codes
        if form.name == "MatMulNBits":
            place.put(lines.reshape(1, -1), 0, channel * lines.shape[1])
        elif _must_be_whole(form):
            place.put(lines, 0, 0)
        elif self._gathered:
            at = self._bytes_of(in_window)
            self._gathered[c][:, at : at + lines.shape[1]] = lines
        else:
            place.put(lines.reshape(1, -1), 0, self._bytes_of(channel))

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
        bits = 8 * numpy_of(form.kind).itemsize if form.name == "float" else form.stored_bits
        return channels * self._after * bits // 8 if self._before > 1 else channels * form.cols * bits // 8

    def write_scales(self, rows: RowScales | None) -> None:
        """Write the scales and zero_points of all parts."""
        form = self._form
        if form.name == "float":
            return
        row_scales = None if rows is None else rows.scale
        own = None if rows is None else rows.zero
        for c, place in enumerate(self._places):
            assert place.scale is not None
            scale = _scales_of(form, self._grid, c, row_scales)
            place.scale.put(_bytes(_as_scale_type(scale, form)), 0, 0)
            if place.zero_point is not None:
                count = scale.size
                zeros = np.array(self._zero[c], np.uint8) if own is None else own
                if form.name == "Integer":
                    place.zero_point.put(zeros.reshape(1, 1), 0, 0)
                elif form.name == "MatMulNBits":
                    zeros = np.broadcast_to(zeros, (form.rows, form.blocks))
                    place.zero_point.put(_packed(zeros, form.stored_bits).reshape(1, -1), 0, 0)
                else:
                    flat = np.broadcast_to(_in_axes(zeros, form).reshape(1, -1), (1, count))
                    place.zero_point.put(_packed(np.ascontiguousarray(flat), form.stored_bits), 0, 0)


def _scales_of(form: Form, grid: Grid, part: int, row_scales: F32 | None) -> F32:
    """The scales of a part in float32, in the shape in which they are stored."""
    scale = grid.scale[part]
    if form.name == "MatMulNBits":
        rows = np.ones((form.rows, 1), np.float32) if row_scales is None else row_scales
        return np.ascontiguousarray(np.broadcast_to(rows * scale, (form.rows, form.blocks)))
    if row_scales is None:
        return np.array(scale, np.float32).reshape(1)
    return _in_axes(row_scales * scale, form)


def _in_axes(numbers: NDArray[Any], form: Form) -> NDArray[Any]:
    """Numbers `[rows, groups]` in the axes of the weight."""
    turned = form.blocked and form.operand.axis > (form.operand.reduction or 0) and numbers.ndim == 2
    return np.ascontiguousarray(numbers.T) if turned else numbers


def _continued(planes: Planes, cols: int, zero: U8) -> Planes:
    """Plain codes with so many columns, those behind the last being the zero_point `[rows, 1]` of its row's last group."""
    codes = np.broadcast_to(zero, (len(planes.codes), cols)).copy()
    codes[:, : planes.cols] = kernels().unpack(planes.codes, planes.cols, planes.bits)
    return Planes(codes, 8, None, 0, cols)


def _zero_points(form: Form, grid: Grid) -> list[int]:
    if form.spec.symmetric:
        return [form.spec.width.symmetric_zero] * form.parts
    if form.name == "float" or form.spec.own_zero_points:
        return [0] * form.parts
    pairs = zip(grid.offset.tolist(), grid.scale.tolist(), strict=True)
    return [0 if scale == 0.0 else round(-offset / scale) for offset, scale in pairs]


def _packed(values: U8, bits: int) -> U8:
    return values if bits == 8 else kernels().pack(np.ascontiguousarray(values), bits)


def _within_half(rows: RowScales | None, grid: Grid, form: Form) -> RowScales | None:
    """Raise the scales of rows that are too small for float16 (dead channels) to the least that it holds well.

    Only where another row has a coarser scale still; where all are too small, see `fits_half`.
    """
    used = grid.scale[grid.scale > 0]
    if rows is None or form.name == "float" or form.scale_type != TensorProto.FLOAT16 or used.size == 0:
        return rows
    least = np.float32(_LEAST_HALF / float(used.min()))
    if rows.heaviest <= least:
        return rows
    return replace(rows, scale=np.where((rows.scale > 0) & (rows.scale < least), least, rows.scale))


def _as_scale_type(scale: F32, form: Form) -> NDArray[Any]:
    return scale.astype(np.float16) if form.scale_type == TensorProto.FLOAT16 else scale


def _holds_half(scale: F32) -> bool:
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    lost = np.abs(half.astype(np.float32) - scale) > 0.01 * scale
    return bool(np.isfinite(half).all()) and not lost.any()


def _bytes(array: NDArray[Any]) -> U8:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(1, -1)
