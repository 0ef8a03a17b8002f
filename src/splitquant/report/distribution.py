"""What the values of a tensor look like, where its grids lie among them, and how its errors are distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from splitquant.core.bars import NO_BARS, Bars

Axis = Literal["value", "scaled", "code"]
"""Where levels lie: among the weights, among weights over their row_scale, or among codes (where every row has its own grid)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Values that a cluster holds: from the least to the greatest one that was found in it.

    low, high: on the axis of the levels; cluster: which.
    """

    low: float
    high: float
    cluster: int


@dataclass(frozen=True, slots=True)
class GridPicture:
    """The grids of a quantized matrix and the values that they are for.

    axis: what the numbers are. bars: of the values there. levels: ascending, by cluster; one tuple where there are no clusters.
    segments: ascending; none where there are no clusters, or where they overlap (a value takes the nearest level of any).
    """

    axis: Axis
    bars: Bars
    levels: tuple[tuple[float, ...], ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """One tensor in pictures.

    values: its weights. errors: of the weights, `w_hat - w` (none: it was kept). grid: of its first matrix (None: it was kept).
    matrices: how many it has. not_finite: how many weights are NaN or infinite, which is possible of kept tensors alone.
    """

    values: Bars
    errors: Bars = NO_BARS
    grid: GridPicture | None = None
    matrices: int = 1
    not_finite: int = 0
