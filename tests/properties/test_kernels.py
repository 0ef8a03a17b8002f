"""The compiled kernels give the bytes of their NumPy twin, with every instruction set, for every shape and value."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from builders.any_spec import specs as any_specs
from splitquant.core.affine import Grid, levels
from splitquant.core.floats import LARGEST_FP16, LARGEST_MAGNITUDE, from_float32, kind_of, to_float32
from splitquant.core.granularity import Granularity
from splitquant.core.interface import Planes, SegmentCosts
from splitquant.core.partition import costs_of
from splitquant.core.passes import histogram_of
from splitquant.core.reference import NumpyKernels
from splitquant.core.rows import RowScales, row_scale_from, row_scale_kind
from splitquant.core.solve import needs_histogram, needs_weights, solve
from splitquant.core.spec import CLUSTER_ID_BITS, QuantSpec

native = pytest.importorskip(
    "splitquant._native",
    reason="splitquant._native was not built; install with a C++20 compiler at hand",
    exc_type=ImportError,
)
from splitquant.core.native import NativeKernels  # noqa: E402 - only where the module is there

TWIN = NumpyKernels()
COMPILED = NativeKernels()
KINDS = ("bf16", "fp16", "fp32")
FLAVOURS = ("normal", "heavy", "patterns", "constant", "zeros", "signed zeros", "subnormal", "huge", "ties", "sparse")
GROUPS = (1, 2, 3, 7, 16, 32, 48, 64, 100, 128, 512, 513)

laws = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def values_of(flavour, rng, rows, cols):
    """Finite float32 numbers [rows, cols] of the given character."""
    normal = rng.standard_normal((rows, cols), dtype=np.float32)
    return {
        "normal": lambda: normal * np.float32(0.02),
        "heavy": lambda: normal * rng.standard_t(2, (rows, cols)).astype(np.float32),
        "patterns": lambda: normal * np.ldexp(np.float32(1), rng.integers(-140, 118, (rows, cols))).astype(np.float32),
        "constant": lambda: np.repeat(normal[:, :1], cols, axis=1),
        "zeros": lambda: normal * (rng.random((rows, 1)) < 0.5),
        "signed zeros": lambda: normal * rng.choice(np.array([0.0, -0.0, 1.0], np.float32), (rows, cols)),
        "subnormal": lambda: normal * np.float32(2.0**-133),
        "huge": lambda: np.clip(normal, -1, 1) * np.float32(LARGEST_MAGNITUDE),
        "ties": lambda: rng.integers(-9, 10, (rows, cols)).astype(np.float32) / 2,
        "sparse": lambda: normal * (rng.random((rows, cols)) < 0.1),
    }[flavour]().astype(np.float32)


def matrix_of(kind, flavour, seed, rows, cols):
    """A matrix of the dtype of `kind`, finite."""
    values = values_of(flavour, np.random.default_rng(seed), rows, cols)
    if kind == "fp16":
        values = np.clip(values, -LARGEST_FP16, LARGEST_FP16)
        if flavour == "subnormal":
            values = values * np.float32(2.0**115)
    return from_float32(np.ascontiguousarray(values), kind)


@st.composite
def matrices(draw, kinds=KINDS):
    """Matrices of all kinds, small and wide, of all flavours."""
    kind, flavour = draw(st.sampled_from(kinds)), draw(st.sampled_from(FLAVOURS))
    rows, cols = draw(st.integers(1, 5)), draw(st.one_of(st.integers(1, 70), st.integers(500, 1100)))
    return matrix_of(kind, flavour, draw(st.integers(0, 2**32 - 1)), rows, cols)


groups = st.one_of(st.sampled_from(GROUPS), st.integers(1, 1200))


def same(left, right):
    """Equal in dtype, shape and every bit."""
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def same_histogram(left, right):
    """Equal in every bit of every table that there is."""
    assert left.kind == right.kind
    for ours, theirs in zip(tables_of(left), tables_of(right), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            same(ours, theirs)


def tables_of(histogram):
    """All arrays of a histogram, None for those that it does not have."""
    low = histogram.low
    lows = (None,) * 4 if low is None else (low.sum, low.sum_sq, low.min, low.max)
    return [histogram.count, *lows, histogram.weight]


def scales_of(x, group, weighed=False):
    """Row scales of a window as `scale_rows` makes them; none for group 0."""
    if group == 0:
        return None
    kind = row_scale_kind(kind_of(x.dtype), Granularity("channel"))
    rows = RowScales(group, row_scale_from(TWIN.absmax(x, group), kind))
    return rows.weighed(rows.heaviest) if weighed else rows


@laws
@given(matrices(), groups)
def test_absmax(isa, x, group):
    """absmax has the bits of the twin for every group length."""
    same(COMPILED.absmax(x, group), TWIN.absmax(x, group))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_absmax_shows_nonfinite(isa, kind, bad):
    """A group that holds NaN or infinity has a nonfinite absmax, the others do not."""
    values = np.ones((3, 100), np.float32)
    values[1, 70] = bad
    x = (
        from_float32(values, kind)
        if np.isfinite(bad) or kind != "bf16"
        else (values.view(np.uint32) >> 16).astype(np.uint16)
    )
    assert np.isfinite(COMPILED.absmax(x, 32)).tolist() == [[True] * 4, [True, True, False, True], [True] * 4]


@laws
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3000), st.sampled_from(["uint16", "float16"]))
def test_count16(isa, seed, rows, cols, dtype):
    """count16 counts every one of the 65,536 patterns, NaN and infinity too, as the twin does."""
    x = np.random.default_rng(seed).integers(0, 1 << 16, (rows, cols), dtype=np.uint16).view(dtype)
    same_histogram(COMPILED.count16(x), TWIN.count16(x))


@laws
@given(matrices(), st.one_of(st.just(0), groups), st.booleans())
def test_count32(isa, x, group, weighed):
    """count32 has the twin's counts, sums, extremes and weights, with and without row scales."""
    rows = scales_of(x, group, weighed)
    same_histogram(COMPILED.count32(x, rows), TWIN.count32(x, rows))


