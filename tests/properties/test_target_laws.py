"""Laws of targets: what is said stays said, and what comes out can be run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from splitquant.core.strategies import STRATEGIES
from splitquant.errors import SpecError
from splitquant.plan.targets import TARGETS, spec_for

SAID = st.fixed_dictionaries(
    {},
    optional={
        "bits": st.integers(1, 9),
        "clusters": st.integers(1, 9),
        "strategy": st.sampled_from([*STRATEGIES, "best"]),
        "granularity": st.sampled_from(["tensor", "channel", "group:32", "group:100", "row"]),
        "symmetric": st.booleans(),
        "layout": st.sampled_from(["fused", "parallel"]),
    },
)


@given(st.sampled_from(list(TARGETS)), SAID, st.booleans())
def test_a_spec_that_holds_what_was_said_or_an_error(name, said, refit):
    try:
        spec = spec_for(name, refit=refit, **said)
    except SpecError:
        return
    forced = {"residual": "layout", "magnitude": "symmetric"}.get(spec.strategy)  # these decide a field themselves
    for field, value in said.items():
        assert field == forced or getattr(spec, field) == value
    TARGETS[name].refuse(spec)
    assert spec.symmetric or not TARGETS[name].symmetric
    assert spec.zero_in_grid or TARGETS[name].codebook
    assert spec_for(name, **spec.to_dict()) == spec


@given(st.sampled_from(list(TARGETS)), st.booleans())
def test_every_width_of_a_target_has_a_spec(name, refit):
    if refit and TARGETS[name].codebook:
        return
    for bits in TARGETS[name].grids:
        assert spec_for(name, refit=refit, bits=bits).bits == bits
