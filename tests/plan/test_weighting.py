"""What errors count."""

from __future__ import annotations

import math

import pytest

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.layers import Layer
from splitquant.plan.measured import Measured
from splitquant.plan.weighting import importances


def measured(name, signal, **more):
    """A layer that was measured."""
    return Measured(Layer(name, "linear", "BF16", (8, 8), 128, **more), (QuantSpec(), None), (1.0, 0.0), signal)


THREE = (measured("a.q.weight", 4.0), measured("a.up.weight", 2.0), measured("b.up.weight", 0.0))


def test_energy_and_relative():
    assert importances(THREE, "energy") == [1.0, 1.0, 1.0]
    assert importances(THREE, "relative") == [0.25, 0.5, 0.0]


def test_numbers_a_name_wins_then_the_first_pattern():
    assert importances(THREE, {"*.up.*": 2, "a.*": 8, "b.up.weight": 0}) == [1.0, 0.25, 0.0]
    assert importances(THREE, {"b.*": 2}) == [0.5, 0.5, 1.0]


def test_names_that_look_like_globs_and_other_names():
    two = (measured("layers[0].weight", 1.0), measured("layers[1].weight", 1.0, aliases=("fc",)))
    assert importances(two, {"layers*": 8, "layers[0].weight": 4}) == [0.5, 1.0]  # its name comes before any glob
    assert importances(two, {"fc": 4}) == [0.25, 1.0]


@pytest.mark.parametrize("number", [-1, math.nan, math.inf, "2", None, True])
def test_no_number(number):
    with pytest.raises(SpecError, match=r"the weighting of 'a\.\*' is"):
        importances(THREE, {"a.*": number})


def test_names_nothing():
    with pytest.raises(SpecError, match=r"names 'c\.\*', which is none of the 3 tensors"):
        importances(THREE, {"c.*": 1})
    with pytest.raises(SpecError, match="weighting is 'loud'"):
        importances(THREE, "loud")


@pytest.mark.parametrize("number", [10**400, 1e308, 1e-320])
def test_numbers_have_bounds(number):
    """Beyond them products with the noise would overflow, or be 0."""
    with pytest.raises(SpecError, match=r"the weighting of '\*' is .*; expected 0, or a number from 1e-30 to 1e\+30"):
        importances(THREE, {"*": number})


@pytest.mark.parametrize("factor", [1e-30, 3, 10**29, 1e30])
def test_a_common_factor_changes_nothing(factor):
    assert importances(THREE, {"*": factor}) == importances(THREE, {"*": 1}) == [1.0, 1.0, 1.0]