@laws
@given(matrices(), groups)
def test_weights_are_those_of_the_rows(isa, x, group):
    """A key weighs what its values' groups weigh together; without weights there are none, and the rest is the same."""
    rows = scales_of(x, group, weighed=True)
    found = COMPILED.count32(x, rows)
    each = np.repeat(rows.weight.astype(np.int64), group, axis=1)[:, : x.shape[1]]
    assert found.weight.sum() == each.sum()
    assert ((found.weight > 0) == (found.count > 0)).all()
    plain = COMPILED.count32(x, replace(rows, weight=None))
    assert plain.weight is None
    same_histogram(replace(found, weight=None), plain)


def test_count32_nonfinite(isa):
    """count32 files NaN and infinity under keys that tell."""
    x = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    with np.errstate(invalid="ignore"):
        same_histogram(COMPILED.count32(x, None), TWIN.count32(x, None))


def test_count32_many_of_one_key(isa):
    """More values of one key than a packed counter holds are still counted exactly."""
    n, low = (1 << 24) + 12345, 0xFFFF
    x = np.full((1, n), 0x3F800000 | low, np.uint32).view(np.float32)
    found, key = COMPILED.count32(x, None), 0x3F80
    assert found.count[key] == n
    assert found.low.sum[key] == n * low
    assert found.low.sum_sq[key] == n * low * low
    assert (found.low.min[key], found.low.max[key]) == (low, low)


@laws
@given(matrices(), st.integers(1, 8), st.booleans(), st.sampled_from(["kmeans", "own_range", "zero_range"]))
def test_partition(isa, x, clusters, scaled, objective):
    """partition gives the twin's borders, ties included, for every objective."""
    bins = TWIN.count32(x, scales_of(x, x.shape[1] if scaled else 0)).bins()
    clusters = min(clusters, len(bins))
    costs = costs_of(bins, objective)
    with np.errstate(all="ignore"):
        theirs = TWIN.partition(costs, clusters)
    same(COMPILED.partition(costs, clusters), theirs)


@laws
@given(st.integers(1, 8), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_partition_ties(isa, clusters, extra, seed):
    """Among equal costs the leftmost border is taken, as in the twin."""
    rng = np.random.default_rng(seed)
    n = clusters + extra
    low = np.cumsum(rng.integers(0, 2, n)).astype(np.float64)
    count = np.arange(n + 1, dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(low)])
    for squares in (False, True):
        costs = SegmentCosts(count, total, low, low, squares)
        same(COMPILED.partition(costs, clusters), TWIN.partition(costs, clusters))


specs = any_specs(granularities=["tensor", "channel", *(f"group:{n}" for n in (2, 3, 16, 32, 48, 64, 100, 128, 1000))])


