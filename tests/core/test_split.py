"""Quantizing one array: what is refused, what edges give, and what a split tensor says of itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from splitquant.core.error import NO_ERROR
from splitquant.core.solve import needs_histogram
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import TensorError

GRANULARITIES = ["tensor", "channel", "group:4"]
SPECS = [
    QuantSpec(bits, clusters, granularity=granularity, symmetric=symmetric)
    for bits, clusters in ((2, 1), (4, 3), (8, 1))
    for granularity in GRANULARITIES
    for symmetric in (False, True)
]


def normal(*shape, seed=1, dtype=np.float32):
    """Normal weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nonfinite_weights_are_refused(value, dtype, spec):
    """One NaN or infinity anywhere is an error that says so."""
    array = normal(3, 10, dtype=dtype)
    array[1, 7] = value
    with pytest.raises(TensorError, match="holds NaN or infinity; such weights cannot be quantized"):
        quantize_array(array, spec)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("pattern", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_nonfinite_bf16_is_refused(pattern, granularity):
    """bf16 infinities and NaNs are known by their bits."""
    array = np.full((2, 9), 0x3F80, np.uint16)
    array[0, 3] = pattern
    with pytest.raises(TensorError, match="holds NaN or infinity"):
        quantize_array(array, QuantSpec(granularity=granularity))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_float64_beyond_float32_is_refused(granularity):
    """A float64 number that float32 cannot hold counts as infinite."""
    with pytest.raises(TensorError, match="holds NaN or infinity"):
        quantize_array(np.array([[1e300, 1.0]]), QuantSpec(granularity=granularity))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_magnitudes_above_2_126_are_refused(spec):
    """What no grid of float32 could span is an error, not a silent infinity."""
    with pytest.raises(TensorError, match=r"holds 3e\+38; (fp32|bf16) magnitudes above"):
        quantize_array(np.array([[3e38, -3e38, 1e38, 0.0]], np.float32), spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_magnitudes_of_2_126_are_quantized(spec):
    """The largest magnitude that is taken comes back finite and near."""
    array = np.array([[2.0**126, -(2.0**126), 2.0**125, 0.0]], np.float32)
    found = quantize_array(array, spec).dequantize()
    assert np.isfinite(found).all()
    if spec.bits == 8:
        np.testing.assert_allclose(found, array, atol=2.0**119)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_subnormal_weights_are_quantized(spec):
    """The smallest float32 numbers give finite planes and errors no larger than themselves."""
    array = np.array([[2.0**-149, -(2.0**-140), 2.0**-130, 0.0, 2.0**-126]], np.float32)
    found = quantize_array(array, spec).dequantize()
    assert np.isfinite(found).all()
    assert np.abs(found - array).max() <= 2.0**-126


@dataclass(frozen=True)
class Dtype:
    """A dtype that is no float kind, and how the message names it."""

    dtype: Any
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Dtype(np.int8, "dtype is int8; expected uint16"),
        Dtype(np.uint8, "dtype is uint8"),
        Dtype(np.int32, "dtype is int32"),
        Dtype(np.bool_, "dtype is bool"),
        Dtype(np.complex64, "dtype is complex64"),
    ],
    ids=lambda case: np.dtype(case.dtype).name,
)
def test_other_dtypes_are_refused(case):
    """Only floats are quantized; the message names what was found and what is expected."""
    with pytest.raises(TensorError, match=case.message):
        quantize_array(np.ones((2, 2), case.dtype), QuantSpec())


