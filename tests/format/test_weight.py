"""A stored weight: one value that says how its planes are to be read."""

from __future__ import annotations

import pytest

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.format.planes import Plane
from splitquant.format.weight import Weight

WEIGHT = Weight((6, 256, 128), 1, QuantSpec(), "bf16", stack=True)


def test_what_follows_from_its_fields():
    assert WEIGHT.weights == 6 * 256 * 128
    assert (WEIGHT.geometry.count, WEIGHT.geometry.rows, WEIGHT.geometry.cols) == (6, 256, 128)
    assert WEIGHT.planes == (
        Plane("codes", "U8", (6, 256, 64), "row"),
        Plane("clusters", "U8", (6, 256, 32), "row"),
        Plane("scale", "F32", (6, 4), "matrix"),
        Plane("offset", "F32", (6, 4), "matrix"),
        Plane("row_scale", "BF16", (6, 256, 1), "row"),
        Plane("shape", "I64", (3,), "tensor"),
    )
    assert WEIGHT.nbytes == sum(plane.nbytes for plane in WEIGHT.planes)
    assert Weight((6, 256, 128), 1, QuantSpec(), "bf16", stack=True) == WEIGHT


def test_what_its_planes_are_called():
    assert [name for name, _, _ in WEIGHT.stored("a.experts")] == [
        f"a.experts.{plane}" for plane in ("codes", "clusters", "scale", "offset", "row_scale", "shape")
    ]
    assert "a.clusters" not in [name for name, _, _ in Weight((8, 8), 0, EMBEDDING, "fp32").stored("a")]
    dtypes = {name: (dtype, shape) for name, dtype, shape in WEIGHT.stored("a")}
    assert dtypes["a.codes"] == ("U8", (6, 256, 64))
    assert dtypes["a.shape"] == ("I64", (3,))


@pytest.mark.parametrize(
    ("granularity", "kind", "scales"),
    [
        ("channel", "bf16", "bf16"),
        ("channel", "fp16", "fp16"),
        ("group:16", "fp32", "bf16"),
        ("channel", "fp32", "fp32"),
    ],
)
def test_the_float_of_its_row_scales(granularity, kind, scales):
    """It is the one that is stored."""
    weight = Weight((8, 64), 0, QuantSpec(granularity=granularity), kind)
    stored = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}[weight.scale_kind]
    assert [plane.dtype for plane in weight.planes if plane.name == "row_scale"] == [stored]
    assert weight.scale_kind == scales
