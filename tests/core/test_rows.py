"""Tensors as matrices, and the scales of their rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.floats import LARGEST_MAGNITUDE
from splitquant.core.granularity import Granularity
from splitquant.core.rows import (
    SMALLEST_ROW_SCALE,
    RowScales,
    from_matrix,
    matrix_shape,
    pack_row_scale,
    row_scale_from,
    row_scale_kind,
    row_weight,
    spread,
    to_matrix,
    unpack_row_scale,
)

laws = settings(max_examples=100, deadline=None)


@laws
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple), st.data())
def test_matrix_round_trip(shape, data):
    """The matrix of a tensor has the slices of its axis as rows, and leads back to the tensor."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    matrix = to_matrix(array, axis)
    assert matrix.shape == matrix_shape(shape, axis)
    assert matrix.flags.c_contiguous
    for i in range(shape[axis]):
        assert np.array_equal(matrix[i], np.take(array, i, axis).reshape(-1))
    assert np.array_equal(from_matrix(matrix, shape, axis), array)


def test_rows_of_axis_0_are_a_view():
    """No copy is made where the memory already lies in rows."""
    array = np.zeros((4, 3, 2), np.float32)
    assert np.shares_memory(to_matrix(array, 0), array)


@pytest.mark.parametrize(
    ("source", "granularity", "kind"),
    [
        ("bf16", "channel", "bf16"),
        ("bf16", "group:2", "bf16"),
        ("fp16", "channel", "fp16"),
        ("fp16", "group:2", "fp16"),
        ("fp32", "channel", "fp32"),
        ("fp32", "group:2", "bf16"),
    ],
)
def test_stored_dtype_of_row_scales(source, granularity, kind):
    """A 16-bit source keeps its dtype; float32 keeps it per channel and takes bf16 per group."""
    assert row_scale_kind(source, Granularity.parse(granularity)) == kind


@laws
@given(st.lists(st.floats(0, LARGEST_MAGNITUDE, width=32), min_size=1, max_size=20))
def test_row_scales_cover_their_group(values):
    """A row_scale is at least the largest weight, at most one bf16 step more, and 0 only for zeros."""
    absmax = np.array([values], np.float32)
    for kind in ("fp32", "bf16"):
        scale = row_scale_from(absmax, kind)
        assert (scale >= absmax).all()
        assert ((scale == 0) == (absmax == 0)).all()
        assert ((scale <= absmax * np.float32(1 + 2**-7)) | (scale == SMALLEST_ROW_SCALE)).all()
        assert np.array_equal(unpack_row_scale(pack_row_scale(scale, kind)), scale)
        inverse = RowScales(1, scale).inverse
        assert np.isfinite(inverse).all()
        assert ((inverse == 0) == (scale == 0)).all()


def test_row_scales_of_16_bit_sources_are_exact():
    """Every finite fp16 and bf16 number is its own row_scale (bf16 from 2**-126 to 2**126)."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    scale = row_scale_from(half.astype(np.float32)[None], "fp16")
    assert np.array_equal(pack_row_scale(scale, "fp16")[0], half)
    patterns = np.arange(0x0080, 0x7E80, dtype=np.uint16)
    brain = (patterns.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(pack_row_scale(row_scale_from(brain[None], "bf16"), "bf16")[0], patterns)


def test_row_weights():
    """A row weighs its row_scale squared, in integers from 1 to 2**30; a tensor of zeros weighs alike."""
    scale = np.array([[4.0, 2.0], [1.0, 2.0**-126], [0.0, 4.0]], np.float32)
    assert row_weight(scale, 4.0).tolist() == [[1 << 30, 1 << 28], [1 << 26, 1], [1, 1 << 30]]
    assert row_weight(np.zeros((2, 1), np.float32), 0.0).tolist() == [[1 << 30], [1 << 30]]
    assert row_weight(scale, 4.0).dtype == np.uint32


def test_row_scales_of_some_rows():
    """Some rows keep their scales and the group, and weigh by the heaviest row of all."""
    rows = RowScales(3, np.array([[4.0, 2.0], [1.0, 0.0], [0.5, 8.0]], np.float32))
    assert rows.heaviest == 8.0
    some = rows.of(range(1, 3))
    assert (some.group, some.scale.tolist()) == (3, [[1.0, 0.0], [0.5, 8.0]])
    assert some.inverse.tolist() == [[1.0, 0.0], [2.0, 0.125]]
    assert some.weight is None
    assert some.weighed(rows.heaviest).weight.tolist() == row_weight(some.scale, 8.0).tolist()
    assert RowScales(3, np.zeros((0, 2), np.float32)).heaviest == 0.0


def test_spread():
    """A number per group becomes one per weight; one per row stays a column."""
    assert spread(np.array([[1, 2]]), 3, 5).tolist() == [[1, 1, 1, 2, 2]]
    assert spread(np.array([[7], [8]]), 5, 5).tolist() == [[7], [8]]
