"""The kernels that parts are written with: every instruction set gives the bytes of the NumPy twin, and what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitquant.core.interface import Parts, Planes, plane_width
from splitquant.core.reference import NumpyKernels

native = pytest.importorskip(
    "splitquant._native",
    reason="splitquant._native was not built; install with a C++20 compiler at hand",
    exc_type=ImportError,
)
from splitquant.core.native import NativeKernels  # noqa: E402 - only where the module is there

TWIN = NumpyKernels()
COMPILED = NativeKernels()
laws = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def parts(draw):
    """Codes and cluster ids of a few rows, with the zero_point and the base of every part."""
    bits, out_bits, k = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    rows, cols = draw(st.integers(0, 4)), draw(st.one_of(st.integers(0, 70), st.integers(500, 1100)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    code = rng.integers(0, 1 << bits, (rows, cols), np.uint8)
    cluster = None if k == 1 and draw(st.booleans()) else rng.integers(0, k, (rows, cols), np.uint8)
    zero, base = (rng.integers(0, 1 << bits, k).astype(np.uint8) for bits in (bits, out_bits))
    return bits, code, cluster, zero, base, out_bits, cols + draw(st.sampled_from([0, 1, 7, 64, 600]))


@laws
@given(parts())
def test_part_planes(isa, given_parts):
    """Every part has its own codes moved to its base, and its base elsewhere and behind the row."""
    bits, code, cluster, zero, base, out_bits, width = given_parts
    cols, id_bits = code.shape[1], 4
    clusters = None if cluster is None else TWIN.pack(cluster, id_bits)
    whole = Planes(TWIN.pack(code, bits), bits, clusters, id_bits, cols)
    planes, twins = (np.empty((len(zero), len(code), plane_width(width, out_bits)), np.uint8) for _ in range(2))
    for kernels, out in ((COMPILED, planes), (TWIN, twins)):
        kernels.part_planes(whole, Parts(out, out_bits, width, zero, base))
    assert planes.tobytes() == twins.tobytes()
    for c, plane in enumerate(planes):
        values = TWIN.unpack(plane, width, out_bits)
        held = np.ones(code.shape, bool) if cluster is None else cluster == c
        moved = (code.astype(int) - int(zero[c]) + int(base[c])) % (1 << out_bits)
        assert (values[:, :cols] == np.where(held, moved, base[c])).all()
        assert (values[:, cols:] == base[c]).all()


@laws
@given(
    rows=st.integers(0, 150),
    cols=st.integers(0, 150),
    word=st.sampled_from([1, 2, 4]),
    skipped=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_transpose(isa, rows, cols, word, skipped, seed):
    """The transpose, of a slice of columns too."""
    values = np.random.default_rng(seed).integers(0, 256, (rows, (cols + skipped) * word), np.uint8)
    x = values.view(f"u{word}")[:, skipped:]
    for kernels in (COMPILED, TWIN):
        out = np.empty((cols, rows), x.dtype)
        kernels.transpose(x, out)
        assert (out == x.T).all()


def test_wrong_arguments_are_refused(isa):
    """What would read or write out of bounds raises instead."""
    codes, one, out = np.zeros((2, 3), np.uint8), np.zeros(1, np.uint8), np.zeros((1, 2, 3), np.uint8)
    planes, parts = Planes(codes, 4, None, 0, 5), Parts(out, 4, 5, one, one)
    COMPILED.part_planes(planes, parts)
    x = np.zeros((3, 4), np.uint32)
    for wrong in (
        lambda: COMPILED.part_planes(replace(planes, clusters=codes[:1], cluster_bits=4), parts),
        lambda: COMPILED.part_planes(replace(planes, clusters=codes), parts),
        lambda: COMPILED.part_planes(planes, replace(parts, base=np.zeros(2, np.uint8))),
        lambda: COMPILED.part_planes(replace(planes, cols=9), replace(parts, cols=9)),
        lambda: COMPILED.part_planes(planes, replace(parts, cols=4)),
        lambda: COMPILED.part_planes(planes, replace(parts, bits=9)),
        lambda: COMPILED.part_planes(planes, replace(parts, cols=8)),
        lambda: COMPILED.part_planes(planes, replace(parts, out=out[:, ::-1])),
        lambda: COMPILED.transpose(x, np.zeros((3, 4), np.uint32)),
        lambda: COMPILED.transpose(x.T, np.zeros((3, 4), np.uint32)),
        lambda: COMPILED.transpose(x[::-1], np.zeros((4, 3), np.uint32)),
        lambda: COMPILED.transpose(x, np.zeros((4, 3), np.uint16)),
        lambda: COMPILED.transpose(x.astype(np.uint64), np.zeros((4, 3), np.uint64)),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
