"""A histogram says exactly what a direct computation on the values says, however the values were cut into windows."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.granularity import Granularity
from splitquant.core.histogram import KEYS, ValueHistogram
from splitquant.core.passes import histogram_of, scale_rows
from splitquant.core.scaling import Scaling
from splitquant.core.spec import QuantSpec
from splitquant.core.split import quantize_array

KINDS = ["bf16", "fp16", "fp32"]
BITS_OF_KIND = {"bf16": np.uint16, "fp16": np.uint16, "fp32": np.uint32}
FINITE_EXPONENT = {"bf16": 0x7F80, "fp16": 0x7C00, "fp32": 0x7F800000}
laws = settings(max_examples=40, deadline=None)


def float64_of(x):
    """The values of a window, exactly."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def window_of(kind, patterns):
    """A one-row window of the given bit patterns."""
    x = np.asarray(patterns, BITS_OF_KIND[kind]).reshape(1, -1)
    return x if kind == "bf16" else x.view(np.float16 if kind == "fp16" else np.float32)


def is_finite(kind, pattern):
    """Whether a bit pattern is a finite number."""
    return pattern & FINITE_EXPONENT[kind] != FINITE_EXPONENT[kind]


@st.composite
def windows(draw, finite=True):
    """A kind and a window of it: any patterns, often repeated, often neighbours, zeros of both signs among them."""
    kind = draw(st.sampled_from(KINDS))
    top = 0xFFFFFFFF if kind == "fp32" else 0xFFFF
    sign = (top + 1) // 2
    pool = draw(
        st.lists(st.one_of(st.integers(0, top), st.sampled_from([0, sign, 1, sign + 1])), min_size=1, max_size=12)
    )
    pool += [pattern ^ 1 for pattern in pool]
    patterns = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=60))
    if finite:
        patterns = [pattern for pattern in patterns if is_finite(kind, pattern)] or [0]
    return kind, window_of(kind, patterns)


def direct_bins(kind, x):
    """What `bins` must say, computed from the values of every key by plain sums of Python integers and floats."""
    values = float64_of(x).reshape(-1) + 0.0
    bits = values.astype(np.float32).view(np.uint32) if kind != "fp16" else None
    keys = (bits >> 16).tolist() if bits is not None else values.astype(np.float16).view(np.uint16).tolist()
    groups = {}
    for key, value in zip(keys, values.tolist(), strict=True):
        groups.setdefault(key, []).append(value)
    return sorted(groups.values(), key=min)


def same_histogram(a, b):
    """Whether two histograms are equal, bit for bit."""
    lows = (a.low is None) == (b.low is None) and (
        a.low is None
        or all(np.array_equal(getattr(a.low, n), getattr(b.low, n)) for n in ("sum", "sum_sq", "min", "max"))
    )
    return a.kind == b.kind and np.array_equal(a.count, b.count) and lows


@laws
@given(windows())
def test_bins_are_the_values(case):
    """Per key: count, least and greatest value exactly, sums to float64 rounding; keys in ascending order of value."""
    kind, x = case
    bins = histogram_of(x, None).bins()
    groups = direct_bins(kind, x)
    assert bins.count.tolist() == [len(group) for group in groups]
    assert bins.low.tolist() == [min(group) for group in groups]
    assert bins.high.tolist() == [max(group) for group in groups]
    np.testing.assert_allclose(bins.sum, [sum(group) for group in groups], rtol=1e-13, atol=1e-320)
    squares = [sum(value * value for value in group) for group in groups]
    np.testing.assert_allclose(bins.sum_sq, squares, rtol=1e-13, atol=1e-320)
    assert (bins.low <= bins.high).all()
    assert (bins.high[:-1] < bins.low[1:]).all()


@laws
@given(windows())
def test_integers_of_a_key_are_exact(case):
    """What a float32 key keeps of its values are exact integer sums and extremes."""
    kind, x = case
    histogram = histogram_of(x, None)
    if kind != "fp32":
        assert histogram.low is None
        return
    bits = (x + np.float32(0)).reshape(-1).view(np.uint32).astype(np.uint64)
    for key in set((bits >> 16).tolist()):
        low = (bits[bits >> 16 == key] & 0xFFFF).tolist()
        assert histogram.count[key] == len(low)
        assert histogram.low.sum[key] == sum(low)
        assert histogram.low.sum_sq[key] == sum(m * m for m in low)
        assert (histogram.low.min[key], histogram.low.max[key]) == (min(low), max(low))
    assert histogram.count.sum() == len(bits)


@laws
@given(windows(finite=False), st.data())
def test_merged_cuts_equal_the_whole(case, data):
    """However a window is cut, and in whatever order the pieces are merged, the histogram is that of the whole."""
    _, x = case
    cuts = sorted(data.draw(st.lists(st.integers(0, x.shape[1]), max_size=4)))
    pieces = [histogram_of(np.ascontiguousarray(part), None) for part in np.split(x, cuts, axis=1)]
    whole = histogram_of(x, None)
    order = data.draw(st.permutations(pieces))
    merged = order[0]
    for piece in order[1:]:
        merged = merged.merge(piece)
    assert same_histogram(merged, whole)
    backwards = order[-1]
    for piece in order[-2::-1]:
        backwards = piece.merge(backwards)
    assert same_histogram(backwards, whole)


@laws
@given(windows(finite=False))
def test_nonfinite_is_counted(case):
    """`nonfinite` counts NaN and infinity, `total` everything, and bins leave them out."""
    _, x = case
    histogram = histogram_of(x, None)
    assert histogram.nonfinite == np.count_nonzero(~np.isfinite(float64_of(x)))
    assert histogram.total == x.size
    assert histogram.bins().count.sum() == x.size - histogram.nonfinite


