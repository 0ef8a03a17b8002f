"""The compiled polish is its NumPy twin bit for bit, with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.any_spec import specs
from builders.any_weights import float64_of, tensors
from splitquant.core.affine import grid_for
from splitquant.core.histogram import Bins, Values
from splitquant.core.passes import histogram_of, scale_rows
from splitquant.core.reference import NumpyKernels
from splitquant.core.scaling import Scaling
from splitquant.core.solve import solve
from splitquant.core.spec import QuantSpec

native = pytest.importorskip(
    "splitquant._native",
    reason="splitquant._native was not built; install with a C++20 compiler at hand",
    exc_type=ImportError,
)
from splitquant.core.native import NativeKernels  # noqa: E402 - only where the module is there

laws = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def compiled(isa):
    """The kernels with each instruction set of this machine in turn."""
    return NativeKernels()


def check(compiled, grid, values):
    """Every field is the twin's, bit for bit."""
    twin, ours = NumpyKernels().polish(values, grid), compiled.polish(values, grid)
    for name in ("lower", "scale", "offset", "levels"):
        assert getattr(ours, name).tobytes() == getattr(twin, name).tobytes(), name


@laws
@given(
    tensors(),
    st.integers(-36, 33),
    specs(strategies=("min_error", "kmeans"), symmetric=False, layout="fused", polish=False, least_clusters=2),
)
def test_any_weights(compiled, x, exponent, spec):
    """For every form of weights, tiny and huge ones, and fewer values than clusters."""
    x = (float64_of(x) * 10.0**exponent).astype(np.float32) if exponent % 3 == 0 else x
    rows = scale_rows(x, Scaling.of(spec))
    histogram = histogram_of(x, rows)
    check(compiled, solve(histogram, spec), Values.of(histogram.bins()))


@pytest.mark.parametrize("magnitude", [2.0**-149, 2.0**-120, 1.0, 2.0**126])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ends_of_the_number_line(compiled, magnitude, bits):
    """Subnormal weights and the largest that are taken."""
    x = (np.random.default_rng(bits).integers(-100, 101, (1, 500)) / 100.0 * magnitude).astype(np.float32)
    spec = QuantSpec(bits, 4, granularity="tensor", polish=False)
    histogram = histogram_of(x, None)
    check(compiled, solve(histogram, spec), Values.of(histogram.bins()))


@pytest.mark.parametrize("weights", [1.0, 65535.0, 1e12])
def test_heavy_counts(compiled, weights):
    """Counts as weighted histograms have them."""
    rng = np.random.default_rng(7)
    value = np.unique(rng.standard_t(2, 4000).astype(np.float32)).astype(np.float64)
    count = np.rint(rng.random(len(value)) * weights) + 1
    bins = Bins(count, count * value, count * value * value, value, value)
    edges = np.array([0, 40, 2000, len(value) - 5])
    ends = np.append(edges[1:], len(value)) - 1
    check(compiled, grid_for(value[edges], value[ends], QuantSpec(4, 4)), Values.of(bins))