def problem_of(x, spec):
    """Row scales and the grid for a matrix, made as `quantize_array` makes them."""
    rows = scales_of(x, spec.group_size(x.shape[1]))
    with np.errstate(all="ignore"):
        weighed = rows.weighed(rows.heaviest) if needs_weights(spec) else rows
        return rows, solve(histogram_of(x, weighed) if needs_histogram(spec) else None, spec)


def encoded(kernels, x, rows, grid, spec):
    """Planes and errors."""
    planes = Planes.room(spec, *x.shape, lambda _, nbytes: np.full(nbytes, 0xA5, np.uint8))
    with np.errstate(all="ignore"):
        errors = kernels.encode(x, rows, grid, planes)
    return [planes.codes, *([] if planes.clusters is None else [planes.clusters]), *errors]


@settings(laws, max_examples=250)
@given(matrices(), specs)
@example(matrix_of("bf16", "heavy", 1, 3, 1030), QuantSpec())
@example(matrix_of("fp32", "huge", 2, 2, 513), QuantSpec(granularity="tensor", clusters=8, bits=8))
def test_encode_and_dequantize(isa, x, spec):
    """encode writes the twin's planes and errors, and dequantize reads them back as the twin does, in every dtype."""
    rows, grid = problem_of(x, spec)
    ours, theirs = (encoded(kernels, x, rows, grid, spec) for kernels in (COMPILED, TWIN))
    for left, right in zip(ours, theirs, strict=True):
        same(left, right)
    planes = Planes.of(spec, x.shape[1], ours[0], ours[1] if spec.cluster_bits else None)
    for kind in KINDS:
        with np.errstate(all="ignore"):
            same(*(kernels.dequantize(planes, grid.levels, rows, kind) for kernels in (COMPILED, TWIN)))