@pytest.mark.parametrize("kind", KINDS)
def test_every_finite_pattern_once(kind):
    """All finite 16-bit patterns (as top halves for float32) come back in ascending order, zero once with both signs."""
    patterns = np.array([p for p in range(KEYS) if is_finite("fp16" if kind == "fp16" else "bf16", p)], np.uint32)
    bins = histogram_of(window_of(kind, patterns << 16 if kind == "fp32" else patterns), None).bins()
    values = np.unique(float64_of(window_of(kind, patterns << 16 if kind == "fp32" else patterns)))
    assert np.array_equal(bins.low, values)
    assert np.array_equal(bins.high, values)
    assert bins.count[values == 0].tolist() == [2]
    assert not np.signbit(bins.low[values == 0]).any()
    assert (bins.count[values != 0] == 1).all()


@dataclass(frozen=True)
class Nonfinite:
    """A kind and the patterns of its infinities and some NaNs."""

    kind: str
    patterns: tuple[int, ...]


@pytest.mark.parametrize(
    "case",
    [
        Nonfinite("bf16", (0x7F80, 0xFF80, 0x7FC0, 0xFFFF)),
        Nonfinite("fp16", (0x7C00, 0xFC00, 0x7E00, 0xFFFF)),
        Nonfinite("fp32", (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001)),
    ],
    ids=lambda case: case.kind,
)
def test_infinities_and_nans(case):
    """Infinities and NaNs of every form count as not finite, whatever their payload."""
    histogram = histogram_of(window_of(case.kind, [*case.patterns, 0]), None)
    assert histogram.nonfinite == len(case.patterns)
    assert len(histogram.bins()) == 1


@laws
@given(windows())
def test_scaled_rows_are_counted_as_scaled(case):
    """With row_scales, what is counted is `float32(w) * inverse`, so all of it lies in [-1, 1] or a rounding beyond."""
    _, x = case
    if not np.isfinite(x.view(np.float16) if x.dtype == np.float16 else float64_of(x)).all():
        return
    if np.abs(float64_of(x)).max() > 2.0**126:
        return
    rows = scale_rows(x, Scaling(Granularity("group", 4)))
    histogram = histogram_of(x, rows)
    assert histogram.kind == "fp32"
    assert histogram.total == x.size
    bins = histogram.bins()
    scaled = float64_of(x).astype(np.float32)[0] * np.repeat(rows.inverse[0], 4)[: x.shape[1]]
    assert (bins.low[0], bins.high[-1]) == (scaled.min(), scaled.max())
    assert abs(bins.low[0]) <= 1 + 2.0**-22
    assert bins.high[-1] <= 1 + 2.0**-22


def test_kinds_do_not_mix():
    """Histograms of different kinds cannot be merged."""
    zeros = np.zeros(KEYS, np.int64)
    with pytest.raises(ValueError, match="cannot merge a bf16 histogram with a fp16 one"):
        ValueHistogram("bf16", zeros).merge(ValueHistogram("fp16", zeros))


def test_weighted_does_not_mix_with_unweighted():
    """A histogram with weights and one without cannot be merged."""
    zeros = np.zeros(KEYS, np.int64)
    with pytest.raises(ValueError, match="weighted"):
        ValueHistogram("fp32", zeros, None, zeros).merge(ValueHistogram("fp32", zeros))


@laws
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 11), max_size=4), st.sampled_from([0, 2, 5]))
def test_weighted_windows_equal_the_whole(seed, cuts, size):
    """Rows weigh by the largest row_scale of the whole, and then it does not matter how they are cut."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((12, 9)) * np.exp(2 * rng.standard_normal((12, 1)))).astype(np.float32)
    spec = QuantSpec(granularity=f"group:{size}" if size else "channel")
    rows = scale_rows(x, Scaling.of(spec))
    whole = histogram_of(x, rows.weighed(rows.heaviest))
    pieces = [np.ascontiguousarray(part) for part in np.split(x, sorted(cuts)) if len(part)]
    found = [histogram_of(piece, scale_rows(piece, Scaling.of(spec)).weighed(rows.heaviest)) for piece in pieces]
    merged = found[-1]
    for histogram in found[-2::-1]:
        merged = merged.merge(histogram)
    assert same_histogram(merged, whole)
    assert np.array_equal(merged.weight, whole.weight)
    bins, plain = whole.bins(), histogram_of(x, rows).bins()
    assert bins.count.sum() == pytest.approx(whole.weight.sum(), rel=1e-12)
    assert np.array_equal(bins.low, plain.low)
    np.testing.assert_allclose(bins.sum / bins.count, plain.sum / plain.count, rtol=1e-12)


def test_empty_window():
    """No weights give no bins."""
    for dtype in (np.uint16, np.float16, np.float32):
        histogram = histogram_of(np.empty((0, 3), dtype), None)
        assert (histogram.total, histogram.nonfinite, len(histogram.bins())) == (0, 0, 0)


def test_float64_is_rounded_to_float32_first():
    """A float64 array gives the same planes as its float32 rounding."""
    array = np.random.default_rng(5).standard_normal((6, 40))
    ours, theirs = (quantize_array(a, QuantSpec()) for a in (array, array.astype(np.float32)))
    assert ours.codes.tobytes() == theirs.codes.tobytes()
    assert ours.clusters.tobytes() == theirs.clusters.tobytes()
    assert ours.scale.tobytes() == theirs.scale.tobytes()
    assert ours.figures == theirs.figures
