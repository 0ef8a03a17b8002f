"""The laws of a quantized tensor, for any dtype, shape, axis and spec."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.any_spec import specs
from splitquant.core.partition import objective_of
from splitquant.core.spec import QuantSpec
from splitquant.core.split import quantize_array
from splitquant.core.strategies import LAYOUTS, Layout

DTYPES = ["bf16", "fp16", "fp32", "fp64"]
FORMS = {"normal", "heavy", "positive", "few", "offset", "tiny", "constant", "zeros"}
EPS = 2.0**-23
laws = settings(max_examples=60, deadline=None)


def float32_of(array):
    """The numbers that are quantized: the array's own, float64 rounded to float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def as_dtype(values, dtype):
    """Values in a dtype; bf16 as uint16 bits (cut, not rounded: any bits will do)."""
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[dtype])


def values_of(form, shape, rng):
    """Weights of a named form."""
    x = rng.standard_normal(shape)
    if form == "heavy":
        x = rng.standard_t(2, shape).clip(-1000, 1000)
    elif form == "positive":
        x = np.abs(x)
    elif form == "few":
        x = rng.integers(-2, 3, shape) / 4
    elif form == "offset":
        x = 100 + 0.01 * x
    elif form == "tiny":
        x = x * 1e-5
    elif form == "constant":
        x = np.full(shape, 0.3)
    elif form == "zeros":
        x = np.where(rng.random(shape) < 0.7, 0.0, x)
        x[0] = 0.0
    return x


@st.composite
def arrays(draw, min_dims=1):
    """An array of any dtype, 1-D to 5-D, of a form that weights may have."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=min_dims, max_size=5)))
    if math.prod(shape) > 3000:
        shape = (*shape[:2], 7)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return as_dtype(values_of(draw(st.sampled_from(sorted(FORMS))), shape, rng), draw(st.sampled_from(DTYPES)))


@st.composite
def problems(draw, min_dims=1, **fixed):
    """An array, a spec and an axis."""
    array = draw(arrays(min_dims))
    return array, draw(specs(**fixed)), draw(st.integers(0, min(1, array.ndim - 1)))


def rows_of(tensor, axis):
    """A tensor as the matrix of its rows, written out again here."""
    moved = np.moveaxis(tensor, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def row_scales(split):
    """The row_scale of every weight, as rows, float64."""
    if split.row_scale is None:
        return np.ones((split.shape[split.axis], split.cols))
    group = split.spec.group_size(split.cols)
    return np.repeat(split.row_scale.astype(np.float64), group, axis=1)[:, : split.cols]


def own_zeros(split):
    """The own zero_point of every weight, as rows."""
    return np.repeat(split.zero_point, split.spec.group_size(split.cols), axis=1)[:, : split.cols]


SEGMENTS = ("min_error", "kmeans", "magnitude")


@laws
@given(problems(strategies=SEGMENTS, polish=False))
def test_error_is_at_most_half_a_step(problem):
    """|w - w_hat| is at most half a step of the weight's own grid times its row_scale, beside float32 rounding."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    w = rows_of(float32_of(array), axis).astype(np.float64)
    w_hat = rows_of(split.dequantize(), axis).astype(np.float64)
    cluster = rows_of(split.unpacked_clusters(), axis)
    scale = row_scales(split)
    step = scale * split.scale.astype(np.float64)[cluster]
    bound = step / 2 * (1 + 1e-6)
    if (
        split.zero is not None and split.row_scale_kind != "fp32"
    ):  # a rounded step moves both ends of a range, together by
        bound += (
            step * (1 << spec.bits) * {"bf16": 2.0**-9, "fp16": 2.0**-11}[split.row_scale_kind]
        )  # this much at most
        bound += (1 << spec.bits) * {"bf16": 2.0**-134, "fp16": 2.0**-25}[split.row_scale_kind]
    rounding = 4 * EPS * np.maximum(np.abs(w), scale * np.abs(split.offset.astype(np.float64)[cluster])) + 2.0**-149
    assert (np.abs(w - w_hat) <= bound + rounding).all()


