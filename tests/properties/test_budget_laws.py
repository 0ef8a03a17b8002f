"""The budget's laws, held against every possible choice on small cases."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from splitquant.plan.budget import allocate, hull_budgets, least_bytes
from splitquant.plan.frontier import Point, curve_of

# Whole numbers: the laws are about sizes and sums, and sums of these are exact.
POINTS = st.builds(Point, st.integers(0, 30), st.integers(0, 40).map(float))
TENSORS = st.lists(st.lists(POINTS, min_size=1, max_size=5), min_size=1, max_size=4)


def total(tensors, chosen):
    """Bytes and noise of one point per tensor."""
    points = [points[i] for points, i in zip(tensors, chosen, strict=True)]
    return sum(point.nbytes for point in points), sum(point.noise for point in points)


def planned(tensors, budget):
    """What `allocate` chooses, as indices of the given points."""
    curves = [curve_of(points) for points in tensors]
    return [curve.source[at] for curve, at in zip(curves, allocate(curves, budget), strict=True)]


def every_choice(tensors):
    """All ways to choose a point per tensor."""
    return product(*(range(len(points)) for points in tensors))


def smallest(tensors):
    """The least bytes that the tensors can take."""
    return least_bytes([curve_of(points) for points in tensors])


@given(TENSORS, st.integers(0, 60))
def test_never_over_the_budget_and_no_single_change_is_left(tensors, extra):
    budget = smallest(tensors) + extra
    chosen = planned(tensors, budget)
    nbytes, noise = total(tensors, chosen)
    assert nbytes <= budget
    for tensor, points in enumerate(tensors):
        for other in range(len(points)):
            changed = [*chosen[:tensor], other, *chosen[tensor + 1 :]]
            more, less = total(tensors, changed)
            assert more > budget or less >= noise


@given(TENSORS, st.integers(0, 60))
def test_within_one_step_of_the_best(tensors, extra):
    """The budget less one step of one tensor, spent in the best possible way, gives no less noise."""
    budget = smallest(tensors) + extra
    _, noise = total(tensors, planned(tensors, budget))
    curves = [curve_of(points) for points in tensors]
    step = max(
        (b.nbytes - a.nbytes for curve in curves for a, b in _hull_steps(curve)),
        default=0,
    )
    feasible = [total(tensors, choice) for choice in every_choice(tensors)]
    assert noise <= min((n for size, n in feasible if size <= budget - step), default=noise)


def _hull_steps(curve):
    points = [curve.points[i] for i in curve.hull]
    return list(pairwise(points))


@given(TENSORS, st.integers(0, 60))
def test_optimal_on_hull_budgets(tensors, price):
    """What a price per byte makes the least sum of is optimal for its bytes, and `allocate` finds as little noise."""
    chosen = [min(points, key=lambda p: (p.noise + price / 7 * p.nbytes, p.nbytes)) for points in tensors]
    budget, noise = sum(p.nbytes for p in chosen), sum(p.noise for p in chosen)
    _, found = total(tensors, planned(tensors, budget))
    best = min(n for size, n in (total(tensors, choice) for choice in every_choice(tensors)) if size <= budget)
    assert found == noise == best


@given(TENSORS)
def test_hull_budgets_are_spent_to_the_byte(tensors):
    budgets = hull_budgets([curve_of(points) for points in tensors])
    assert budgets[0] == smallest(tensors)
    found = [total(tensors, planned(tensors, budget)) for budget in budgets]
    assert [nbytes for nbytes, _ in found] == budgets
    assert all(a > b for (_, a), (_, b) in pairwise(found))


@given(TENSORS, st.integers(0, 60), st.integers(0, 30))
def test_monotone(tensors, extra, more):
    budget = smallest(tensors) + extra
    assert total(tensors, planned(tensors, budget + more))[1] <= total(tensors, planned(tensors, budget))[1]


@given(TENSORS, st.integers(0, 60), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(tensors, extra, random):
    budget = smallest(tensors) + extra
    shuffled = [random.sample(points, len(points)) for points in tensors]
    first = [tensors[t][i] for t, i in enumerate(planned(tensors, budget))]
    second = [shuffled[t][i] for t, i in enumerate(planned(shuffled, budget))]
    assert first == second


@given(st.lists(POINTS, min_size=1, max_size=12), st.integers(0, 400))
def test_curve_and_hull(points, price):
    """Nothing beats a point of the curve, and whatever a price chooses is on the hull or as good as a hull point."""
    curve = curve_of(points)
    assert [points[i] for i in curve.source] == list(curve.points)
    for point in curve.points:
        assert not any(p.nbytes <= point.nbytes and p.noise <= point.noise for p in points if p != point)
    cost = [p.noise + price / 9 * p.nbytes for p in points]
    on_hull = [curve.points[i].noise + price / 9 * curve.points[i].nbytes for i in curve.hull]
    assert abs(min(cost) - min(on_hull)) < 1e-9
    assert curve.hull[0] == 0
    assert curve.hull[-1] == len(curve.points) - 1
