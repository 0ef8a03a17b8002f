"""What is said of a spec holds, or is an error."""

from __future__ import annotations

import pytest

from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.explicit import explicit_spec


def test_what_is_said_wins_over_what_is_usual():
    assert explicit_spec({}) == QuantSpec()
    assert explicit_spec({"bits": 2}, **PAPER.to_dict()) == QuantSpec(2, 3, "kmeans", "tensor", layout="parallel")
    assert explicit_spec({"strategy": "residual", "clusters": 0, "polish": None}) == QuantSpec(strategy="residual")
    assert explicit_spec({"strategy": "residual"}, layout="fused").layout == "parallel"


@pytest.mark.parametrize(
    "spec", [QuantSpec(), PAPER, QuantSpec(strategy="residual"), QuantSpec(4, 1, "lloyd")], ids=str
)
def test_a_whole_spec_is_itself(spec):
    assert explicit_spec(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "said",
    [
        {"strategy": "residual", "layout": "fused"},
        {"strategy": "magnitude", "symmetric": False},
        {"strategy": "lloyd", "polish": True},
    ],
    ids=str,
)
def test_what_cannot_be_is_an_error(said):
    with pytest.raises(SpecError, match=r"the strategy \w+ is always \w+ \w+; leave one of them out"):
        explicit_spec(said)
