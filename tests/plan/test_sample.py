"""Which rows of a tensor are measured: known from its shape alone."""

from __future__ import annotations

from splitquant.format.planes import Geometry
from splitquant.plan import sample
from splitquant.plan.sample import sample_of


def test_a_sample_is_whole_rows_evenly_spread(monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE_WEIGHTS", 100)
    (one,) = sample_of(Geometry(1, 50, 10, (50, 10), 0))
    assert (one.matrix, one.rows.tolist()) == (0, [2, 7, 12, 17, 22, 27, 32, 37, 42, 47])
    many = sample_of(Geometry(16, 50, 10, (50, 10), 0))
    assert [each.matrix for each in many] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert {tuple(each.rows.tolist()) for each in many} == {(25,)}
    (wide,) = sample_of(Geometry(1, 2, 1000, (2, 1000), 0))
    assert wide.rows.tolist() == [1]


def test_a_small_tensor_is_measured_whole():
    found = sample_of(Geometry(3, 50, 10, (50, 10), 0))
    assert [(each.matrix, each.rows.tolist()) for each in found] == [(i, list(range(50))) for i in range(3)]
