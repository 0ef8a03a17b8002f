"""Rows of weights of every form, for tests that draw them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def values_of(form, rng, n):
    """Weights of a named form."""
    x = rng.standard_normal(n)
    return {
        "normal": lambda: x,
        "heavy": lambda: rng.standard_t(2, n).clip(-1000, 1000),
        "outlier": lambda: np.where(np.arange(n) == n // 2, 50.0, x),
        "positive": lambda: np.abs(x) + 0.1,
        "integers": lambda: rng.integers(-20, 21, n).astype(np.float64),
        "few": lambda: rng.choice([-1.5, -0.25, 0.0, 0.75], n),
        "constant": lambda: np.full(n, 0.3),
        "offset": lambda: 100 + 0.01 * x,
        "tiny": lambda: x * 1e-6,
        "zeros": lambda: np.where(rng.random(n) < 0.8, 0.0, x),
    }[form]()


FORMS = ("normal", "heavy", "outlier", "positive", "integers", "few", "constant", "offset", "tiny", "zeros")


@st.composite
def tensors(draw, dtypes=("bf16", "fp16", "fp32")):
    """One row of weights in one of the dtypes."""
    form, n = draw(st.sampled_from(FORMS)), draw(st.one_of(st.integers(1, 40), st.integers(200, 1500)))
    x = values_of(form, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), n).astype(np.float32).reshape(1, -1)
    dtype = draw(st.sampled_from(dtypes))
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16) if dtype == "fp16" else x


def float64_of(x):
    """The weights, exactly."""
    return (
        (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if x.dtype == np.uint16
        else x.astype(np.float64)
    )
