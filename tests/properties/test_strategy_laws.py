"""What is particular to the strategies `magnitude`, `residual` and `lloyd`."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from builders.any_spec import specs
from builders.any_weights import float64_of, tensors
from splitquant.core.partition import folded, objective_of, partition
from splitquant.core.passes import histogram_of
from splitquant.core.solve import needs_histogram
from splitquant.core.spec import QuantSpec
from splitquant.core.split import quantize_array

EPS = 2.0**-23
laws = settings(max_examples=80, deadline=None)


def cuts(n, parts):
    """Every way to cut n things in a row into at most that many runs, as borders."""
    return [(0, *inner, n) for m in range(min(parts, n)) for inner in combinations(range(1, n), m)]


def noise(w, split):
    """The sum of squared errors of exact weights."""
    return float(np.sum((w - split.dequantize().astype(np.float64)) ** 2))


def rounding(w, *splits):
    """What float32 rounding of levels and borders may add to a sum of squared errors."""
    miss = np.max([np.abs(w - split.dequantize()) for split in splits], axis=0)
    blur = 4 * EPS * np.abs(w).max()
    return float(np.sum(4 * miss * blur + 4 * blur * blur))


# magnitude


@laws
@given(tensors())
def test_folded_bins_are_those_of_the_magnitudes(x):
    """Folded bins are those of the magnitudes, or where the signs of a key do not overlap, parts of them."""
    sign = np.uint32(1 << 31) if x.dtype == np.float32 else np.uint16(1 << 15)
    plain = (x.view(sign.dtype) & ~sign).view(x.dtype)
    ours, direct = folded(histogram_of(x, None).bins()), histogram_of(plain, None).bins()
    assert (ours.high[:-1] < ours.low[1:]).all()
    assert x.dtype == np.float32 or len(ours) == len(direct)
    start = np.searchsorted(ours.low, direct.low)
    assert np.array_equal(ours.low[start], direct.low)
    assert np.array_equal(ours.high[np.append(start[1:], len(ours)) - 1], direct.high)
    assert np.array_equal(np.add.reduceat(ours.count, start), direct.count)
    np.testing.assert_allclose(np.add.reduceat(ours.sum, start), direct.sum, rtol=1e-12)
    np.testing.assert_allclose(np.add.reduceat(ours.sum_sq, start), direct.sum_sq, rtol=1e-12)


@laws
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=40), st.integers(1, 5))
def test_shells_are_the_best_there_are(values, clusters):
    """No other shells of magnitudes have a smaller sum of n * high**2."""
    w = np.array([values], np.float16) / 8
    bins = folded(histogram_of(w, None).bins())
    spec = QuantSpec(4, clusters, strategy="magnitude")
    borders = partition(bins, clusters, objective_of(spec))
    size = np.abs(w.astype(np.float64)).ravel()
    distinct = np.unique(size)

    def cost(edges):
        shells = [size[(size >= distinct[a]) & (size <= distinct[b - 1])] for a, b in pairwise(edges)]
        return sum(len(shell) * shell.max() ** 2 for shell in shells)

    assert cost(borders.tolist()) == pytest.approx(min(map(cost, cuts(len(distinct), clusters))), rel=1e-12)


@laws
@given(tensors(), specs(strategies=("magnitude",), granularities=["tensor"], polish=False))
def test_unpolished_shells_are_intervals_of_magnitudes(x, spec):
    """Cluster ids rise with the magnitude, and each shell's grid reaches just its largest."""
    split, size = quantize_array(x, spec), np.abs(float64_of(x)).ravel()
    ids = split.unpacked_clusters().ravel()
    order = np.argsort(size, kind="stable")
    assert (np.diff(ids[order].astype(int)) >= 0).all()
    for c in np.unique(ids):
        largest, reach = size[ids == c].max(), split.levels[c, -1]
        assert largest <= reach <= max(largest * (1 + 2.0**-15), 2.0**-126 * (1 << spec.bits))


@laws
@given(tensors(), specs(strategies=("magnitude",), polish=False))
def test_signs_do_not_matter_to_shells(x, spec):
    """Grids are symmetric, and weights of the opposite sign have the same levels and errors."""
    split = quantize_array(x, spec)
    assert spec.symmetric
    assert np.array_equal(split.levels[:, 1:], -split.levels[:, :0:-1])
    sign = np.uint32(1 << 31) if x.dtype == np.float32 else np.uint16(1 << 15)
    other = quantize_array((x.view(sign.dtype) ^ sign).view(x.dtype), spec)
    assert other.levels.tobytes() == split.levels.tobytes()
    w = float64_of(x)
    size = np.abs(w) * 4 * EPS + 2.0**-148
    assert (np.abs(np.abs(w - split.dequantize()) - np.abs(-w - other.dequantize())) <= size).all()


def test_one_shell_is_the_symmetric_quantizer():
    """`magnitude` with one cluster is plain symmetric quantization."""
    w = np.random.default_rng(1).standard_normal((8, 50)).astype(np.float32)
    shell, plain = (quantize_array(w, QuantSpec(4, 1, name, symmetric=True)) for name in ("magnitude", "min_error"))
    assert shell.codes.tobytes() == plain.codes.tobytes()
    assert shell.scale.tobytes() == plain.scale.tobytes()


