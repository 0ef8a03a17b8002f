"""Bars: a histogram that depends on its values alone, however they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from splitquant.core.bars import FINEST, NO_BARS, Bars

numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 1.0, -1.0, 3.4028234663852886e38]),
)
values = arrays(np.float32, st.integers(0, 60), elements=numbers)


def same(one, two):
    """Whether two bars are the same."""
    return (one.first, one.exponent, one.counts.tolist()) == (two.first, two.exponent, two.counts.tolist())


def edges(bars):
    """The edges of the bins."""
    return (np.arange(len(bars.counts) + 1) + bars.first) * bars.width


@given(values)
def test_every_value_is_in_its_bin(x):
    bars = Bars.of(x)
    assert bars.total == x.size
    assert len(bars.counts) <= FINEST
    found = np.searchsorted(edges(bars), x.astype(np.float64), side="right") - 1
    assert np.bincount(found, minlength=len(bars.counts)).tolist() == bars.counts.tolist()


@given(values, st.integers(0, 60), st.randoms(use_true_random=False))
@example(np.array([0.5, 0.25, 1e-30, -3e38], np.float32), 2, __import__("random").Random(0))
def test_portions_and_order_change_nothing(x, cut, chance):
    whole = Bars.of(x)
    mixed = x.copy()
    chance.shuffle(mixed)
    assert same(Bars.of(mixed[:cut]).merge(Bars.of(mixed[cut:])), whole)
    one_by_one = NO_BARS
    for number in x:
        one_by_one = one_by_one.merge(Bars.of(number[None]))
    assert same(one_by_one, whole)


@given(values, st.integers(2, 50))
def test_wider_bins_hold_the_same(x, bins):
    bars = Bars.of(x)
    wide = bars.at_most(bins)
    assert len(wide.counts) <= bins
    assert wide.total == bars.total
    ratio = 2 ** (wide.exponent - bars.exponent)
    for i, count in enumerate(wide.counts):
        first = (wide.first + i) * ratio - bars.first
        assert bars.counts[max(0, first) : max(0, first + ratio)].sum() == count


@given(values, st.floats(0, 1))
def test_the_middle_holds_its_share(x, share):
    bars = Bars.of(x)
    middle = bars.middle(share)
    assert share * bars.total - 1e-9 <= middle.total <= bars.total
    at = middle.first - bars.first
    assert bars.counts[at : at + len(middle.counts)].tolist() == middle.counts.tolist()
    lost = (bars.total - middle.total) - bars.counts[:at].sum()
    assert bars.counts[:at].sum() <= bars.total * (1 - share) / 2
    assert lost <= bars.total * (1 - share) / 2


def test_what_is_not_finite_is_left_out():
    x = np.array([1.0, np.nan, np.inf, -np.inf, 2.0], np.float32)
    assert same(Bars.of(x), Bars.of(x[[0, 4]]))
    assert same(Bars.of(x[1:4]), NO_BARS)


def test_an_example_by_hand():
    """4,097 neighbouring bins of one are too many: they become bins of two."""
    bars = Bars.of(np.array([0, 1, 2, 4096], np.float32))
    assert (bars.first, bars.exponent, len(bars.counts)) == (0, 1, 2049)
    assert bars.counts[[0, 1, 2048]].tolist() == [2, 1, 1]
    assert Bars.of(np.array([0, 1, 2, 4095], np.float32)).exponent == 0


@pytest.mark.parametrize("bins", [2, 128])
def test_zero_is_a_border(bins):
    bars = Bars.of(np.array([-1, 1], np.float32)).at_most(bins)
    assert bars.counts[0] == bars.counts[-1] == 1
    assert bars.first < 0 <= bars.first + len(bars.counts) - 1
