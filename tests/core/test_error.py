"""Error figures: what they mean, and that they add."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.core.error import NO_ERROR, ErrorFigures, exact_sum

FIGURES = st.builds(
    ErrorFigures,
    weights=st.integers(0, 10**9),
    signal=st.integers(0, 2**40).map(float),
    noise=st.integers(0, 2**40).map(float),
    max_error=st.floats(0, 1e6),
)


@settings(max_examples=100, deadline=None)
@given(FIGURES, FIGURES, FIGURES)
def test_merge_is_associative_and_commutative(a, b, c):
    """Merging in any order and grouping gives the same figures (integers here, so that sums are exact)."""
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@settings(max_examples=50, deadline=None)
@given(FIGURES)
def test_no_error_is_neutral(figures):
    """Merging with nothing changes nothing."""
    assert figures.merge(NO_ERROR) == figures
    assert NO_ERROR.merge(figures) == figures


def test_sqnr_and_relative_by_hand():
    """100 to 1 in energy is 20 dB and a relative error of a tenth."""
    figures = ErrorFigures(7, signal=100.0, noise=1.0, max_error=0.5)
    assert figures.sqnr_db == pytest.approx(20.0)
    assert figures.relative == pytest.approx(0.1)


def test_merged_sqnr_is_that_of_the_energies():
    """The SQNR of a model is not the mean of its tensors' SQNRs."""
    merged = ErrorFigures(1, 100.0, 1.0, 0.5).merge(ErrorFigures(3, 900.0, 9.0, 0.25))
    assert merged == ErrorFigures(4, 1000.0, 10.0, 0.5)
    assert merged.sqnr_db == pytest.approx(20.0)


def test_nothing_lost():
    """Without noise the SQNR is infinite and the relative error 0, also for zeros."""
    for figures in (ErrorFigures(3, 5.0, 0.0, 0.0), ErrorFigures(3, 0.0, 0.0, 0.0), NO_ERROR):
        assert figures.sqnr_db == math.inf
        assert figures.relative == 0.0


def test_noise_without_signal():
    """Noise over nothing is infinitely bad, and no division by zero."""
    figures = ErrorFigures(3, 0.0, 1.0, 1.0)
    assert figures.sqnr_db == -math.inf
    assert figures.relative == math.inf


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_relative_and_sqnr_agree(signal, noise):
    """sqnr_db is -20 log10(relative)."""
    figures = ErrorFigures(1, signal, noise, 0.0)
    assert figures.sqnr_db == pytest.approx(-20.0 * math.log10(figures.relative), abs=1e-9)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1e30), max_size=30), st.integers(0, 30))
def test_sums_do_not_depend_on_the_cut(values, cut):
    """The sum of a list is the sum of its parts' sums, to the last bit, however it is cut."""
    parts = [*exact_sum(values[:cut]), *exact_sum(values[cut:])]
    assert math.fsum(parts) == math.fsum(values)
    assert math.fsum([*values, *(-part for part in exact_sum(values))]) == 0
