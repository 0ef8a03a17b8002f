"""What an ONNX element type is: its name, how many bits it takes, and which of them are weights that can be split."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from splitquant.core.floats import Kind, from_float32, to_float32

BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT64: 64,
    TensorProto.UINT64: 64,
    TensorProto.INT32: 32,
    TensorProto.UINT32: 32,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.BOOL: 8,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.FLOAT8E8M0: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
KINDS: dict[int, Kind] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
DATA_TYPE_OF: dict[Kind, int] = {kind: data_type for data_type, kind in KINDS.items()}
LOW_BIT = frozenset(
    {
        TensorProto.INT2,
        TensorProto.UINT2,
        TensorProto.INT4,
        TensorProto.UINT4,
        TensorProto.INT8,
        TensorProto.UINT8,
    }
)

_NUMPY: dict[Kind, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "bf16": np.dtype("<u2")}


def name_of(data_type: int) -> str:
    """The name of an element type, or its number where ONNX has none."""
    try:
        return str(TensorProto.DataType.Name(data_type))
    except ValueError:
        return f"element type {data_type}"


def nbytes_of(data_type: int, weights: int) -> int:
    """How many bytes so many elements take; types below 8 bits are packed over the whole tensor."""
    return -(-weights * BITS[data_type] // 8)


def numpy_of(kind: Kind) -> np.dtype[Any]:
    """The NumPy type in which weights of a kind lie in a file (bf16 as its bits)."""
    return _NUMPY[kind]


def converted(array: NDArray[Any], target: Kind) -> NDArray[Any]:
    """Weights in another float type, rounded to nearest even; bf16 is uint16 bits on both sides."""
    return array if numpy_of(target) == array.dtype else from_float32(to_float32(array), target)