@laws
@given(matrices(), st.integers(2, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_encode_any_grid(isa, x, bits, clusters, seed):
    """Also grids that no solver makes (any scales and offsets, empty clusters, ties on borders) give the twin's bytes."""
    rng = np.random.default_rng(seed)
    rows = scales_of(x, x.shape[1])
    u = to_float32(x) * rows.inverse
    lower = np.sort(rng.choice(u.reshape(-1), clusters)).astype(np.float32)
    lower[0] = -np.inf
    lower[rng.integers(1, clusters + 1) :] = np.inf
    steps = rng.choice(np.array([0, 1, 2**-126, 0.013, 0.25], np.float32), clusters)
    offset = rng.standard_normal(clusters).astype(np.float32)
    code_min, code_max = int(rng.integers(0, 2)), (1 << bits) - 1
    grid = Grid(bits, lower, steps, offset, code_min, code_max, levels(steps, offset, bits))
    spec = QuantSpec(bits=bits, clusters=clusters)
    ours, theirs = (encoded(kernels, x, rows, grid, spec) for kernels in (COMPILED, TWIN))
    for left, right in zip(ours, theirs, strict=True):
        same(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_survives_nonfinite(isa, kind):
    """NaN and infinity neither crash nor write outside the planes."""
    clean = from_float32(np.linspace(-1, 1, 100, dtype=np.float32).reshape(2, 50), kind)
    spec = QuantSpec(bits=3, clusters=5, granularity="tensor")
    grid = problem_of(clean, spec)[1]
    dirty = clean.copy()
    dirty[0, :3] = [0x7FC0, 0x7F80, 0xFF80] if kind == "bf16" else [np.nan, np.inf, -np.inf]
    clean, dirty = (encoded(COMPILED, x, None, grid, spec) for x in (clean, dirty))
    for left, right in zip(dirty, clean, strict=True):
        same(left[1:], right[1:])


@laws
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_pack_and_unpack(isa, bits, rows, cols, seed):
    """pack has the twin's bytes and unpack inverts it."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, cols), dtype=np.uint8)
    plane = COMPILED.pack(values, bits)
    same(plane, TWIN.pack(values, bits))
    same(COMPILED.unpack(plane, cols, bits), values)


GOLDEN = {
    1: ([1, 0, 1, 1, 0, 0, 0, 1, 1], [0b10001101, 0b1]),
    2: ([1, 2, 3, 0, 3], [0b00111001, 0b11]),
    3: ([1, 2, 3, 4, 5, 6, 7, 0, 5], [0xD1, 0x58, 0x1F, 0x05]),
    4: ([0x1, 0x2, 0xF], [0x21, 0x0F]),
    8: ([0, 255, 7], [0, 255, 7]),
}


@pytest.mark.parametrize("bits", GOLDEN)
def test_packed_bytes(isa, bits):
    """The layout itself: least significant bits first, rows start at bytes, unused bits are zero."""
    values, bytes_ = GOLDEN[bits]
    expected = np.array([bytes_, bytes_], np.uint8)
    for kernels in (COMPILED, TWIN):
        same(kernels.pack(np.array([values, values], np.uint8), bits), expected)
        same(kernels.unpack(expected, len(values), bits), np.array([values, values], np.uint8))


def test_encoded_bytes(isa):
    """The planes of a matrix worked out by hand: value order, nibble order and cluster ids."""
    x = np.array([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 0.75]], np.float32)
    lower, scale, offset = (np.array(part, np.float32) for part in ([-np.inf, 0], [0.125, 0.25], [-1, 0]))
    grid = Grid(4, lower, scale, offset, 0, 15, levels(scale, offset, 4))
    planes = Planes.room(QuantSpec(4, 2), 1, 7)
    errors = COMPILED.encode(x, None, grid, planes)
    assert planes.codes.tolist() == [[0x40, 0x10, 0x42, 0x03]]
    assert planes.clusters.tolist() == [[0b1111100]]
    assert (errors.signal[0], errors.noise[0], errors.max_error[0]) == (3.125, 0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_dequantize_rounds_to_even(isa, kind):
    """Levels half way between two floats, subnormal or too large, round as the twin rounds them."""
    patterns = np.array(
        [0x3F808000, 0x3F818000, 0x3F801000, 0x3F803000, 0x33000000, 0x33000001, 0x33C00000, 0x477FEFFF]
    )
    large = np.array([0x477FF000, 0x7F7FFFFF, 0x387FE000, 0x387FF000, 0x387FC001, 0x00000001, 0x80000000, 0xB3000001])
    levels = np.concatenate([patterns, large]).astype(np.uint32).view(np.float32).reshape(1, 16)
    codes = TWIN.pack(np.arange(16, dtype=np.uint8).reshape(1, 16), 4)
    planes, rows = Planes(codes, 4, None, 0, 16), RowScales(16, np.ones((1, 1), np.float32))
    same(*(kernels.dequantize(planes, levels, rows, kind) for kernels in (COMPILED, TWIN)))


@pytest.mark.parametrize("kernels", [COMPILED, TWIN], ids=lambda kernels: kernels.name)
def test_any_row_scales_are_read(isa, kernels):
    """Stored row scales may be anything, too small to have an inverse too: reading neither warns nor fails."""
    scale = np.array([[2.0**-149], [-1.0], [0.0], [np.nan]], np.float32)
    planes = Planes(TWIN.pack(np.full((4, 3), 2, np.uint8), 4), 4, None, 0, 3)
    found = kernels.dequantize(planes, np.arange(16, dtype=np.float32)[None], RowScales(3, scale), "fp32")
    same(found, np.repeat(scale * np.float32(2), 3, axis=1))


def test_fp16_values_are_exact(isa):
    """Every finite fp16 is read as its value, subnormals too."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = np.ascontiguousarray(x[np.isfinite(x)].reshape(1, -1))
    same_histogram(COMPILED.count32(x, None), TWIN.count32(x, None))
    same(COMPILED.absmax(x, 1), np.abs(x.astype(np.float32)))


def test_read_only_inputs(isa):
    """Arrays that may not be written, such as memory maps, are taken."""
    x = matrix_of("fp16", "normal", 3, 4, 100)
    spec = QuantSpec()
    rows, grid = problem_of(x, spec)
    rows = rows.weighed(rows.heaviest)
    for array in (x, rows.scale, rows.weight, grid.lower, grid.scale, grid.offset, grid.levels):
        array.flags.writeable = False
    COMPILED.absmax(x, 32)
    COMPILED.count16(x)
    COMPILED.count32(x, rows)
    codes, clusters, *_ = encoded(COMPILED, x, rows, grid, spec)
    for plane in (codes, clusters):
        plane.flags.writeable = False
    same(COMPILED.unpack(codes, 100, 4), TWIN.unpack(codes, 100, 4))
    COMPILED.pack(codes, 8)
    COMPILED.dequantize(Planes.of(spec, 100, codes, clusters), grid.levels, rows, "bf16")


def test_encode_writes_into_a_slice_of_rows(isa):
    """Planes may be rows of a larger buffer; their neighbours stay as they are."""
    x = matrix_of("bf16", "heavy", 4, 3, 33)
    spec = QuantSpec(bits=3)
    rows, grid = problem_of(x, spec)
    whole = Planes.room(spec, 5, 33, lambda _, nbytes: np.full(nbytes, 77, np.uint8))
    COMPILED.encode(x, rows, grid, Planes.of(spec, 33, whole.codes[1:4], whole.clusters[1:4]))
    expected = encoded(TWIN, x, rows, grid, spec)
    for plane, inside in zip((whole.codes, whole.clusters), expected, strict=False):
        same(plane[1:4], inside)
        assert (plane[[0, 4]] == 77).all()


def test_wrong_arguments_are_refused(isa):
    """What would read or write out of bounds raises instead."""
    x = matrix_of("fp32", "normal", 5, 2, 40)
    grid = problem_of(x, QuantSpec())[1]
    planes = Planes.room(QuantSpec(), 2, 40)
    rows = RowScales(40, np.ones((2, 1), np.float32))
    COMPILED.encode(x, rows, grid, planes)
    costs = SegmentCosts(np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(2), squares=True)
    read_only = planes.codes.copy()
    read_only.flags.writeable = False
    for wrong in (
        lambda: COMPILED.absmax(x.astype(np.float64), 4),
        lambda: COMPILED.absmax(x[0], 4),
        lambda: COMPILED.count16(x),
        lambda: COMPILED.count32(x, RowScales(16 * 2, np.ones((2, 3), np.float32))),
        lambda: COMPILED.count32(x, replace(rows, weight=np.ones((2, 2), np.uint32))),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, codes=planes.codes[:, :19].copy())),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, codes=planes.codes[:, ::-1])),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, codes=planes.codes[:1])),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, codes=read_only)),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, bits=3)),
        lambda: COMPILED.encode(x, rows, grid, replace(planes, cluster_bits=0)),
        lambda: COMPILED.encode(x, rows.of(range(1)), grid, planes),
        lambda: COMPILED.dequantize(replace(planes, cols=41), grid.levels, rows, "fp32"),
        lambda: COMPILED.dequantize(planes, grid.levels[:, :8], rows, "fp32"),
        lambda: COMPILED.unpack(planes.codes, 50, 4),
        lambda: COMPILED.pack(planes.codes, 9),
        lambda: COMPILED.partition(costs, 3),
        lambda: native.set_isa("abacus"),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()


