"""Figures with errors: known values, and what correlation does to them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitquant.evaluate.statistics import Estimate, mcnemar, mean, mean_along_text


def test_mean():
    """The sample's standard error: sqrt(sum (x - m)^2 / (n - 1) / n)."""
    assert mean([1, 2, 3, 4]) == Estimate(2.5, pytest.approx(math.sqrt(5 / 3 / 4)))


def test_shares_have_the_error_of_lm_eval():
    """For right and wrong that is sqrt(p (1 - p) / (n - 1))."""
    assert mean([True] * 60 + [False] * 40).error == pytest.approx(math.sqrt(0.6 * 0.4 / 99))


@pytest.mark.parametrize("values", [[], [3.0]])
def test_too_few(values):
    """One value has no error; none has no mean; JSON says null."""
    found = mean(values)
    assert math.isnan(found.error)
    assert found.to_dict()["error"] is None


def test_neighbours_count_as_one():
    """Values that repeat 64 times carry a 64th of the information: the error is eight times the naive one."""
    values = np.repeat(np.random.default_rng(0).standard_normal(200), 64)
    found = mean_along_text(values)
    assert found.value == pytest.approx(values.mean())
    assert found.error / mean(values).error == pytest.approx(8, rel=0.01)


def test_short_texts_are_taken_one_by_one():
    """Below 1,024 positions there are too few means of 64."""
    values = np.random.default_rng(1).standard_normal(1023)
    assert mean_along_text(values) == mean(values)


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(0, 0, 1.0), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (5, 5, 1.0), (0, 6, 2 / 64), (40, 40, 1.0)],
)
def test_mcnemar(lost, won, p):
    """The exact binomial p, two-sided."""
    assert mcnemar(lost, won) == pytest.approx(p)


def test_mcnemar_of_many():
    """Thousands of changed answers do not overflow."""
    assert 0 < mcnemar(4000, 5000) < 1e-20
