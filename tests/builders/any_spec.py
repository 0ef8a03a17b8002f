"""Every spec there is, for tests that draw one."""

from __future__ import annotations

from hypothesis import strategies as st

from splitquant.core.spec import QuantSpec
from splitquant.core.strategies import FACTS, LAYOUTS, STRATEGIES

GRANULARITIES = ["tensor", "channel", "group:2", "group:3", "group:8", "group:100"]


def allowed(strategy, fixed) -> bool:
    """Whether a strategy leaves the fixed options as they are."""
    facts = FACTS[strategy]
    if facts.free_levels and (fixed.get("symmetric") or fixed.get("layout") == "parallel" or fixed.get("polish")):
        return False
    forced = {"symmetric": True} if facts.symmetric else {}
    forced |= {"layout": facts.layout} if facts.layout else {}
    return all(fixed.get(name, value) == value for name, value in forced.items())


@st.composite
def specs(draw, strategies=STRATEGIES, granularities=GRANULARITIES, least_clusters=1, **fixed):
    """A spec of one of the strategies, with the fixed options; what a strategy refuses is not drawn."""
    bits = fixed.get("bits") or draw(
        st.integers(2, 8 if least_clusters < 2 or not any(FACTS[name].additive for name in strategies) else 4)
    )
    strategy = draw(st.sampled_from([name for name in strategies if allowed(name, fixed)]))
    most = FACTS[strategy].most_clusters(bits)
    options = {
        "clusters": st.integers(min(least_clusters, most), most),
        "granularity": st.sampled_from(granularities),
        "symmetric": st.booleans(),
        "layout": st.sampled_from(LAYOUTS),
        "polish": st.sampled_from([None, False, True]),
        "zero_points": st.sampled_from([None, "shared"]),
    }
    if FACTS[strategy].free_levels:
        options |= {"symmetric": st.just(False), "layout": st.just("fused"), "polish": st.none()}
    chosen = {name: fixed.get(name, draw(values)) for name, values in options.items()}
    return QuantSpec(bits=bits, strategy=strategy, **chosen)