def test_empty_matrices(isa):
    """No rows or no columns is no work."""
    assert COMPILED.absmax(np.empty((0, 5), np.float32), 2).shape == (0, 3)
    assert COMPILED.count16(np.empty((3, 0), np.uint16)).total == 0
    assert COMPILED.count32(np.empty((0, 5), np.float16), None).total == 0
    assert COMPILED.pack(np.empty((2, 0), np.uint8), 4).shape == (2, 0)


def test_threads_give_the_same_bytes(isa):
    """Windows of rows encoded and counted by several threads at once give what one call gives."""
    x = matrix_of("bf16", "heavy", 6, 64, 4096)
    spec = QuantSpec(granularity="group:128")
    rows, grid = problem_of(x, spec)
    whole, counts = encoded(COMPILED, x, rows, grid, spec), COMPILED.count32(x, rows)
    parts = [range(start, start + 4) for start in range(0, 64, 4)]
    with ThreadPoolExecutor(4) as pool:
        pieces = list(pool.map(lambda p: encoded(COMPILED, x[p.start : p.stop], rows.of(p), grid, spec), parts))
        tables = list(pool.map(lambda p: COMPILED.count32(x[p.start : p.stop], rows.of(p)), parts))
    for left, right in zip(whole, map(np.concatenate, zip(*pieces, strict=True)), strict=True):
        same(left, right)
    same(sum(table.count for table in tables), counts.count)
    same(np.minimum.reduce([table.low.min for table in tables]), counts.low.min)


def test_cluster_id_bits_cover_every_count():
    """The ids of k clusters fit the bits that planes give them."""
    assert all(k <= 1 << bits for k, bits in CLUSTER_ID_BITS.items())


@laws
@given(size=st.integers(0, 400), offset=st.integers(0, 20), seed=st.integers(0, 99))
def test_crc32(isa, size, offset, seed):
    """The checksum is that of zlib, for any length and any alignment."""
    data = np.random.default_rng(seed).integers(0, 256, offset + size, np.uint8)[offset:]
    assert COMPILED.crc32(data) == TWIN.crc32(data) == zlib.crc32(data.tobytes())
