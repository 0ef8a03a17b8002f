"""Encoding by cells: the compiled kernel is the twin bit for bit, whatever the cells and whatever the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitquant.core.affine import Cells, Grid
from splitquant.core.floats import kind_of, to_float32
from splitquant.core.granularity import Granularity
from splitquant.core.interface import Planes, plane_width
from splitquant.core.reference import NumpyKernels
from splitquant.core.rows import RowScales, row_scale_from, row_scale_kind
from splitquant.core.spec import CLUSTER_ID_BITS

native = pytest.importorskip(
    "splitquant._native",
    reason="splitquant._native was not built; install with a C++20 compiler at hand",
    exc_type=ImportError,
)
from splitquant.core.native import NativeKernels  # noqa: E402 - only where the module is there

TWIN, COMPILED = NumpyKernels(), NativeKernels()
KINDS = ("bf16", "fp16", "fp32")
WORDS = {"bf16": np.uint16, "fp16": np.uint16, "fp32": np.uint32}
INF = float("inf")
TINY = 2.0**-149
HOSTILE = [0.0, -0.0, TINY, -TINY, 2.0**-126, -(2.0**-126), 1.0, -1.0, 3.4028234e38, -3.4028234e38, INF, -INF]
laws = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def window_of(kind, bits):
    """A window of the given bit patterns."""
    x = np.asarray(bits, WORDS[kind])
    return x if kind == "bf16" else x.view({"fp16": np.float16, "fp32": np.float32}[kind])


@st.composite
def windows(draw, kinds=KINDS):
    """Any bit patterns at all, NaN, infinity and both zeros among them, of any number of columns."""
    kind = draw(st.sampled_from(kinds))
    rows, cols = draw(st.integers(1, 4)), draw(st.one_of(st.integers(1, 70), st.integers(500, 600)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = int(np.iinfo(WORDS[kind]).max)
    bits = rng.integers(0, top, (rows, cols), endpoint=True)
    if draw(st.booleans()):  # few patterns, often neighbours
        pool = rng.integers(0, top, 6, endpoint=True)
        bits = rng.choice(np.concatenate([pool, pool ^ 1, pool ^ (top // 2 + 1)]), (rows, cols))
    return window_of(kind, bits)


def cells_of(borders, bits, clusters, seed):
    """Cells with the given borders and any levels and codes."""
    rng = np.random.default_rng(seed)
    n = len(borders) + 1
    return Cells(
        np.sort(np.asarray(borders, np.float32)),
        rng.standard_normal(n).astype(np.float32),
        rng.integers(0, 1 << bits, n).astype(np.uint8),
        rng.integers(0, clusters, n).astype(np.uint8),
    )


def grid_of(cells, bits, clusters):
    """A grid that is only its cells."""
    nothing = np.zeros(clusters, np.float32)
    table = np.zeros((clusters, 1 << bits), np.float32)
    return Grid(bits, nothing, nothing, nothing, 0, (1 << bits) - 1, table, cells)


def room_for(x, grid):
    """Planes to encode into, full of something else."""
    id_bits = CLUSTER_ID_BITS[grid.clusters]
    codes, ids = (
        np.full((len(x), plane_width(x.shape[1], bits)), 0xA5, np.uint8) if bits else None
        for bits in (grid.bits, id_bits)
    )
    return Planes(codes, grid.bits, ids, id_bits, x.shape[1])


def encoded(kernels, x, rows, grid):
    """Codes, ids (None for one cluster) and errors."""
    planes = room_for(x, grid)
    with np.errstate(all="ignore"):
        errors = kernels.encode(x, rows, grid, planes)
    return planes.codes, planes.clusters, errors


def check_same(x, rows, grid):
    """Both kernels write the same planes; errors agree too, where they are numbers (a NaN has many spellings)."""
    (codes, ids, ours), (their_codes, their_ids, theirs) = (
        encoded(kernels, x, rows, grid) for kernels in (COMPILED, TWIN)
    )
    assert codes.tobytes() == their_codes.tobytes()
    assert ids is None or ids.tobytes() == their_ids.tobytes()
    finite = np.isfinite(to_float32(x)).all(axis=1)
    for left, right in zip(ours, theirs, strict=True):
        assert left[finite].tobytes() == right[finite].tobytes()
    return codes, ids


def scales_of(x, group):
    """Row scales; those of rows that hold NaN or infinity are what comes of it."""
    if group == 0:
        return None
    kind = row_scale_kind(kind_of(x.dtype), Granularity("channel"))
    with np.errstate(all="ignore"):
        return RowScales(group, row_scale_from(TWIN.absmax(x, group), kind))


BORDERS = st.lists(
    st.one_of(st.sampled_from(HOSTILE), st.floats(-2, 2, width=32), st.floats(width=32, allow_nan=False)),
    max_size=40,
)


@laws
@given(
    windows(),
    BORDERS,
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([0, 1, 3, 16, 64, 1000]),
    st.integers(0, 99),
)
def test_any_cells_and_any_weights(isa, x, borders, bits, clusters, group, seed):
    """Planes are the twin's for every bit pattern, equal and infinite borders, borders within one table key included."""
    grid = grid_of(cells_of(borders, bits, clusters, seed), bits, clusters)
    check_same(x, scales_of(x, group), grid)


