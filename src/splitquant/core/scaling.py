"""What the rows of a matrix are divided by, as a value: specs of the same scaling share row_scales and passes."""

from __future__ import annotations

from dataclasses import dataclass

from splitquant.core.granularity import Granularity
from splitquant.core.spec import QuantSpec


@dataclass(frozen=True, slots=True)
class Scaling:
    """How row_scales (and zero_points, where rows have their own) are found.

    granularity: how many weights share one.
    bits: of the codes, where every row or group has a grid of its own (0: none has, and row_scales are the largest |w|).
    fitted: whether these grids are fitted to the values, see `core.own`; else they cover their range.
    """

    granularity: Granularity
    bits: int = 0
    fitted: bool = False

    @classmethod
    def of(cls, spec: QuantSpec) -> Scaling:
        """The scaling of a spec.

        Args:
            spec: how weights are to be quantized.
        """
        if not spec.own_zero_points:
            return cls(spec.granularity)
        return cls(spec.granularity, spec.bits, bool(spec.polish))
