"""Planes: names, dtypes, shapes and bytes are known from the spec and the shape alone, and are those that are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.any_spec import specs
from splitquant.core.reference import NumpyKernels
from splitquant.core.rows import pack_row_scale
from splitquant.core.spec import QuantSpec
from splitquant.core.split import level_planes, quantize_array
from splitquant.format.planes import PLANE_NAMES, geometry, plane_key
from splitquant.format.weight import Weight

NUMPY = {"U8": np.uint8, "BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I64": np.int64}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.booleans(),
    specs(granularities=["tensor", "channel", "group:2", "group:5", "group:32"]),
    st.integers(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_planned_planes_are_those_that_are_made(shape, kind, stack, spec, axis, seed):
    """Names, dtypes, shapes and bytes of planes are known before any weight is read."""
    stack = stack and len(shape) == 3
    axis += stack
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape).astype(np.float16 if kind == "fp16" else np.float32)
    if kind == "bf16":
        array = (array.view(np.uint32) >> 16).astype(np.uint16)
    splits = [quantize_array(part, spec, axis - 1) for part in array] if stack else [quantize_array(array, spec, axis)]
    made = {
        "codes": [s.codes for s in splits],
        **{name: [getattr(s, name) for s in splits] for name in level_planes(spec, splits[0])},
    }
    if spec.cluster_bits:
        made["clusters"] = [s.clusters for s in splits]
    if spec.granularity.kind != "tensor":
        made["row_scale"] = [pack_row_scale(s.row_scale, s.row_scale_kind) for s in splits]
    if spec.own_zero_points:
        made["zero_points"] = [NumpyKernels().pack(s.zero, spec.bits) for s in splits]
    made = {name: np.stack(planes) if stack else planes[0] for name, planes in made.items()}
    made["shape"] = np.array(shape, np.int64)
    planned = Weight(shape, axis, spec, kind, stack).planes
    assert {plane.name for plane in planned} == set(made) <= set(PLANE_NAMES)
    for plane in planned:
        assert plane.shape == made[plane.name].shape
        assert NUMPY[plane.dtype] == made[plane.name].dtype
        assert plane.nbytes == made[plane.name].nbytes
    if not stack:
        bits = 8 * sum(plane.nbytes for plane in planned if plane.name != "shape") / array.size
        assert splits[0].bits_per_weight == pytest.approx(bits)


@dataclass(frozen=True)
class Matrices:
    """A tensor, its axis, and the matrices it falls into."""

    shape: tuple[int, ...]
    axis: int
    stack: bool
    count: int
    rows: int
    cols: int


@pytest.mark.parametrize(
    "case",
    [
        Matrices((6, 4), 0, False, 1, 6, 4),
        Matrices((6, 4), 1, False, 1, 4, 6),
        Matrices((8, 3, 5, 5), 0, False, 1, 8, 75),
        Matrices((7, 6, 4), 1, True, 7, 6, 4),
        Matrices((7, 6, 4), 2, True, 7, 4, 6),
    ],
    ids=str,
)
def test_geometry(case):
    """A tensor is one matrix of its channels; a stack is as many as it has experts, and `axis` counts in the whole."""
    found = geometry(case.shape, case.axis, stack=case.stack)
    assert (found.count, found.rows, found.cols) == (case.count, case.rows, case.cols)
    assert found.matrix_shape[found.axis] == case.rows


def test_what_a_plane_is_called_in_a_file():
    assert plane_key("lm_head.weight", "codes") == "lm_head.weight.codes"


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (QuantSpec(), ["codes", "clusters", "scale", "offset", "row_scale", "shape"]),
        (QuantSpec(8, 1), ["codes", "row_scale", "zero_points", "shape"]),
        (QuantSpec(8, 1, zero_points="shared"), ["codes", "scale", "offset", "row_scale", "shape"]),
        (QuantSpec(granularity="tensor"), ["codes", "clusters", "scale", "offset", "shape"]),
        (QuantSpec(3, 1, "lloyd"), ["codes", "levels", "row_scale", "shape"]),
        (QuantSpec(3, 2, "residual"), ["codes", "scale", "offset", "row_scale", "shape"]),
    ],
    ids=str,
)
def test_which_planes_there_are(spec, names):
    """No cluster ids where there is one cluster or every part holds every weight, no row_scale per tensor."""
    assert [plane.name for plane in Weight((64, 32), 0, spec, "bf16").planes] == names