@laws
@given(windows(kinds=("fp32",)), st.integers(2, 256), st.integers(0, 99))
def test_borders_at_the_weights(isa, x, count, seed):
    """A weight on a border is above it, and its neighbours on the number line are on their own sides."""
    rng = np.random.default_rng(seed)
    values = x[np.isfinite(x)]
    if len(values) == 0:
        return
    with np.errstate(all="ignore"):
        chosen = rng.choice(values, count - 1)
        borders = np.concatenate(
            [chosen, np.nextafter(chosen, np.float32(INF)), np.nextafter(chosen, -np.float32(INF))]
        )
    borders = np.unique(borders[np.isfinite(borders)])[:255]
    cells = cells_of(borders, 8, 1, seed)
    cells = Cells(cells.border, cells.level, np.arange(len(borders) + 1, dtype=np.uint8), np.zeros_like(cells.cluster))
    codes, _ = check_same(x, None, grid_of(cells, 8, 1))
    expected = (x[..., None] >= cells.border).sum(axis=-1)
    assert np.array_equal(codes, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pattern(isa, kind):
    """All 65,536 upper halves, with zeros and all ones below, are in the cell of the definition; NaN is in cell 0."""
    bits = np.arange(1 << 16, dtype=np.uint64).reshape(16, -1)
    if kind == "fp32":
        bits = np.concatenate([bits << 16, bits << 16 | 0xFFFF, bits << 16 | 0x8000])
    x = window_of(kind, bits)
    borders = [-INF, -1e30, -1.0, -1.0, -0.3, -TINY, 0.0, TINY, 2.0**-126, 0.3, 1.0, 1.0000001, 65504.0, 3e38, INF]
    cells = cells_of(borders, 8, 1, 0)
    cells = Cells(cells.border, cells.level, np.arange(len(borders) + 1, dtype=np.uint8), cells.cluster)
    codes, _ = check_same(x, None, grid_of(cells, 8, 1))
    values = to_float32(x)
    expected = np.zeros(values.shape, np.int64)
    for border in cells.border:
        expected += values >= border
    assert np.array_equal(codes, expected)
    assert (codes[np.isnan(values)] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_of_both_signs(isa, kind):
    """-0.0 and 0.0 are the same value, on a border at either zero and beside one."""
    top = int(np.iinfo(WORDS[kind]).max)
    x = window_of(kind, [[0, top // 2 + 1] * 20])
    for border in (0.0, -0.0, TINY, -TINY):
        codes, _ = check_same(x, None, grid_of(cells_of([border], 8, 1, 3), 8, 1))
        assert len(set(codes.ravel().tolist())) == 1


def test_one_cell(isa):
    """A grid of one cell gives its code to everything."""
    grid = grid_of(cells_of([], 4, 3, 1), 4, 3)
    x = window_of("fp32", [[0, 0x7F800000, 0xFF800000, 0x7FC00001, 0x80000000, 1, 0x7F7FFFFF]])
    check_same(x, None, grid)


def test_many_cells(isa):
    """As many cells as two clusters of 8 bits have, all within a few table keys."""
    rng = np.random.default_rng(4)
    borders = np.unique(1 + rng.random(511).astype(np.float32) / 64)
    x = (1 + rng.standard_normal((3, 1001)) / 64).astype(np.float32)
    check_same(x, None, grid_of(cells_of(borders, 8, 2, 5), 8, 2))


def test_wrong_arguments_are_refused(isa):
    """Planes and cells of other sizes raise instead of being written past."""
    x, grid = np.ones((2, 40), np.float32), grid_of(cells_of([0.0, 1.0], 4, 3, 1), 4, 3)
    planes, rows = room_for(x, grid), RowScales(40, np.ones((2, 1), np.float32))
    COMPILED.encode(x, rows, grid, planes)
    short = Cells(grid.cells.border, grid.cells.level[:2], grid.cells.code, grid.cells.cluster)
    none = Cells(*(part[:0] for part in (grid.cells.border, grid.cells.level, grid.cells.code, grid.cells.cluster)))
    for wrong in (
        lambda: COMPILED.encode(x, rows, grid, replace(planes, codes=planes.codes[:, :19].copy())),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, clusters=planes.clusters[:, :9].copy())),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, codes=planes.codes[:, :19])),
        lambda: COMPILED.encode(x, replace(rows, scale=rows.scale[:1]), grid, planes),
        lambda: COMPILED.encode(x, None, grid_of(short, 4, 3), planes),
        lambda: COMPILED.encode(x, None, grid_of(none, 4, 3), planes),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