@laws
@given(problems())
def test_dequantize_is_the_formula(problem):
    """`W = row_scale * level` in float32, each strategy's level written out; the other dtypes are its roundings."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    code, cluster = rows_of(split.unpacked_codes(), axis), rows_of(split.unpacked_clusters(), axis)
    if spec.strategy == "lloyd":
        levels = split.levels[cluster, code]
    elif spec.strategy == "residual":
        levels, q, code = np.zeros(code.shape, np.float32), 1 << spec.bits, code.astype(np.int64)
        for c in range(spec.clusters):
            levels = levels + (split.scale[c] * (code // q**c % q).astype(np.float32) + split.offset[c])
    else:
        levels = split.scale[cluster] * code.astype(np.float32) + split.offset[cluster]
    if split.zero is not None:
        levels = levels - own_zeros(split).astype(np.float32) * split.scale[0]
    expected = levels if split.row_scale is None else levels * row_scales(split).astype(np.float32)
    whole = split.dequantize()
    assert whole.dtype == np.float32
    assert whole.shape == array.shape
    assert np.array_equal(rows_of(whole, axis), expected)
    assert np.array_equal(split.dequantize("fp16"), whole.astype(np.float16))
    brain = float32_of(split.dequantize("bf16")).astype(np.float64)
    assert (np.abs(brain - whole) <= np.abs(whole) * 2.0**-8 + 2.0**-134).all()


@laws
@given(problems())
def test_figures_are_the_errors(problem):
    """Error figures are those of the float32 reconstruction."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    w, w_hat = float32_of(array), split.dequantize()
    miss = w - w_hat
    assert split.figures.weights == array.size
    assert split.figures.signal == pytest.approx(math.fsum((w.astype(np.float64) ** 2).ravel()), rel=1e-12)
    assert split.figures.noise == pytest.approx(math.fsum((miss.astype(np.float64) ** 2).ravel()), rel=1e-12)
    assert split.figures.max_error == np.abs(miss).max()


@laws
@given(problems(strategies=(*SEGMENTS, "lloyd")))
def test_parts_are_disjoint_and_sum_to_the_whole(problem):
    """k parts, each weight in one of them, whose sum is the reconstruction, exactly."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    parts = split.parts()
    assert len(parts) == spec.clusters
    assert (sum((part != 0).astype(int) for part in parts) <= 1).all()
    assert np.array_equal(sum(parts), split.dequantize())
    assert all(part.dtype == np.float32 and part.shape == array.shape for part in parts)


@laws
@given(problems(strategies=("residual",)))
def test_residual_parts_sum_to_the_whole(problem):
    """The parts of a residual tensor, which all hold every weight, add up to the reconstruction within rounding."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    parts = split.parts()
    assert len(parts) == spec.clusters
    assert split.clusters is None
    total = sum(part.astype(np.float64) for part in parts)
    room = sum(np.abs(part.astype(np.float64)) for part in parts) * spec.clusters * EPS + 2.0**-148
    assert (np.abs(total - split.dequantize()) <= room).all()


@laws
@given(problems(layout="parallel"))
def test_integer_parts_are_the_parts(problem):
    """`row_scale * scale[c] * (code - zero_point[c])` is part c; the codes fit and zero_point stands for zero."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    zero_points = split.zero_point
    assert zero_points.dtype == np.int64
    assert ((zero_points >= 0) & (zero_points < 1 << spec.bits)).all()
    scale = row_scales(split).astype(np.float32)
    for c, (codes, part) in enumerate(zip(split.integer_parts(), split.parts(), strict=True)):
        assert codes.dtype == np.uint8
        assert codes.max() < 1 << spec.bits
        zero = np.float32(zero_points[c]) if split.zero is None else own_zeros(split).astype(np.float32)
        steps = rows_of(codes, axis).astype(np.float32) - zero
        assert np.array_equal((split.scale[c] * steps) * scale, rows_of(part, axis))


@laws
@given(problems(symmetric=True))
def test_symmetric_codes_leave_the_first_out(problem):
    """A symmetric grid uses signed narrow range: no code 0, and zero_point in the middle."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    assert all((codes >= 1).all() for codes, scale in zip(split.integer_parts(), split.scale, strict=True) if scale > 0)
    assert (split.zero_point == 1 << (spec.bits - 1)).all()


