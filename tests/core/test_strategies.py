"""The table of strategies: what it says is what specs and solvers do."""

import pytest

from splitquant.core.solve import SOLVERS
from splitquant.core.spec import QuantSpec
from splitquant.core.strategies import FACTS, LAYOUTS, STRATEGIES, Facts, facts_of
from splitquant.errors import SpecError


def test_every_strategy_is_in_both_tables():
    """Each has its facts and its solver, and nobody can change them."""
    assert tuple(FACTS) == tuple(SOLVERS) == STRATEGIES
    with pytest.raises(TypeError):
        FACTS["lloyd"] = Facts()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_most_clusters(strategy, bits):
    """As many as the facts say are taken, one more is refused with the reason."""
    most = FACTS[strategy].most_clusters(bits)
    assert QuantSpec(bits, most, strategy).clusters == most
    said = FACTS[strategy].limit if most < 8 else "expected 1 to 8"
    with pytest.raises(SpecError, match=said.replace("*", r"\*")):
        QuantSpec(bits, most + 1, strategy)


@pytest.mark.parametrize("strategy", ["residual", "lloyd"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_default_clusters_are_allowed(strategy, bits):
    """For every width there is a default that the strategy takes."""
    spec = QuantSpec(bits=bits, strategy=strategy)
    assert spec.clusters == (max(1, min(2, 8 // bits)) if strategy == "residual" else min(4, 256 >> bits))
    assert spec.code_bits <= 8


def test_strategies_fix_what_they_need():
    """Shells are symmetric and residual parts parallel, whatever was said."""
    assert QuantSpec(strategy="magnitude", symmetric=False).symmetric
    assert QuantSpec(strategy="residual", layout="fused").layout == "parallel"
    assert (QuantSpec(3, 2, "residual").code_bits, QuantSpec(3, 2, "residual").cluster_bits) == (6, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_specs_follow_the_facts(strategy, layout):
    """What a spec decides for itself is what its facts say."""
    facts = FACTS[strategy]
    if facts.free_levels and layout == "parallel":
        with pytest.raises(SpecError, match=f"{strategy} with a parallel layout or symmetric grids"):
            QuantSpec(strategy=strategy, layout=layout)
        return
    spec = QuantSpec(2, strategy=strategy, layout=layout)
    assert spec.facts is facts
    assert spec.layout == (facts.layout or layout)
    assert spec.symmetric == facts.symmetric
    assert spec.polish == facts.polished
    assert spec.clusters == (facts.fused if spec.layout == "fused" else facts.parallel)
    assert (spec.cluster_bits == 0) == facts.additive


def test_facts_of_what_somebody_said():
    """A name gives its facts; what is no name, which specs refuse, those that no strategy changed."""
    assert facts_of("residual") is FACTS["residual"]
    assert facts_of("random") == facts_of(None) == facts_of(["lloyd"]) == Facts()