@pytest.mark.parametrize("axis", [-1, 2, 5])
def test_wrong_axis_is_refused(axis):
    """An axis that the array does not have is an error that names both."""
    with pytest.raises(TensorError, match=rf"axis is {axis}; expected 0 to 1"):
        quantize_array(normal(3, 4), QuantSpec(), axis)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u2"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_byte_order_does_not_matter(dtype, granularity):
    """Arrays of either byte order give the same planes."""
    values = normal(3, 9) if dtype != "u2" else (normal(3, 9).view(np.uint32) >> 16)
    ours, theirs = (
        quantize_array(values.astype(order + dtype), QuantSpec(granularity=granularity)) for order in ("<", ">")
    )
    assert np.array_equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.clusters, theirs.clusters)
    assert ours.scale.tolist() == theirs.scale.tolist()
    assert ours.figures == theirs.figures


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (0,), (2, 0, 3)])
def test_empty_arrays(shape, spec):
    """No weights are no work: planes without bytes, no error."""
    split = quantize_array(np.zeros(shape, np.float32), spec)
    assert split.dequantize().shape == shape
    assert split.figures == NO_ERROR
    assert split.scale.shape == (spec.clusters,)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (5,)])
def test_scalars_and_vectors(shape, spec):
    """A vector is a column of rows, and comes back in its shape."""
    array = np.full(shape, 0.75, np.float32)
    split = quantize_array(array, spec)
    assert split.shape == shape
    assert split.dequantize().shape == shape
    np.testing.assert_allclose(split.dequantize(), array, atol=0.75 / 2**spec.bits)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_all_zeros(spec):
    """A tensor of zeros is exactly zero again, and nothing divides by its scale."""
    split = quantize_array(np.zeros((3, 9), np.float16), spec)
    assert not split.dequantize().any()
    assert split.figures.noise == 0
    assert split.figures.sqnr_db == np.inf


def test_zero_point_needs_zero_in_the_grid():
    """A fused asymmetric tensor has no zero_point and no integer layers, and says why."""
    split = quantize_array(normal(4, 8), QuantSpec())
    with pytest.raises(TensorError, match="has no zero_point: its grids need not hold zero"):
        _ = split.zero_point
    with pytest.raises(TensorError, match="has no zero_point"):
        split.integer_parts()


def test_a_split_tensor_is_frozen():
    """Nobody changes a field by accident."""
    split = quantize_array(normal(4, 8), QuantSpec())
    with pytest.raises(AttributeError):
        split.axis = 1


@pytest.mark.parametrize("granularity", ["channel", "group:4"])
def test_plain_symmetric_rows_need_no_histogram(granularity):
    """The grid of scaled rows is [-1, 1] whatever they hold: no pass over the data for it."""
    spec = QuantSpec(4, 1, granularity=granularity, symmetric=True)
    assert not needs_histogram(spec)
    assert quantize_array(normal(3, 9), spec).scale.tolist() == quantize_array(normal(5, 4), spec).scale.tolist()


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(),
        PAPER,
        QuantSpec(clusters=1, zero_points="shared"),
        QuantSpec(clusters=1, symmetric=True, granularity="tensor"),
    ],
    ids=str,
)
def test_other_specs_need_a_histogram(spec):
    """All other levels depend on the values."""
    assert needs_histogram(spec)


def test_better_objective_beats_kmeans_on_heavy_tails():
    """The reason for min_error: with a few outliers, k-means loses several dB to it."""
    array = np.random.default_rng(12).standard_t(3, (128, 128)).astype(np.float32)
    paper = quantize_array(array, PAPER).figures
    ours = quantize_array(array, QuantSpec(4, 3, "min_error", "tensor", layout="parallel")).figures
    assert ours.sqnr_db > paper.sqnr_db + 3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_more_of_everything_is_better(bits):
    """On normal weights, clusters, row_scales and bits each raise the SQNR."""
    array = normal(64, 256, seed=13) * np.linspace(0.5, 2, 64, dtype=np.float32)[:, None]
    plain, split, scaled = (
        quantize_array(array, QuantSpec(bits, clusters, granularity=granularity)).figures.sqnr_db
        for clusters, granularity in ((1, "tensor"), (4, "tensor"), (4, "channel"))
    )
    assert plain < split < scaled