@laws
@given(problems())
def test_zeros_stay_zero(problem):
    """Zero weights are zero again where zero must be in the grid, and in rows or groups that hold nothing else."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    w, w_hat = rows_of(float32_of(array), axis), rows_of(split.dequantize(), axis)
    if spec.zero_in_grid:
        assert (w_hat[w == 0] == 0).all()
    elif split.row_scale is not None:
        assert (w_hat[row_scales(split) == 0] == 0).all()


@laws
@given(problems())
def test_planes_have_their_sizes(problem):
    """Planes, scales and bits per weight are as docs/format.md says."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    rows = array.shape[axis]
    cols = array.size // rows
    residual, lloyd = spec.strategy == "residual", spec.strategy == "lloyd"
    assert split.codes.shape == (rows, math.ceil(cols * spec.bits * (spec.clusters if residual else 1) / 8))
    own = spec.zero_points == "own"
    stored = split.codes.nbytes + (4 * spec.clusters * 2**spec.bits if lloyd else 0 if own else 8 * spec.clusters)
    if spec.clusters == 1 or residual:
        assert split.clusters is None
    else:
        assert split.clusters.shape == (rows, math.ceil(cols * math.ceil(math.log2(spec.clusters)) / 8))
        stored += split.clusters.nbytes
    if spec.granularity.kind == "tensor":
        assert split.row_scale is None
    else:
        groups = 1 if spec.granularity.kind == "channel" else math.ceil(cols / spec.granularity.size)
        assert split.row_scale.shape == (rows, groups)
        assert (split.zero is not None) == own
        stored += rows * math.ceil(groups * spec.bits / 8) * own
        stored += rows * groups * (4 if spec.granularity.kind == "channel" and array.dtype.itemsize >= 4 else 2)
    assert split.scale.shape == split.offset.shape == ((0,) if lloyd else (spec.clusters,))
    assert split.levels.shape == ((1, 2 ** (spec.bits * spec.clusters)) if residual else (spec.clusters, 2**spec.bits))
    assert split.bits_per_weight == pytest.approx(8 * stored / array.size)


@laws
@given(problems(min_dims=2), st.data())
def test_permuted_rows_permute_the_planes(problem, data):
    """Rows in another order give the same levels and the same rows of planes in that order."""
    array, spec, axis = problem
    order = np.array(data.draw(st.permutations(range(array.shape[axis]))))
    split = quantize_array(array, spec, axis)
    other = quantize_array(np.take(array, order, axis), spec, axis)
    assert other.levels.tobytes() == split.levels.tobytes()
    assert np.array_equal(other.codes, split.codes[order])
    assert split.clusters is None or np.array_equal(other.clusters, split.clusters[order])
    assert split.row_scale is None or np.array_equal(other.row_scale, split.row_scale[order])


@laws
@given(problems())
def test_input_is_left_alone_and_may_be_read_only(problem):
    """A read-only array in any memory order is taken, not changed, and always gives the same bytes."""
    array, spec, axis = problem
    before = array.tobytes()
    split = quantize_array(array, spec, axis)
    assert array.tobytes() == before
    strided = np.asfortranarray(array)
    strided.flags.writeable = False
    again = quantize_array(strided, spec, axis)
    assert again.codes.tobytes() == split.codes.tobytes()
    assert (again.clusters is None) == (split.clusters is None)
    assert split.clusters is None or again.clusters.tobytes() == split.clusters.tobytes()
    assert again.levels.tobytes() == split.levels.tobytes()
    assert again.figures == split.figures


@laws
@given(problems())
def test_negative_zero_is_zero(problem):
    """Zeros of either sign give the same planes."""
    array, spec, axis = problem
    sign = {2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize]
    flipped = array.view(sign).copy()
    flipped[float32_of(array) == 0] ^= sign(1 << (8 * array.dtype.itemsize - 1))
    split, other = quantize_array(array, spec, axis), quantize_array(flipped.view(array.dtype), spec, axis)
    assert np.array_equal(split.codes, other.codes)
    assert split.levels.tobytes() == other.levels.tobytes()


@laws
@given(problems(strategies=("min_error", "kmeans", "lloyd"), granularity="tensor", symmetric=False, layout="fused"))
def test_clusters_are_intervals_of_values(problem):
    """Cluster ids rise with the value: clusters are neighbouring segments, polished or not."""
    array, spec, axis = problem
    split = quantize_array(array, spec, axis)
    order = np.argsort(float32_of(array).ravel(), kind="stable")
    assert (np.diff(split.unpacked_clusters().ravel()[order].astype(int)) >= 0).all()


@laws
@given(arrays(min_dims=2), st.integers(2, 8), st.integers(2, 8))
def test_constants_are_exact(array, bits, clusters):
    """A constant tensor comes back exactly where grids have their own range, and in its own dtype with row_scales too."""
    constant = np.full_like(array, array.flat[0])
    kind = {"uint16": "bf16", "float16": "fp16"}.get(array.dtype.name, "fp32")
    value = float32_of(constant)
    whole = quantize_array(constant, QuantSpec(bits, clusters, granularity="tensor"))
    assert np.array_equal(whole.dequantize(), value)
    scaled = quantize_array(constant, QuantSpec(bits, clusters, granularity="channel")).dequantize(kind)
    if kind == "fp32":
        np.testing.assert_allclose(scaled, value, rtol=2 * EPS, atol=2.0**-149)
    elif np.abs(value).min() == 0 or np.abs(value).min() >= 2.0**-126:
        assert np.array_equal(float32_of(scaled), value)


