"""What errors count."""

from __future__ import annotations

import math

import pytest

from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.candidates import Options
from splitquant.plan.plan import TensorPlan
from splitquant.plan.roles import Role
from splitquant.plan.weighting import importances


def options(name, signal):
    tensor = TensorPlan(name, "BF16", (8, 8), 128, Role("linear"), QuantSpec(), "")
    return Options(tensor, (QuantSpec(), None), (1.0, 0.0), signal)


THREE = (options("a.q.weight", 4.0), options("a.up.weight", 2.0), options("b.up.weight", 0.0))


def test_energy_and_relative():
    assert importances(THREE, "energy") == [1.0, 1.0, 1.0]
    assert importances(THREE, "relative") == [0.25, 0.5, 0.0]


def test_numbers_a_name_wins_then_the_first_pattern():
    assert importances(THREE, {"*.up.*": 2, "a.*": 8, "b.up.weight": 0}) == [1.0, 0.25, 0.0]
    assert importances(THREE, {"b.*": 2}) == [0.5, 0.5, 1.0]


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
