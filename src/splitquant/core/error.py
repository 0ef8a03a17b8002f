"""Error figures of a quantized tensor, mergeable over tensors."""

from __future__ import annotations

import math
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
        """The figures of both tensors together."""
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


NO_ERROR = ErrorFigures(0, 0.0, 0.0, 0.0)