def test_shells_beat_segments_where_grids_must_be_symmetric():
    """The reason for `magnitude`: on symmetric hardware segments of values waste half of every grid."""
    w = np.random.default_rng(2).standard_t(5, (64, 128)).astype(np.float32)
    shells, segments = (
        quantize_array(w, QuantSpec(4, 2, name, "tensor", symmetric=True)).figures.sqnr_db
        for name in ("magnitude", "min_error")
    )
    assert shells > segments + 2


# residual


@laws
@given(tensors(), specs(strategies=("residual",), polish=False, zero_points="shared"))
def test_residual_errors_are_half_a_step_of_the_last_part(x, spec):
    """Whatever the parts before left, the last one's grid covers: what remains is at most half a step of it."""
    split, w = quantize_array(x, spec), float64_of(x)
    group = spec.group_size(x.shape[1])
    scale = 1.0 if group == 0 else np.repeat(split.row_scale.astype(np.float64), group, axis=1)[:, : x.shape[1]]
    room = 8 * EPS * np.maximum(np.abs(w), scale * split.scale.max() * (1 << spec.bits)) + 2.0**-148
    assert (np.abs(w - split.dequantize()) <= scale * float(split.scale[-1]) / 2 * (1 + 1e-5) + room).all()


@laws
@given(tensors(), specs(strategies=("residual",), granularities=["tensor"], polish=False))
def test_the_first_part_is_found_again_by_its_range(x, spec):
    """The first part spans its grid: a min-max quantizer that sees it finds the same scale, and so the same codes."""
    split = quantize_array(x, spec)
    plain = quantize_array(x, replace(spec, clusters=1))
    assume(len(np.unique(split.levels)) == split.levels.size)  # else equal sums may have other first parts
    ends = np.abs([split.offset, split.offset + split.scale * ((1 << spec.bits) - 1)]).max(0)
    assume(ends[1:].sum() < 0.75 * split.scale[0])  # else what is left may reach the next step of the first part
    assert split.scale[0] == plain.scale[0]
    assert split.offset[0] == plain.offset[0]
    first, whole = split.parts()[0].astype(np.float64), plain.dequantize().astype(np.float64)
    if spec.symmetric:
        assert np.abs(first).max() == np.abs(whole).max()
    else:
        assert (min(first.min(), 0), max(first.max(), 0)) == (min(whole.min(), 0), max(whole.max(), 0))


@laws
@given(tensors(), specs(strategies=("residual",)))
def test_residual_levels_are_sums(x, spec):
    """A level is the sum of its parts' levels, in order, by the bits of the joint code."""
    split = quantize_array(x, spec)
    joint = np.arange(1 << (spec.bits * spec.clusters))
    total = np.zeros(len(joint), np.float32)
    for c in range(spec.clusters):
        code = (joint >> (c * spec.bits)) % (1 << spec.bits)
        total = total + (split.scale[c] * code.astype(np.float32) + split.offset[c])
    assert np.array_equal(split.levels, total[None])
    assert spec.layout == "parallel"
    assert split.clusters is None


@laws
@given(tensors(), specs(strategies=("residual",), zero_points="shared"))
def test_residual_integer_layers(x, spec):
    """Joint codes are the parts' codes side by side, each part's layer the one that its scale and zero_point stand for."""
    split = quantize_array(x, spec)
    layers = split.integer_parts()
    joint = sum(layer.astype(np.int64) << (c * spec.bits) for c, layer in enumerate(layers))
    assert np.array_equal(joint, split.unpacked_codes())
    group = spec.group_size(x.shape[1])
    scale = np.float32(1) if group == 0 else np.repeat(split.row_scale, group, axis=1)[:, : x.shape[1]]
    for layer, step, zero, part in zip(layers, split.scale, split.zero_point, split.parts(), strict=True):
        assert np.array_equal(step * (layer.astype(np.float32) - np.float32(zero)) * scale, part)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_part_is_the_ordinary_quantizer(bits, granularity, symmetric):
    """`residual` with one part is plain quantization."""
    w = np.random.default_rng(1).standard_normal((8, 50)).astype(np.float32)
    part, plain = (
        quantize_array(w, QuantSpec(bits, 1, name, granularity, symmetric)) for name in ("residual", "min_error")
    )
    assert part.scale.tobytes() == plain.scale.tobytes()
    assert part.offset.tobytes() == plain.offset.tobytes()
    np.testing.assert_allclose(part.figures.noise, plain.figures.noise, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_part_adds_its_bits(symmetric):
    """Two parts of 4 bits reach nearly what one of 8 bits does, far beyond what two clusters do."""
    w = np.random.default_rng(4).standard_t(5, (64, 256)).astype(np.float32)

    def sqnr(*options):
        return quantize_array(w, QuantSpec(*options, granularity="tensor", symmetric=symmetric)).figures.sqnr_db

    assert sqnr(4, 2, "residual") > sqnr(8, 1, "min_error") - 3
    assert sqnr(4, 2, "residual") > sqnr(4, 2, "min_error") + 8


def test_symmetric_rows_need_no_histogram_unless_polished():
    """The grids of scaled rows are known before any data is read."""
    spec = QuantSpec(4, 2, "residual", "channel", symmetric=True, polish=False)
    assert not needs_histogram(spec)
    assert needs_histogram(replace(spec, polish=True))
    assert needs_histogram(replace(spec, granularity="tensor"))


# lloyd


@laws
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=40), st.sampled_from([(2, 1), (2, 2), (3, 1)]))
def test_levels_are_the_best_there_are(values, shape):
    """No levels of that number have a smaller squared error: against every way to cut the distinct values."""
    w = np.array([values], np.float16) / 8
    distinct, counts = np.unique(w.astype(np.float64), return_counts=True)
    distinct, counts = distinct[:10], counts[:10]
    w = np.repeat(distinct, counts).astype(np.float16)[None]
    split = quantize_array(w, QuantSpec(*shape, strategy="lloyd", granularity="tensor"))

    def cost(edges):
        runs = [(distinct[a:b], counts[a:b]) for a, b in pairwise(edges)]
        return sum(float(np.sum(n * (v - np.average(v, weights=n)) ** 2)) for v, n in runs)

    best = min(map(cost, cuts(len(distinct), shape[1] << shape[0])))
    assert noise(w.astype(np.float64), split) <= best + rounding(w.astype(np.float64), split)


