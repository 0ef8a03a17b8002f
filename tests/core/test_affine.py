"""Linear grids: scales of 16 significant bits, exact products, zero where it must be."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.affine import SMALLEST_SCALE, affine_piece, grid_for, levels, round_scale_up
from splitquant.core.floats import LARGEST_MAGNITUDE
from splitquant.core.spec import QuantSpec

FLOAT32 = st.floats(-LARGEST_MAGNITUDE, LARGEST_MAGNITUDE, width=32)
LARGEST_SCALE = 2.0 * LARGEST_MAGNITUDE  # no range is wider
POSITIVE = st.floats(min_value=0.0, max_value=LARGEST_SCALE, exclude_min=True)
SPECS = st.builds(
    QuantSpec,
    bits=st.integers(2, 8),
    clusters=st.integers(1, 2),
    symmetric=st.booleans(),
    layout=st.sampled_from(["fused", "parallel"]),
)
laws = settings(max_examples=150, deadline=None)


def significant_bits(value):
    """How many significant binary digits a float has."""
    numerator = abs(float(value).as_integer_ratio()[0])
    return (numerator // (numerator & -numerator)).bit_length() if numerator else 0


@laws
@given(POSITIVE)
def test_rounded_scale(scale):
    """A rounded scale is at least the scale, has 16 significant bits, and is as small as that allows."""
    rounded = round_scale_up(scale)
    assert rounded >= scale
    assert significant_bits(rounded) <= 16
    assert SMALLEST_SCALE <= rounded <= LARGEST_SCALE
    assert rounded == SMALLEST_SCALE or rounded <= scale * (1 + 2.0**-15)
    assert round_scale_up(rounded) == rounded


@laws
@given(POSITIVE)
def test_rounded_scale_and_inverse_are_normal_float32(scale):
    """Neither a scale nor its inverse is rounded to zero, infinity or another scale by float32."""
    rounded = round_scale_up(scale)
    assert float(np.float32(rounded)) == rounded
    inverse = np.float32(1) / np.float32(rounded)
    assert np.isfinite(inverse)
    assert inverse > 0


@dataclass(frozen=True)
class Rounding:
    """A scale and what it must become."""

    name: str
    scale: float
    rounded: float


@pytest.mark.parametrize(
    "case",
    [
        Rounding("zero", 0.0, 0.0),
        Rounding("negative", -1.0, 0.0),
        Rounding("one", 1.0, 1.0),
        Rounding("exact", 1.0 + 2.0**-15, 1.0 + 2.0**-15),
        Rounding("one bit too many", 1.0 + 2.0**-16, 1.0 + 2.0**-15),
        Rounding("just above one", 1.0 + 2.0**-52, 1.0 + 2.0**-15),
        Rounding("just below two", math.nextafter(2.0, 0.0), 2.0),
        Rounding("too small", 1e-300, SMALLEST_SCALE),
        Rounding("smallest double", 5e-324, SMALLEST_SCALE),
        Rounding("largest", LARGEST_SCALE, LARGEST_SCALE),
    ],
    ids=lambda case: case.name,
)
def test_rounded_scale_by_hand(case):
    """Known scales round to known scales."""
    assert round_scale_up(case.scale) == case.rounded


@laws
@given(st.floats(0.0, LARGEST_SCALE / 3), st.integers(2, 8))
def test_products_are_exact(scale, bits):
    """`scale * q` is exact in float32 for every code."""
    rounded = round_scale_up(scale / (1 << bits))
    codes = np.arange(1 << bits)
    products = np.float32(rounded) * codes.astype(np.float32)
    assert products.astype(np.float64).tolist() == (rounded * codes).tolist()


@laws
@given(FLOAT32, FLOAT32, SPECS)
def test_fused_multiply_add_changes_nothing(low, high, spec):
    """Levels are what one rounding of the exact `scale * q + offset` gives."""
    low, high = min(low, high), max(low, high)
    grid = grid_for(np.array([low]), np.array([high]), spec)
    exact = grid.scale.astype(np.float64)[:, None] * np.arange(1 << spec.bits)  # exact: 16 by 8 bits
    parts = exact + grid.offset.astype(np.float64)[:, None]
    lost = (exact - parts) + grid.offset.astype(np.float64)[:, None]
    once = parts.astype(np.float32)
    # Where the float64 sum itself is not exact it might round twice; a tie in float32 would show that.
    sure = (lost == 0) | (
        np.nextafter(parts, np.inf).astype(np.float32) == np.nextafter(parts, -np.inf).astype(np.float32)
    )
    assert np.isfinite(grid.levels).all()
    assert (grid.levels == once)[sure].all()
    assert np.array_equal(grid.levels, levels(grid.scale, grid.offset, spec.bits))


@laws
@given(FLOAT32, FLOAT32, SPECS)
def test_zero_is_a_level(low, high, spec):
    """Where zero must be in the grid, its code is an integer in range and its level is 0, exactly."""
    low, high = min(low, high), max(low, high)
    if not spec.zero_in_grid:
        return
    grid = grid_for(np.array([low]), np.array([high]), spec)
    if grid.scale[0] == 0:
        assert low == high == 0
        assert (grid.levels == 0).all()
        return
    zero_point = -grid.offset[0] / grid.scale[0]
    assert zero_point == int(zero_point)
    assert 0 <= zero_point < 1 << spec.bits
    assert grid.levels[0, int(zero_point)] == 0
    if spec.symmetric:
        assert zero_point == 1 << (spec.bits - 1)


@laws
@given(FLOAT32, FLOAT32, SPECS)
def test_grid_covers_its_range(low, high, spec):
    """No value of the range is farther than half a step from the used levels."""
    low, high = min(low, high), max(low, high)
    grid = grid_for(np.array([low]), np.array([high]), spec)
    used = grid.levels[0, grid.code_min : grid.code_max + 1].astype(np.float64)
    slack = 2.0**-23 * max(abs(low), abs(high)) + float(grid.scale[0]) / 2 * (1 + 1e-6)
    assert used.min() - slack <= low
    assert high <= used.max() + slack


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_grid_is_narrow(bits):
    """A symmetric grid does not use code 0 and its used levels are the same on both sides."""
    grid = grid_for(np.array([-0.3]), np.array([1.0]), QuantSpec(bits=bits, clusters=1, symmetric=True))
    assert (grid.code_min, grid.code_max) == (1, 2**bits - 1)
    used = grid.levels[0, 1:]
    assert used.tolist() == (-used[::-1]).tolist()
    assert used[-1] >= 1.0


def test_own_range_starts_at_the_low_value():
    """A fused asymmetric grid has the least value as its level 0."""
    low, high = float(np.float32(0.3)), float(np.float32(0.7))
    scale, offset = affine_piece(low, high, QuantSpec(bits=4))
    assert offset == low
    assert offset + 15 * scale >= high


@dataclass(frozen=True)
class Piece:
    """A range, a spec, and the grid it must get."""

    name: str
    low: float
    high: float
    spec: QuantSpec
    scale: float
    offset: float


OWN, PLAIN = QuantSpec(bits=2), QuantSpec(bits=2, clusters=1)
PARALLEL, SYMMETRIC = QuantSpec(bits=2, layout="parallel"), QuantSpec(bits=2, symmetric=True)


@pytest.mark.parametrize(
    "case",
    [
        Piece("own range", 1.0, 4.0, OWN, 1.0, 1.0),
        Piece("own range of a constant", 0.7, 0.7, OWN, 0.0, 0.7),
        Piece("own range of zeros", 0.0, 0.0, OWN, 0.0, 0.0),
        Piece("plain holds zero", 1.0, 3.0, PLAIN, 1.0, 0.0),
        Piece("zero below", 1.0, 3.0, PARALLEL, 1.0, 0.0),
        Piece("zero above", -3.0, -1.0, PARALLEL, 1.0, -3.0),
        Piece("zero inside", -1.0, 2.0, PARALLEL, 1.0, -1.0),
        Piece("zeros", 0.0, 0.0, PARALLEL, 0.0, 0.0),
        Piece("constant with zero", 3.0, 3.0, PARALLEL, 1.0, 0.0),
        Piece("symmetric", -0.5, 1.0, SYMMETRIC, 1.0, -2.0),
        Piece("symmetric zeros", 0.0, 0.0, SYMMETRIC, 0.0, 0.0),
        Piece("tiny", 0.0, 2.0**-149, PARALLEL, 2.0**-126, 0.0),
    ],
    ids=lambda case: case.name,
)
def test_pieces_by_hand(case):
    """Known ranges get known grids."""
    assert affine_piece(case.low, case.high, case.spec) == (case.scale, case.offset)


def test_unused_clusters():
    """A grid of fewer pieces than clusters says so: scale 0, and no value reaches their borders."""
    grid = grid_for(np.array([-1.0, 0.5]), np.array([-0.5, 1.0]), QuantSpec(clusters=4))
    assert grid.clusters == 4
    assert grid.lower.tolist() == [-math.inf, 0.5, math.inf, math.inf]
    assert grid.scale[2:].tolist() == [0, 0]
    assert grid.offset[2:].tolist() == [0, 0]
    assert grid.inverse_scale[2:].tolist() == [0, 0]


def test_no_negative_zero_on_disk():
    """An offset of zero has one spelling."""
    spec = QuantSpec(clusters=3, layout="parallel")
    grid = grid_for(np.array([0.0, 0.5, 0.75]), np.array([0.25, 0.5, 1.0]), spec)
    assert grid.offset.tolist() == [0, 0, 0]
    assert not np.signbit(grid.offset).any()


def test_inverse_scale():
    """The inverse is one correctly rounded division, and 0 for a constant cluster."""
    grid = grid_for(np.array([0.0, 2.0]), np.array([1.0, 2.0]), QuantSpec(clusters=2))
    assert grid.inverse_scale[0] == np.float32(1) / grid.scale[0]
    assert grid.inverse_scale[1] == 0
