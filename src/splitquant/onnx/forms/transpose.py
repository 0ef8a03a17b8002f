"""Transposing a large matrix in tiles that fit the nearest cache: several times faster than NumPy's own order of copying."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitquant.core.kernels import kernels


def transposed(x: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """`x.T` of a 2-D array as a C-contiguous array; in `out` where one of that shape is given."""
    if out is None:
        out = np.empty(x.shape[::-1], x.dtype)
    if x.strides[1] == x.itemsize and x.strides[0] > 0:
        kernels().transpose(x, out)
    else:
        out[:] = x.T
    return out