@settings(laws, max_examples=150)
@given(
    tensors(dtypes=("bf16", "fp16")),
    specs(strategies=("min_error", "kmeans", "magnitude", "residual"), granularities=["tensor"]),
)
def test_no_other_strategy_is_better(x, spec):
    """At the same number of levels free ones have the least error (for 16-bit floats and one scale)."""
    levels = spec.clusters << spec.bits if spec.strategy != "residual" else 1 << spec.code_bits
    if levels > 256:
        return
    bits, clusters = (spec.code_bits, 1) if spec.strategy == "residual" else (spec.bits, spec.clusters)
    other, ours = quantize_array(x, spec), quantize_array(x, QuantSpec(bits, clusters, "lloyd", "tensor"))
    w = float64_of(x)
    assert noise(w, ours) <= noise(w, other) + rounding(w, ours, other)


@laws
@given(tensors(), specs(strategies=("lloyd",)))
def test_free_levels_have_their_form(x, spec):
    """Levels ascend over all clusters, are finite, and every weight has the nearest one."""
    split = quantize_array(x, spec)
    assert split.levels.shape == (spec.clusters, 1 << spec.bits)
    assert np.isfinite(split.levels).all()
    assert (np.diff(split.levels.ravel()) >= 0).all()
    assert not np.signbit(split.levels[split.levels == 0]).any()
    assert len(split.scale) == len(split.offset) == 0
    if spec.granularity.kind == "tensor":
        w = float64_of(x)
        least = np.abs(w.ravel()[:, None] - split.levels.ravel().astype(np.float64)).min(axis=1)
        assert (np.abs(w - split.dequantize()).ravel() <= least + EPS * np.abs(w).ravel() + 2.0**-148).all()


@laws
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 4), st.sampled_from(["bf16", "fp16"]))
def test_fewer_values_than_levels_are_exact(seed, bits, clusters, dtype):
    """With a level for every distinct value nothing is lost."""
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(min(clusters << bits, 40)).astype(np.float32)
    x = rng.choice(pool, (4, 60))
    x = (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else x.astype(np.float16)
    split = quantize_array(x, QuantSpec(bits, clusters, "lloyd", "tensor"))
    assert split.figures.noise == 0
    assert np.array_equal(split.dequantize(dtype), x)


def test_free_levels_have_no_zero_point():
    """Nothing says that zero is a free level, so there are no integer layers."""
    split = quantize_array(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), QuantSpec(2, 2, "lloyd"))
    with pytest.raises(Exception, match="has no zero_point"):
        split.integer_parts()


# all


@pytest.mark.parametrize("strategy", ["min_error", "kmeans", "magnitude", "residual", "lloyd"])
@pytest.mark.parametrize("value", [0.0, 0.3, -(2.0**-149), 2.0**126])
def test_constants(strategy, value):
    """Tensors of one value are finite and near; zeros are exact."""
    split = quantize_array(np.full((3, 7), value, np.float32), QuantSpec(4, 2, strategy, "tensor"))
    found = split.dequantize()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, np.float32(value), rtol=1e-4, atol=2.0**-126)
    assert value != 0 or not found.any()


@pytest.mark.parametrize("strategy", ["min_error", "kmeans", "magnitude", "residual", "lloyd"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)])
def test_empty(strategy, shape):
    """No weights are no work for any strategy."""
    for granularity in ("tensor", "channel", "group:4"):
        split = quantize_array(np.zeros(shape, np.float32), QuantSpec(4, 2, strategy, granularity))
        assert split.dequantize().shape == shape
        assert len(split.parts()) == 2
