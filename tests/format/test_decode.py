"""Raw bytes become the numbers that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from splitquant.format.decode import as_window
from splitquant.format.dtypes import DTYPES


def fp8(code, exponent_bits, bias):
    """The value of one fp8 number by the text of the standard, in Python floats."""
    mantissa_bits = 7 - exponent_bits
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    if exponent_bits == 4 and code & 0x7F == 0x7F:
        return math.nan
    if exponent_bits == 5 and exponent == 31:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)


@pytest.mark.parametrize(("dtype", "exponent_bits", "bias"), [("F8_E4M3", 4, 7), ("F8_E5M2", 5, 15)])
def test_every_fp8_number(dtype, exponent_bits, bias):
    """All 256 fp8 numbers become bf16 exactly, sign of zero included."""
    bits = as_window(np.arange(256, dtype=np.uint8), dtype, 16, 16)
    assert bits.dtype == np.uint16
    values = (bits.astype(np.uint32) << 16).view(np.float32).reshape(-1)
    expected = np.array([fp8(code, exponent_bits, bias) for code in range(256)], np.float32)
    np.testing.assert_array_equal(values, expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.signbit(values[finite]), np.signbit(expected[finite]))
    assert np.isnan(values).sum() == (2 if dtype == "F8_E4M3" else 6)
    assert values[finite].max() == (448 if dtype == "F8_E4M3" else 57344)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_fp8_agrees_with_ml_dtypes(dtype):
    """The table is that of an independent implementation, bit for bit."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.float8_e4m3fn if dtype == "F8_E4M3" else ml_dtypes.float8_e5m2
    with np.errstate(invalid="ignore"):
        expected = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    values = (as_window(np.arange(256, dtype=np.uint8), dtype, 1, 256).astype(np.uint32) << 16).view(np.float32)[0]
    np.testing.assert_array_equal(values, expected)


def test_doubles_are_rounded_once():
    """F64 is rounded to the nearest float32; what is beyond becomes infinity (and is refused later)."""
    values = np.array([1 + 2**-24, 1 + 2**-23, 1e-46, -1e300], np.float64)
    window = as_window(values.view(np.uint8), "F64", 2, 2)
    assert window.dtype == np.float32
    assert window.tolist() == [[1.0, 1 + 2**-23], [0.0, -math.inf]]


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", np.uint16), ("F16", np.float16), ("F32", np.float32)])
def test_other_floats_are_not_copied(dtype, kind):
    """A window of bf16, fp16 or fp32 is a view of the bytes that were read."""
    data = np.arange(6 * np.dtype(kind).itemsize, dtype=np.uint8)
    window = as_window(data, dtype, 2, 3)
    assert window.dtype == kind
    assert np.shares_memory(window, data)
    assert window.tobytes() == data.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_window_bytes_are_those_of_the_arrays(dtype):
    """The memory that a weight is said to take is what its raw bytes and its window take."""
    width = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}.get(dtype, 1)
    data = np.zeros(12 * width, np.uint8)
    window = as_window(data, dtype, 3, 4)
    assert 12 * DTYPES[dtype].window_bytes == data.nbytes + (0 if np.shares_memory(window, data) else window.nbytes)
