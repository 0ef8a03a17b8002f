"""What an ONNX element type is: its name, how many bytes it takes, and which of them are weights that can be split."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from splitquant.core.floats import Kind, from_float32, to_float32
from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES, Dtype

DTYPE_OF: dict[int, Dtype] = {TensorProto.DataType.Value(dtype.onnx): dtype for dtype in DTYPES.values() if dtype.onnx}
KINDS: dict[int, Kind] = {
    data_type: dtype.kind for data_type, dtype in DTYPE_OF.items() if dtype.kind is not None and dtype.is_window
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


def table_name(data_type: int) -> str:
    """What our tables call an element type."""
    return DTYPE_OF[data_type].name if data_type in DTYPE_OF else name_of(data_type)


def name_of(data_type: int) -> str:
    """The name of an element type, or its number where ONNX has none."""
    try:
        return str(TensorProto.DataType.Name(data_type))
    except ValueError:
        return f"element type {data_type}"


def nbytes_of(data_type: int, weights: int) -> int:
    """How many bytes so many elements take; types below 8 bits are packed over the whole tensor."""
    return DTYPE_OF[data_type].nbytes((weights,))


def numpy_of(kind: Kind) -> np.dtype[Any]:
    """The NumPy type in which weights of a kind lie in a file (bf16 as its bits)."""
    return np.dtype(DTYPE_OF_KIND[kind].numpy)


def converted(array: NDArray[Any], target: Kind) -> NDArray[Any]:
    """Weights in another float type, rounded to nearest even; bf16 is uint16 bits on both sides."""
    return array if numpy_of(target) == array.dtype else from_float32(to_float32(array), target)
