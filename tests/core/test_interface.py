"""The arguments of kernels as values."""

import numpy as np
import pytest

from splitquant.core.interface import FEW_ROWS, Planes, RowErrors, SegmentCosts, plane_widths
from splitquant.core.spec import QuantSpec


@pytest.mark.parametrize(
    ("spec", "widths"),
    [
        (QuantSpec(4, 4), (4, 2)),
        (QuantSpec(3, 1), (3, 0)),
        (QuantSpec(3, 8), (3, 3)),
        (QuantSpec(3, 2, "residual"), (6, 0)),
        (QuantSpec(4, 4, "lloyd"), (4, 2)),
    ],
    ids=str,
)
def test_room_for_rows(spec, widths):
    """Planes to encode into have the bits of the spec, in the memory that is named after them; no ids, no plane."""
    asked = {}

    def memory(name, nbytes):
        asked[name] = np.empty(nbytes, np.uint8)
        return asked[name]

    planes = Planes.room(spec, 5, 8, memory)
    assert plane_widths(8, spec) == widths
    assert (planes.bits, planes.cluster_bits, planes.cols) == (spec.code_bits, spec.cluster_bits, 8)
    assert planes.codes.shape == (5, widths[0])
    assert np.shares_memory(planes.codes, asked["codes"])
    assert (planes.clusters is None) == (widths[1] == 0) == ("clusters" not in asked)
    if planes.clusters is not None:
        assert planes.clusters.shape == (5, widths[1])


def test_room_is_memory_of_its_own():
    """Without other memory every call has its own."""
    one, other = (Planes.room(QuantSpec(), 2, 8) for _ in range(2))
    assert not np.shares_memory(one.codes, other.codes)


@pytest.mark.parametrize("squares", [True, False])
def test_segment_costs(squares):
    """Of every segment: minus the squared sum over the count, or the count times the squared range."""
    value, count = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 3.0])
    prefix = (np.concatenate([[0.0], np.cumsum(array)]) for array in (count, count * value))
    costs = SegmentCosts(*prefix, value, value, squares)
    found = costs.cost(np.array([0, 1, 0]), np.array([1, 3, 3]))
    assert found.tolist() == ([-2.0, -(14.0**2) / 4, -(16.0**2) / 6] if squares else [0.0, 4 * 4.0, 6 * 9.0])


@pytest.mark.parametrize("rows", [0, 3, FEW_ROWS, FEW_ROWS + 1])
def test_sums_of_rows(rows):
    """Few rows keep their errors; many become a few floats with exactly their sum."""
    signal = np.linspace(0.1, 1.0, rows)
    sums = RowErrors(signal, signal / 3, signal.astype(np.float32)).sums
    assert len(sums.signal) == rows or (rows > FEW_ROWS and len(sums.signal) < 10)
    assert sum(sums.signal) == pytest.approx(signal.sum())
    assert sums.max_error == (1.0 if rows else 0.0)
