"""The kinds of float that weights come in: what is known of each, and the way to float32 and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from splitquant.core.arrays import F32, Matrix
from splitquant.errors import TensorError

Kind = Literal["bf16", "fp16", "fp32"]
LARGEST_MAGNITUDE = 2.0**126  # of a weight: ranges, levels and inverses then stay finite and normal in float32
LARGEST_FP16 = 2.0**15  # of a float16 weight: a level a little beyond it is still finite in float16


@dataclass(frozen=True, slots=True)
class Float:
    """The facts of one kind of float.

    dtype: of a window of weights; bf16, which NumPy lacks, goes by its bits. number: its name in the compiled kernels.
    largest: the largest magnitude that can be quantized.
    """

    dtype: np.dtype[Any]
    number: int
    largest: float = LARGEST_MAGNITUDE


FLOATS: Mapping[Kind, Float] = MappingProxyType(
    {
        "bf16": Float(np.dtype(np.uint16), 0),
        "fp16": Float(np.dtype(np.float16), 1, LARGEST_FP16),
        "fp32": Float(np.dtype(np.float32), 2),
    }
)
_KINDS: Mapping[np.dtype[Any], Kind] = {fact.dtype: kind for kind, fact in FLOATS.items()}


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """The kind of float that a window holds.

    Args:
        dtype: of the window, in the byte order of this machine; uint16 is bf16 by its bits.

    Raises:
        TensorError: for a dtype that no kind has.
    """
    if dtype not in _KINDS:
        raise TensorError(f"dtype is {dtype}; expected uint16 (the bits of bf16), float16, float32")
    return _KINDS[dtype]


def to_float32(x: Matrix) -> F32:
    """The values of a window as float32, exactly.

    Args:
        x: of any shape, in the dtype of a kind; float32 is returned as it is.
    """
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32, copy=False)


def from_float32(values: F32, kind: Kind) -> Matrix:
    """Float32 rounded to nearest even into the dtype of a kind; beyond its range lies infinity.

    Args:
        values: float32 of any shape; returned as they are for `fp32`.
        kind: what to round to.
    """
    if kind == "fp32":
        return values
    if kind == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def refuse_unfit(largest: float, kind: Kind) -> None:
    """Refuse weights that cannot be quantized: see Raises.

    Args:
        largest: the largest magnitude among them, NaN where one of them is NaN.
        kind: what they are stored as.

    Raises:
        TensorError: for NaN, infinity, and magnitudes above 2**126 (fp16: 2**15).
    """
    if not math.isfinite(largest):
        raise TensorError("holds NaN or infinity; such weights cannot be quantized")
    if largest > FLOATS[kind].largest:
        raise TensorError(
            f"holds {largest:.3g}; {kind} magnitudes above {FLOATS[kind].largest:.3g} cannot be quantized"
        )
