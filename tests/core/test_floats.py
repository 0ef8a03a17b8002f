"""The kinds of float: their table, their way to float32 and back, and what is refused."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from splitquant.core.floats import (
    FLOATS,
    LARGEST_FP16,
    LARGEST_MAGNITUDE,
    Kind,
    from_float32,
    kind_of,
    refuse_unfit,
    to_float32,
)
from splitquant.errors import TensorError


def test_every_kind_is_in_the_table():
    """Each has its dtype, which says what it is, and its own number in the compiled kernels."""
    assert tuple(FLOATS) == get_args(Kind)
    assert [kind_of(fact.dtype) for fact in FLOATS.values()] == list(FLOATS)
    assert sorted(fact.number for fact in FLOATS.values()) == [0, 1, 2]


@dataclass(frozen=True)
class Dtype:
    """A dtype that is no kind of float here, and how the message names it."""

    dtype: Any
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Dtype(np.int8, "dtype is int8; expected uint16"),
        Dtype(np.float64, "dtype is float64"),
        Dtype(np.bool_, "dtype is bool"),
        Dtype(">f4", "dtype is >f4"),
        Dtype(">u2", "dtype is >u2"),
    ],
    ids=lambda case: str(case.dtype),
)
def test_other_dtypes_are_refused(case):
    """So is another byte order, which would be taken for other numbers."""
    with pytest.raises(TensorError, match=case.message):
        kind_of(np.dtype(case.dtype))


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_every_pattern_of_16_bits_comes_back(kind):
    """LAW: to float32 and back is the same number, NaN aside."""
    x = np.arange(1 << 16, dtype=np.uint16).view(FLOATS[kind].dtype)
    values = to_float32(x)
    assert values.dtype == np.float32
    number = ~np.isnan(values)
    assert np.array_equal(from_float32(values, kind)[number], x[number])


def test_float32_stays_as_it_is():
    """Nothing is copied where there is nothing to do."""
    x = np.array([1.5], np.float32)
    assert to_float32(x) is x
    assert from_float32(x, "fp32") is x


def test_rounding_is_to_even():
    """Halfway between two bf16 numbers the even one is taken; beyond the range lies infinity."""
    values = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF], np.uint32).view(np.float32)
    assert from_float32(values, "bf16").tolist() == [0x3F80, 0x3F82, 0x7F80]
    assert from_float32(np.array([1e6], np.float32), "fp16").tolist() == [np.inf]


@pytest.mark.parametrize(("kind", "largest"), [("bf16", LARGEST_MAGNITUDE), ("fp32", 2.0**126), ("fp16", LARGEST_FP16)])
def test_the_largest_magnitude(kind, largest):
    """The largest is taken, what is above it, infinity and NaN are refused with the reason."""
    refuse_unfit(largest, kind)
    with pytest.raises(TensorError, match=f"holds .*; {kind} magnitudes above"):
        refuse_unfit(np.nextafter(largest, np.inf), kind)
    for value in (np.inf, np.nan):
        with pytest.raises(TensorError, match="holds NaN or infinity"):
            refuse_unfit(value, kind)
