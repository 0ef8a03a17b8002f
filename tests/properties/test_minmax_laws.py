"""Min-max rounding: a quantizer that takes the range of the result finds the same grid again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from splitquant import QuantSpec
from splitquant.core.minmax import minmax_rounded
from splitquant.errors import TensorError

specs = st.builds(
    QuantSpec,
    bits=st.integers(2, 8),
    clusters=st.just(1),
    strategy=st.just("residual"),
    granularity=st.sampled_from(["tensor", "channel", "group:3"]),
    symmetric=st.booleans(),
)
numbers = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
matrices = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=numbers)
tiny_numbers = st.builds(lambda x, n: float(np.float32(x * 2.0**n)), st.floats(-100, 100), st.integers(-150, -120))
tiny_matrices = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=tiny_numbers)
EXACT_TIE = np.array([[-8.5, 6.5, 0.0, 1.0]], np.float32)  # both ends halfway between two levels


def slices(x, spec):
    """The slices of a matrix that share a range."""
    if spec.granularity.kind == "tensor":
        return [x.reshape(-1)]
    if spec.granularity.kind == "channel":
        return list(x)
    return [row[start : start + 3] for row in x for start in range(0, len(row), 3)]


def somebody_elses(x, bits, symmetric):
    """A plain min-max quantizer in float32, as toolchains write it."""
    f = np.float32
    if symmetric:
        steps = f(2 ** (bits - 1) - 1)
        scale = np.maximum(np.abs(x).max() / steps, f(1e-45))
        return np.clip(np.rint(x / scale), -steps, steps) * scale
    low, high, top = np.minimum(x.min(), f(0)), np.maximum(x.max(), f(0)), f(2**bits - 1)
    scale = np.maximum((high - low) / top, f(1e-45))
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, f(0), top) - zero) * scale


@given(matrices, specs)
@example(EXACT_TIE, QuantSpec(4, 1, "residual", "tensor"))
def test_the_grid_is_found_again(x, spec):
    """LAW: another min-max quantizer, and this one, give the values back bit for bit."""
    once = minmax_rounded(x, spec)
    assert np.array_equal(minmax_rounded(once, spec), once)
    tiny = np.abs(once[once != 0]).min(initial=1.0) < 2.0**-100
    if not tiny:  # below, the scale itself would be subnormal
        for part in slices(once, spec):
            assert np.array_equal(somebody_elses(part, spec.bits, spec.symmetric), part)


@given(matrices, specs)
@example(EXACT_TIE, QuantSpec(4, 1, "residual", "tensor"))
def test_half_a_step(x, spec):
    """LAW: no value is moved by more than half a step (and the last bits of the scale); zero stays zero."""
    once = minmax_rounded(x, spec)
    assert once.dtype == np.float32
    assert (once[x == 0] == 0).all()
    for before, after in zip(slices(x, spec), slices(once, spec), strict=True):
        low, high = min(float(before.min()), 0.0), max(float(before.max()), 0.0)
        top = 2 ** (spec.bits - 1) - 1 if spec.symmetric else 2**spec.bits - 1
        step = (max(-low, high) if spec.symmetric else high - low) / top
        miss = np.abs(before.astype(np.float64) - after).max()
        assert miss <= max(step, 2.0**-126) * (0.5 + top * 2.0**-10)


@given(tiny_matrices, specs, st.booleans())
@example(np.array([[1e-42, -3e-43, 0, 2e-42]], np.float32), QuantSpec(4, 1, "residual", "tensor"), False)
@example(np.array([[1e-38, -2e-38, 0, 3e-38]], np.float32), QuantSpec(4, 1, "residual", "tensor"), False)
@example(np.array([[1e-42, -2e-42]], np.float32), QuantSpec(4, 1, "residual", "tensor", True), True)
def test_half_a_step_of_tiny_values(x, spec, full_range):
    """LAW: where no step can be small enough the error is at most half the smallest one; a residual never grows."""
    full_range = full_range and spec.symmetric
    once = minmax_rounded(x, spec, full_range=full_range)
    assert np.array_equal(minmax_rounded(once, spec, full_range=full_range), once)
    for before, after in zip(slices(x, spec), slices(once, spec), strict=True):
        low, high = max(-float(before.min()), 0.0), max(float(before.max()), 0.0)
        half = 2 ** (spec.bits - 1)
        step = (max(low, high) if spec.symmetric else low + high) / (half - 1 if spec.symmetric else 2 * half - 1)
        miss = np.abs(before.astype(np.float64) - after).max()
        assert miss <= max(step, 2.0**-126) * (0.5 + half * 2.0**-9)


def of_full_range(x, bits):
    """A symmetric quantizer of all codes in float32, as NNCF and ONNX Runtime's MatMulNBitsQuantizer have it."""
    half = 2 ** (bits - 1)
    scale = np.float32(max(-x.min(), 0) if -x.min() >= x.max() else -x.max()) / np.float32(half)
    scale = scale or np.float32(1)
    return np.clip(np.rint(x / scale), -half, half - 1) * scale


@given(matrices, specs.filter(lambda spec: spec.symmetric))
@example(np.array([[-8, 8, 1, 0]], np.float32), QuantSpec(4, 1, "residual", "tensor", True))
@example(np.array([[-7.5, 8, 1, 0]], np.float32), QuantSpec(4, 1, "residual", "tensor", True))
def test_a_full_range_has_a_fixed_point_too(x, spec):
    """LAW: with all codes in use and a signed scale the values come back too, and none is moved by more than half a step."""
    once = minmax_rounded(x, spec, full_range=True)
    assert np.array_equal(minmax_rounded(once, spec, full_range=True), once)
    half = 2 ** (spec.bits - 1)
    tiny = np.abs(once[once != 0]).min(initial=1.0) < 2.0**-100
    for before, after in zip(slices(x, spec), slices(once, spec), strict=True):
        low, high = -min(float(before.min()), 0.0), max(float(before.max()), 0.0)
        step = max(max(low, high) / half, min(low, high) / (half - 0.5))
        miss = np.abs(before.astype(np.float64) - after).max()
        assert miss <= max(step, 2.0**-126) * (0.5 + half * 2.0**-10)
        if not tiny:
            assert np.array_equal(of_full_range(after, spec.bits), after)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_what_cannot_be_quantized(value):
    """NaN, infinity and huge numbers are an error; an empty matrix is not."""
    spec = QuantSpec(strategy="residual")
    with pytest.raises(TensorError, match="cannot be quantized"):
        minmax_rounded(np.array([[1.0, value]], np.float32), spec)
    assert minmax_rounded(np.zeros((0, 4), np.float32), spec).shape == (0, 4)
