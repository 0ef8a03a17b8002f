"""Residual float parts in ONNX: they sum to the weight, window by window as in one piece."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from splitquant import QuantSpec

pytest.importorskip("onnx", reason="the onnx extra is not installed")
from splitquant.onnx.forms.residual import Residual

numbers = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
matrices = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=numbers)


@st.composite
def specs(draw):
    bits = draw(st.integers(2, 8))
    clusters = draw(st.integers(1, 8 // bits))
    granularity = draw(st.sampled_from(["tensor", "channel", "group:3"]))
    return QuantSpec(bits, clusters, "residual", granularity, draw(st.booleans()), polish=False)


@given(matrices, specs(), st.booleans(), st.integers(1, 6))
def test_parts_sum_to_the_weight(x, spec, full_range, step):
    """LAW: exactly in float32 (where nothing underflows), whatever the windows and whatever the grid."""
    full_range = full_range and spec.symmetric
    windows = [x[start : start + step] for start in range(0, len(x), step)]
    found = Residual.with_ranges(spec, "fp32", lambda: windows, full_range=full_range)
    parts = [np.concatenate(part) for part in zip(*map(found.parts, windows), strict=True)]
    whole = Residual.with_ranges(spec, "fp32", lambda: [x], full_range=full_range).parts(x)
    assert len(parts) == spec.clusters
    for part, other in zip(parts, whole, strict=True):
        assert np.array_equal(part, other)
    total = np.zeros_like(x)
    for part in reversed(parts):
        total += part
    normal = np.abs(x[x != 0]).min(initial=1.0) > 2.0**-90
    if normal:
        assert np.array_equal(total, x)


@given(arrays(np.uint16, (4, 6), elements=st.integers(0x3000, 0x4800)), specs())
def test_parts_of_bfloat16(bits, spec):
    """LAW: in 16 bits the sum is within one rounding."""
    x = bits | np.uint16(0x8000) * (bits & 1)
    parts = Residual.with_ranges(spec, "bf16", lambda: [x], full_range=False).parts(x)
    wide = [(part.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for part in (x, *parts)]
    assert (np.abs(sum(wide[1:]) - wide[0]) <= np.abs(wide[0]) * 2.0**-8).all()
