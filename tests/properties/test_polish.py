"""Polish lowers the error and keeps what grids promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.any_spec import specs
from builders.any_weights import float64_of, tensors
from splitquant.core.histogram import Values
from splitquant.core.passes import histogram_of
from splitquant.core.polish import polished
from splitquant.core.refit import fit_of
from splitquant.core.solve import solve
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.core.split import quantize_array

EPS = 2.0**-23
laws = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
POLISHED = ("min_error", "kmeans", "magnitude", "residual")


def significant_bits(value):
    """How many significant binary digits a float has."""
    numerator = abs(float(value).as_integer_ratio()[0])
    return (numerator // (numerator & -numerator)).bit_length() if numerator else 0


@settings(laws, max_examples=200)
@given(tensors(), specs(strategies=POLISHED, granularities=["tensor"], polish=True))
def test_never_worse(x, spec):
    """LAW: the squared error does not rise.

    Beside float32 rounding; of float32 weights also beside what a key of the histogram hides: weights that agree in their
    top 16 bits fall to levels together there, and each to its own when they are encoded.
    """
    w = float64_of(x)
    before, after = (quantize_array(x, replace(spec, polish=flag)) for flag in (False, True))
    miss = [np.abs(w - split.dequantize()) for split in (before, after)]
    blur = 4 * EPS * np.abs(w).max() + (2.0**-7 * np.abs(w) if x.dtype == np.float32 else 0.0)
    room = np.sum(4 * np.maximum(*miss) * blur + 4 * blur * blur)
    assert np.sum(miss[1] ** 2) <= np.sum(miss[0] ** 2) + room


@laws
@given(tensors(), specs(strategies=POLISHED, granularities=["tensor"], polish=False))
def test_never_worse_on_the_histogram(x, spec):
    """On the values as the histogram has them the error never rises, for grids as they are stored."""
    histogram = histogram_of(x, None)
    bins = histogram.bins()
    start = solve(histogram, spec)
    values = Values.of(bins)
    found = polished(start, bins, replace(spec, polish=True))
    slack = 1e-12 * float(values.count @ values.mean**2)
    assert fit_of(found, values).error <= fit_of(start, values).error + slack


@pytest.mark.parametrize("granularity", ["channel", "group:32"])
@pytest.mark.parametrize("tail", [2, 5, 100])
@pytest.mark.parametrize("strategy", POLISHED)
def test_rows_of_many_magnitudes_gain_too(strategy, tail, granularity):
    """With row_scales of any spread the error of the whole tensor falls, or stays within a thousandth."""
    rng = np.random.default_rng(tail)
    w = (rng.standard_t(tail, (64, 256)) * np.exp(rng.standard_normal((64, 1)))).astype(np.float32)
    spec = QuantSpec(3, 2, strategy, granularity)
    before, after = (quantize_array(w, replace(spec, polish=flag)).figures for flag in (False, True))
    assert after.noise <= before.noise * 1.001


@laws
@given(tensors(), specs(polish=True, strategies=POLISHED, zero_points="shared"))
def test_polished_grids_keep_their_form(x, spec):
    """Scales have at most 16 significant bits; where zero is a level, zero_points are integers among the codes."""
    split = quantize_array(x, spec)
    assert all(significant_bits(scale) <= 16 for scale in split.scale)
    assert (split.scale >= 0).all()
    assert not np.signbit(split.offset[split.offset == 0]).any()
    if spec.zero_in_grid:
        used = split.scale > 0
        point = -split.offset[used].astype(np.float64) / split.scale[used]
        assert np.array_equal(point, np.rint(point))
        assert ((point >= 0) & (point < 1 << spec.bits)).all()
        assert np.array_equal(split.zero_point[used], point)
        if spec.strategy != "residual":
            assert (split.levels[np.arange(spec.clusters), split.zero_point] == 0).all()


@laws
@given(tensors(), specs(polish=True, strategies=POLISHED), st.randoms(use_true_random=False))
def test_deterministic(x, spec, random):
    """The same weights give the same bytes; in another order they give the same levels."""
    split, again = quantize_array(x, spec), quantize_array(x, spec)
    assert split.codes.tobytes() == again.codes.tobytes()
    assert split.levels.tobytes() == again.levels.tobytes()
    if spec.granularity.kind == "tensor":
        order = random.sample(range(x.shape[1]), x.shape[1])
        other = quantize_array(np.ascontiguousarray(x[:, order]), spec)
        assert other.levels.tobytes() == split.levels.tobytes()


@laws
@given(
    tensors(),
    specs(polish=True, strategies=("min_error", "kmeans", "magnitude"), granularities=["tensor"], least_clusters=2),
)
def test_nearest_of_all_clusters(x, spec):
    """Where grids hold zero they overlap, and every weight gets the nearest level of all of them."""
    if not spec.zero_in_grid:
        return
    split, w = quantize_array(x, spec), float64_of(x).ravel()
    used = split.levels[:, 1 if spec.symmetric else 0 :].astype(np.float64).ravel()
    least = np.abs(w[:, None] - used).min(axis=1)
    found = np.abs(w - split.dequantize().ravel())
    assert (found <= least + EPS * np.abs(w) + 2.0**-148).all()


def test_what_is_polished_by_default():
    """Splits for least error are; one grid for all and the paper's clusters stay what they are elsewhere."""
    assert QuantSpec().polish
    assert QuantSpec(strategy="magnitude", clusters=2).polish
    assert QuantSpec(strategy="residual").polish
    assert QuantSpec(clusters=1).polish
    assert not QuantSpec(clusters=1, zero_points="shared").polish
    assert not QuantSpec(clusters=1, symmetric=True).polish
    assert not QuantSpec(clusters=1, granularity="tensor").polish
    assert not PAPER.polish
    assert not QuantSpec(strategy="kmeans").polish
    assert not QuantSpec(strategy="lloyd").polish
    assert QuantSpec(clusters=1, polish=True).polish


def test_clips_where_that_helps():
    """One outlier among thousands of weights costs less than a wide grid for all."""
    rng = np.random.default_rng(3)
    w = np.append(rng.standard_normal(9999), 12.0).astype(np.float32).reshape(1, -1)
    plain, better = (quantize_array(w, QuantSpec(3, 1, granularity="tensor", polish=flag)) for flag in (False, True))
    assert better.scale[0] < plain.scale[0] * 0.8
    assert better.figures.sqnr_db > plain.figures.sqnr_db + 3


@pytest.mark.parametrize(
    "spec", [PAPER, QuantSpec(4, 3, granularity="tensor"), QuantSpec(2, 4, granularity="group:32")], ids=str
)
def test_gains_on_normal_weights(spec):
    """On ordinary weights there is something to gain."""
    w = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    before, after = (quantize_array(w, replace(spec, polish=flag)).figures for flag in (False, True))
    assert after.sqnr_db > before.sqnr_db + 0.1
