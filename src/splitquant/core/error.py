"""Error figures of a quantized tensor, mergeable over tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """How far quantized weights are from the original ones.

    weights: how many; signal: sum of w**2; noise: sum of (w - w_hat)**2; max_error: largest |w - w_hat|.
    Energies of several tensors add, so the SQNR of a model is that of the merged figures.
    """

    weights: int
    signal: float
    noise: float
    max_error: float

    def merge(self, other: ErrorFigures) -> ErrorFigures:
        """The figures of both tensors together.

        Args:
            other: those of the other tensor.
        """
        return ErrorFigures(
            self.weights + other.weights,
            self.signal + other.signal,
            self.noise + other.noise,
            max(self.max_error, other.max_error),
        )

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio, 10 log10(signal / noise) in dB; inf where nothing was lost."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal > 0.0 else -math.inf

    @property
    def relative(self) -> float:
        """Relative error, the norm of (w - w_hat) over the norm of w; 0 where nothing was lost."""
        if self.noise == 0.0:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class ErrorSums:
    """The errors of some rows, summed without rounding: signal and noise are floats whose exact sum is meant.

    Exists because a tensor may be treated in windows, and its figures must not depend on how it was cut.
    """

    signal: tuple[float, ...]
    noise: tuple[float, ...]
    max_error: float


def exact_sum(values: list[float]) -> tuple[float, ...]:
    """A few floats with exactly the sum of many: the rounded sum, then what rounding lost, and so on.

    Args:
        values: finite, and so are their sums.
    """
    parts: list[float] = []
    while (rounded := math.fsum([*values, *(-part for part in parts)])) != 0.0:
        parts.append(rounded)
    return tuple(parts)


def figures_of(weights: int, sums: Iterable[ErrorSums]) -> ErrorFigures:
    """Error figures from the sums of all rows, correctly rounded.

    Args:
        weights: how many the tensor has.
        sums: those of its rows, in any portions.
    """
    parts = list(sums)
    return ErrorFigures(
        weights,
        math.fsum(value for part in parts for value in part.signal),
        math.fsum(value for part in parts for value in part.noise),
        max((part.max_error for part in parts), default=0.0),
    )


NO_ERROR = ErrorFigures(0, 0.0, 0.0, 0.0)
