"""Sums of squares in the order in which vector registers of any width can add them."""

from __future__ import annotations

import numpy as np

from splitquant.core.arrays import F32, F64

LANES = 16  # row errors are summed in 16 interleaved lanes, then over the lanes


def lane_sums(values: F32) -> F64:
    """Per row the float64 sum of squares: 16 interleaved lanes first, then lane 0 to lane 15, each in order.

    Args:
        values: float32 `[rows, cols]`.
    """
    rows, cols = values.shape
    squares = np.zeros((rows, -(-cols // LANES) * LANES))
    np.square(values, out=squares[:, :cols], dtype=np.float64)
    lanes = np.add.reduce(
        squares.reshape(rows, -1, LANES), axis=1
    )  # the lanes are innermost: every one is summed in order
    total = np.zeros(rows)
    for lane in range(LANES):
        total += lanes[:, lane]
    return total