def objective(values, edges, kind):
    """The cost that a strategy minimises, from its definition, over values between borders."""
    cost = 0.0
    cluster = np.searchsorted(edges[1:], values, side="right")
    for c in range(len(edges)):
        mine = values[cluster == c]
        if len(mine) == 0:
            continue
        low, high = mine.min(), mine.max()
        if kind == "zero_range":
            low, high = min(low, 0.0), max(high, 0.0)
        cost += float(((mine - mine.mean()) ** 2).sum()) if kind == "kmeans" else len(mine) * (high - low) ** 2
    return cost


def borders_found(values, spec):
    """The least value of every cluster that is used, after quantizing the tensor of the values."""
    ids = quantize_array(values.reshape(1, -1), spec).unpacked_clusters().ravel()
    return np.array([values[ids == c].min() for c in range(spec.clusters) if (ids == c).any()])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.sampled_from(LAYOUTS), st.booleans())
def test_strategies_are_best_at_their_own_objective(seed, clusters, layout, symmetric):
    """Neither strategy is worse in its objective than the other, nor with one cluster more."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 300).astype(np.float16)
    exact = values.astype(np.float64)
    for strategy, other in (("kmeans", "min_error"), ("min_error", "kmeans")):
        spec = QuantSpec(4, clusters, strategy, "tensor", symmetric, layout, polish=False)
        kind = objective_of(spec)
        best = objective(exact, borders_found(values, spec), kind)
        slack = 1 + 1e-9
        assert best <= objective(exact, borders_found(values, replace(spec, strategy=other)), kind) * slack
        assert objective(exact, borders_found(values, replace(spec, clusters=clusters + 1)), kind) <= best * slack


@dataclass(frozen=True)
class Plain:
    """A linear quantizer without clusters."""

    bits: int
    layout: Layout
    symmetric: bool
    dtype: str


@pytest.mark.parametrize(
    "case",
    [
        Plain(bits, layout, symmetric, dtype)
        for bits in (2, 4, 8)
        for layout in LAYOUTS
        for symmetric in (False, True)
        for dtype in ("bf16", "fp16", "fp32")
    ],
    ids=str,
)
def test_one_cluster_is_the_ordinary_linear_quantizer(case):
    """k = 1 is min-max quantization with an integer zero point, or symmetric quantization, as everybody writes it."""
    array = as_dtype(np.random.default_rng(9).standard_normal((16, 64)) + 0.3, case.dtype)
    split = quantize_array(array, QuantSpec(case.bits, 1, "min_error", "tensor", case.symmetric, case.layout))
    w = float32_of(array).astype(np.float64)
    scale, codes, zero = ordinary(w, case.bits, case.symmetric)
    assert split.scale.tolist() == [scale]
    assert split.zero_point.tolist() == [zero]
    assert np.array_equal(split.unpacked_codes(), codes)
    assert np.array_equal(split.dequantize(), ((codes - zero) * scale).astype(np.float32))


def ordinary(w, bits, symmetric):
    """The ordinary linear quantizer in float64; its scale is rounded up to 16 significant bits."""
    top, low, high = 2**bits - 1, min(w.min(), 0.0), max(w.max(), 0.0)
    scale = np.abs(w).max() / (2 ** (bits - 1) - 1) if symmetric else (high - low) / top
    ulp = 2.0 ** (math.floor(math.log2(scale)) - 15)
    scale = math.ceil(scale / ulp) * ulp
    zero = 2 ** (bits - 1) if symmetric else round(-low / scale)
    return scale, np.clip(np.rint(w / scale) + zero, 1 if symmetric else 0, top), zero


def test_distinct_values_fewer_than_levels_are_exact():
    """With a cluster per value, nothing is lost."""
    array = np.random.default_rng(11).choice(np.array([-1.7, -0.3, 0.11, 2.9], np.float16), (9, 31))
    split = quantize_array(array, QuantSpec(bits=2, clusters=4, granularity="tensor"))
    assert split.figures.noise == 0
    assert np.array_equal(split.dequantize("fp16"), array)
