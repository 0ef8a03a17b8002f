"""What every candidate would do to a layer: the figures of quantizing it, and of the part that was measured."""

from __future__ import annotations

import numpy as np
import pytest

from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import TensorError
from splitquant.plan.layers import Layer
from splitquant.plan.measured import measured_by

POOL = (
    QuantSpec(4, 1),
    QuantSpec(2),
    None,
    PAPER,
    QuantSpec(3, 2, "residual", "group:16"),
    QuantSpec(3, 1, "lloyd"),
    EMBEDDING,
)
X = np.random.default_rng(3).standard_t(4, (96, 80)).astype(np.float32)
LAYER = Layer("a", "linear", "F32", X.shape, X.nbytes)


def test_figures_are_those_of_quantizing():
    found = measured_by(LAYER, POOL, [X])
    assert found.exact
    assert (found.layer, found.specs) == (LAYER, POOL)
    assert found.noise == tuple(0.0 if s is None else quantize_array(X, s).figures.noise for s in POOL)
    assert found.signal == quantize_array(X, QuantSpec()).figures.signal


def test_matrices_of_a_stack_add_up():
    stack = Layer("a", "expert", "F32", (2, 48, 80), X.nbytes, axis=1, stack=True)
    parts = X.reshape(2, 48, 80)
    found = measured_by(stack, POOL, iter(parts))
    assert found.exact
    for spec, noise in zip(POOL, found.noise, strict=True):
        wanted = 0.0 if spec is None else sum(quantize_array(part, spec).figures.noise for part in parts)
        assert noise == pytest.approx(wanted, rel=1e-12)


def test_a_sample_is_scaled_up():
    whole, half = measured_by(LAYER, POOL, [X]), measured_by(LAYER, POOL, [X[::2]])
    assert not half.exact
    assert half.noise[2] == 0.0
    for spec, one, noise in zip(POOL, half.noise, whole.noise, strict=True):
        assert one == pytest.approx(0.0 if spec is None else 2 * quantize_array(X[::2], spec).figures.noise, rel=1e-12)
        assert one == pytest.approx(noise, rel=0.3)


def test_the_order_of_candidates_does_not_matter():
    found = dict(zip(POOL, measured_by(LAYER, POOL, [X]).noise, strict=True))
    turned = POOL[::-1]
    assert dict(zip(turned, measured_by(LAYER, turned, [X]).noise, strict=True)) == found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value):
    bad = X.copy()
    bad[7, 7] = value
    with pytest.raises(TensorError, match="holds NaN or infinity"):
        measured_by(LAYER, POOL, [bad])
