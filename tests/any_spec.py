"""Every spec there is, for tests that draw one."""

from __future__ import annotations

from hypothesis import strategies as st

from splitquant.core.spec import LAYOUTS, MAX_CODE_BITS, MAX_FREE_LEVELS, STRATEGIES, QuantSpec

GRANULARITIES = ["tensor", "channel", "group:2", "group:3", "group:8", "group:100"]


def allowed(strategy, fixed) -> bool:
    """Whether a strategy leaves the fixed options as they are."""
    if strategy == "magnitude":
        return fixed.get("symmetric", True)
    if strategy == "residual":
        return fixed.get("layout") != "fused"
    return strategy != "lloyd" or not (
        fixed.get("symmetric") or fixed.get("layout") == "parallel" or fixed.get("polish")
    )


@st.composite
def specs(draw, strategies=STRATEGIES, granularities=GRANULARITIES, least_clusters=1, **fixed):
    """A spec of one of the strategies, with the fixed options; what a strategy refuses is not drawn."""
    bits = fixed.get("bits") or draw(st.integers(2, 8 if least_clusters < 2 or "residual" not in strategies else 4))
    strategy = draw(st.sampled_from([name for name in strategies if allowed(name, fixed)]))
    most = 8
    if strategy == "residual":
        most = MAX_CODE_BITS // bits
    elif strategy == "lloyd":
        most = min(8, MAX_FREE_LEVELS >> bits)
    options = {
        "clusters": st.integers(min(least_clusters, most), most),
        "granularity": st.sampled_from(granularities),
        "symmetric": st.booleans(),
        "layout": st.sampled_from(LAYOUTS),
        "polish": st.sampled_from([None, False, True]),
    }
    if strategy == "lloyd":
        options |= {"symmetric": st.just(False), "layout": st.just("fused"), "polish": st.none()}
    chosen = {name: fixed.get(name, draw(values)) for name, values in options.items()}
    return QuantSpec(bits=bits, strategy=strategy, **chosen)
