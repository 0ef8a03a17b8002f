"""The step functions that encode: what lies between levels, nearest levels, and shells of magnitudes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.affine import grid_for
from splitquant.core.cells import between, nearest_cells, shell_cells
from splitquant.core.spec import QuantSpec

laws = settings(max_examples=100, deadline=None)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True)


def cell_of(cells, values):
    """The cell of every value, by counting borders."""
    return (values[:, None] >= cells.border[None, :]).sum(axis=1)


def probes(numbers):
    """The numbers with their neighbours on the number line, points between them and points beyond."""
    numbers = np.asarray(numbers, np.float32)
    with np.errstate(all="ignore"):
        beside = [np.nextafter(numbers, np.float32(end)) for end in (np.inf, -np.inf)]
    some = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    found = np.concatenate([numbers, *beside, between(np.sort(numbers)), some, [0.0, 1e30, -1e30]])
    return found[np.isfinite(found)].astype(np.float32)


@laws
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_between(numbers):
    """Borders are the float32 numbers nearest to the exact middles: never outside their two levels."""
    level = np.sort(np.array(numbers, np.float32))
    border = between(level)
    assert border.dtype == np.float32
    exact = (level[1:].astype(np.float64) + level[:-1].astype(np.float64)) / 2
    assert np.array_equal(border, exact.astype(np.float32))
    assert ((border >= level[:-1]) & (border <= level[1:])).all()


@st.composite
def tables(draw):
    """A spec and a table of levels for it, with ties and constants."""
    bits, k = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    symmetric = draw(st.booleans())
    numbers = draw(st.sampled_from([NUMBERS, st.integers(-9, 9).map(float)]))
    levels = draw(st.lists(numbers, min_size=k << bits, max_size=k << bits))
    return QuantSpec(bits, k, symmetric=symmetric), np.array(levels, np.float32).reshape(k, -1)


@laws
@given(tables())
def test_nearest_cells(table):
    """Every value gets a nearest level of all codes in use, up to the rounding of a border; ties go to the first."""
    spec, levels = table
    cells = nearest_cells(levels, spec)
    first = 1 if spec.symmetric else 0
    assert np.array_equal(cells.level, levels[cells.cluster, cells.code])
    assert (np.diff(cells.level) > 0).all()
    assert cells.code.min() >= first
    used = levels[:, first:]
    for value, code, cluster in zip(cells.level, cells.code, cells.cluster, strict=True):
        same_cluster, same_code = np.argwhere(used == value)[0]
        assert (cluster, code) == (same_cluster, same_code + first)
    values = probes(levels.ravel())
    found = np.abs(values.astype(np.float64) - cells.level[cell_of(cells, values)])
    least = np.abs(values.astype(np.float64)[:, None] - used.ravel().astype(np.float64)).min(axis=1)
    assert (found <= least + 2.0**-22 * np.abs(values) + 2.0**-148).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_nearest_cells_of_residual_parts(bits):
    """Symmetric residual parts leave the first code of every part out."""
    spec = QuantSpec(bits, 2, strategy="residual", symmetric=True)
    levels = np.arange(1 << spec.code_bits, dtype=np.float32)[None]
    code = nearest_cells(levels, spec).code
    assert len(code) == ((1 << bits) - 1) ** 2
    assert (code & ((1 << bits) - 1) > 0).all()
    assert (code >> bits > 0).all()


@laws
@given(st.lists(st.integers(0, 400), min_size=2, max_size=12, unique=True), st.integers(2, 5), st.data())
def test_shell_cells(edges, bits, data):
    """A value's cluster is that of its magnitude; there it gets the nearest level."""
    edges = np.sort(np.array(edges, np.float64)) / 16
    shells = data.draw(st.integers(1, max(1, len(edges) // 2)))
    low, high = edges[: 2 * shells : 2], edges[1 : 2 * shells : 2]
    spec = QuantSpec(bits, max(shells, data.draw(st.integers(1, 8))), strategy="magnitude")
    grid = grid_for(low, high, spec)
    cells = shell_cells(grid, shells)
    assert (np.diff(cells.border) >= 0).all()
    assert np.array_equal(cells.level, grid.levels[cells.cluster, cells.code])
    values = probes(np.concatenate([low, -low, high, -high]))
    index = cell_of(cells, values)
    expected = (np.abs(values)[:, None] >= low[None, 1:].astype(np.float32)).sum(axis=1)
    assert np.array_equal(cells.cluster[index], expected)
    used = grid.levels[:, grid.code_min :].astype(np.float64)
    least = np.abs(values.astype(np.float64)[:, None] - used[expected]).min(axis=1)
    found = np.abs(values.astype(np.float64) - cells.level[index])
    assert (found <= least + 2.0**-22 * np.abs(values) + 2.0**-148).all()
