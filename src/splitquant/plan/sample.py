"""Which rows of a tensor are measured for a plan.

A tensor of up to `SAMPLE_WEIGHTS` weights is measured whole, and the figures are those of the real run. Of a larger one a
fixed sample is measured, whole rows spread evenly over it (and over the matrices of a stack), and the noise is scaled up: in
seconds for a billion weights. The sample depends on the shape alone, so plans are reproducible on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitquant.format.planes import Geometry

SAMPLE_WEIGHTS = 1 << 20
_MATRICES = 8  # of a stack that is sampled
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sample:
    """The rows of one matrix of a tensor that are measured."""

    matrix: int
    rows: I64


def sample_of(g: Geometry) -> list[Sample]:
    """Which rows of which matrices of a tensor are measured: all of a small one, else an even spread."""
    if g.count * g.rows * g.cols <= SAMPLE_WEIGHTS:
        return [Sample(matrix, np.arange(g.rows)) for matrix in range(g.count)]
    matrices = min(g.count, _MATRICES)
    rows = min(g.rows, max(1, SAMPLE_WEIGHTS // (matrices * g.cols)))
    return [Sample(int(matrix), _spread(g.rows, rows)) for matrix in _spread(g.count, matrices)]


def _spread(length: int, count: int) -> I64:
    """The middles of `count` equal stretches of `length` places."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * length // (2 * count)
