"""Own zero_points: never worse than the textbook, better than shared ones, the same bits from every kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from builders.any_weights import float64_of, tensors
from splitquant.core.floats import FLOATS, from_float32, kind_of, to_float32
from splitquant.core.own import OwnGrids
from splitquant.core.reference import NumpyKernels
from splitquant.core.spec import QuantSpec
from splitquant.core.split import quantize_array

laws = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GRANULARITIES = ["channel", "group:2", "group:5", "group:32", "group:64", "group:100"]
own_specs = st.builds(
    QuantSpec, bits=st.integers(2, 8), clusters=st.just(1), granularity=st.sampled_from(GRANULARITIES)
)


def textbook(x, spec, kind):
    """Row by row and group by group: the range with 0, a step rounded to nearest in its dtype, the nearest zero_point."""
    w, most, half = float64_of(x), (1 << spec.bits) - 1, 1 << (spec.bits - 1)
    group, noise = spec.group_size(w.shape[1]), 0.0
    for row in w:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            stored = np.array([(high - low) / most * half], np.float32)
            step = float(to_float32(from_float32(stored, kind))[0]) / half
            if step == 0.0:
                noise += float(np.sum(part**2))
                continue
            zero = np.clip(np.rint(-low / step), 0, most)
            code = np.clip(np.rint(part / step + zero), 0, most)
            noise += float(np.sum((part - (code - zero) * step) ** 2))
    return noise


@laws
@given(tensors(), own_specs)
def test_never_worse_than_the_textbook(x, spec):
    """LAW: the squared error is at most that of min-max grids with a scale and zero_point per row or group.

    But for float32 rounding of the weights that come back, which the textbook here does not have.
    """
    split, w = quantize_array(x, spec), float64_of(x)
    blur = 2.0**-22 * np.abs(w) + 2.0**-140
    miss = np.abs(w - split.dequantize())
    room = float(np.sum(2 * miss * blur + blur * blur)) * 4
    least = {"fp16": 2.0**-25, "bf16": 2.0**-126, "fp32": 2.0**-126}[split.row_scale_kind]  # a step cannot be smaller
    room += w.size * (least * 2) ** 2
    assert float(np.sum(miss**2)) <= textbook(x, spec, split.row_scale_kind) + room


@laws
@given(
    st.integers(0, 2**32 - 1),
    own_specs,
    st.sampled_from([1.5, 3, 30]),
    st.floats(0, 2),
    st.sampled_from(["bf16", "fp16", "fp32"]),
)
def test_never_worse_than_shared(seed, spec, tail, offset, kind):
    """LAW: on the rows of a tensor, each with a mean and a magnitude of its own, not worse than one zero_point for all."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(tail, (48, 96)).clip(-30, 30) + offset * rng.standard_normal((48, 1))
    x = from_float32((w * np.exp(rng.standard_normal((48, 1)) / 2)).astype(np.float32), kind)
    shared = QuantSpec(spec.bits, 1, granularity=spec.granularity, zero_points="shared")
    assert quantize_array(x, spec).figures.noise <= quantize_array(x, shared).figures.noise


@laws
@given(tensors(), own_specs, st.booleans())
def test_the_formula(x, spec, fitted):
    """LAW: `row_scale * ((code - zero_point) / 2**(bits - 1))`, rounded once to float32; zero comes back as zero."""
    spec = QuantSpec(spec.bits, 1, granularity=spec.granularity, polish=fitted)
    split = quantize_array(x, spec)
    assert split.zero.shape == split.row_scale.shape
    assert (split.zero < 1 << spec.bits).all()
    assert ((split.row_scale > 0) | (split.zero == 0)).all()
    group = spec.group_size(x.shape[1])
    zero, scale = (np.repeat(n, group, axis=1)[:, : x.shape[1]] for n in (split.zero, split.row_scale))
    steps = (split.unpacked_codes().astype(np.float64) - zero) / (1 << (spec.bits - 1))
    w_hat = split.dequantize()
    assert np.array_equal(w_hat, (steps * scale).astype(np.float32))
    assert (w_hat[float64_of(x) == 0] == 0).all()


@laws
@given(tensors(), own_specs)
def test_what_is_on_a_grid_comes_back(x, spec):
    """Weights that a grid with a short scale can say are said exactly, however few of its codes they use."""
    group = spec.group_size(x.shape[1])
    rng = np.random.default_rng(len(x) + x.shape[1])
    zero = rng.integers(0, 1 << spec.bits)
    code = rng.integers(0, 1 << spec.bits, (4, 3 * group))
    code[:, ::group], code[:, group - 1 :: group] = 0, (1 << spec.bits) - 1
    w = ((code - zero) * 0.375).astype(np.float32)
    assert np.array_equal(quantize_array(w, spec).dequantize(), w)


def test_clips_where_that_helps():
    """One outlier among thousands of weights costs less than a wide grid for all."""
    w = np.append(np.random.default_rng(3).standard_normal(9999), 12.0).astype(np.float32).reshape(1, -1)
    plain, better = (quantize_array(w, QuantSpec(3, 1, polish=flag)).figures for flag in (False, True))
    assert better.noise < plain.noise / 3


def test_a_row_far_from_zero_has_its_own_zero_point():
    """Rows of opposite sign use the whole of their codes: four times the resolution of a grid that must hold both."""
    w = np.abs(np.random.default_rng(4).standard_normal((2, 500))).astype(np.float32) * np.array(
        [[1], [-1]], np.float32
    )
    split = quantize_array(w, QuantSpec(4, 1, polish=False))
    assert split.zero_point.tolist() == [[0], [15]]
    assert split.figures.noise < quantize_array(w, QuantSpec(4, 1, zero_points="shared")).figures.noise / 3


native = pytest.importorskip("splitquant._native", reason="not built", exc_type=ImportError)
from splitquant.core.native import NativeKernels  # noqa: E402 - only where the module is there


@laws
@given(
    tensors(),
    st.integers(-37, 33),
    st.integers(2, 8),
    st.integers(1, 1200),
    st.sampled_from([*FLOATS]),
    st.booleans(),
)
@example(np.zeros((2, 5), np.float32), 0, 4, 3, "bf16", True)
@example(np.full((1, 3), 2.0**126, np.float32), 0, 8, 3, "fp32", True)
@example(np.array([[2.0**-149, -(2.0**-149), 0.0]], np.float32), 0, 2, 2, "bf16", True)
def test_the_kernel_is_its_twin(isa, x, exponent, bits, group, kind, fitted):
    """Bit for bit, with every instruction set, for any weights, tiny and huge ones."""
    del isa
    if x.dtype == np.float32 and np.abs(x).max(initial=0) < 2.0**10:
        x = x * np.float32(10.0**exponent)
    kind = "fp16" if kind_of(x.dtype) == "fp16" else kind if kind != "fp16" else "bf16"
    asked = OwnGrids(group, bits, kind, fitted)
    for ours, theirs in zip(NativeKernels().own_grids(x, asked), NumpyKernels().own_grids(x, asked), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
