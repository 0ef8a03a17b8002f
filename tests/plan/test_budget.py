"""Curves, the allocation and its work; the laws are in tests/properties/test_budget_laws.py."""

from __future__ import annotations

import random

from splitquant.plan.budget import allocate, least_bytes
from splitquant.plan.frontier import Curve, Point, curve_of


def curve(*points):
    """A curve of (bytes, noise) pairs."""
    return curve_of([Point(nbytes, float(noise)) for nbytes, noise in points])


def test_curve_leaves_out_what_is_beaten():
    found = curve((4, 9), (2, 10), (6, 9), (6, 8), (9, 1), (12, 0), (7, 8))
    assert [(p.nbytes, p.noise) for p in found.points] == [(2, 10), (4, 9), (6, 8), (9, 1), (12, 0)]
    assert found.source == (1, 0, 3, 4, 5)
    assert [found.points[i].nbytes for i in found.hull] == [2, 9, 12]


def test_equal_points_the_first_counts():
    assert curve((3, 1), (3, 1)).source == (0,)


def test_steepest_first_and_then_what_fits():
    steep, flat = curve((1, 100), (3, 10)), curve((1, 50), (2, 30), (4, 20))
    curves = [flat, steep]
    assert least_bytes(curves) == 2
    assert allocate(curves, 2) == [0, 0]
    assert allocate(curves, 3) == [1, 0]  # the steep step does not fit, a flatter one does
    assert allocate(curves, 4) == [0, 1]
    assert allocate(curves, 5) == [1, 1]
    assert allocate(curves, 100) == [2, 1]


def test_a_point_above_the_hull_fills_the_rest():
    assert allocate([curve((0, 10), (4, 9), (10, 0))], 5) == [1]


def test_nothing_is_paid_for_what_counts_nothing():
    assert allocate([curve((1, 0), (5, 0)), curve((1, 4), (3, 1))], 100) == [0, 1]


def test_thousands_of_tensors_take_a_moment(monkeypatch):
    """The work grows with the points, not with their square or with the budget: each move is looked at about once."""
    chance = random.Random(0)
    curves = [
        curve_of([Point(chance.randint(100, 10_000), chance.random() * 10) for _ in range(50)]) for _ in range(3000)
    ]
    moves = []
    original = Curve._move
    monkeypatch.setattr(Curve, "_move", lambda *args: moves.append(args) or original(*args))
    for extra in (0, 100_000, 1_000_000, 10_000_000):
        moves.clear()
        allocate(curves, least_bytes(curves) + extra)
        assert len(moves) <= sum(len(curve.points) for curve in curves)
