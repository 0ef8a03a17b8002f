"""The array types of this project, by dtype; shapes and units stand in the docstrings of what takes and gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Matrix = NDArray[Any]
"""A C-contiguous 2-D window of rows: uint16 is bf16 by its bits, float16 is fp16, float32 is fp32."""
