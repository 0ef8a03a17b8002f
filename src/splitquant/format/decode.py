"""Bytes of a stored tensor as the windows that core takes: bf16 bits, float16 or float32."""

from __future__ import annotations

from functools import cache

import numpy as np

from splitquant.core.arrays import U8, U16, Matrix
from splitquant.format.dtypes import DTYPES


def as_window(raw: U8, dtype: str, rows: int, cols: int) -> Matrix:
    """A `[rows, cols]` window of raw bytes; F64 is rounded to float32, fp8 becomes bf16 (exact)."""
    facts = DTYPES[dtype]
    if not facts.numpy:
        bits: Matrix = _fp8_as_bf16(dtype)[raw].reshape(rows, cols)
        return bits
    window: Matrix = raw.view(facts.numpy).reshape(rows, cols)
    if facts.is_window:
        return window
    with np.errstate(over="ignore"):
        return window.astype(np.float32)


@cache
def _fp8_as_bf16(dtype: str) -> U16:
    """The bf16 bits of all 256 fp8 numbers (Open Compute Project, OFP8: E4M3 has no infinity, one NaN per sign)."""
    exponent_bits, mantissa_bits, bias = {"F8_E4M3": (4, 3, 7), "F8_E5M2": (5, 2, 15)}[dtype]
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    top = exponent == (1 << exponent_bits) - 1
    if dtype == "F8_E4M3":
        values = np.where(top & (mantissa == 7), np.nan, values)
    else:
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    signed = np.where(codes & 0x80, -values, values).astype(np.float32)
    return (signed.view(np.uint32) >> 16).astype(np.uint16)
